"""Evidence beside the stacks: paths of a request, profiles, copies of a model. Each alone; what fails becomes a reason."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import msgspec

from loadgen.bench.children import STDERR_TAIL, BenchError
from loadgen.bench.claims.result import ClaimsOptions, PathCost, ProfileCost, Workers
from loadgen.bench.processes import pss_mb
from loadgen.bench.scorers.result import ScorersOptions
from loadgen.bench.scorers.run import run_scorers
from loadgen.stacks.weights import export_models

CHILD_DEADLINE_S = 300.0
THREAD_SECONDS = 2.0
SCENE = "10,000 fast"  # of bench scorers: hot profiles

Say = Callable[[str], None]


def measure_paths(options: ClaimsOptions) -> PathCost:
    """Raises BenchError."""
    text = _child(["paths", str(options.calls), str(options.repeats)])
    return msgspec.json.decode(text, type=PathCost)


def measure_profiles(options: ClaimsOptions, say: Say) -> ProfileCost:
    """From a small run of `weir bench scorers`: one event at a time, hot profiles. Raises BenchError."""
    small = ScorersOptions(
        rounds=min(3, options.repeats),
        rows=(1,),
        entities=(10_000,),
        batch_rows_min=1_024,
        memory_entities=options.memory_entities,
        full_entities=0,
        call_batches=20,
    )
    result = run_scorers(small, say)
    features = {cell.arm: cell.features_us for cell in result.cells if (cell.scene, cell.n) == (SCENE, 1)}
    if "objects" not in features:
        raise BenchError("profiles as objects were not measured: not enough memory")
    return ProfileCost(features["objects"], features.get("go"), features["onnx"], result.entity_memory)


def measure_workers(options: ClaimsOptions, data: Path, n_cores: int) -> Workers:
    """The image model: threads in one process, and processes with a copy each. Raises BenchError."""
    model = export_models(data / "models").image
    seconds = THREAD_SECONDS if options.repeats > 1 else 0.5
    rates: dict[str, list[float]] = {"one": [], "threads": [], "processes": []}
    for _ in range(min(3, options.repeats)):
        rates["one"].append(sum(_runs_per_s(model, seconds, 1, 1)))
        if n_cores > 1:
            rates["threads"].append(sum(_runs_per_s(model, seconds, 1, 2)))
            rates["processes"].append(sum(_runs_per_s(model, seconds, 2, 1)))
    n = options.copies
    return Workers(
        one_thread_per_s=max(rates["one"]),
        two_threads_per_s=max(rates["threads"], default=None),
        two_processes_per_s=max(rates["processes"], default=None),
        n=n,
        one_process_mb=_held_mb(model, 1, 1),
        threads_mb=_held_mb(model, 1, n),
        processes_mb=_held_mb(model, n, 1),
    )


def _runs_per_s(model: Path, seconds: float, n_processes: int, n_threads: int) -> list[float]:
    """Of each of so many processes at the same time."""
    with ThreadPoolExecutor(n_processes) as pool:  # each waits for a process of its own
        running = [pool.submit(_child, ["threads", str(model), str(seconds), str(n_threads)]) for _ in range(n_processes)]
        return [float(each.result()) for each in running]


def _held_mb(model: Path, n_processes: int, n_threads: int) -> float:
    """MiB of PSS of so many processes with a session each, when each has been run by so many threads at once."""
    with ExitStack() as stack:
        pids = [stack.enter_context(_holding(model, n_threads)) for _ in range(n_processes)]
        return round(pss_mb(pids), 1)


@contextlib.contextmanager
def _holding(model: Path, n_threads: int) -> Iterator[int]:
    argv = [sys.executable, "-m", "loadgen.bench.claims.micro", "hold", str(model), str(n_threads)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise BenchError("a process that should hold a model ended")
        yield process.pid
    finally:
        try:
            process.communicate(timeout=CHILD_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _child(arguments: Sequence[str]) -> bytes:
    argv = [sys.executable, "-m", "loadgen.bench.claims.micro", *arguments]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=CHILD_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{' '.join(arguments)}: not done within {CHILD_DEADLINE_S:.0f} s") from None
    if done.returncode:
        raise BenchError(f"{' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()[-STDERR_TAIL:]}")
    return done.stdout
