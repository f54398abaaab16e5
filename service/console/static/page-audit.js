// The audit: who changed what and why, newest first.
import { get } from "./api.js";
import { badge, card, empty, failed, h, loading, put, table } from "./dom.js";
import { moment, tierName } from "./format.js";

const LIMITS = [50, 200, 1000];
const KNOWN = new Set(["ts", "who", "action", "reason"]);

export function audit(root) {
  let entries = [], isHere = true;
  const limit = h("select", { id: "audit-limit", onchange: load }, LIMITS.map((n) => h("option", { value: n }, `The last ${n}`)));
  const text = h("input", { id: "audit-text", type: "search", placeholder: "contains …", oninput: show, "aria-label": "Filter the audit by text" });
  const list = h("div", {});
  root.append(h("div", { class: "bar row" }, limit, text, h("button", { type: "button", class: "button", onclick: load }, "Refresh")), list);
  load();
  return () => { isHere = false; };

  async function load() {
    put(list, loading());
    try {
      ({ entries } = await get(`/v1/audit?limit=${limit.value}`));
      if (isHere) show();
    } catch (error) {
      if (isHere) put(list, failed(error, load));
    }
  }

  function show() {
    const needle = text.value.trim().toLowerCase();
    const rows = entries.filter((entry) => !needle || JSON.stringify(entry).toLowerCase().includes(needle));
    if (!entries.length) { put(list, empty("Nothing has been changed yet", "Toggles, scorers, models, keys and erasures are written down here, with who and why.")); return; }
    if (!rows.length) { put(list, empty("None of them matches", "Change the filter.")); return; }
    put(list, card("", table("Changes, newest first", ["When", "Who", "What", "Why"],
      rows.map((entry) => [moment(entry.ts), entry.who || "–", whatOf(entry), entry.reason ?? "–"]))));
  }
}

function whatOf(entry) {
  if (entry.action === "tier") return h("span", {}, `${tierName(entry.tier)} `, badge(entry.enabled ? "on" : "off", entry.enabled ? "good" : "warn"));
  const more = Object.entries(entry).filter(([name, value]) => !KNOWN.has(name) && value !== null && typeof value !== "object").map(([name, value]) => `${name} ${value}`);
  return `${entry.action}${more.length ? `: ${more.join(", ")}` : ""}`;
}
