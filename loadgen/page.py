"""Any result as one self-contained HTML page: facts, plots, tables, and what the numbers do not show.

A page loads nothing: Plotly's bundle is inlined once and a content security policy forbids the rest. All text is
escaped. It follows the reader's light or dark scheme; colours in figures are names ("@a") of the style sheet's.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from plotly.offline import get_plotlyjs

from models.machine import Machine

SHORT = 24  # characters of a cell that is not broken into lines: names
Figure = dict[str, Any]  # {"data": [...], "layout": {...}} as Plotly takes it
Cell = str | int | float | None
Table = tuple[str, Sequence[str], Sequence[Sequence[Cell]]]  # caption, columns, rows


def micros(us: float) -> str:
    """ "850 µs", "12.3 ms", "1.20 s"."""
    if us < 1_000:
        return f"{us:.0f} µs"
    return f"{us / 1_000:.3g} ms" if us < 1_000_000 else f"{us / 1e6:.2f} s"


def machine_table(m: Machine) -> Table:
    rows: Sequence[Sequence[Cell]] = [
        ("processor", f"{m.cpu}, {m.cores} core(s) usable"),
        ("load average, 1 minute", m.load_1m),
        ("memory, GiB", m.memory_gb),
        ("system", m.system),
        ("Python", m.python),
        ("commit", m.commit or "not a checkout"),
        ("versions", ", ".join(f"{name} {version}" for name, version in m.versions.items())),
    ]
    return ("Machine of the load generator", ("what", "value"), rows)


def page(
    title: str,
    lead: str,
    facts: Sequence[tuple[str, str]],
    figures: Sequence[tuple[str, str, Figure]],
    tables: Sequence[Table],
    caveats: Sequence[str],
) -> str:
    """One HTML page. Colours in figures are names ("@a") that the page's script takes from its style sheet."""
    e = html.escape
    plots = "".join(
        f'<figure><figcaption><h2>{e(name)}</h2><p>{e(note)}</p></figcaption><div class="plot" id="plot{n}"></div></figure>'
        for n, (name, note, _) in enumerate(figures)
    )
    data = msgspec.json.encode([figure for _, _, figure in figures]).decode()
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return "".join(
        [
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{e(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" content="'
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:\">",
            f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body><main>",
            f'<header><h1>{e(title)}</h1><p class="lead">{e(lead)}</p></header><dl class="facts">',
            "".join(f"<div><dt>{e(name)}</dt><dd>{e(value)}</dd></div>" for name, value in facts),
            f"</dl>{plots}<section><h2>Numbers</h2>{''.join(_table(*table) for table in tables)}</section>",
            "<section><h2>What this does not show</h2><ul>",
            "".join(f"<li>{e(caveat)}</li>" for caveat in caveats),
            f'</ul></section></main><script type="application/json" id="figures">{data}</script>',
            f"<script>{SCRIPT}</script></body></html>\n",
        ]
    )


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Cell) -> str:
    if value is None:
        return "<td>–</td>"
    if isinstance(value, str):
        return f"<td{' class=k' if len(value) <= SHORT else ''}>{html.escape(value)}</td>"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
    return f'<td class="n">{text}</td>'


def latency_figure(curves: Mapping[str, Sequence[tuple[float, int]]]) -> Figure:
    ticks = [2, 10, 100, 1_000, 10_000, 100_000, 1_000_000]
    names = ["50 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %"]
    colours = ["@a", "@b", "@c", "@d"]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": html.escape(name),
            "x": [x for x, _ in curve],
            "y": [max(y, 1) for _, y in curve],
            "line": {"width": 2, "color": colours[n % 4]},
        }
        for n, (name, curve) in enumerate(curves.items())
    ]
    return {
        "data": data,
        "layout": {
            "xaxis": {"type": "log", "tickvals": ticks, "ticktext": names},
            "yaxis": {"type": "log", "title": {"text": "µs"}, "dtick": 1},
            "showlegend": len(data) > 1,
        },
    }


STYLE = """
:root{--paper:#fcfcfa;--ink:#1f2428;--soft:#5d666e;--line:#dfe2e0;--a:#20699c;--b:#d9930d;--c:#c2492b;--d:#8b949b}
@media (prefers-color-scheme:dark){:root{--paper:#15181b;--ink:#e4e6e8;--soft:#9ba4ab;--line:#30363b;--a:#6cb0e0;
--b:#e8b04a;--c:#ee7f62;--d:#7d868d}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:54rem;margin:0 auto;padding:3rem 1.25rem 5rem}
h1{font-size:1.9rem;line-height:1.2;font-weight:600;letter-spacing:-.015em;margin:0 0 .6rem}
h2{font-size:1.15rem;font-weight:600;margin:0}
.lead{max-width:44rem;color:var(--soft);margin:0;overflow-wrap:anywhere}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:1rem 1.5rem;margin:2.2rem 0 0;
padding:1.2rem 0;border:solid var(--line);border-width:1px 0}
.facts dt{font-size:.85rem;color:var(--soft)}
.facts dd{margin:0;font-size:1.55rem;font-weight:600;font-variant-numeric:tabular-nums}
figure{margin:3rem 0 0}
figcaption p{margin:0;font-size:.9rem;color:var(--soft)}
.plot{height:20rem}
section{margin-top:3.5rem}
.scroll{overflow-x:auto;margin-top:1.6rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding-bottom:.3rem}
th,td{text-align:left;padding:.35rem 1.2rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:break-word}
th{font-weight:500;color:var(--soft)}
td.n,td.k{white-space:nowrap}
li{margin:.35rem 0;max-width:44rem}
"""

SCRIPT = """
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue("--" + name).trim();
  const paint = (value) => {
    if (typeof value === "string") return value.startsWith("@") ? colour(value.slice(1)) : value;
    if (Array.isArray(value)) return value.map(paint);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, paint(inner)]));
  };
  const axis = {gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true};
  figures.forEach((figure, n) => {
    const layout = paint(figure.layout);
    layout.xaxis = {...axis, showgrid: false, ...layout.xaxis};
    layout.yaxis = {...axis, ...layout.yaxis};
    Object.assign(layout, {paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: {family: "system-ui, sans-serif", size: 13, color: colour("soft")},
      margin: {l: 56, r: 8, t: 28, b: 44}, legend: {orientation: "h", yanchor: "bottom", y: 1.03, x: 0},
      hovermode: "closest"});
    const place = document.getElementById("plot" + n), names = figure.data.filter((trace) => trace.name).length;
    if (names > 4) place.style.height = 20 + 1.4 * Math.ceil(names / 4) + "rem"; // rows of the legend, not of the plot
    Plotly.react("plot" + n, paint(figure.data), layout, {displayModeBar: false, responsive: true});
  });
}
draw();
dark.addEventListener("change", draw);
"""
