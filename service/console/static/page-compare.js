// Compare: the same stream against chosen configurations, each on a fresh state, beside the running service.
import { call, get, offered, quoted } from "./api.js";
import { release } from "./charts.js";
import { resultParts } from "./compare-result.js";
import { toast } from "./dialog.js";
import { badge, card, empty, failed, h, loading, put, table } from "./dom.js";
import { count, moment, tierName } from "./format.js";

const PATH = "/v1/compare";
const POLL_MS = 1000;
const EVENTS = [1000, 5000, 20000, 50000];
const DISTANCES = [0, 0.5, 2];
const STATES = { running: ["running", "warn"], done: ["done", "good"], failed: ["failed", "bad"], cancelled: ["cancelled", ""] };

export function compare(root, { arguments: [id] }) {
  const body = h("div", {}, loading());
  let isHere = true, timer = null;
  root.append(body);
  const leave = () => {
    isHere = false;
    clearTimeout(timer);
    root.querySelectorAll(".chart").forEach(release);
  };
  const guarded = (work) => async () => {
    try { await work(); } catch (error) { if (isHere) put(body, failed(error, guarded(work))); }
  };
  guarded(id ? showOne : showAll)();
  return leave;

  async function showAll() {
    const [known, tiers, engine] = await Promise.all([offered(PATH), get("/v1/tiers"), get("/v1/scorer")]);
    if (!isHere) return;
    if (!known) { put(body, empty("Not offered here", "This service does not run comparisons; weir bench tiers does, on the command line.")); return; }
    const reload = guarded(showAll);
    put(body, form(tiers.tiers.map((tier) => tier.name), engine), card("Comparisons so far", known.comparisons.length ? listOf(known.comparisons, reload)
      : empty("None yet", "Choose what to leave out, and start one.")));
  }

  async function showOne() {
    const one = await get(`${PATH}/${quoted(id)}`);
    if (!isHere) return;
    put(body, h("p", { class: "back" }, h("a", { href: "#/compare" }, "← All comparisons")), headOf(one, guarded(showOne)));
    if (one.state === "running") timer = setTimeout(guarded(showOne), POLL_MS);
    else if (one.result) resultParts(body, one.result);
  }
}

function form(tiers, engine) {
  const other = Object.entries(engine.missing).find(([name, missing]) => name !== engine.scorer && !missing)?.[0];
  const presets = [
    ...tiers.map((name) => ({ text: `Without ${tierName(name)}`, config: { off: [name] }, on: name === "l1" })),
    tiers.includes("l2") && { text: "Without L1 and L2", config: { off: ["l1", "l2"] } },
    tiers.length > 1 && { text: "Without any tier", config: { off: tiers } },
    other && { text: `Everything on, scored by ${other}`, config: { scorer: other } },
  ].filter(Boolean);
  const boxes = presets.map((preset, place) => h("input", { type: "checkbox", id: `config-${place}`, checked: preset.on }));
  const isRemote = tiers.includes("redis") || tiers.includes("postgres");
  const distances = DISTANCES.map((ms) => h("input", { type: "checkbox", id: `distance-${ms}`, checked: ms === 0 }));
  const events = h("select", { id: "events" }, EVENTS.map((n) => h("option", { value: n, selected: n === 5000 }, `${count(n)} transactions`)));
  const seed = h("input", { id: "seed", type: "number", min: "0", max: "2147483647", step: "1", value: "1", required: true });
  const rounds = h("input", { id: "rounds", type: "number", min: "1", max: "10", step: "1", value: "1", required: true });
  const problem = h("p", { class: "problem", role: "alert" });
  const start = h("button", { type: "submit", class: "button primary", id: "start-compare" }, "Start");
  const box = (input, text) => h("label", {}, input, text);
  return h("form", {
    class: "card", id: "compare-form",
    onsubmit: async (event) => {
      event.preventDefault();
      const configs = presets.filter((_, place) => boxes[place].checked).map((preset) => preset.config);
      const delays = DISTANCES.filter((_, place) => distances[place].checked);
      if (!configs.length) { problem.textContent = "Choose at least one configuration."; return; }
      if (isRemote && !delays.length) { problem.textContent = "Choose at least one distance."; return; }
      start.disabled = true;
      problem.textContent = "";
      try {
        const begun = await call("POST", PATH, { configs, events: Number(events.value), seed: Number(seed.value), rounds: Number(rounds.value), ...(isRemote ? { delays_ms: delays } : {}) });
        location.hash = `#/compare/${begun.id}`;
      } catch (error) {
        problem.textContent = error.detail;
        start.disabled = false;
      }
    },
  },
    h("h2", {}, "What is it worth?"),
    h("p", { class: "note" }, "Replays one generated stream with everything on, and again for each choice below, each on a fresh state of its own. The running service and its data are not touched, but both share this machine."),
    h("fieldset", {}, h("legend", {}, "Hold against everything on"), h("div", { class: "choices" }, presets.map((preset, place) => box(boxes[place], preset.text)))),
    isRemote && h("fieldset", {}, h("legend", {}, "Round trip to Redis and Postgres"), h("div", { class: "choices" }, DISTANCES.map((ms, place) => box(distances[place], ms ? `${ms} ms away` : "on this machine")))),
    h("div", { class: "row" }, h("label", { for: "events" }, "Stream"), events, h("label", { for: "seed" }, "Seed"), seed, h("label", { for: "rounds" }, "Rounds"), rounds),
    problem, h("div", { class: "row" }, start));
}

const described = (config) => [...(config.off ?? []).map((name) => `no ${tierName(name)}`), config.scorer].filter(Boolean).join(", ") || "all on";
const stateBadge = (state) => badge(...(STATES[state] ?? [state, ""]));

function listOf(comparisons, reload) {
  const forget = (one) => async () => {
    try { await call("DELETE", `${PATH}/${quoted(one.id)}`); toast("Forgotten."); } catch (error) { toast(error.detail); }
    reload();
  };
  return table("Comparisons, newest first", ["Started", "State", "What", { text: "Events", number: true }, "By", ""], comparisons.map((one) => [
    h("a", { href: `#/compare/${one.id}` }, moment(one.started)), stateBadge(one.state), one.request.configs.map(described).join(" · "), count(one.request.events), one.who || "–",
    one.state === "running" ? "" : h("button", { type: "button", class: "button small", onclick: forget(one), "aria-label": `Forget the comparison of ${moment(one.started)}` }, "Forget"),
  ]));
}

function headOf(one, reload) {
  const { done, total, what } = one.progress;
  const share = total ? Math.round((100 * done) / total) : 0;
  const cancel = async (event) => {
    event.target.disabled = true;
    try { await call("DELETE", `${PATH}/${quoted(one.id)}`); } catch (error) { toast(error.detail); }
    reload();
  };
  return h("section", { class: "card", id: "comparison", "data-state": one.state },
    h("header", { class: "headline" }, h("h2", {}, one.request.configs.map(described).join(" · ")), stateBadge(one.state)),
    h("p", { class: "note" }, `${count(one.request.events)} transactions, seed ${one.request.seed}, started ${moment(one.started)} by ${one.who || "–"}`),
    one.state === "running" && h("div", { class: "running" },
      h("label", { for: "progress" }, total ? `${share} % · ${what}` : what), h("progress", { id: "progress", max: total || 1, value: total ? done : null }),
      h("button", { type: "button", class: "button danger", id: "cancel-compare", onclick: cancel }, "Cancel")),
    one.state === "running" && h("p", { class: "note" }, "You can leave this page; it goes on."),
    one.problem && h("p", { class: "problem", role: "alert" }, one.problem));
}
