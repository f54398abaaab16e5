// Charts: Plotly's bundle, loaded once when the first chart is drawn, in the page's colours; and small bars in SVG.
import { svg } from "./dom.js";

let loading = null;

function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/console/PLOTLY_BUNDLE";
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => { loading = null; reject(new Error("the charts could not be loaded")); };
    document.head.append(script);
  });
  return loading;
}

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function themed(layout) {
  const text = colour("text-2"), grid = colour("line");
  const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, tickfont: { size: 11 }, automargin: true, fixedrange: true };
  return {
    autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: text },
    margin: { l: 44, r: 8, t: 8, b: 28 }, showlegend: true, hovermode: "x unified", dragmode: false,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 } },
    hoverlabel: { bgcolor: colour("surface"), bordercolor: grid, font: { color: colour("text"), size: 12 } },
    ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
  };
}

/** Draw or redraw a chart in `place`. */
export async function draw(place, traces, layout = {}) {
  try {
    const Plotly = await plotly();
    if (!place.isConnected || !place.clientWidth) return;
    await Plotly.react(place, traces, themed(layout), { displayModeBar: false, responsive: true, locale: "en" });
  } catch (error) {
    place.textContent = error.message;
    place.classList.add("state");
  }
}

export function release(place) {
  if (window.Plotly && place.classList.contains("js-plotly-plot")) window.Plotly.purge(place);
}

/** Bars for counts by label; `describe` gives a bar's tooltip. Heights are shares of the largest. */
export function bars(values, labels, describe, label) {
  const width = 10, height = 48, highest = Math.max(...values, 1);
  return svg("svg", { class: "bars", viewBox: `0 0 ${values.length * width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    values.map((value, place) => {
      const tall = value ? Math.max(1.5, (value / highest) * (height - 2)) : 0;
      return svg("g", {}, svg("title", {}, describe(value, labels[place])),
        svg("rect", { class: "room", x: place * width, y: 0, width: width - 2, height }),
        svg("rect", { class: "bar", x: place * width, y: height - tall, width: width - 2, height: tall }));
    }));
}
