"""The tables of `weir bench http` and the page that its --html writes."""

from collections.abc import Sequence

from loadgen.bench.arms import FASTAPI, GO_JSON, WEIR_ARMS, kind_of
from loadgen.bench.http_goals import goals_table, make_goals
from loadgen.bench.http_result import Cell, HttpResult, Process, busiest_single
from loadgen.page import Cell as TableCell
from loadgen.page import Figure, Table, machine_table, page

# The page has four colours of its own; those of the other arms are legible on its light and on its dark ground.
COLOURS = {
    "null": "@d",
    "go json": "#9b6fb0",
    "bare aiohttp": "@b",
    "fastapi": "#c08a3e",
    "weir onnx": "@c",
    "weir go aiohttp": "#5f7f9f",
    "weir go": "@a",
    "weir-go": "#4f9d69",
}
MODE_COLOURS = (
    "@c",
    "@a",
    "@b",
    "#4f9d69",
    "@d",
    "#9b6fb0",
    "#c08a3e",
    "#5f7f9f",
    "#8f5f5f",
)  # of arms that are there once per sync mode


def rates_table(result: HttpResult) -> Table:
    """Every arm, mode and number of connections."""
    draw = f"Zipf {result.options.zipf:g}" if result.options.zipf else "uniform"
    title = f"{result.options.cards:,} cards, {draw}; medians of {result.options.rounds}"
    columns = ("mode", "conn.", "arm", "events/s", "of bare", "p50 µs", "p99 µs", "p99.9 µs", "CPU µs/req.",
               "server core", "client core", "stolen")  # fmt: skip
    rows: list[Sequence[TableCell]] = [
        (c.mode, c.connections, c.arm, c.rows_per_s, c.ratio_to_bare, c.p50_us, c.p99_us, c.p99_9_us,
         c.server_cpu_us_per_request, c.server_cpu_share, c.client_cpu_share, c.stolen_share)
        for c in result.cells
    ]  # fmt: skip
    return title, columns, rows


def spread_table(result: HttpResult) -> Table:
    """How far the rounds lie apart, and the rates in terms of the other yardsticks."""
    columns = ("mode", "conn.", "arm", "lowest", "median", "highest", "of fastapi", "of go json")
    rows: list[Sequence[TableCell]] = []
    for c in result.cells:
        rates = [sample.rows_per_s for sample in c.samples]
        ratios = (c.ratios.get(FASTAPI), c.ratios.get(GO_JSON))
        rows.append((c.mode, c.connections, c.arm, min(rates), c.rows_per_s, max(rates), *ratios))
    return f"events/s over {result.options.rounds} rounds, and in terms of other yardsticks", columns, rows


def process_table(result: HttpResult) -> Table:
    """Every server: its start, its memory, its CPU."""
    most = max(result.options.connections)
    title = f"process: s to ready (median of {result.options.starts}), MiB resident, CPU per single request"
    columns = ("arm", "s to ready", "MiB at start", "MiB after", "MiB most", "events", f"CPU µs/req. at {most}")
    rows: list[Sequence[TableCell]] = [
        (p.arm, p.ready_s, p.memory_start_mb, p.memory_end_mb, p.memory_max_mb, p.events, p.cpu_us_per_request)
        for p in result.processes
    ]
    return title, columns, rows


def http_page(result: HttpResult) -> str:
    """The result as one HTML page."""
    singles = [cell for cell in result.cells if cell.mode == "http"]
    batches = [cell for cell in result.cells if cell.mode == "batch"]
    figures: list[tuple[str, str, Figure]] = [
        ("Requests per second", "single events, by connections", _by_connections(singles, "requests_per_s")),
        ("Events per second", "batches, by connections", _by_connections(batches, "rows_per_s")),
        ("99th percentile", "µs, single events, by connections", _by_connections(singles, "p99_us")),
        ("CPU of the server", "µs per request, single events, by connections",
         _by_connections(singles, "server_cpu_us_per_request")),
        ("Resident memory", "MiB, at the start and after the run", _memory(result.processes)),
    ]  # fmt: skip
    tables: list[Table] = [rates_table(result), spread_table(result), process_table(result)]
    if goals := make_goals(result.cells):
        tables.insert(0, goals_table(goals))
    if result.skipped:
        tables.append(("Left out", ("arm", "reason"), list(result.skipped.items())))
    lead = (
        f"{result.options.rounds} interleaved rounds of {result.options.measure_s:g} s on {result.created}. Servers on "
        f"core {result.server_core}, client ({result.client}) and stores on core {result.client_core}. Data on "
        f"{result.file_system}, an fsync there takes "
        f"{result.fsync.p50_us:,.0f} µs."
    )
    figures = [figure for figure in figures if figure[2]["data"]]
    return page("Weir bench http", lead, _facts(result), figures, [*tables, machine_table(result.machine)], result.caveats)


def _facts(result: HttpResult) -> list[tuple[str, str]]:
    facts = []
    for process in result.processes:
        if kind_of(process.arm) not in WEIR_ARMS:
            continue
        top = busiest_single(result.cells, process.arm)
        of_bare = f" ({top.ratio_to_bare:.2f})" if top.ratio_to_bare else ""
        note = " (of the bare handler)" if of_bare else ""
        facts.append(
            (f"{top.arm}: requests per second, {top.connections} connections{note}", f"{top.requests_per_s:,.0f}{of_bare}")
        )
        batches = [c.rows_per_s for c in result.cells if c.arm == process.arm and c.mode == "batch"]
        facts.append((f"{top.arm}: events per second, batches of {result.options.batch_rows}", f"{max(batches):,.0f}"))
    return facts


def _colours(cells: Sequence[Cell]) -> dict[str, str]:
    """Every arm's own colour; arms that are there once per mode get the next one each."""
    names = list(dict.fromkeys(cell.arm for cell in cells))
    rest = iter(MODE_COLOURS)
    return {name: COLOURS.get(name) or next(rest) for name in names}


def _by_connections(cells: Sequence[Cell], field: str) -> Figure:
    data: list[dict[str, object]] = []
    for arm, colour in _colours(cells).items():
        of_arm = [cell for cell in cells if cell.arm == arm]
        if of_arm:
            x = [str(cell.connections) for cell in of_arm]
            y = [getattr(cell, field) for cell in of_arm]
            data.append({"type": "bar", "name": arm, "x": x, "y": y, "marker": {"color": colour}})
    return _grouped(data)


def _memory(processes: Sequence[Process]) -> Figure:
    x = [process.arm for process in processes]
    data: list[dict[str, object]] = [
        {"type": "bar", "name": name, "x": x, "y": [getattr(p, field) for p in processes], "marker": {"color": colour}}
        for name, field, colour in (("at start", "memory_start_mb", "@d"), ("after", "memory_end_mb", "@a"))
    ]
    return _grouped(data)


def _grouped(data: list[dict[str, object]]) -> Figure:
    return {"data": data, "layout": {"barmode": "group", "xaxis": {"type": "category"}, "yaxis": {"rangemode": "tozero"}}}
