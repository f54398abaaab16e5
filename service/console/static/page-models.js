// Scorer and models: which engine scores and switching it; champion, challenger and how well they do, where that is offered.
import { call, get, offered } from "./api.js";
import { confirmWithReason, toast } from "./dialog.js";
import { badge, card, failed, h, loading, put, table } from "./dom.js";
import { modelCards } from "./models.js";

const ABOUT = { go: "Profiles, features and model in one call into the Go core.", onnx: "Features in NumPy, the model in onnxruntime, in this process." };

export function models(root) {
  const scorer = h("div", {}, loading()), registry = h("div", {}, loading());
  let isHere = true;
  root.append(scorer, registry);
  const load = async () => {
    const [engine, known] = await Promise.all([get("/v1/scorer"), offered("/v1/models")].map((promise) => promise.catch((error) => error)));
    if (!isHere) return;
    put(scorer, engine instanceof Error ? failed(engine, load) : scorerCard(engine, load));
    put(registry, known instanceof Error ? failed(known, load) : known && modelCards(known, load));
  };
  load();
  return () => { isHere = false; };
}

function scorerCard(engine, reload) {
  const use = (name) => async () => {
    const done = await confirmWithReason({ title: `Score with ${name}?`, text: "From the next batch on. Both engines give the same profiles, features and scores.", verb: `Use ${name}` },
      (reason) => call("PUT", "/v1/scorer", { scorer: name, reason }));
    if (done) { toast(`${name} scores now.`); reload(); }
  };
  return card("Scorer", h("p", { class: "note" }, `Model in use: ${engine.model}`),
    table("Scorers", ["Engine", "", "State", ""], Object.entries(engine.missing).map(([name, missing]) => [
      h("strong", {}, name), ABOUT[name] ?? "",
      name === engine.scorer ? badge("scores", "good") : missing ? h("span", { class: "note" }, `not to be had here: ${missing}`) : badge("ready"),
      name !== engine.scorer && !missing && h("button", { type: "button", class: "button small", id: `use-${name}`, onclick: use(name) }, `Use ${name} …`),
    ].map((cell) => cell || ""))));
}
