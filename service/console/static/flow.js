// The flow picture: how many look-ups came, and which tier answered them. Widths of the bands are shares of all look-ups.
import { put, svg } from "./dom.js";
import { rate, share, tierName } from "./format.js";

const ANSWERS = [
  ["l1", "in RAM"], ["bloom", "known to be new"], ["l2", "RocksDB"], ["redis", "over the network"], ["postgres", "over the network"],
  ["rest", "new, or on its way down"],
];
const ROW = 44, GAP = 8, BAR = 10, TRUNK = 200; // pixels

/** What each answered, of one `summed`: [{name, note, n, state}]. */
export function answers({ tiers }, states) {
  const total = tiers.l1?.asked ?? 0;
  let left = total;
  const found = [];
  for (const [name, note] of ANSWERS) {
    if (name !== "rest" && !tiers[name]) continue;
    const n = name === "rest" ? Math.max(0, left) : Math.min(left, tiers[name].answered);
    left -= n;
    found.push({ name, note, n, state: states[name] ?? "on" });
  }
  return { total, found };
}

/** Draw it into `place`, an element whose width is known. */
export function drawFlow(place, summedUp, states) {
  const { total, found } = answers(summedUp, states);
  const width = Math.max(280, place.clientWidth), narrow = width < 520;
  const left = narrow ? 74 : 150, right = width - (narrow ? 150 : 250), bend = (left + right) / 2;
  const thick = found.map((answer) => (answer.n ? Math.max((answer.n / total) * TRUNK, 1.5) : 0));
  const tall = thick.map((band) => Math.max(ROW, band));
  const height = tall.reduce((sum, one) => sum + one + GAP, -GAP), top = (height - TRUNK) / 2;
  const parts = [];
  let from = top, goal = 0;
  found.forEach((answer, row) => {
    const band = thick[row], middle = goal + tall[row] / 2, start = middle - band / 2, isOff = answer.state !== "on";
    if (band) {
      parts.push(svg("path", {
        class: `band tier-${answer.name}`,
        d: `M${left} ${from}C${bend} ${from} ${bend} ${start} ${right} ${start}v${band}C${bend} ${start + band} ${bend} ${from + band} ${left} ${from + band}Z`,
      }));
    }
    parts.push(svg("g", { class: isOff ? "off" : null, "data-tier": answer.name, "data-answered": answer.n },
      svg("rect", { class: `node tier-${answer.name}`, x: right, y: goal, width: BAR, height: tall[row], rx: 3 }),
      svg("text", { class: "name", x: right + BAR + 8, y: middle - 4 }, answer.name === "rest" ? "No tier" : tierName(answer.name),
        svg("tspan", { class: "note", dx: 6 }, isOff ? answer.state.replace("_", " ") : narrow ? "" : answer.note)),
      svg("text", { class: "value", x: right + BAR + 8, y: middle + 14 }, `${share(answer.n, total)} · ${rate(answer.n / summedUp.seconds)}/s`)));
    from += band;
    goal += tall[row] + GAP;
  });
  const label = `Of ${total} look-ups: ${found.map((a) => `${a.name} ${share(a.n, total)}`).join(", ")}`;
  put(place, svg("svg", { class: "flow", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    svg("rect", { class: "node source", x: left - BAR, y: top, width: BAR, height: TRUNK, rx: 3 }),
    svg("text", { class: "name", x: left - BAR - 8, y: height / 2 - 4, "text-anchor": "end" }, narrow ? "Asked" : "Profiles asked"),
    svg("text", { class: "value", x: left - BAR - 8, y: height / 2 + 14, "text-anchor": "end" }, `${rate(total / summedUp.seconds)}/s`),
    parts));
}
