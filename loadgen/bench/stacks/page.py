"""The tables of `weir bench stacks`, and the pages that --html and --markdown write."""

from collections.abc import Sequence

from loadgen.bench.http_goals import goals_table
from loadgen.bench.load.result import PERCENTILES
from loadgen.bench.markdown import markdown_page
from loadgen.bench.stacks.goals import make_goals, rivals
from loadgen.bench.stacks.result import CARD, WEIR_GO, Cell, StacksResult
from loadgen.page import Cell as TableCell
from loadgen.page import Figure, Table, machine_table, page

COLOURS = ("@c", "@b", "#c08a3e", "#9b6fb0", "#5f7f9f", "@d", "#8f5f5f", "#4f9d69", "@a", "#3f7f3f", "#b05f9f", "#7f7f3f")


def rates_table(result: StacksResult) -> Table:
    """Every stack, number of rows and of cores: rates, CPU, memory."""
    columns = ("arm", "cores", "workers", "rows", "requests/s", "rows/s", "failures/s", "p50 ms", "p95 ms", "p99 ms")
    rows: list[Sequence[TableCell]] = [
        (c.arm, c.cores, c.workers, c.rows, c.requests_per_s, c.rows_per_s, c.failures_per_s, c.percentiles["50"] / 1e3,
         c.percentiles["95"] / 1e3, c.percentiles["99"] / 1e3)
        for c in _cards(result)
    ]  # fmt: skip
    return f"{result.options.users} users, closed loop, medians of {result.options.rounds} round(s)", columns, rows


def costs_table(result: StacksResult) -> Table:
    """What each of those took: CPU of server and database apart, memory, shares of a core."""
    columns = ("arm", "cores", "rows", "CPU ms/request", "database ms/request", "PSS MiB", "server core", "client core")
    rows: list[Sequence[TableCell]] = [
        (c.arm, c.cores, c.rows, c.cpu_ms_per_request, c.database_cpu_ms_per_request, c.pss_mb, c.server_cpu_share,
         c.client_cpu_share)
        for c in _cards(result)
    ]  # fmt: skip
    return "What that took", columns, rows


def percentiles_table(result: StacksResult) -> Table:
    """The published table: ms within which so many of the requests are answered, one core, one event per request."""
    least = min(result.options.rows)
    cells = [cell for cell in _cards(result) if (cell.cores, cell.rows) == (1, least)]
    columns = ("arm", "requests/s", "failures/s", *(f"{q:g} %" for q in PERCENTILES))
    rows: list[Sequence[TableCell]] = [
        (c.arm, c.requests_per_s, c.failures_per_s, *(c.percentiles[f"{q:g}"] / 1e3 for q in PERCENTILES)) for c in cells
    ]
    return f"Latency by percentile, ms: one core, {least} event(s) per request", columns, rows


def images_table(result: StacksResult) -> Table | None:
    """The image workload; None if nobody did it."""
    cells = [cell for cell in result.cells if cell.workload != CARD]
    if not cells:
        return None
    columns = ("arm", "body", "requests/s", "failures/s", "p50 ms", "p95 ms", "p99 ms", "CPU ms/req.", "PSS MiB")
    rows: list[Sequence[TableCell]] = [
        (c.arm, c.workload.partition("-")[2], c.requests_per_s, c.failures_per_s, c.percentiles["50"] / 1e3,
         c.percentiles["95"] / 1e3, c.percentiles["99"] / 1e3, c.cpu_ms_per_request, c.pss_mb)
        for c in cells
    ]  # fmt: skip
    return f"MobileNetV2, one image per request, one core, {result.options.users} users", columns, rows


def sweeps_table(result: StacksResult) -> Table | None:
    """The open loop; None without one."""
    columns = ("arm", "offered/s", "answered/s", "failures/s", "p50 ms", "p99 ms", "p99.9 ms", "lag p99 ms", "counts")
    rows: list[Sequence[TableCell]] = [
        (sweep.arm, run.offered_per_s, run.requests_per_s, run.failures_per_s, run.latency_us.p50 / 1e3,
         run.latency_us.p99 / 1e3, run.latency_us.p99_9 / 1e3,
         None if run.send_lag_us is None else run.send_lag_us.p99 / 1e3, "void" if run.void else "yes")
        for sweep in result.sweeps
        for run in sweep.runs
    ]  # fmt: skip
    if not rows:
        return None
    return "Open loop, Poisson, one core; void: the generator was later than 5 % of the latency at p99", columns, rows


def processes_table(result: StacksResult) -> Table:
    """Every stack as a program, those that are missing with the reason."""
    columns = ("arm", "first answer s", "PSS MiB", "installed MB", "build s", "build CPU s", "what")
    rows: list[Sequence[TableCell]] = [
        (
            p.arm,
            sorted(p.first_answer_s)[(len(p.first_answer_s) - 1) // 2],
            p.pss_mb,
            p.installed_mb,
            p.build_s,
            p.build_cpu_s,
            p.title,
        )
        for p in result.processes
    ]
    rows += [(name, None, None, None, None, None, f"left out: {reason}") for name, reason in result.skipped.items()]
    return "Programs", columns, rows


def tables(result: StacksResult) -> list[Table]:
    """All of them, in the order of interest."""
    found: list[Table | None] = [percentiles_table(result), rates_table(result), costs_table(result), processes_table(result)]
    if goals := make_goals(result):
        found.insert(0, goals_table(goals))
    found += [images_table(result), sweeps_table(result)]
    return [table for table in found if table is not None]


def stacks_page(result: StacksResult) -> str:
    """The result as one HTML page."""
    cells = [cell for cell in _cards(result) if cell.cores == 1]
    least = min(result.options.rows)
    singles = [cell for cell in cells if cell.rows == least]
    facts = [(f"{cell.arm}: requests per second", f"{cell.requests_per_s:,.0f}") for cell in singles]
    curves = {cell.arm: cell.curve for cell in singles}
    figures: list[tuple[str, str, Figure]] = [
        ("Latency by percentile", "µs, one core; each step right is ten times rarer", _curves(curves)),
        ("Events per second", "by rows per request, one core", _bars(cells, "rows_per_s", "events/s")),
        ("CPU of the server", "ms per request, by rows per request, one core", _bars(cells, "cpu_ms_per_request", "ms")),
        ("Memory", "MiB of PSS, by rows per request", _bars(cells, "pss_mb", "MiB")),
    ]
    if result.sweeps:
        figures.append(("Rate sweep", "p99 in µs by offered requests per second; void runs are hollow", _sweeps(result)))
    return page(
        "Weir bench stacks", _lead(result), facts, figures, [*tables(result), machine_table(result.machine)], result.caveats
    )


def stacks_markdown(result: StacksResult) -> str:
    """The result as a page of docs/results."""
    return markdown_page(
        "The rival stacks, measured alike",
        _lead(result),
        result.command,
        result.created,
        result.machine,
        tables(result),
        result.caveats,
    )


def _lead(result: StacksResult) -> str:
    limits = "; ".join(f"{cores} core(s): {how}" for cores, how in result.limits.items())
    client = ", ".join(map(str, result.client_cores)) or "the same"
    worst = min((rival.ratio for rival in rivals(result)), default=None)
    ahead = f" {WEIR_GO} is ahead of every rival by {worst:.2g} times or more." if worst is not None and worst > 1 else ""
    return (
        f"The same work by every stack: API key, validation, features of a card and a merchant, a 40→256→128→1 model, JSON."
        f"{ahead} Servers {limits}. Client and stores on core(s) {client}. {result.options.rounds} interleaved rounds of"
        f" {result.options.measure_s:g} s; every reply was checked, the rivals' scores within 1e-5."
    )


def _cards(result: StacksResult) -> list[Cell]:
    return [cell for cell in result.cells if cell.workload == CARD]


def _colour(n: int) -> str:
    return COLOURS[n % len(COLOURS)]


def _curves(curves: dict[str, list[tuple[float, int]]]) -> Figure:
    data = [
        {"type": "scatter", "mode": "lines", "name": name, "x": [x for x, _ in curve], "y": [max(y, 1) for _, y in curve],
         "line": {"width": 2, "color": _colour(n)}}
        for n, (name, curve) in enumerate(curves.items())
    ]  # fmt: skip
    ticks, names = [2, 10, 100, 1_000, 10_000, 100_000], ["50 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"]
    layout = {
        "xaxis": {"type": "log", "tickvals": ticks, "ticktext": names},
        "yaxis": {"type": "log", "title": {"text": "µs"}, "dtick": 1},
    }
    return {"data": data, "layout": layout}


def _bars(cells: Sequence[Cell], field: str, unit: str) -> Figure:
    data = []
    for n, arm in enumerate(dict.fromkeys(cell.arm for cell in cells)):
        mine = [cell for cell in cells if cell.arm == arm]
        x, y = [str(cell.rows) for cell in mine], [getattr(cell, field) for cell in mine]
        data.append({"type": "bar", "name": arm, "x": x, "y": y, "marker": {"color": _colour(n)}})
    layout = {
        "barmode": "group",
        "xaxis": {"type": "category", "title": {"text": "events per request"}},
        "yaxis": {"type": "log", "title": {"text": unit}, "dtick": "D2"},
    }
    return {"data": data, "layout": layout}


def _sweeps(result: StacksResult) -> Figure:
    data = [
        {"type": "scatter", "mode": "lines+markers", "name": sweep.arm, "x": [run.offered_per_s for run in sweep.runs],
         "y": [max(1, run.latency_us.p99) for run in sweep.runs], "line": {"color": _colour(n)},
         "marker": {"symbol": ["circle-open" if run.void else "circle" for run in sweep.runs], "size": 9}}
        for n, sweep in enumerate(result.sweeps)
    ]  # fmt: skip
    axes = {
        "xaxis": {"type": "log", "title": {"text": "offered, requests/s"}},
        "yaxis": {"type": "log", "dtick": 1, "title": {"text": "p99, µs"}},
    }
    return {"data": data, "layout": axes}
