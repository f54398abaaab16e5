// Overview: what passes, how fast, with which outcome, and which tier answered the look-ups.
import { colour, draw, release } from "./charts.js";
import { card, empty, h, loading, put } from "./dom.js";
import { summed } from "./feed.js";
import { drawFlow } from "./flow.js";
import { count, ms, rate, share } from "./format.js";

const FLOW_SAMPLES = 5;

export function overview(root, { feed }) {
  const warnings = h("div", {}), figures = h("div", { class: "figures" }, loading("Waiting for the first second …"));
  const flow = h("div", { class: "flow-place" }), outcomes = h("div", { class: "chart" }), latency = h("div", { class: "chart" });
  const quiet = h("div", {});
  root.append(warnings, figures, quiet,
    card("Who answered the look-ups", h("p", { class: "note" }, `Every transaction asks for the profiles it names. The last ${FLOW_SAMPLES} seconds.`), flow),
    h("div", { class: "two" },
      card("Transactions by outcome, per second", outcomes),
      card("Latency of scoring calls", latency)));
  const update = () => {
    const last = feed.last;
    if (!last) return;
    put(warnings, last.problem && h("p", { class: "banner bad", role: "alert" }, `Not ready: ${last.problem}`),
      last.warnings.map((text) => h("p", { class: "banner warn", role: "status" }, text)));
    put(figures, figuresOf(last, summed(feed.samples, FLOW_SAMPLES)));
    put(quiet, last.events_per_s === 0 && feed.samples.slice(-10).every((s) => s.events_per_s === 0)
      && empty("No transactions at the moment", "POST /v1/score sends one; weir replay or make demo send a stream. This page follows by itself."));
    if (document.hidden) return;
    drawFlow(flow, summed(feed.samples, FLOW_SAMPLES), Object.fromEntries(last.tiers.map((tier) => [tier.name, tier.state])));
    drawOutcomes(outcomes, feed.samples);
    drawLatency(latency, feed.samples);
  };
  update();
  const off = [feed.on("stats", update)];
  window.addEventListener("resize", update);
  return () => {
    off.forEach((end) => end());
    window.removeEventListener("resize", update);
    release(outcomes);
    release(latency);
  };
}

function figuresOf(last, { tiers }) {
  const all = Object.values(last.outcomes).reduce((sum, n) => sum + n, 0);
  const one = (name, value, note, id) => h("div", { class: "figure", id }, h("span", { class: "label" }, name), h("strong", {}, value), h("small", {}, note));
  return [
    one("Transactions", `${rate(last.events_per_s)}/s`, `${last.scorer} scorer`, "figure-rate"),
    one("Median", ms(last.latency_ms.p50), `of ${count(last.latency_ms.n)} calls`, "figure-p50"),
    one("p99", ms(last.latency_ms.p99), `p99.9 ${ms(last.latency_ms.p999)}`, "figure-p99"),
    one("Held or declined", share(last.outcomes.review + last.outcomes.decline, all), `${count(last.outcomes.decline)} declined`, "figure-held"),
    one("Answered by L1", share(tiers.l1?.answered ?? 0, tiers.l1?.asked ?? 0), `of ${count(tiers.l1?.asked ?? 0)} look-ups`, "figure-l1"),
    one("Waiting", count(last.queue), last.refused ? `${count(last.refused)} refused` : `loop lag p99 ${ms(last.loop_lag_ms.p99)}`, "figure-queue"),
  ];
}

const CLOCK_AXIS = { type: "date", tickformat: "%H:%M:%S", hoverformat: "%H:%M:%S", nticks: 5, tickangle: 0 };
const clock = (samples) => samples.map((sample) => new Date(sample.at));

function drawOutcomes(place, samples) {
  const series = ["approve", "review", "decline"].map((name) => ({
    name, x: clock(samples), y: samples.map((s) => s.outcomes[name] / s.interval_s), stackgroup: "all", mode: "lines",
    line: { width: 1, color: colour(name) }, fillcolor: colour(`${name}-soft`), hovertemplate: "%{y:,.0f}/s",
  }));
  draw(place, series, { xaxis: CLOCK_AXIS, yaxis: { rangemode: "tozero" } });
}

function drawLatency(place, samples) {
  const series = [["p50", "Median"], ["p99", "p99"], ["p999", "p99.9"]].map(([key, name], order) => ({
    name, x: clock(samples), y: samples.map((s) => s.latency_ms[key]), mode: samples.length < 20 ? "lines+markers" : "lines", connectgaps: false, marker: { size: 5 },
    line: { width: 2, color: colour(`line-${order + 1}`) }, hovertemplate: "%{y:.3~g} ms",
  }));
  draw(place, series, { xaxis: CLOCK_AXIS, yaxis: { type: "log", ticksuffix: " ms", dtick: 1 } });
}
