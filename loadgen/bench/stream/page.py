"""The tables of `weir bench stream`, what it is to reach, and the page that its --html writes."""

from collections.abc import Sequence

from loadgen.bench.http_goals import Goal, goals_table
from loadgen.bench.stream.result import LEDGER, StreamResult
from loadgen.page import Cell, Figure, Table, machine_table, page

COLOURS = {"go": "@a", "onnx": "@c", "go batch": "@b", "onnx batch": "@d"}
RATE_PACED = 70_000.0  # events/s for five minutes
LEVEL_SHARE_MAX = 0.01  # of the rate: a ledger whose lag grows more slowly than that is called level


def arms_table(result: StreamResult) -> Table:
    """Every arm: rate, CPU, latency of a chunk."""
    what = f"{result.options.events:,} events" if result.options.rate is None else f"{result.options.rate:,.0f} events/s"
    title = f"{what}, {result.options.entities:,} cards; medians of {result.options.rounds}"
    columns = ("arm", "events/s", "lowest", "highest", "server µs", "client µs", "stores µs", "until level", "chunk p50 µs",
               "p99 µs")  # fmt: skip
    rows: list[Sequence[Cell]] = [
        (a.arm, a.events_per_s, a.events_per_s_min, a.events_per_s_max, a.server_cpu_us, a.client_cpu_us, a.stores_cpu_us,
         a.server_level_cpu_us, a.chunk_p50_us, a.chunk_p99_us)
        for a in result.arms
    ]  # fmt: skip
    return title, columns, rows


def ledger_table(result: StreamResult) -> Table:
    """Every arm: the ledger, the journal, memory."""
    columns = ("arm", "ledger behind", "s until level", "growth of lag/s", "journal bytes/event", "MiB most")
    rows: list[Sequence[Cell]] = [
        (a.arm, a.lag_end, a.level_s, a.lag_slope_per_s, a.journal_bytes_per_event, a.memory_max_mb) for a in result.arms
    ]
    return "Ledger at the end, journal, memory of the server", columns, rows


def make_goals(result: StreamResult) -> list[Goal]:
    """What the go scorer's stream is to reach, as far as this run can say."""
    arm = next((arm for arm in result.arms if arm.arm == "go"), None)
    if arm is None:
        return []
    if result.options.rate is None:
        limits = [(150_000.0, False), (500_000.0, True)] if result.options.events >= 600_000 else []
        return [Goal("stream, go: events/s", arm.events_per_s, limit, True, stretch) for limit, stretch in limits]
    if result.options.rate < RATE_PACED:
        return []
    goals = [Goal("stream, go, paced: events/s", arm.events_per_s, RATE_PACED * 0.99, True)]
    if arm.lag_slope_per_s is not None:
        limit = LEVEL_SHARE_MAX * result.options.rate
        goals.append(Goal("stream, go, paced: growth of the ledger's lag, entries/s", arm.lag_slope_per_s, limit, False))
    return goals


def stream_page(result: StreamResult) -> str:
    """The result as one HTML page."""
    facts = [(f"events/s, {arm.arm}", f"{arm.events_per_s:,.0f}") for arm in result.arms]
    paced = "" if result.options.rate is None else f", paced at {result.options.rate:,.0f} events/s"
    lead = (
        f"{result.options.rounds} interleaved passes{paced} over {result.options.connections} connection(s) on"
        f" {result.created}; data on {result.file_system}."
    )
    figures: list[tuple[str, str, Figure]] = [
        ("Events per second", "each pass", _rates(result)),
        ("CPU", "µs per event during a pass, medians", _cpu(result)),
        ("Lag of the ledger", "journal entries, by second of a pass", _lags(result)),
    ]
    tables = [arms_table(result), ledger_table(result), _runs_table(result), machine_table(result.machine)]
    if goals := make_goals(result):
        tables.insert(0, goals_table(goals))
    if result.skipped:
        tables.append(("Left out", ("arm", "reason"), list(result.skipped.items())))
    return page("Weir bench stream", lead, facts, [f for f in figures if f[2]["data"]], tables, result.caveats)


def _runs_table(result: StreamResult) -> Table:
    columns = (
        "arm",
        "pass",
        "events",
        "refused",
        "checked",
        "s",
        "events/s",
        "client core",
        "late s",
        "behind",
        "level after s",
    )
    rows: list[Sequence[Cell]] = [
        (r.arm, r.round + 1, r.events, r.errors, r.checked, r.seconds, r.events_per_s, r.client_cpu_share, r.late_s, r.lag_end,
         r.level_s)
        for r in result.runs
    ]  # fmt: skip
    return "Passes", columns, rows


def _rates(result: StreamResult) -> Figure:
    data = [
        {"type": "bar", "name": arm.arm, "x": [str(r.round + 1) for r in result.runs if r.arm == arm.arm],
         "y": [r.events_per_s for r in result.runs if r.arm == arm.arm], "marker": {"color": COLOURS[arm.arm]}}
        for arm in result.arms
    ]  # fmt: skip
    return {
        "data": data,
        "layout": {
            "barmode": "group",
            "xaxis": {"type": "category", "title": {"text": "pass"}},
            "yaxis": {"title": {"text": "events/s"}},
        },
    }


def _cpu(result: StreamResult) -> Figure:
    x = [arm.arm for arm in result.arms]
    data = [
        {"type": "bar", "name": name, "x": x, "y": [getattr(arm, field) for arm in result.arms], "marker": {"color": colour}}
        for name, field, colour in (
            ("server", "server_cpu_us", "@a"), ("client", "client_cpu_us", "@b"), ("stores", "stores_cpu_us", "@d"),
        )
    ]  # fmt: skip
    return {"data": data, "layout": {"barmode": "stack", "xaxis": {"type": "category"}, "yaxis": {"title": {"text": "µs"}}}}


def _lags(result: StreamResult) -> Figure:
    data = []
    for run in result.runs:
        points = [(point.at_s, point.lags[LEDGER]) for point in run.lags if LEDGER in point.lags]
        if points:
            line = {"width": 2, "color": COLOURS[run.arm]}
            data.append({"type": "scatter", "mode": "lines", "name": f"{run.arm}, pass {run.round + 1}", "line": line,
                         "x": [x for x, _ in points], "y": [y for _, y in points]})  # fmt: skip
    return {
        "data": data,
        "layout": {"xaxis": {"title": {"text": "s"}}, "yaxis": {"rangemode": "tozero", "title": {"text": "entries"}}},
    }
