"""The tables of `weir bench load` and the page that its --html writes."""

from collections.abc import Sequence

from loadgen.bench.load.result import LoadResult, Run
from loadgen.page import Cell, Figure, Table, latency_figure, machine_table, micros, page

CURVES_MAX = 8  # lines that one plot shows


def runs_table(runs: Sequence[Run]) -> Table:
    """One line per run."""
    columns = ("what", "offered/s", "answered/s", "rows/s", "failed/s", "p50 µs", "p99 µs", "p99.9 µs", "lag p99", "waited",
               "client")  # fmt: skip
    rows: list[Sequence[Cell]] = [
        (name_of(run), run.offered_per_s, run.requests_per_s, run.rows_per_s, run.failures_per_s, run.latency_us.p50,
         run.latency_us.p99, run.latency_us.p99_9, None if run.send_lag_us is None else run.send_lag_us.p99, run.waited,
         run.client_cpu_share)
        for run in runs
    ]  # fmt: skip
    return "Runs; failures are in the latencies with the deadline; client: its share of a core", columns, rows


def percentiles_table(runs: Sequence[Run]) -> Table:
    """µs at the percentiles that load tests usually publish, one column per run."""
    names = list(runs[0].percentiles) if runs else []
    rows: list[Sequence[Cell]] = [(f"{name} %", *(run.percentiles[name] for run in runs)) for name in names]
    return "Latency by percentile, µs", ("within", *(name_of(run) for run in runs)), rows


def name_of(run: Run) -> str:
    """ "open 5,000/s" or "closed, 10 conn."."""
    void = " (void)" if run.void else ""
    if run.offered_per_s is not None:
        return f"{run.scenario} {run.offered_per_s:,.0f}/s{void}"
    rows = f", {run.rows} rows" if run.rows > 1 else ""
    return f"{run.scenario}, {run.connections} conn.{rows}{void}"


def notes(result: LoadResult) -> list[str]:
    """What voids runs, what failed, in words; then the caveats."""
    found = [f"{name_of(run)}: {run.void}." for run in result.runs if run.void]
    for run in result.runs:
        found += [f"{name_of(run)}: {error.kind} × {error.count:,}, first: {error.example}" for error in run.errors]
    return [*found, *result.caveats]


def load_page(result: LoadResult) -> str:
    """The result as one HTML page."""
    runs, options = result.runs, result.options
    lead = (
        f"{options.scenario} against {options.url} on {result.created}: {result.payload_mix}. Warm-up of {options.warm_s:g} s "
        f"left out, {options.seconds:g} s measured, deadline {options.deadline_s:g} s."
    )
    first = runs[-1]
    facts = [
        ("requests per second", f"{max(run.requests_per_s for run in runs):,.0f}"),
        ("median latency", micros(first.latency_us.p50)),
        ("99 % within", micros(first.latency_us.p99)),
        ("failures", f"{sum(run.failures for run in runs):,}"),
    ]
    if result.best_per_s is not None:
        facts.insert(0, (f"highest rate with p99 ≤ {options.p99_bound_ms:g} ms, per second", f"{result.best_per_s:,.0f}"))
    if result.ceiling is not None:
        facts.append(("the generator's own ceiling, per second", f"{result.ceiling.requests_per_s:,.0f}"))
    curves = {name_of(run): run.curve for run in runs[-CURVES_MAX:]}
    figures: list[tuple[str, str, Figure]] = [
        ("Latency by percentile", "µs; each step right is ten times rarer", latency_figure(curves)),
    ]
    if sum(run.offered_per_s is not None for run in runs) > 1:
        figures.append(
            ("Rate sweep", "µs by offered requests per second; the knee is where p99 leaves p50", sweep_figure(runs))
        )
    figures.append(("Time line", "requests answered in each second, and their p99", timeline_figure(runs[-1])))
    tables: list[Table] = [runs_table(runs), percentiles_table(runs[-CURVES_MAX:])]
    if result.ceiling is not None:
        tables.append(("The generator alone, on a server that does nothing", *runs_table([result.ceiling])[1:]))
    if result.wrk is not None:
        tables.append(wrk_table(result))
    return page("Weir bench load", lead, facts, figures, [*tables, machine_table(result.machine)], notes(result))


def wrk_table(result: LoadResult) -> Table:
    assert result.wrk is not None
    w = result.wrk
    columns = ("connections", "wrk, requests/s", "ours, requests/s", "ratio", "least", "most", "what")
    row = (w.connections, w.wrk_per_s, w.own_per_s, w.ratio, w.ratios[0], w.ratios[-1], w.verdict)
    return "Beside wrk, medians of interleaved rounds", columns, [row]


def sweep_figure(runs: Sequence[Run]) -> Figure:
    """p50 and p99 by offered rate; void runs are hollow."""
    swept = sorted((run for run in runs if run.offered_per_s is not None), key=lambda run: run.offered_per_s or 0.0)
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [run.offered_per_s for run in swept],
            "y": [max(1, getattr(run.latency_us, field)) for run in swept],
            "line": {"color": colour},
            "marker": {"symbol": ["circle-open" if run.void else "circle" for run in swept], "size": 9},
        }
        for name, field, colour in (("p50", "p50", "@a"), ("p99", "p99", "@c"))
    ]
    layout = {
        "xaxis": {"title": {"text": "offered, requests/s"}, "rangemode": "tozero"},
        "yaxis": {"type": "log", "title": {"text": "µs"}, "dtick": 1},
    }
    return {"data": data, "layout": layout}


def timeline_figure(run: Run) -> Figure:
    """Requests and p99 by second of the measured time."""
    x = list(range(1, len(run.timeline) + 1))
    data = [
        {"type": "bar", "name": "answered", "x": x, "y": [i.answered for i in run.timeline], "marker": {"color": "@a"}},
        {"type": "bar", "name": "failed", "x": x, "y": [i.failed for i in run.timeline], "marker": {"color": "@c"}},
        {"type": "scatter", "mode": "lines+markers", "name": "p99, µs", "x": x, "y": [i.p99 for i in run.timeline],
         "yaxis": "y2", "line": {"color": "@b"}},
    ]  # fmt: skip
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": "s"}, "dtick": max(1, len(x) // 10)},
        "yaxis": {"rangemode": "tozero", "title": {"text": "requests/s"}},
        "yaxis2": {
            "overlaying": "y",
            "side": "right",
            "tickmode": "auto",  # not where the left axis has its ticks, at 3.48k and the like
            "rangemode": "tozero",
            "showgrid": False,
            "automargin": True,
            "title": {"text": "p99, µs"},
        },
    }
    return {"data": data, "layout": layout}
