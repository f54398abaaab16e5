"""The claims, one by one: what is said, how it was measured, our figure, the verdict by a rule of loadgen.bench.claims.rules.

(A) Rust Candle 994 requests/s at P95 20 ms in 17 MB, Python PyTorch 222 / 95 ms / 680 MB, Python ONNX 80 / 200 ms / 680 MB.
(B) Go 7 times a Python service on MobileNet with 10 clients, 80 % less memory; GIL, pointer chasing, serialisation, cold start,
copies of the model. (C) C++ against Python: deployment, inference, memory, accelerators. (D) Weir's own: goals and tiers.
"""

from collections.abc import Iterator

from loadgen.bench.claims.result import Evidence, Line, Tiered
from loadgen.bench.claims.rules import UNTESTED, at_least, at_most, line, published
from loadgen.bench.stacks.goals import NATIVE_MIN, PYTHON_MIN, rivals
from loadgen.bench.stacks.result import CARD, WEIR_GO, Cell, StacksResult, ratio

TORCH, ONNX, TUNED, RUST, GO, CPP = "fastapi-torch", "fastapi-onnx", "fastapi-onnx-tuned", "rust-candle", "go", "cpp"
RIVALS = {TORCH: PYTHON_MIN, ONNX: PYTHON_MIN, TUNED: PYTHON_MIN, RUST: NATIVE_MIN, GO: NATIVE_MIN, CPP: NATIVE_MIN}
POOL, IMAGE = "fastapi-image-pool", "fastapi-image"
FAILURES_MAX = 0.01  # of the requests; a server that fails more has not done the work
LITTLE_TOLERANCE = 0.05  # of latency; Little's law is exact, a run's ends are not
USERS = "closed loop, one core for the server"


def make_lines(stacks: StacksResult, evidence: Evidence) -> list[Line]:
    """All of them, in order. A claim whose stacks are not there cannot be tested, with the reason."""
    return [*_a(stacks), *_b(stacks, evidence), *_c(stacks, evidence), *_d(stacks, evidence)]


def _a(stacks: StacksResult) -> Iterator[Line]:
    pairs = (
        (
            "Rust with Candle answers 4.5 times as many requests as Python with PyTorch (994 against 222)",
            RUST,
            TORCH,
            994 / 222,
        ),
        (
            "Rust with Candle answers 12 times as many requests as Python with ONNX Runtime (994 against 80)",
            RUST,
            ONNX,
            994 / 80,
        ),
        ("Python with PyTorch answers 2.8 times as many requests as with ONNX Runtime (222 against 80)", TORCH, ONNX, 222 / 80),
    )
    for claim, faster, slower, claimed in pairs:
        yield _rates("A", claim, stacks, faster, slower, claimed)
    for slower, claimed in ((TORCH, 95 / 20), (ONNX, 200 / 20)):
        a, b = _sound(stacks, RUST), _sound(stacks, slower)
        value = b.percentiles["95"] / a.percentiles["95"] if a and b and a.percentiles["95"] else None
        figure = (
            f"{b.percentiles['95'] / 1e3:.3g} ms against {a.percentiles['95'] / 1e3:.3g} ms, {value:.3g}x"
            if a and b and value
            else ""
        )
        claim = f"Rust's P95 is {claimed:.3g} times lower than that of {slower}"
        yield line("A", claim, f"{USERS}, P95", figure, value, published(value, claimed), _why(stacks, RUST, slower))
    for fatter in (TORCH, ONNX):
        yield _memory("A", f"Rust takes 17 MB where {fatter} takes 680 MB (40 times)", stacks, RUST, fatter, 680 / 17)
    yield _little(stacks)
    yield _pool(stacks)


def _little(stacks: StacksResult) -> Line:
    """Latency in a closed loop is users / rate for everybody: how far the worst stack is from that."""
    cells = [
        cell for cell in stacks.cells if _is_single(cell) and cell.requests_per_s and cell.mean_us and not cell.failures_per_s
    ]
    users = stacks.options.users
    value = max((abs(users / cell.requests_per_s / (cell.mean_us / 1e6) - 1) for cell in cells), default=None)
    claim = "The published latencies are no second finding: in a closed loop, mean latency is users / rate"
    figure = "" if value is None else f"largest difference over {len(cells)} stacks {value:.1%}"
    return line("A", claim, f"{users} users / rate against the mean latency", figure, value, at_most(value, LITTLE_TOLERANCE))


def _pool(stacks: StacksResult) -> Line:
    """The session's defaults against one thread without spinning, on two cores."""
    value = _ratio(_sound(stacks, TUNED, cores=2), _sound(stacks, ONNX, cores=2))
    claim = "The ONNX row loses to its own thread pool: one thread without spinning makes up the 2.8 times"
    measured = "fastapi-onnx-tuned over fastapi-onnx, two cores, requests/s (tuned also reads features as bytes)"
    needed = (
        _why(stacks, ONNX, TUNED) or "a machine with more cores than the quota (cgroup cpu.max): the pool has a thread per core"
    )
    return line("A", claim, measured, _times(value), value, published(value, 222 / 80), needed)


def _b(stacks: StacksResult, evidence: Evidence) -> Iterator[Line]:
    claim = "Go answers 7 times as many image requests as Python with a process pool of 4 (10 clients, image as JSON)"
    yield _rates("B", claim, stacks, GO, POOL, 7.0, "image-json")
    yield _rates(
        "B",
        "Go answers 7 times as many image requests as one Python process without a pool (image as JSON)",
        stacks,
        GO,
        IMAGE,
        7.0,
        "image-json",
    )
    yield _rates(
        "B",
        "Go answers 7 times as many image requests without JSON, too (image as bytes, one Python process)",
        stacks,
        GO,
        IMAGE,
        7.0,
        "image-binary",
    )
    yield _memory("B", "Go takes 80 % less memory (5 times)", stacks, GO, POOL, 5.0, "image-json")
    yield from _reasons(stacks, evidence)


def _reasons(stacks: StacksResult, evidence: Evidence) -> Iterator[Line]:
    """What (B) blames."""
    workers, profiles, paths, missing = evidence.workers, evidence.profiles, evidence.paths, evidence.missing
    value = (
        workers.two_threads_per_s / workers.two_processes_per_s
        if workers and workers.two_threads_per_s and workers.two_processes_per_s
        else None
    )
    figure = f"{workers.two_threads_per_s:.3g}/s against {workers.two_processes_per_s:.3g}/s" if workers and value else ""
    claim = (
        "The GIL keeps one Python process from inferring on more than one core (two threads do less than 60 % of two processes)"
    )
    needed = missing.get("workers", "a second core")
    yield line("B", claim, "MobileNetV2, runs/s of threads over processes", figure, value, at_most(value, 0.6, 0.8), needed)
    value = profiles.objects_us / (profiles.slab_go_us or profiles.slab_numpy_us) if profiles else None
    figure = f"{profiles.objects_us:.3g} µs against {profiles.slab_go_us or profiles.slab_numpy_us:.3g} µs" if profiles else ""
    claim = "Pointer chasing: profiles as Python objects cost far more time than a block of bytes (3 times)"
    yield line(
        "B",
        claim,
        "advancing 4 profiles and 40 features, one event",
        figure,
        value,
        at_least(value, 3.0),
        missing.get("profiles", ""),
    )
    value = profiles.bytes_of("objects") / profiles.bytes_of("slab") if profiles else None
    figure = f"{profiles.bytes_of('objects'):,.0f} bytes against {profiles.bytes_of('slab'):,.0f}" if profiles else ""
    claim = "Profiles as Python objects take more memory than a block of bytes (3 times)"
    yield line(
        "B",
        claim,
        "resident bytes per entity after one event",
        figure,
        value,
        at_least(value, 3.0),
        missing.get("profiles", ""),
    )
    value = paths.objects_ns / paths.inference_ns if paths and paths.objects_ns else None
    figure = (
        f"{paths.objects_ns:,.0f} ns beside {paths.inference_ns:,.0f} ns of inference" if paths and paths.objects_ns else ""
    )
    claim = "Serialisation (JSON, dict, validated object, JSON) costs as much as inference"
    yield line(
        "B",
        claim,
        "one transaction in, one decision out, Pydantic",
        figure,
        value,
        at_least(value, 1.0),
        missing.get("paths", "Pydantic"),
    )
    yield from _more_reasons(stacks, evidence)


def _more_reasons(stacks: StacksResult, evidence: Evidence) -> Iterator[Line]:
    """Text, start, copies."""
    workers, missing = evidence.workers, evidence.missing
    value = _ratio(_sound(stacks, IMAGE, "image-binary"), _sound(stacks, IMAGE, "image-json"))
    claim = "The image as JSON text is most of the Python service's time (twice the requests without it)"
    yield line(
        "B",
        claim,
        f"{IMAGE}, image-binary over image-json, requests/s",
        _times(value),
        value,
        at_least(value, 2.0, 1.2),
        _why(stacks, IMAGE),
    )
    value = _start_ratio(stacks, ONNX, GO)
    claim = "Cold start: Go answers its first request far sooner than Python (5 times)"
    yield line(
        "B",
        claim,
        "start to the first correct answer",
        _starts(stacks, ONNX, GO),
        value,
        at_least(value, 5.0, 1.2),
        _why(stacks, ONNX, GO),
    )
    value = workers.processes_mb / workers.threads_mb if workers else None
    figure = (
        f"{workers.n} processes {workers.processes_mb:,.0f} MiB, {workers.n} threads {workers.threads_mb:,.0f} MiB"
        if workers
        else ""
    )
    claim = "Every worker process holds a copy of the model (so n of them take n times the memory of one)"
    n = workers.n if workers else 4
    yield line(
        "B",
        claim,
        "PSS with a session of MobileNetV2",
        figure,
        value,
        at_least(value, 0.8 * n, 1.2),
        missing.get("workers", ""),
    )


def _c(stacks: StacksResult, evidence: Evidence) -> Iterator[Line]:
    cpp, python = stacks.process(CPP), stacks.process(TUNED)
    value, figure = None, ""
    if cpp and cpp.build_cpu_s and python and python.build_cpu_s:
        value = cpp.build_cpu_s / python.build_cpu_s
        figure = f"{cpp.build_cpu_s:.3g} s of CPU against {python.build_cpu_s:.3g} s"
    claim = "C++ takes more to get deployed than Python (twice)"
    measured = "CPU seconds from downloaded packages on: compiler, or pip install into an empty environment"
    needed = f"the build times of {CPP} and {TUNED}: python -m loadgen.stacks build --again {CPP} {TUNED}"
    if not (cpp and python):
        needed = _why(stacks, CPP, TUNED)
    yield line("C", claim, measured, figure, value, at_least(value, 2.0, 1.2), needed)
    yield _rates(
        "C",
        "C++ infers faster: twice the image requests, the same library doing the work",
        stacks,
        CPP,
        IMAGE,
        2.0,
        "image-binary",
    )
    yield _rates("C", "C++ serves faster: twice the card requests", stacks, CPP, TUNED, 2.0)
    yield _memory("C", "C++ takes less memory (half)", stacks, CPP, TUNED, 2.0)
    value = _start_ratio(stacks, TUNED, CPP)
    yield line(
        "C",
        "C++ starts faster (5 times)",
        "start to the first correct answer",
        _starts(stacks, TUNED, CPP),
        value,
        at_least(value, 5.0, 1.2),
        _why(stacks, CPP, TUNED),
    )
    accelerators = [name for name in evidence.providers if name not in ("CPUExecutionProvider", "AzureExecutionProvider")]
    here = ", ".join(evidence.providers) or "none"
    needed = (
        f"an accelerator, and a build of onnxruntime for it (onnxruntime-gpu with CUDA, say); here are {here}"
        if not accelerators
        else f"the same run on {accelerators[0]}: onnx.providers asks for it, this benchmark does not"
    )
    judged = (UNTESTED, "a card network of 43,521 parameters on an accelerator, from both languages")
    yield line("C", "C++ makes more of accelerators", "not measured", "", None, judged, needed)


def _d(stacks: StacksResult, evidence: Evidence) -> Iterator[Line]:
    own = {rival.arm: rival for rival in rivals(stacks)}
    for arm, least in RIVALS.items():
        if (rival := own.get(arm)) is None:
            claim = f"weir serve (go) answers {least:g} times as many requests as {arm}, at a lower p99"
            yield line("D", claim, USERS, "", None, at_least(None, least), _why(stacks, WEIR_GO, arm))
            continue
        claim = f"weir serve (go) answers {rival.least:g} times as many requests as {rival.arm}"
        yield line("D", claim, USERS, _times(rival.ratio), rival.ratio, at_least(rival.ratio, rival.least))
        share = rival.own_p99_us / rival.p99_us if rival.p99_us else None
        figure = f"{rival.own_p99_us / 1e3:.3g} ms against {rival.p99_us / 1e3:.3g} ms"
        yield line("D", f"weir serve (go) has a lower p99 than {rival.arm}", USERS, figure, share, at_most(share, 1.0, 1.0))
    yield from _tiers(evidence)
    paths = evidence.paths
    value = paths.typed_ns / paths.inference_ns if paths else None
    figure = f"{paths.typed_ns:,.0f} ns beside {paths.inference_ns:,.0f} ns" if paths else ""
    missing = evidence.missing.get("paths", "")
    yield line(
        "D",
        "Reading and writing a request typed costs less than inference",
        "msgspec, one request",
        figure,
        value,
        at_most(value, 1.0),
        missing,
    )
    value = paths.columns_of_64_ns / paths.objects_ns if paths and paths.columns_of_64_ns and paths.objects_ns else None
    figure = (
        f"{paths.columns_of_64_ns:,.0f} ns against {paths.objects_ns:,.0f} ns"
        if paths and value and paths.columns_of_64_ns and paths.objects_ns
        else ""
    )
    claim = "From bytes to columns without objects, ids looked up, costs a fifth of the way through objects"
    yield line(
        "D",
        claim,
        "the Go core, 64 requests at once, per request",
        figure,
        value,
        at_most(value, 0.2),
        missing or "the Go core",
    )


def _tiers(evidence: Evidence) -> Iterator[Line]:
    """The tiered pattern: what distance, L1's size and L2 are worth."""
    by_key = {(t.l1_share, t.has_l2, t.distance_ms): t for t in evidence.tiered}
    shares = sorted({t.l1_share for t in evidence.tiered}, reverse=True)
    distances = sorted({t.distance_ms for t in evidence.tiered})
    needed = evidence.missing.get("tiered", "")
    if len(shares) < 2 or len(distances) < 2:
        needed = needed or "more than one share of L1 and more than one distance of L3"
        by_key = {}
    full, tenth = (shares[0], shares[len(shares) // 2]) if shares else (1.0, 0.1)
    near, far = (distances[0], distances[-1]) if distances else (0.0, 2.0)
    value, figure = _p99s(by_key.get((full, False, far)), by_key.get((full, False, near)))
    claim = f"With all entities in L1, the distance of L3 ({far:g} ms) does not matter"
    yield line("D", claim, "p99 far over near, no L2", figure, value, at_most(value, 1.25, 2.0), needed)
    value, figure = _p99s(by_key.get((tenth, True, far)), by_key.get((tenth, True, near)))
    claim = f"With {tenth:.0%} of them in L1 and the rest in L2, the distance of L3 ({far:g} ms) does not matter either"
    yield line("D", claim, "p99 far over near, with L2", figure, value, at_most(value, 1.25, 2.0), needed)
    value, figure = _p99s(by_key.get((tenth, False, far)), by_key.get((tenth, True, far)))
    claim = f"L2 is worth something: without it, {tenth:.0%} in L1 and L3 at {far:g} ms, p99 is twice as high"
    yield line("D", claim, "p99 without L2 over with it", figure, value, at_least(value, 2.0, 1.2), needed)
    small, whole = by_key.get((tenth, True, near)), by_key.get((full, True, near))
    value = small.requests_per_s / whole.requests_per_s if small and whole else None
    figure = f"{small.requests_per_s:,.0f}/s against {whole.requests_per_s:,.0f}/s" if small and whole else ""
    claim = f"With {tenth:.0%} of the entities in L1 (drawn evenly, the worst case) half of the requests are still answered"
    yield line("D", claim, "requests/s over all in L1, with L2", figure, value, at_least(value, 0.5), needed)


def _p99s(above: Tiered | None, below: Tiered | None) -> tuple[float | None, str]:
    if above is None or below is None or not below.p99_us:
        return None, ""
    return above.p99_us / below.p99_us, f"{above.p99_us / 1e3:.3g} ms against {below.p99_us / 1e3:.3g} ms"


# Comparisons of two stacks


def _rates(
    group: str, claim: str, stacks: StacksResult, faster: str, slower: str, claimed: float, workload: str = CARD
) -> Line:
    a, b = _sound(stacks, faster, workload), _sound(stacks, slower, workload)
    value = _ratio(a, b)
    figure = (
        f"{a.requests_per_s:,.4g}/s against {b.requests_per_s:,.4g}/s, {value:.3g}x" if a and b and value is not None else ""
    )
    measured = f"{faster} over {slower}, {workload}, requests/s, {USERS}"
    return line(group, claim, measured, figure, value, published(value, claimed), _why(stacks, faster, slower))


def _memory(
    group: str, claim: str, stacks: StacksResult, thinner: str, fatter: str, claimed: float, workload: str = CARD
) -> Line:
    a, b = _sound(stacks, thinner, workload), _sound(stacks, fatter, workload)
    value = b.pss_mb / a.pss_mb if a and b and a.pss_mb else None
    figure = f"{a.pss_mb:.3g} MiB against {b.pss_mb:.3g} MiB, {value:.3g}x" if a and b and value else ""
    measured = f"PSS of {fatter} over {thinner}, {workload}, all processes of each"
    return line(group, claim, measured, figure, value, published(value, claimed), _why(stacks, thinner, fatter))


def _sound(stacks: StacksResult, arm: str, workload: str = CARD, cores: int = 1) -> Cell | None:
    """A cell that a verdict may rest on: of its requests, no more than 1 % failed."""
    cell = stacks.cell(arm, workload, min(stacks.options.rows) if workload == CARD else 1, cores)
    return cell if cell is not None and cell.failures_per_s <= FAILURES_MAX * cell.requests_per_s else None


def _ratio(of: Cell | None, reference: Cell | None) -> float | None:
    if of is None or reference is None or not reference.requests_per_s:
        return None
    return ratio(of, reference)


def _start_ratio(stacks: StacksResult, slower: str, faster: str) -> float | None:
    a, b = stacks.process(slower), stacks.process(faster)
    return min(a.first_answer_s) / min(b.first_answer_s) if a and b else None


def _starts(stacks: StacksResult, slower: str, faster: str) -> str:
    a, b = stacks.process(slower), stacks.process(faster)
    return f"{slower} {min(a.first_answer_s):.3g} s, {faster} {min(b.first_answer_s):.3g} s" if a and b else ""


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}x"


def _is_single(cell: Cell) -> bool:
    return (cell.workload, cell.rows, cell.cores) == (CARD, 1, 1)


def _why(stacks: StacksResult, *names: str) -> str:
    """Why one of these stacks is not there."""
    for name in names:
        if name in stacks.skipped:
            return f"{name}: {stacks.skipped[name]}"
    failing = [cell for cell in stacks.cells if cell.arm in names and cell.failures_per_s > FAILURES_MAX * cell.requests_per_s]
    if failing:
        return f"{failing[0].arm} without failures, here: {failing[0].error}"
    gone = [name for name in names if stacks.process(name) is None]
    return (
        f"{', '.join(gone)} was not measured; weir bench stacks --stacks"
        if gone
        else "this workload of theirs was not measured"
    )
