"""Signals in a process that scores with the Go core: a Go runtime brings handlers of its own, and none of Python's may be lost.

Each test runs a program of its own, which loads the core and keeps it busy; signals come from outside.
"""

import asyncio
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from features.transaction import Transaction
from gocore.locate import missing_core

MISSING = missing_core()
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(MISSING is not None, reason=MISSING or "")]

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0
STORM_SIGNALS = 4000

# The beginning of every program: `batch()` scores 256 events, `busy()` for ever, `submit(fd)` has one batch scored by the core.
PROGRAM = """
import asyncio, faulthandler, os, signal, sys, threading, time
BEFORE_LOADING
from pathlib import Path
import numpy as np
import uvloop
from features.plan import compile_plan
from features.slab import Slab
from features.spec import load_spec
from gocore.binding import DRY, RISK, load_core
from models.arena import Arena
from models.card import ARTIFACTS, MODEL_FILE

plan, core = compile_plan(load_spec("cards")), load_core()
handle = core.load_plan(plan.to_bytes())
model = core.load_model((ARTIFACTS / "cards" / MODEL_FILE).read_bytes(), plan.n_features)
arenas = [Arena(plan, [Slab(kind, 50) for kind in plan.kinds], 256) for _ in range(2)]
for arena in arenas:
    core.bind(handle, arena)
    arena.lsns[:] = np.arange(1, 257)
    arena.slots[:] = (np.arange(256) % 50)[:, None]
    arena.columns[:] = 1_750_000_000_000 + np.arange(256)[:, None]
    arena.columns[:, 1] = 5
n_batches = 0

def batch():
    global n_batches
    core.score(model, arenas[0], 0, 256, DRY | RISK)
    n_batches += 1

def busy():
    while True:
        batch()

def submit(descriptor):
    core.submit(model, arenas[1], 0, 256, DRY | RISK, descriptor)

def wait(descriptor):
    os.read(descriptor, 8)  # os.eventfd_read does not try again after a signal

def say(*what):
    print(*what, flush=True)

batch()
expected = arenas[0].risk.copy()
assert expected.any()
"""


class Program:
    """A Python process; `lines` are its stdout."""

    def __init__(self, body: str, before_loading: str) -> None:
        text = PROGRAM.replace("BEFORE_LOADING", before_loading) + textwrap.dedent(body)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", text], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def line(self) -> str:
        """The next line that it says; ends the test with its stderr if it ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, self.end()
        return line

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, the rest of stdout, stderr."""
        out, err = self._process.communicate(timeout=DEADLINE_S)
        return self._process.returncode, out, err

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """`start(body, before_loading="")`: a Program, killed at the end if it still runs."""
    started: list[Program] = []

    def run(body: str, before_loading: str = "") -> Program:
        started.append(Program(body, before_loading))
        return started[-1]

    yield run
    for program in started:
        program.kill()


def test_sigint_while_scoring_is_keyboard_interrupt(start: Callable[..., Program]) -> None:
    """Python's default: the program sees KeyboardInterrupt between two calls, can catch it, and scores on."""
    program = start(
        """
        for _ in range(5):
            say("ready")
            try:
                busy()
            except KeyboardInterrupt:
                say("interrupted")
        batch()
        say("right", bool((arenas[0].risk == expected).all()))
        """
    )
    for _ in range(5):
        assert program.line() == "ready"
        time.sleep(0.05)
        program.send(signal.SIGINT)
        assert program.line() == "interrupted"
    assert program.line() == "right True"
    assert program.end()[0] == 0


def test_sigint_uncaught_ends_like_any_python_program(start: Callable[..., Program]) -> None:
    """An uncaught KeyboardInterrupt prints its traceback and the process dies of SIGINT."""
    program = start("say('ready')\nbusy()")
    program.line()
    program.send(signal.SIGINT)
    code, _, err = program.end()
    assert code == -signal.SIGINT
    assert "KeyboardInterrupt" in err
    assert "goroutine" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_signal_without_a_handler_ends_the_process(number: signal.Signals, start: Callable[..., Program]) -> None:
    """Where Python has no handler the default holds: death by that signal, at once."""
    program = start("say('ready')\nbusy()")
    program.line()
    program.send(number)
    assert program.end()[0] == -number


def test_sigterm_handler_of_python_runs_while_scoring(start: Callable[..., Program]) -> None:
    """A handler that was set before or after the core was loaded is called in the main thread."""
    for before in ("", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"):
        program = start(
            f"{'' if before else 'signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))'}\nsay('ready')\nbusy()", before
        )
        program.line()
        program.send(signal.SIGTERM)
        assert program.end()[0] == 7


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGILL])
def test_faulthandler_enabled_before_loading_dumps_on_fatal_signals(
    number: signal.Signals, start: Callable[..., Program]
) -> None:
    """A fatal signal from outside leaves Python's traceback, and the process dies of it."""
    program = start("say('ready')\nbusy()", "faulthandler.enable()")
    program.line()
    time.sleep(0.05)
    program.send(number)
    code, _, err = program.end()
    assert "Fatal Python error" in err
    assert "in batch" in err
    assert code == -number


@pytest.mark.parametrize("where", ["fault()", "threading.Thread(target=fault).start(); time.sleep(30)"])
def test_faulthandler_enabled_before_loading_dumps_on_a_fault_of_c_code(where: str, start: Callable[..., Program]) -> None:
    """A real SIGSEGV outside Go, on whichever thread, is passed on to Python while the core works on another."""
    program = start(
        f"""
        import ctypes
        def fault():
            ctypes.string_at(0)
        threading.Thread(target=busy, daemon=True).start()
        time.sleep(0.1)
        {where}
        """,
        "faulthandler.enable()",
    )
    code, _, err = program.end()
    assert "Fatal Python error: Segmentation fault" in err
    assert "in fault" in err
    assert "goroutine" not in err
    assert code == -signal.SIGSEGV


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE])
def test_signal_of_a_fault_sent_from_outside_ends_the_process_with_a_report(
    number: signal.Signals, start: Callable[..., Program]
) -> None:
    """Go keeps one that was sent, not caused, for itself if it is hit at work: the report is then Go's, else Python's."""
    program = start("say('ready')\nbusy()", "faulthandler.enable()")
    program.line()
    time.sleep(0.05)
    program.send(number)
    code, _, err = program.end()
    assert code != 0
    assert "Fatal Python error" in err or (f"{number.name}: " in err and "goroutine" in err), err


def test_faulthandler_registered_signal_dumps_and_goes_on(start: Callable[..., Program]) -> None:
    """SIGUSR1 shows where each thread is, as often as it is asked, and scoring goes on."""
    program = start(
        """
        deadline = time.monotonic() + 1
        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
        say("ready")
        while time.monotonic() < deadline:
            batch()
        say("right", bool((arenas[0].risk == expected).all()))
        """,
        "faulthandler.register(signal.SIGUSR1, all_threads=True)",
    )
    assert program.line() == "ready"
    for _ in range(3):
        time.sleep(0.05)
        program.send(signal.SIGUSR1)
    assert program.line() == "right True"
    code, _, err = program.end()
    assert code == 0
    assert err.count("most recent call first") >= 6, err


@pytest.mark.parametrize("loop", ["asyncio.new_event_loop", "uvloop.new_event_loop"])
def test_loop_signal_handlers_work_while_batches_are_submitted(loop: str, start: Callable[..., Program]) -> None:
    """add_signal_handler: SIGTERM, SIGINT and SIGUSR1 reach the loop, each of them, while the core works on its thread."""
    program = start(
        f"""
        async def main():
            loop, descriptor, seen = asyncio.get_running_loop(), os.eventfd(0, os.EFD_NONBLOCK), []
            done = asyncio.Event()
            def finished():
                os.eventfd_read(descriptor)
                done.set()
            loop.add_reader(descriptor, finished)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                loop.add_signal_handler(number, lambda number=number: (seen.append(number), say(number.name)))
            say("ready")
            while len(seen) < 6:
                submit(descriptor)
                batch()
                await done.wait()
                done.clear()
                core.collect(arenas[1])
                assert (arenas[1].risk == expected).all()
            loop.remove_reader(descriptor)
            say("end")
        with asyncio.Runner(loop_factory={loop}) as runner:
            runner.run(main())
        """
    )
    assert program.line() == "ready"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) * 2:
        program.send(number)
        assert program.line() == number.name
    assert program.line() == "end"
    assert program.end() == (0, "", "")


@pytest.mark.parametrize("loop", ["asyncio.new_event_loop", "uvloop.new_event_loop"])
def test_child_processes_are_watched_while_batches_are_submitted(loop: str, start: Callable[..., Program]) -> None:
    """create_subprocess_exec: output and exit code of every child come back."""
    program = start(
        f"""
        async def main():
            descriptor = os.eventfd(0)
            for number in range(12):
                submit(descriptor)
                child = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", f"print({{number}}); raise SystemExit({{number}})", stdout=asyncio.subprocess.PIPE)
                out, _ = await child.communicate()
                batch()
                assert (int(out), child.returncode) == (number, number)
                wait(descriptor)
                core.collect(arenas[1])
                assert (arenas[1].risk == expected).all()
            stopped = await asyncio.create_subprocess_exec("sleep", "30")
            stopped.terminate()
            say("children ended", await stopped.wait())
        with asyncio.Runner(loop_factory={loop}) as runner:
            runner.run(main())
        """
    )
    assert program.line() == "children ended -15"
    assert program.end() == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGCHLD, signal.SIGURG])
def test_storm_of_signals_during_scoring_does_no_harm(number: signal.Signals, start: Callable[..., Program]) -> None:
    """Thousands of signals, on any thread, while batches are scored here and on the core's: every score is right.

    SIGURG is the one that the Go runtime sends its own threads.
    """
    program = start(
        f"""
        seen = 0
        def count(*_):
            global seen
            seen += 1
        signal.signal(signal.{number.name}, count)
        descriptor, stop = os.eventfd(0), False
        signal.signal(signal.SIGTERM, lambda *_: globals().update(stop=True))
        say("ready")
        while not stop:
            submit(descriptor)
            batch()
            wait(descriptor)
            core.collect(arenas[1])
            assert (arenas[0].risk == expected).all() and (arenas[1].risk == expected).all()
        say(seen)
        """
    )
    assert program.line() == "ready"
    for n in range(STORM_SIGNALS):
        program.send(number)
        if n % 50 == 0:
            time.sleep(0.002)
    program.send(signal.SIGTERM)
    assert int(program.line()) > STORM_SIGNALS // 100  # equal pending signals are one
    assert program.end() == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_with_the_go_scorer_ends_cleanly_under_load(
    number: signal.Signals,
    make_weir: Callable[..., Any],
    make_client: Callable[[Any], Any],
    stream: Sequence[Transaction],
    rng: random.Random,
) -> None:
    """The service stops with exit code 0 in the middle of a load, and knows what it answered when it starts again."""
    weir = make_weir("scorer=go")
    await weir.start()
    client = make_client(weir)
    load = asyncio.create_task(client.send(stream, 64))
    while len(client.acknowledged) < 200:
        assert not load.done()
        await asyncio.sleep(0.005)
    await asyncio.sleep(rng.uniform(0, 0.05))
    assert await asyncio.to_thread(weir.kill, number) == 0, weir.log()
    await load
    assert {decision["scorer"] for decision in client.acknowledged.values()} == {"go"}
    assert "goroutine" not in weir.log()
    await weir.start()
    again = make_client(weir)
    known = [tx for tx in stream if tx.event_id in client.acknowledged]
    await again.send(known, 64)
    assert again.n_replayed == len(known)
    assert {e: d["score"] for e, d in again.acknowledged.items()} == {e: d["score"] for e, d in client.acknowledged.items()}
    weir.stop()
