"""The table of `weir bench recovery`, and the page that it writes with --html."""

from collections.abc import Sequence

from loadgen.bench.recovery.result import RecoveryResult
from loadgen.page import Cell, Figure, Table, machine_table, page

COLUMNS = (
    "arm", "s per million", "least", "most", "events/s", "CPU s per million", "s to ready", "MiB", "MiB most",
)  # fmt: skip
COLOURS = {"go": "@a", "onnx": "@b"}


def arms_table(result: RecoveryResult) -> Table:
    """Title, columns and a row for each scorer."""
    title = f"{result.entries:,} entries, {result.journal_mb:,.0f} MiB of journal, {result.options.cards:,} cards; medians"
    rows: list[Sequence[Cell]] = [
        (a.scorer, a.seconds, a.seconds_least, a.seconds_most, a.events_per_s, a.cpu_s, a.ready_s, a.memory_mb, a.memory_max_mb)
        for a in result.arms
    ]
    return title, COLUMNS, rows


def recovery_page(result: RecoveryResult) -> str:
    """The result as one HTML page."""
    facts = [(f"events/s, {arm.scorer}", f"{arm.events_per_s:,.0f}") for arm in result.arms]
    lead = f"{result.options.rounds} interleaved rounds, {result.created}; checksum {result.checksum}."
    runs: list[Sequence[Cell]] = [
        (r.scorer, r.entries, r.seconds, r.cpu_s, r.ready_s, r.memory_mb, r.memory_max_mb, r.checksum) for r in result.runs
    ]
    tables: list[Table] = [
        arms_table(result),
        ("Runs", ("arm", "entries", "s", "CPU s", "s to ready", "MiB", "MiB most", "checksum"), runs),
        machine_table(result.machine),
    ]
    if result.skipped:
        tables.insert(1, ("Not measured", ("scorer", "why"), list(result.skipped.items())))
    return page("Weir bench recovery", lead, facts, [("Recovery", "s per million entries, each run", _figure(result))],
                tables, result.caveats)  # fmt: skip


def _figure(result: RecoveryResult) -> Figure:
    data = []
    for arm in result.arms:
        runs = [run for run in result.runs if run.scorer == arm.scorer]
        y = [1e6 * run.seconds / run.entries for run in runs]
        x = [str(number + 1) for number in range(len(runs))]
        data.append({"type": "bar", "name": arm.scorer, "x": x, "y": y, "marker": {"color": COLOURS[arm.scorer]}})
    return {
        "data": data,
        "layout": {
            "barmode": "group",
            "xaxis": {"type": "category", "title": {"text": "round"}},
            "yaxis": {"title": {"text": "µs"}},
        },
    }
