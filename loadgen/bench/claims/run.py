"""`weir bench claims`: evidence is gathered part by part, the stacks are read from a result or measured, verdicts follow."""

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from loadgen.bench.children import BenchError
from loadgen.bench.claims.gather import measure_paths, measure_profiles, measure_workers
from loadgen.bench.claims.lines import make_lines
from loadgen.bench.claims.result import ClaimsOptions, ClaimsResult, Evidence, Tiered
from loadgen.bench.claims.tiered import measure_tiered, settings_of
from loadgen.bench.load.progress import Step
from loadgen.bench.stacks.result import CARD, FIRST, WEIR_ARMS, StacksResult
from models.machine import machine
from models.onnx_session import available_providers
from models.scorer import ModelError

Say = Callable[[str], None]
T = TypeVar("T")
PARTS = 3  # steps beside the tiered ones


def count_steps(options: ClaimsOptions) -> int:
    """For the progress bar."""
    return PARTS + len(settings_of(options))


async def run_claims(
    options: ClaimsOptions, stacks: StacksResult, data: Path, command: str, step: Step, say: Say
) -> ClaimsResult:
    """Gather what there is beside `stacks`. A part that cannot be measured is a reason in the lines that rest on it."""
    evidence = Evidence(providers=available_providers())

    def part(name: str, measure: Callable[[], T]) -> T | None:
        step(name)
        try:
            return measure()
        except (BenchError, ModelError, OSError) as error:
            evidence.missing[name] = str(error)
            say(f"{name}: {error}")
            return None

    evidence.paths = part("paths", lambda: measure_paths(options))
    evidence.profiles = part("profiles", lambda: measure_profiles(options, say))
    evidence.workers = part("workers", lambda: measure_workers(options, data, len(os.sched_getaffinity(0))))
    evidence.tiered = await _or_reason(evidence, say, measure_tiered(options, step))
    return ClaimsResult(
        kind="bench claims",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=command,
        options=options,
        machine=machine(),
        stacks_created=stacks.created,
        stacks_commit=stacks.machine.commit,
        evidence=evidence,
        missing=missing_inputs(stacks, evidence),
        lines=make_lines(stacks, evidence),
        caveats=_caveats(options, stacks),
    )


async def _or_reason(evidence: Evidence, say: Say, measuring: Awaitable[list[Tiered]]) -> list[Tiered]:
    try:
        return await measuring
    except (BenchError, OSError) as error:
        evidence.missing["tiered"] = str(error)
        say(f"tiered: {error}")
        return []


def read_stacks(path: Path) -> StacksResult:
    """A result that `weir bench stacks --json` has written. Raises BenchError."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=StacksResult)
    except OSError as error:
        raise BenchError(f"--stacks-json {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"--stacks-json {path}: not a result of weir bench stacks --json: {error}") from None
    if result.kind != "bench stacks":
        raise BenchError(f"--stacks-json {path}: holds a result of {result.kind[:40]!r}, expected 'bench stacks'")
    return result


def missing_inputs(stacks: StacksResult, evidence: Evidence) -> list[str]:
    """What lines would rest on and is not there: stacks, workloads, cores, parts of the evidence."""
    found = [f"{name}: {reason}" for name, reason in stacks.skipped.items()]
    named = {name.partition(", ")[0] for name in stacks.skipped} | {cell.arm for cell in stacks.cells}
    absent = [arm for arm in (*FIRST, *WEIR_ARMS) if arm not in named]
    if absent:
        found.append(f"{', '.join(absent)}: not measured; weir bench stacks --stacks names others")
    if not any(cell.cores == 2 for cell in stacks.cells):
        found.append("two cores: not measured; weir bench stacks without --quick and --no-two-cores, on two cores")
    if all(cell.workload == CARD for cell in stacks.cells):
        found.append("images: not measured; weir bench stacks without --quick and --no-images")
    found += [f"{part}: {reason}" for part, reason in evidence.missing.items()]
    if evidence.paths is not None and evidence.paths.objects_ns is None:
        found.append("the way through objects: Pydantic is not installed; pip install 'weir[bench]'")
    if evidence.paths is not None and evidence.paths.columns_ns is None:
        found.append("the way through the core's columns: the Go core is not built; make go")
    return found


def _caveats(options: ClaimsOptions, stacks: StacksResult) -> list[str]:
    return [
        "(A) was published with two cores and 2 GB for the server; lines are of one core unless they say two.",
        "One machine, loopback, our own rival stacks: a claim that does not hold here may hold where it was made.",
        "A verdict is about a ratio or a limit on this machine; the rule beside it says which.",
        "A profile as Python objects does less than the slab's engines: no late events, no guard, no labels.",
        "In the tiered runs service and client have a core each where there are two; stores share the client's.",
        f"There, cards are drawn evenly over {options.cards:,}: the worst case for an L1 that is too small.",
        "A distance delays whole answers by a proxy on the same machine, whose own 0.1 to 0.3 ms come on top.",
        "The Go core's way alone includes what a micro-batch shares: calls, lists of ids, a canonical copy of the body.",
        *(f"Stacks: {caveat}" for caveat in stacks.caveats),
    ]
