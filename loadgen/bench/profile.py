"""`weir bench profile`: where the time of a request goes. py-spy looks at `weir serve` while our own client loads it.

Two recordings one after the other, since py-spy writes one form at a time: stacks as text, added up to a table of self times,
and a flame graph. Native frames (the event loop's C, RocksDB, the Go core to its boundary) are in where py-spy can read them.
Samples show wall time of threads that run, not CPU; each one pauses the service, so no rate is told here.
"""

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
import uvloop

from loadgen.bench.arms import SCORERS, best_arm, wants_stores
from loadgen.bench.children import STDERR_TAIL, BenchError, Child, add_key, pinned, start_weir
from loadgen.bench.closed_loop import ClosedLoop
from loadgen.bench.payloads import Payloads
from loadgen.bench.sizing import FLAGGED_SETTING
from loadgen.bench.stream.job import Job, run_job
from loadgen.bench.terminal import JsonOut, SettingsIn, one_line_errors, print_table, say, write
from loadgen.bench.touch import touch_cards
from loadgen.page import Cell
from loadgen.sender import Target
from models.machine import Machine, machine

TOP = 40
WARM_S = 1.0
STOP_DEADLINE_S = 60.0  # s for py-spy to write what it has
PLACE = re.compile(r" \(([^()]*?)(?::\d+)?\)$")  # "name (file:line)"
FORBIDDEN = "Permission denied", "Operation not permitted", "ptrace"


class SelfTime(msgspec.Struct):
    """A function, the share of samples in which it was the innermost frame, and in which it was anywhere on the stack."""

    function: str
    self_share: float
    total_share: float


class ProfileOptions(msgspec.Struct, frozen=True):
    """What was loaded and how. `seconds` of each of the two recordings."""

    mode: Literal["http", "batch", "stream"] = "http"
    seconds: float = 10.0
    connections: int = 64
    rate_hz: int = 500
    native: bool = True
    cards: int = 10_000
    scorer: str = "go"
    stores: bool = True
    settings: tuple[str, ...] = ()


class ProfileResult(msgspec.Struct):
    """What --json writes."""

    kind: str
    created: str
    options: ProfileOptions
    machine: Machine
    samples: int
    functions: list[SelfTime]
    native: bool


def register(app: typer.Typer) -> None:
    """Add `profile` to `weir bench` (entry point group weir.bench)."""
    app.command("profile")(profile)


def profile(
    out: Annotated[Path, typer.Option(help="The flame graph; the table goes beside it as .txt.")] = Path("profile.svg"),
    mode: Annotated[str, typer.Option(help="The load: http (single events), batch or stream.")] = "http",
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of each of the two recordings.")] = 10.0,
    connections: Annotated[int, typer.Option(min=1, help="Connections of the load.")] = 64,
    rate_hz: Annotated[int, typer.Option(min=10, max=2_000, help="Samples per second.")] = 500,
    native: Annotated[bool, typer.Option("--native/--no-native", help="With frames of C and Go.")] = True,
    cards: Annotated[int, typer.Option(min=1, help="Cards that events are drawn from.")] = 10_000,
    scorer: Annotated[str | None, typer.Option(help="go or onnx.", show_default="go where it is built")] = None,
    stores: Annotated[
        bool | None,
        typer.Option("--stores/--no-stores", help="With Valkey and Postgres (ledger).", show_default="where installed"),
    ] = None,
    settings: SettingsIn = None,
    json_out: JsonOut = None,
) -> None:
    """Where the time of a request goes: a flame graph and a table of self times, under load."""
    with one_line_errors("profile"):
        if mode not in ("http", "batch", "stream"):
            raise BenchError(f"--mode {mode}: expected http, batch or stream")
        if scorer not in (None, "go", "onnx"):
            raise BenchError(f"--scorer {scorer}: expected go or onnx")
        if not out.absolute().parent.is_dir():
            raise BenchError(f"--out {out}: the directory {out.absolute().parent} does not exist")
        options = ProfileOptions(
            mode=mode,  # type: ignore[arg-type]  # checked above
            seconds=seconds,
            connections=connections,
            rate_hz=rate_hz,
            native=native,
            cards=cards,
            scorer=scorer or SCORERS[best_arm()],
            stores=wants_stores(stores, settings or ()),
            settings=tuple(settings or ()),
        )
        result = uvloop.run(run_profile(options, out))
        columns, rows = ("self %", "total %", "what"), _rows(result)
        title = (
            f"{result.samples:,} samples, {mode}, {options.scorer} scorer, {'with' if result.native else 'without'} C and Go"
        )
        print_table(title, columns, rows)
        lines = [f"{title}; {result.created}, commit {result.machine.commit}", *(f"{s:>7} {t:>7}  {f}" for s, t, f in rows)]
        out.with_suffix(".txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        write(result, json_out, None, "")
        say(f"flame graph in {out}")


async def run_profile(options: ProfileOptions, out: Path) -> ProfileResult:
    """Raises BenchError."""
    tool = find_py_spy()
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-")))
        data_dir = work / "data"
        data_dir.mkdir()
        key = add_key(data_dir)
        given = [
            FLAGGED_SETTING,
            *options.settings,
            f"scorer={options.scorer}",
            *(("embedded=true",) if options.stores else ()),
        ]
        with pinned(server_core):
            child = start_weir(data_dir, work, given)
        stack.callback(child.stop)
        child.stores.pin(client_core)
        stack.enter_context(pinned(client_core))
        target = Target.parse(child.url, key)
        payloads = Payloads(target, options.cards)
        await touch_cards(child, target, payloads, options.cards)
        raw = work / "stacks.txt"
        native = await _record(tool, child, raw, "raw", options, target, payloads, native=options.native)
        await _record(tool, child, out, "flamegraph", options, target, payloads, native=native)
        samples, functions = self_times(raw.read_text(encoding="utf-8", errors="replace"))
    if not samples:
        raise BenchError("py-spy took no samples: was the service idle?")
    return ProfileResult(
        kind="bench profile",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        options=options,
        machine=machine(),
        samples=samples,
        functions=functions[:TOP],
        native=native,
    )


def find_py_spy() -> str:
    """py-spy beside our Python, or on PATH. Raises BenchError."""
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if found is None:
        raise BenchError("py-spy is not installed; pip install 'weir[dev]'")
    return found


async def _record(
    tool: str, child: Child, out: Path, form: str, options: ProfileOptions, target: Target, payloads: Payloads, *, native: bool
) -> bool:
    """One recording under load; whether it has native frames. Without them if py-spy cannot. Raises BenchError."""
    load = asyncio.create_task(_load(child, options, target, payloads))
    try:
        await asyncio.sleep(WARM_S)
        code, text = await _py_spy(tool, child, out, form, options, native=native)
        if code and native and not any(word in text for word in FORBIDDEN):
            say(f"py-spy cannot read native frames here ({text.splitlines()[-1]}): without them")
            native = False
            code, text = await _py_spy(tool, child, out, form, options, native=False)
        if code:
            raise BenchError(_failure(text))
    finally:
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
    return native


async def _py_spy(tool: str, child: Child, out: Path, form: str, options: ProfileOptions, *, native: bool) -> tuple[int, str]:
    """Exit code and stderr."""
    command = [tool, "record", "--pid", str(child.pid), "--format", form, "--output", str(out), "--rate", str(options.rate_hz),
               "--threads", *(("--native",) if native else ())]  # fmt: skip
    # Ended by SIGINT, as by hand: --duration takes whole seconds only.
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    reading = asyncio.create_task(process.communicate())
    try:
        await asyncio.wait([reading], timeout=options.seconds)
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(reading, STOP_DEADLINE_S)
    except TimeoutError:
        raise BenchError(f"py-spy did not end within {STOP_DEADLINE_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = err.decode("utf-8", "replace").strip()
    return (0 if process.returncode == 0 and _is_written(out) else process.returncode or 1), text


def _is_written(out: Path) -> bool:
    return out.exists() and out.stat().st_size > 0


def _failure(text: str) -> str:
    if any(word in text for word in FORBIDDEN):
        return (
            "py-spy may not look into the service here (ptrace is forbidden): run as root, in a container with"
            " --cap-add SYS_PTRACE, or set kernel.yama.ptrace_scope to 0. It said: " + text[-200:]
        )
    return f"py-spy failed: {text[-STDERR_TAIL:] or 'it said nothing'}"


async def _load(child: Child, options: ProfileOptions, target: Target, payloads: Payloads) -> None:
    """Until cancelled."""
    while True:
        if options.mode == "stream":
            job = Job(target.host, target.port, target.key, "stream", 200_000, options.cards, payloads.n_events)
            payloads.n_events += job.events
            await run_job(job, child.name)
        else:
            make = payloads.one if options.mode == "http" else payloads.batch
            await ClosedLoop(target, make, options.connections).run(0.0, 3_600.0, child)


def self_times(stacks: str) -> tuple[int, list[SelfTime]]:
    """Samples, and functions by self time, from lines "outermost;...;innermost count"; a function's lines are added up."""
    own: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    total = 0
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        if not count.isdecimal() or not stack:
            continue
        frames = [PLACE.sub(r" (\1)", frame) for frame in stack.split(";")]
        n = int(count)
        total += n
        own[frames[-1]] += n
        for frame in set(frames):
            anywhere[frame] += n
    return total, [SelfTime(name, round(n / total, 4), round(anywhere[name] / total, 4)) for name, n in own.most_common()]


def _rows(result: ProfileResult) -> list[list[Cell]]:
    return [[f"{100 * f.self_share:.1f}", f"{100 * f.total_share:.1f}", f.function] for f in result.functions]
