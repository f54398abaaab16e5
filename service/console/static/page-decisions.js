// Live decisions: a list that can be held and filtered; one of them, and why.
import { showDecision } from "./decision.js";
import { badge, empty, h, loading, put, table } from "./dom.js";
import { money, sentence, time } from "./format.js";

const SHOWN_MAX = 50;
export const TONE = { approve: "good", review: "warn", decline: "bad" };

export function decisions(root, { feed, who, arguments: [eventId] }) {
  if (eventId) return showDecision(root, eventId, who);
  let held = null; // the rows at the moment when the list was held
  const outcome = h("select", { id: "filter-outcome", onchange: update },
    [["", "All outcomes"], ["approve", "Approved"], ["review", "Held for review"], ["decline", "Declined"]].map(([value, text]) => h("option", { value }, text)));
  const text = h("input", { id: "filter-text", type: "search", placeholder: "card, merchant or event contains …", oninput: update, maxlength: "128", "aria-label": "Filter by text" });
  const score = h("input", { id: "filter-score", type: "number", min: "0", max: "1", step: "0.01", placeholder: "0", oninput: update });
  const hold = h("button", { type: "button", class: "button", id: "hold", "aria-pressed": "false", onclick: () => {
    held = held ? null : feed.decisions.slice();
    hold.setAttribute("aria-pressed", String(held !== null));
    hold.textContent = held ? "Go on" : "Hold the list";
    update();
  } }, "Hold the list");
  const wanted = h("input", { id: "open-event", type: "search", placeholder: "event_id", required: true, maxlength: "128" });
  const list = h("div", {}, loading("Waiting for decisions …"));
  root.append(
    h("div", { class: "bar" },
      h("form", { class: "row", onsubmit: (event) => { event.preventDefault(); location.hash = `#/decisions/${encodeURIComponent(wanted.value.trim())}`; } },
        h("label", { for: "open-event" }, "Look up"), wanted, h("button", { type: "submit", class: "button" }, "Open")),
      h("div", { class: "row" }, outcome, text, h("span", { class: "row" }, h("label", { for: "filter-score" }, "Score from"), score), hold)),
    list,
    h("p", { class: "note" }, "A sample of what passes: each second up to 48 that were not simply approved, and 24 of the others. Only while somebody watches are features and tiers of a decision kept, for the latest 5,000."));

  function update() {
    const needle = text.value.trim().toLowerCase(), least = Number(score.value) || 0;
    const all = held ?? feed.decisions;
    const rows = all.filter((one) => (!outcome.value || one.outcome === outcome.value) && one.score >= least
      && (!needle || [one.event_id, one.card_id, one.merchant_id].some((id) => id?.toLowerCase().includes(needle))));
    if (!all.length) { put(list, feed.last ? empty("Nothing has passed yet", "Decisions appear here as they are made.") : loading("Waiting for decisions …")); return; }
    if (!rows.length) { put(list, empty("None of them matches", "Change the filter, or wait for more.")); return; }
    const focused = document.activeElement?.closest?.("tr")?.dataset.event;
    put(list, table("Decisions, newest first",
      ["Event time", "Outcome", { text: "Score", number: true }, "Reasons", { text: "Amount", number: true }, "Card", "Merchant", "Event"],
      rows.slice(-SHOWN_MAX).reverse().map(rowOf), { class: "picks" }));
    if (focused) list.querySelector(`tr[data-event="${CSS.escape(focused)}"] a`)?.focus({ preventScroll: true });
  }
  update();
  return feed.on("decisions", () => held || update());
}

function rowOf(one) {
  const path = `#/decisions/${encodeURIComponent(one.event_id)}`;
  const cell = (content, number) => h("td", { class: number ? "number" : null }, content ?? "–");
  return h("tr", { "data-event": one.event_id, onclick: (event) => { if (!event.target.closest("a")) location.hash = path; } },
    cell(time(one.ts)), cell(badge(one.outcome, TONE[one.outcome])), cell(one.score.toFixed(4), true),
    cell(h("span", { class: "codes", title: (one.reasons ?? []).join("; ") }, shortly(one.reasons ?? []))), cell(money(one.amount, one.currency), true),
    cell(one.card_id), cell(one.merchant_id), cell(h("a", { href: path }, one.event_id)));
}

/** Reasons are codes of rules, and words. */
export const isCode = (reason) => /^[A-Z0-9_]+$/.test(reason);

function shortly(reasons) {
  const words = reasons.filter((reason) => !isCode(reason));
  return (words.length ? words : reasons.map(sentence)).join("; ") || "–";
}
