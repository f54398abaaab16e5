"""The page that `weir bench scorers --html` writes."""

from collections.abc import Sequence

from loadgen.bench.scorers.result import Cell, ScorersResult
from loadgen.page import Cell as TableCell
from loadgen.page import Figure, Table, machine_table, page

COLOURS = {"ort": "@d", "session.run": "@b", "go": "@a", "onnx": "@c", "objects": "@d"}
DASHED = ("ort", "session.run")  # no features in them
COLUMNS = ("n", "arm", "features", "inference", "total", "CPU", "least", "most", "of session.run", "sum of scores")


def scorers_page(result: ScorersResult) -> str:
    """The result as one HTML page."""
    figures: list[tuple[str, str, Figure]] = []
    for scene in result.scenes:
        cells = [cell for cell in result.cells if cell.scene == scene.name]
        note = f"{plain(scene.events_per_s)} events per second of event time; {scene.ring_moves_per_tx:.2g} rings moved each"
        figures.append((f"µs per transaction, {scene.name}", f"by batch size; {note}", _by_size(cells)))
        for n in sorted({cell.n for cell in cells} & {1, 256}):
            name = f"Features and inference, {n} at once, {scene.name}"
            figures.append((name, "µs per transaction", _stacked([cell for cell in cells if cell.n == n])))
    figures.append(("Memory of an entity", "resident bytes, mean of the kinds", _entities(result)))
    x = [row.scorers for row in result.process_memory]
    y = [row.rss_mb for row in result.process_memory]
    figures.append(
        ("Memory of a process", "MiB resident after one score, by scorers", _bars([("resident", x, y, "@a")], "group"))
    )
    facts = [
        (f"{target.name} (goal {target.limit:,g})", "–" if target.value is None else plain(target.value))
        for target in result.targets
    ]
    lead = (
        f"{result.options.rounds} interleaved rounds on core {result.core}, {result.created}. Goals met:"
        f" {sum(target.met is True for target in result.targets)} of {len(result.targets)}."
    )
    return page("Weir bench scorers", lead, facts, figures, _tables(result), result.caveats)


def plain(value: float) -> str:
    """A number as people write it: 20,000 and 0.174, not 2e+04."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cell_row(cell: Cell) -> tuple[TableCell, ...]:
    """A row under COLUMNS; an arm on ready vectors has no features."""
    return (
        cell.n, cell.arm, cell.features_us or None, cell.inference_us, cell.total_us, cell.cpu_us, min(cell.totals),
        max(cell.totals), cell.of_session_run, f"{cell.checksum:.4f}",
    )  # fmt: skip


def _tables(result: ScorersResult) -> list[Table]:
    tables: list[Table] = [
        (f"{scene.name}: µs per transaction", COLUMNS, [cell_row(c) for c in result.cells if c.scene == scene.name])
        for scene in result.scenes
    ]
    states = {None: "not measured", True: "met", False: "not met"}
    goals: list[Sequence[TableCell]] = [(t.name, t.limit, t.value, states[t.met], t.note) for t in result.targets]
    calls: list[Sequence[TableCell]] = [
        (c.cores, c.empty_call_us, c.put_us, c.eventfd_us, c.inline_us, c.submit_us) for c in result.calls
    ]
    entities: list[Sequence[TableCell]] = [(m.holder, m.history, m.entities, m.bytes_per_entity) for m in result.entity_memory]
    processes: list[Sequence[TableCell]] = [(m.scorers, m.rss_mb, m.anonymous_mb) for m in result.process_memory]
    return [
        ("Goals", ("goal", "limit", "value", "", "note"), goals),
        *tables,
        ("What surrounds a call, µs", ("cores", "empty call", "put a row", "eventfd", "256 inline", "256 submitted"), calls),
        ("Memory of an entity", ("holder", "history", "entities", "bytes each"), entities),
        ("Bytes of a profile", ("kind", "bytes"), list(result.profile_bytes.items())),
        ("Memory of a process, MiB", ("scorers", "resident", "of it anonymous"), processes),
        machine_table(result.machine),
    ]


def _by_size(cells: Sequence[Cell]) -> Figure:
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": arm,
            "x": [str(cell.n) for cell in cells if cell.arm == arm],
            "y": [cell.total_us for cell in cells if cell.arm == arm],
            "line": {"width": 2, "color": colour, "dash": "dot" if arm in DASHED else "solid"},
        }
        for arm, colour in COLOURS.items()
        if any(cell.arm == arm for cell in cells)
    ]
    return {
        "data": data,
        "layout": {"xaxis": {"type": "category"}, "yaxis": {"type": "log", "title": {"text": "µs"}, "dtick": 1}},
    }


def _stacked(cells: Sequence[Cell]) -> Figure:
    x = [cell.arm for cell in cells]
    parts = [
        ("inference", x, [cell.inference_us for cell in cells], "@b"),
        ("features and advance", x, [cell.features_us for cell in cells], "@a"),
    ]
    return _bars(parts, "stack")


def _entities(result: ScorersResult) -> Figure:
    parts = []
    for history, colour in zip(dict.fromkeys(row.history for row in result.entity_memory), ("@a", "@b"), strict=False):
        rows = [row for row in result.entity_memory if row.history == history]
        parts.append((history, [row.holder for row in rows], [float(row.bytes_per_entity) for row in rows], colour))
    return _bars(parts, "group")


def _bars(parts: Sequence[tuple[str, Sequence[str], Sequence[float], str]], mode: str) -> Figure:
    data = [{"type": "bar", "name": name, "x": x, "y": y, "marker": {"color": colour}} for name, x, y, colour in parts]
    layout = {"barmode": mode, "xaxis": {"type": "category"}, "yaxis": {"rangemode": "tozero"}, "showlegend": len(data) > 1}
    return {"data": data, "layout": layout}
