// Opened from a disk (file:), a page may start no worker, and the theme's search is one. Here its script runs in a hidden frame
// instead. Loaded by the theme before its own script (extra.polyfills in mkdocs.yml); elsewhere it changes nothing.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = `<script>postMessage = (message) => parent.postMessage(message, "*")</script><script src="${url}"></script>`;
      // What is posted before the frame has its script waits for it.
      this.loaded = new Promise((resolve) => frame.addEventListener("load", resolve, { once: true }));
      this.frame = frame;
      addEventListener("message", (event) => {
        if (event.source === frame.contentWindow) this.dispatchEvent(new MessageEvent("message", { data: event.data }));
      });
      document.body.appendChild(frame);
    }
    postMessage(message) {
      // The frame's own postMessage is the worker's way back.
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: message })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
