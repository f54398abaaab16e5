// Asking for a reason before something changes. The browser's own <dialog>: focus stays inside, Escape closes.
import { h } from "./dom.js";

/**
 * Ask, then `act(reason)`; a failure of `act` is shown in place and can be tried again. Resolves to whether it was done.
 * choice: {title, text, verb, danger}.
 */
export function confirmWithReason({ title, text, verb, danger }, act) {
  return new Promise((resolve) => {
    const reason = h("input", { id: "reason", name: "reason", required: true, maxlength: "256", autocomplete: "off", placeholder: "e.g. what does L1 save on Fridays?" });
    const problem = h("p", { class: "problem", role: "alert" });
    const confirm = h("button", { type: "submit", class: `button ${danger ? "danger" : "primary"}` }, verb);
    const cancel = h("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Cancel");
    let done = false;
    const form = h("form", {
      method: "dialog",
      onsubmit: async (event) => {
        event.preventDefault();
        if (!reason.value.trim()) { problem.textContent = "Say why, for the audit."; reason.focus(); return; }
        confirm.disabled = true;
        problem.textContent = "";
        try {
          await act(reason.value.trim());
          done = true;
          dialog.close();
        } catch (error) {
          problem.textContent = error.detail ?? error.message;
          confirm.disabled = false;
        }
      },
    },
      h("h2", { id: "dialog-title" }, title), h("p", {}, text),
      h("label", { for: "reason" }, "Reason, kept in the audit"), reason, problem,
      h("div", { class: "actions" }, cancel, confirm));
    const dialog = h("dialog", { class: "ask", "aria-labelledby": "dialog-title", onclose: () => { dialog.remove(); resolve(done); } }, form);
    document.body.append(dialog);
    dialog.showModal();
    reason.focus();
  });
}

/** A short message that goes by itself. */
export function toast(text) {
  const note = h("div", { class: "toast", role: "status" }, text);
  document.body.append(note);
  setTimeout(() => note.remove(), 4000);
}
