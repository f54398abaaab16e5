// Models: the champion and rolling back, the challenger in the shadow, what labels say, how far transactions have drifted.
import { call } from "./api.js";
import { bars } from "./charts.js";
import { confirmWithReason, toast } from "./dialog.js";
import { badge, card, empty, h, table } from "./dom.js";
import { count, moment, share } from "./format.js";

const OUTCOMES = ["approve", "review", "decline"];
const DRIFT_WARN = 0.1, DRIFT_BAD = 0.25; // the usual reading of a population stability index
const score = (value) => Number(value).toFixed(4);
const part = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);
const pairs = (entries) => h("dl", { class: "pairs" }, entries.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));

export function modelCards(known, reload) {
  const change = (title, text, verb, path, body) => async () => {
    if (await confirmWithReason({ title, text, verb }, (reason) => call("PUT", `/v1/models/${path}`, { ...body, reason }))) { toast("Done."); reload(); }
  };
  return [
    championCard(known, change), h("div", { class: "two" }, challengerCard(known, change), qualityCard(known.quality ?? {})),
    listCard(known, change), known.drift && driftCard(known.drift),
  ];
}

function championCard({ champion, previous }, change) {
  return card("Champion", h("p", { class: "headline" }, h("strong", { id: "champion" }, champion.model)),
    pairs([["Held for review from", score(champion.review_threshold)], ["Declined from", score(champion.decline_threshold)], ["Gives reasons", champion.explains ? "yes" : "codes only: its card has no reference"], ["Before it", previous ?? "none"]]),
    previous && h("div", {}, h("button", { type: "button", class: "button", id: "roll-back",
      onclick: change(`Back to ${previous}?`, "It scores from the next batch on; no request is lost.", "Roll back", "champion", { rollback: true }) }, `Roll back to ${previous} …`)));
}

function challengerCard({ challenger }, change) {
  if (!challenger) return card("Challenger", empty("None", "A challenger scores a sample in the shadow. It never changes an outcome. Choose one below."));
  const { scores, outcomes } = challenger;
  return card("Challenger", h("p", { class: "headline" }, h("strong", {}, challenger.model)),
    pairs([["Sample", part(challenger.share)], ["Compared", count(challenger.rows)], ["Would answer alike", part(challenger.agreement)], ["Scores apart, mean", challenger.mean_difference]]),
    table("Outcomes of both", ["Champion ↓ challenger →", ...OUTCOMES.map((text) => ({ text, number: true }))], OUTCOMES.map((ours) => [ours, ...OUTCOMES.map((theirs) => count(outcomes[ours][theirs]))])),
    h("div", { class: "histogram" }, ["champion", "challenger"].map((who) => [h("h3", {}, `Scores of the ${who}`),
      bars(scores[who], edges(scores.bounds), (n, label) => `${label}: ${count(n)}`, `Scores of the ${who}`)]),
      h("p", { class: "ends" }, h("span", {}, "low risk"), h("span", {}, "high risk"))),
    h("div", {}, h("button", { type: "button", class: "button", id: "stop-challenger",
      onclick: change(`Stop ${challenger.model}?`, "It scores nothing any more; what was counted of it is gone.", "Stop it", "challenger", { model: null }) }, "Stop it …")));
}

function qualityCard(quality) {
  const entries = Object.entries(quality);
  if (!entries.length) return card("What labels say", empty("No labels yet", "POST /v1/labels tells what transactions turned out to be."));
  const labelled = (one) => Object.values(one.labelled).reduce((sum, n) => sum + n.legit + n.fraud, 0);
  return card("What labels say", h("p", { class: "note" }, "Of the labelled transactions alone. Precision: the share of fraud among those held or declined, or declined; recall: the share of all fraud that is among them."),
    table("Quality by model", ["Model", ...["Labelled", "Held, precision", "recall", "Declined, precision", "recall"].map((text) => ({ text, number: true }))],
      entries.map(([model, one]) => [model, count(labelled(one)), part(one.precision_review), part(one.recall_review), part(one.precision_decline), part(one.recall_decline)])),
    entries.map(([model, one]) => h("details", {}, h("summary", {}, `Calibration of ${model}`),
      table(`Calibration of ${model}`, ["Score", ...["Labelled", "Mean score", "Fraud"].map((text) => ({ text, number: true }))],
        one.calibration.filter((bin) => bin.rows).map((bin) => [`${bin.from} to ${bin.to}`, count(bin.rows), part(bin.mean_score), part(bin.fraud_share)])))));
}

function listCard(known, change) {
  const inUse = new Set([known.champion.model, known.challenger?.model]);
  const stateOf = (one) => (one.model === known.champion.model ? badge("champion", "good") : one.model === known.challenger?.model ? badge("challenger", "warn")
    : one.problem ? h("span", { class: "note" }, one.problem) : badge("fits"));
  const buttons = (one) => !one.problem && !inUse.has(one.model) && h("span", { class: "row" },
    h("button", { type: "button", class: "button small", onclick: change(`Score with ${one.model}?`, "It is checked first; then it scores from the next batch on.", "Make it champion", "champion", { model: one.model }) }, "Champion …"),
    h("button", { type: "button", class: "button small", onclick: change(`Let ${one.model} score in the shadow?`, "It changes no outcome and no profile.", "Make it challenger", "challenger", { model: one.model }) }, "Challenger …"));
  return card("Models that are here", table("Models", ["Model", "From", "Made", "State", ""], known.models.map((one) => [one.model, one.source, one.created ? moment(Date.parse(one.created)) : "–", stateOf(one), buttons(one) || ""])));
}

function driftCard(drift) {
  const title = "Drift against the training set";
  if (drift.rows < drift.rows_min) return card(title, empty("Too few yet", `${count(drift.rows)} of ${count(drift.rows_min)} sampled transactions.`));
  const rows = [["score", drift.score], ...Object.entries(drift.features).sort(([, a], [, b]) => b.psi - a.psi)];
  const tone = (psi) => (psi >= DRIFT_BAD ? "bad" : psi >= DRIFT_WARN ? "warn" : "good");
  const shape = (shares, bounds, name) => bars(shares.map((one) => one * 1000), edges(bounds), (n, label) => `${label}: ${share(n, 1000)}`, name);
  return card(title, h("p", { class: "note" }, `Population stability of the last ${count(drift.rows)} sampled transactions: from ${DRIFT_WARN} on look, from ${DRIFT_BAD} on act. Shares by bin, then and now.`),
    table("Drift by feature", ["Feature", { text: "PSI", number: true }, "In training", "Now"], rows.map(([name, one]) => [
      name === "score" ? h("strong", {}, "the score") : name, badge(one.psi.toFixed(3), tone(one.psi)), shape(one.expected, one.edges, `${name} in training`), shape(one.actual, one.edges, `${name} now`),
    ]), { class: "drift" }));
}

/** What lies between bounds, in words. */
const edges = (bounds) => [...bounds, null].map((bound, place) => (bound === null ? `from ${bounds.at(-1)}` : place === 0 ? `below ${bound}` : `${bounds[place - 1]} to ${bound}`));
