"""The tables of `weir bench claims`, and the pages that --html and --markdown write."""

from collections.abc import Sequence

from loadgen.bench.claims.result import ClaimsResult
from loadgen.bench.markdown import markdown_page
from loadgen.page import Cell, Figure, Table, machine_table, page

CLAIMS, MISSING = "Claims", "Inputs that are missing"  # tables of sentences
VERDICTS = ("holds", "holds partly", "does not hold", "cannot be tested here")
COLOURS = dict(zip(VERDICTS, ("@a", "@b", "@c", "@d"), strict=True))


def lines_table(result: ClaimsResult) -> Table:
    """Every claim."""
    columns = ("", "claim", "measured", "figure", "rule", "verdict")
    rows: list[Sequence[Cell]] = [
        (line.group, line.claim, line.measured, line.figure, line.rule, _verdict(line.verdict, line.needed))
        for line in result.lines
    ]
    return CLAIMS, columns, rows


def missing_table(result: ClaimsResult) -> Table | None:
    """Inputs that were not there."""
    return (MISSING, ("what",), [(text,) for text in result.missing]) if result.missing else None


def paths_table(result: ClaimsResult) -> Table | None:
    """ns of one request on each way in and out."""
    p = result.evidence.paths
    if p is None:
        return None
    rows: list[Sequence[Cell]] = [
        ("JSON, dict, Pydantic object, dict, JSON", p.objects_ns),
        ("msgspec into a struct and columns, out of a struct", p.typed_ns),
        ("the Go core, bytes to columns, alone", p.columns_ns),
        ("the Go core, bytes to columns, of 64", p.columns_of_64_ns),
        ("for comparison: one run of the model", p.inference_ns),
    ]
    return "One request in, one decision out", ("way", "ns of CPU"), rows


def profiles_table(result: ClaimsResult) -> Table | None:
    """Objects and slab."""
    p = result.evidence.profiles
    if p is None:
        return None
    rows: list[Sequence[Cell]] = [
        ("Python objects", p.objects_us, p.bytes_of("objects")),
        ("slab, Go core", p.slab_go_us, p.bytes_of("slab")),
        ("slab, numpy", p.slab_numpy_us, p.bytes_of("slab")),
    ]
    return "Four profiles advanced and 40 features, one event", ("kept as", "µs", "bytes per entity"), rows


def workers_table(result: ClaimsResult) -> Table | None:
    """Copies of a model."""
    w = result.evidence.workers
    if w is None:
        return None
    rows: list[Sequence[Cell]] = [
        ("1 process, 1 thread", w.one_thread_per_s, w.one_process_mb),
        ("1 process, 2 threads", w.two_threads_per_s, None),
        ("2 processes, 1 thread each", w.two_processes_per_s, None),
        (f"1 process, {w.n} threads", None, w.threads_mb),
        (f"{w.n} processes", None, w.processes_mb),
    ]
    return "MobileNetV2 in onnxruntime", ("what", "runs/s", "PSS MiB"), rows


def tiered_table(result: ClaimsResult) -> Table | None:
    """The tiered pattern."""
    if not result.evidence.tiered:
        return None
    columns = ("L1 for", "L2", "L3 ms", "requests/s", "p50 µs", "p99 µs", "CPU µs", "stores µs", "PSS MiB", "hits in L1")
    rows: list[Sequence[Cell]] = [
        (f"{t.l1_share:.0%}", "on" if t.has_l2 else "off", t.distance_ms, t.requests_per_s, t.p50_us, t.p99_us,
         t.cpu_us_per_request, t.stores_cpu_us_per_request, t.pss_mb, t.l1_hit_ratio)
        for t in result.evidence.tiered
    ]  # fmt: skip
    return (
        f"weir serve, {result.options.users} users, {result.options.cards:,} cards drawn evenly; CPU per request",
        columns,
        rows,
    )


def reads_table(result: ClaimsResult) -> Table | None:
    """Reads of each tier below L1."""
    columns = ("L1 for", "L2", "L3 ms", "tier", "profiles asked", "found", "reads", "p50 µs ≤", "p99 µs ≤")
    rows: list[Sequence[Cell]] = [
        (f"{t.l1_share:.0%}", "on" if t.has_l2 else "off", t.distance_ms, tier.name, tier.lookups, tier.hits, tier.reads,
         tier.p50_us, tier.p99_us)
        for t in result.evidence.tiered
        for tier in t.tiers
        if tier.lookups
    ]  # fmt: skip
    return ("What was read below L1; µs are upper bounds of a histogram's cells", columns, rows) if rows else None


def tables(result: ClaimsResult) -> list[Table]:
    """All that there are, the claims first."""
    rest = (missing_table, tiered_table, reads_table, paths_table, profiles_table, workers_table)
    return [lines_table(result), *(table for make in rest if (table := make(result)) is not None)]


def claims_page(result: ClaimsResult) -> str:
    """The result as one HTML page."""
    counts = {verdict: sum(line.verdict == verdict for line in result.lines) for verdict in VERDICTS}
    facts = [(verdict, f"{count}") for verdict, count in counts.items()]
    figures = [("Verdicts", "claims by group", _verdicts(result))]
    if result.evidence.tiered:
        figures.append(("The tiered pattern", "p99 in µs by the share of entities that L1 holds", _tiered(result)))
    return page(
        "Weir bench claims", _lead(result), facts, figures, [*tables(result), machine_table(result.machine)], result.caveats
    )


def claims_markdown(result: ClaimsResult) -> str:
    """The result as a page of docs/results."""
    title = "What others claim, and what we do"
    return markdown_page(title, _lead(result), result.command, result.created, result.machine, tables(result), result.caveats)


def _lead(result: ClaimsResult) -> str:
    stacks = f"stacks of {result.stacks_created}, commit {result.stacks_commit or 'unknown'}"
    return (
        "(A) compares Rust, PyTorch and ONNX Runtime, (B) Go and Python, (C) C++ and Python; (D) are our own claims. "
        f"A verdict follows from the figure by the rule beside it. Figures of stacks are from weir bench stacks ({stacks})."
    )


def _verdict(verdict: str, needed: str) -> str:
    return f"{verdict}; needed: {needed}" if needed else verdict


def _verdicts(result: ClaimsResult) -> Figure:
    groups = list(dict.fromkeys(line.group for line in result.lines))
    data = [
        {"type": "bar", "name": verdict, "x": groups, "marker": {"color": COLOURS[verdict]},
         "y": [sum((line.group, line.verdict) == (group, verdict) for line in result.lines) for group in groups]}
        for verdict in VERDICTS
    ]  # fmt: skip
    return {"data": data, "layout": {"barmode": "stack", "xaxis": {"type": "category"}, "yaxis": {"title": {"text": "claims"}}}}


def _tiered(result: ClaimsResult) -> Figure:
    runs = result.evidence.tiered
    keys = list(dict.fromkeys((t.has_l2, t.distance_ms) for t in runs))
    data = []
    for n, (has_l2, distance_ms) in enumerate(keys):
        mine = [t for t in runs if (t.has_l2, t.distance_ms) == (has_l2, distance_ms)]
        name = f"{'L2' if has_l2 else 'no L2'}, L3 at {distance_ms:g} ms"
        colour = ("@a", "@b", "@c", "@d", "#9b6fb0", "#4f9d69")[n % 6]
        data.append({"type": "bar", "name": name, "x": [f"{t.l1_share:.0%}" for t in mine], "y": [t.p99_us for t in mine],
                     "marker": {"color": colour}})  # fmt: skip
    x, y = (
        {"type": "category", "title": {"text": "of the entities in L1"}},
        {"type": "log", "dtick": "D2", "title": {"text": "p99, µs"}},
    )
    return {"data": data, "layout": {"barmode": "group", "xaxis": x, "yaxis": y}}
