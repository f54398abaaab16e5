// Tiers: a card each, with what it holds and answers, and a switch that asks for a reason.
import { call, get } from "./api.js";
import { bars } from "./charts.js";
import { confirmWithReason, toast } from "./dialog.js";
import { badge, card, failed, h, loading, put, table } from "./dom.js";
import { summed } from "./feed.js";
import { bytes, count, lsn, ms, rate, share, tierName } from "./format.js";

const ABOUT = {
  l1: "Profiles in this process's memory. Off: every transaction reads its profiles from the tiers below.",
  bloom: "Knows who is surely new, so that a new card costs no read below. Off: every new entity is looked for in every tier.",
  l2: "Profiles in RocksDB on the local disk. Off: what L1 lacks is read over the network.",
  redis: "Profiles in Redis or Valkey, over the network. Off: what L1 and L2 lack is read from Postgres.",
  postgres: "Profiles in Postgres, over the network: the last to know.",
};
const TONES = { on: "good", catching_up: "warn", down: "bad", off: "" };
const OFF_TEXT = "What only it holds is handed down first. Scoring goes on; it may be slower.";
const ON_TEXT = { l1: "It starts empty and fills as transactions come.", bloom: "It is filled anew and answers “maybe” until it covers everything." };
const SAMPLES = 5, RELOAD_MS = 6000;

export function tiers(root, { feed, who }) {
  const warnings = h("div", {}), cards = h("div", { class: "cards" }, loading()), consumers = h("div", {});
  root.append(warnings, cards, consumers);
  let cardOf = {};

  const show = (shown) => {
    put(warnings, (shown.warnings ?? []).map((text) => h("p", { class: "banner warn", role: "status" }, text)));
    const names = shown.tiers.map((tier) => tier.name);
    if (Object.keys(cardOf).join() !== names.join()) {
      cardOf = Object.fromEntries(names.map((name) => [name, tierCard(name, who, reload)]));
      put(cards, Object.values(cardOf).map((made) => made.element));
    }
    const recent = summed(feed.samples, SAMPLES);
    for (const tier of shown.tiers) cardOf[tier.name].update(tier, recent.tiers[tier.name], recent.seconds);
    put(consumers, card("Who follows the journal", table("Consumers of the journal",
      ["Consumer", "State", { text: "Position", number: true }, { text: "Lag, entries", number: true }],
      shown.consumers.map((one) => [tierName(one.name), badge(one.state.replace("_", " "), TONES[one.state]), lsn(one.position), count(one.lag)]))));
  };
  const reload = async () => {
    try { show(await get("/v1/tiers")); } catch (error) {
      if (error.status === 401 || !cards.isConnected) return;
      put(cards, failed(error, reload));
      cardOf = {};
    }
  };
  reload();
  const timer = setInterval(reload, RELOAD_MS); // sizes are asked of the stores only when somebody reads them
  const off = feed.on("stats", () => show(feed.last));
  return () => {
    clearInterval(timer);
    off();
  };
}

function tierCard(name, who, reload) {
  let tier = null;
  const state = h("span", {}), figures = h("dl", { class: "pairs" }), histogram = h("div", { class: "histogram" }), room = h("div", {});
  const toggle = h("button", { type: "button", class: "switch", role: "switch", "aria-checked": "false", id: `switch-${name}`, "aria-label": `${tierName(name)} on` },
    h("span", { class: "knob", "aria-hidden": "true" }));
  toggle.addEventListener("click", async () => {
    if (!tier) return;
    const enabled = !tier.enabled;
    const done = await confirmWithReason({
      title: `Turn ${tierName(name)} ${enabled ? "on" : "off"}?`,
      text: enabled ? ON_TEXT[name] ?? "It catches up from the journal before it is read." : OFF_TEXT,
      verb: enabled ? "Turn on" : "Turn off", danger: !enabled,
    }, (reason) => call("PUT", `/v1/tiers/${name}`, { enabled, reason }));
    if (done) { toast(`${tierName(name)} is ${enabled ? "on" : "off"}.`); reload(); }
    toggle.focus();
  });
  const element = h("section", { class: "card tier", id: `tier-${name}`, "aria-labelledby": `title-${name}` },
    h("header", {}, h("h2", { id: `title-${name}` }, tierName(name)), state, toggle),
    h("p", { class: "note" }, ABOUT[name] ?? ""), figures, room, histogram);
  return { element, update };

  function update(next, recent, seconds) {
    tier = next;
    element.classList.toggle("off", !next.enabled);
    toggle.setAttribute("aria-checked", String(next.enabled));
    put(state, badge(next.state.replace("_", " "), TONES[next.state] ?? ""));
    put(figures, pairsOf(next, recent, seconds).map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
    put(room, next.bytes_max > 0 && h("meter", { min: 0, max: next.bytes_max, value: next.bytes, title: `${bytes(next.bytes)} of ${bytes(next.bytes_max)}`, "aria-label": "Room used" }));
    put(histogram, latencyBars(next));
  }
}

function pairsOf(tier, recent, seconds) {
  const pairs = [];
  const add = (term, value) => value !== undefined && value !== null && pairs.push([term, value]);
  add(tier.name === "bloom" ? "Said “new”, now" : "Hit ratio, now", recent ? share(recent.answered, recent.asked) : "–");
  add(tier.name === "bloom" ? "Said “new”, since the start" : "Hit ratio, since the start", share(tier.hits, tier.lookups));
  add("Look-ups", recent && seconds ? `${rate(recent.asked / seconds)}/s` : count(tier.lookups));
  if (tier.profiles !== undefined && tier.profiles !== null) add("Profiles", count(tier.profiles));
  if (tier.keys !== undefined) add("Keys", count(tier.keys));
  if (tier.bytes !== undefined && tier.bytes !== null) add("Size", tier.bytes_max ? `${bytes(tier.bytes)} of ${bytes(tier.bytes_max)}` : bytes(tier.bytes));
  if (tier.evicted !== undefined) add("Evicted", count(tier.evicted));
  if (tier.false_positives !== undefined) add("Wrong “maybe”", count(tier.false_positives));
  if (tier.dirty !== undefined) add("Waiting to be written", count(tier.dirty));
  if (tier.lag !== undefined) add("Lag, entries", count(tier.lag));
  if (tier.position !== undefined) add("Position", lsn(tier.position));
  if (tier.unavailable) add("Could not be asked", count(tier.unavailable));
  if (tier.failures) add("Failures", count(tier.failures));
  if (tier.reason) add("Because", tier.reason);
  const shadow = tier.shadow;
  if (shadow?.reads) {
    add("Read in the shadow", `${count(shadow.reads)}, ${share(shadow.same, shadow.reads)} the same`);
    add("On its way, or absent", count(shadow.behind + shadow.absent));
    const wrong = shadow.mismatch + shadow.lost + shadow.ahead;
    add("Must never be", wrong ? badge(`${count(wrong)} wrong`, "bad") : badge("none", "good"));
  }
  return pairs;
}

/** The latency histogram of a tier, whose counts are by upper bound in seconds. */
function latencyBars(tier) {
  const told = tier.latency_s;
  if (!told || !told.counts || !told.counts.some((n) => n)) return null;
  const first = told.counts.findIndex((n) => n), last = told.counts.findLastIndex((n) => n) + 1;
  const labels = told.counts.map((_, place) => (place < told.bounds.length ? `up to ${ms(told.bounds[place] * 1e3)}` : `above ${ms(told.bounds.at(-1) * 1e3)}`));
  return [
    h("h3", {}, tier.name === "l1" ? "Sampled look-ups by latency" : "Round trips by latency"),
    bars(told.counts.slice(first, last), labels.slice(first, last), (n, label) => `${label}: ${count(n)}`, `Round trips to ${tierName(tier.name)} by latency`),
    h("p", { class: "ends" }, h("span", {}, labels[first]), h("span", {}, labels[last - 1])),
  ];
}
