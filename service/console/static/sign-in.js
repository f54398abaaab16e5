// Signing in with an API key. The key goes to the service once; what stays here is a cookie that no script can read.
import { session } from "./api.js";
import { h } from "./dom.js";

export function signIn(text, entered) {
  const problem = h("p", { class: "problem", role: "alert" }, text);
  const key = h("input", { id: "key", type: "password", required: true, maxlength: "256", autocomplete: "current-password", spellcheck: "false", placeholder: "weir_analyst_…" });
  const button = h("button", { type: "submit", class: "button primary" }, "Sign in");
  const form = h("form", {
    class: "card sign-in",
    onsubmit: async (event) => {
      event.preventDefault();
      if (!key.value.trim()) { problem.textContent = "Give an API key."; return; }
      button.disabled = true;
      problem.textContent = "";
      try {
        entered(await session.open(key.value.trim()));
      } catch (error) {
        problem.textContent = `${error.title}: ${error.detail}`;
        button.disabled = false;
        key.select();
      }
    },
  },
    h("h1", {}, h("img", { src: "/console/icon.svg", alt: "", width: 34, height: 34 }), "Weir"),
    h("p", {}, "Scores card transactions, and shows what each cache tier is worth."),
    h("label", { for: "key" }, "API key of an analyst or admin"), key, problem, button,
    h("p", { class: "note" }, "No key yet? ", h("code", {}, "weir keys add --role analyst --name me --data-dir DIR"), " makes one; a running service accepts it at once."));
  return h("main", { class: "alone", id: "content" }, form);
}
