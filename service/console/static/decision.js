// One decision: what was decided, the reasons, the features, and where every profile came from.
import { call, get, quoted } from "./api.js";
import { badge, card, empty, failed, h, loading, put, table } from "./dom.js";
import { age, lsn, money, moment, ms, sentence, tierName } from "./format.js";
import { isCode, TONE } from "./page-decisions.js";

const STOPS = { lookup: "Look-up", score: "Scoring", decide: "Deciding", journal: "Journal" };
const KINDS = { card_id: "card", merchant_id: "merchant", device_id: "device", ip: "ip" };

export function showDecision(root, eventId, who) {
  const body = h("div", {}, loading());
  let isHere = true;
  root.append(h("p", { class: "back" }, h("a", { href: "#/decisions" }, "← All decisions")), body);
  const load = async () => {
    put(body, loading());
    try {
      const decision = await get(`/v1/decisions/${quoted(eventId)}`);
      if (isHere) put(body, parts(decision, who));
    } catch (error) {
      if (isHere) put(body, error.status === 404 ? empty("No decision is stored for this event", eventId) : failed(error, load));
    }
  };
  load();
  return () => { isHere = false; };
}

function parts(decision, who) {
  const again = h("div", {});
  return [
    h("section", { class: "card verdict" },
      h("h2", { class: "id" }, decision.event_id),
      h("p", { class: "headline" }, badge(decision.outcome, TONE[decision.outcome]), h("strong", { id: "score" }, decision.score.toFixed(4)),
        h("meter", { class: TONE[decision.outcome], min: 0, max: 1, value: decision.score, "aria-label": "Risk score" })),
      h("dl", { class: "pairs" }, [
        ["Model", decision.model], ["Scorer", decision.scorer], ["LSN", lsn(decision.lsn)], ["Label", decision.label ?? "none yet"],
        ["Could not be asked", decision.degraded.map(tierName).join(", ") || "every tier answered"],
      ].map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))))),
    card("Why", reasonsOf(decision.reasons)),
    card("The transaction", transactionOf(decision.transaction)),
    decision.trace ? traceParts(decision.trace, "As it was decided")
      : card("Features and tiers", h("p", {}, "Nobody was watching the live feed when this was decided, so its features and tiers were not kept.")),
    h("section", { class: "card" }, h("h2", {}, "Score it again, now"),
      h("p", { class: "note" }, "With the profiles as they stand at this moment, which have this event in them already. Nothing is stored."),
      h("button", { type: "button", class: "button", id: "again", onclick: (event) => scoreAgain(event.target, again, decision) }, "Score again"), again),
  ];
}

async function scoreAgain(button, place, decision) {
  button.disabled = true;
  put(place, loading("Scoring …"));
  try {
    const transaction = Object.fromEntries(Object.entries(decision.transaction).filter(([, value]) => value !== null));
    const reply = await call("POST", "/v1/score?commit=false&trace=1&explain=1", transaction);
    put(place, h("p", { class: "headline" }, badge(reply.outcome, TONE[reply.outcome]), h("strong", {}, reply.score.toFixed(4)),
      h("span", { class: "note" }, `it was ${decision.score.toFixed(4)}`)), reasonsOf(reply.reasons), traceParts(reply.trace, "As it would be now"));
  } catch (error) {
    put(place, failed(error));
  }
  button.disabled = false;
}

export function reasonsOf(reasons) {
  if (!reasons?.length) return h("p", {}, "The score lies below the threshold for a review, and no list names it.");
  return h("ol", { class: "reasons" }, reasons.map((reason) => h("li", {},
    isCode(reason) ? [sentence(reason), h("code", {}, reason)] : reason)));
}

function transactionOf(tx) {
  return h("dl", { class: "pairs" }, Object.entries(tx).filter(([name, value]) => value !== null && name !== "event_id").map(([name, value]) => {
    const kind = KINDS[name];
    const shown = name === "amount" ? money(value, tx.currency) : name === "ts" ? moment(value)
      : kind ? h("a", { href: `#/entity/${kind}/${quoted(value)}` }, value) : String(value);
    return h("div", {}, h("dt", {}, name), h("dd", {}, shown));
  }));
}

function traceParts(trace, title) {
  const profiles = Object.entries(trace.profiles);
  const features = Object.entries(trace.features);
  const widest = Math.max(...features.map(([, value]) => Math.abs(value)), 1);
  return [
    card(`Tier and age of every profile`, h("p", { class: "note" }, title),
      table("Profiles", ["Entity", "Came from", { text: "Last event before", number: true }],
        profiles.map(([kind, { tier, age_ms }]) => [kind, badge(tierName(tier)), tier === "absent" ? "–" : age(age_ms)])),
      h("dl", { class: "pairs" }, Object.entries(trace.us).map(([stop, us]) => h("div", {}, h("dt", {}, STOPS[stop] ?? stop), h("dd", {}, ms(us / 1000)))))),
    card(`The ${features.length} features`, h("p", { class: "note" }, title),
      h("div", { class: "features" }, features.map(([name, value]) => h("div", { class: value < 0 ? "feature negative" : "feature" },
        h("span", {}, name), h("meter", { min: 0, max: widest, value: Math.abs(value), "aria-hidden": "true" }), h("output", {}, Number(value.toPrecision(5)).toString()))))),
  ];
}
