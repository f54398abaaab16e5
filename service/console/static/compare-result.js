// The result of a comparison: latency side by side, what each tier was asked, which decisions changed and by what.
import { colour, draw } from "./charts.js";
import { badge, card, h, table } from "./dom.js";
import { count, ms, share, tierName } from "./format.js";

const us = (value) => ms(value / 1000);
const ratio = (value, base) => (base ? `${(value / base).toFixed(2)}×` : "–");

export function resultParts(place, result) {
  const base = result.arms[0].measured;
  const latency = h("div", { class: "chart tall" });
  const tiers = result.arms[0].tiers.map((tier) => tier.name);
  place.append(
    card("Latency of single requests", h("p", { class: "note" }, "Logarithmic. The first is everything on."), latency,
      table("Latency, throughput and CPU", ["Configuration", ...["p50", "p99", "p99.9", "p99 / all on", "Requests/s", "CPU per request", "Failed"].map((text) => ({ text, number: true }))],
        result.arms.map((arm) => [nameOf(arm), us(arm.measured.p50_us), us(arm.measured.p99_us), us(arm.measured.p99_9_us), ratio(arm.measured.p99_us, base.p99_us),
          count(arm.measured.requests_per_s), us(arm.measured.cpu_us_per_request), count(arm.measured.failed)]), { id: "compare-latency" })),
    card("Look-ups of each tier, per request", h("p", { class: "note" }, "In brackets the share that it answered; for Bloom: known to be new."),
      table("Look-ups", ["Configuration", ...tiers.map((name) => ({ text: tierName(name), number: true }))], result.arms.map((arm) => [nameOf(arm), ...arm.tiers.map((tier) => readsOf(tier, result.n_events))]))),
    card("Decisions, held against everything on",
      table("Decisions changed", ["Configuration", ...["Decisions changed", "Scores changed", "Largest change", "Degraded"].map((text) => ({ text, number: true })), "What"],
        result.arms.map((arm) => (arm.changes ? [nameOf(arm), `${count(arm.changes.decisions_changed)} (${share(arm.changes.decisions_changed, arm.changes.compared)})`,
          count(arm.changes.scores_changed), arm.changes.largest_score_change.toFixed(4), count(arm.changes.degraded),
          Object.entries(arm.changes.outcomes).map(([what, n]) => `${what}: ${count(n)}`).join(", ")] : [nameOf(arm), "reference", null, null, null, null])), { id: "compare-decisions" })),
    result.arms.filter((arm) => arm.changes?.examples.length).map(examplesOf),
    card("What this does not show", h("ul", {}, result.caveats.map((text) => h("li", {}, text)))));
  drawLatency(latency, result.arms);
}

const nameOf = (arm) => h("span", {}, arm.name, arm.is_reference && [" ", badge("reference")]);
const readsOf = (tier, n) => (tier.enabled || tier.lookups ? `${(tier.lookups / n).toFixed(2)}${tier.hit_ratio === null ? "" : ` (${Math.round(100 * tier.hit_ratio)} %)`}` : "off");

function examplesOf(arm) {
  return h("details", { class: "card" }, h("summary", {}, `Examples: ${arm.name}`),
    table(`Examples of ${arm.name}`, ["Event", "Outcome", { text: "Score", number: true }, "What differed"], arm.changes.examples.map((one) => [
      one.event_id, one.outcome_all_on === one.outcome_here ? one.outcome_here : `${one.outcome_all_on} → ${one.outcome_here}`, `${one.score_all_on.toFixed(4)} → ${one.score_here.toFixed(4)}`,
      one.features.length ? h("ul", { class: "plain" }, one.features.slice(0, 4).map((f) => h("li", {}, h("code", {}, f.name), ` ${f.all_on} → ${f.here}`,
        f.kind && h("span", { class: "note" }, ` (${f.kind} from ${tierName(f.tier_here)} instead of ${tierName(f.tier_all_on)})`))))
        : one.degraded.length ? `without ${one.degraded.map(tierName).join(", ")}` : "no feature",
    ])));
}

function drawLatency(place, arms) {
  const names = arms.map((arm) => arm.name);
  const series = [["p50_us", "Median"], ["p99_us", "p99"], ["p99_9_us", "p99.9"]].map(([key, name], order) => ({
    type: "bar", name, x: names, y: arms.map((arm) => arm.measured[key] / 1000), marker: { color: colour(`line-${order + 1}`) }, hovertemplate: "%{y:.3~g} ms",
  }));
  draw(place, series, { barmode: "group", yaxis: { type: "log", ticksuffix: " ms", dtick: 1 }, xaxis: { type: "category" } });
}
