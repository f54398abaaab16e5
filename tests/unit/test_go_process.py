"""The Go core in a living process: closed handles, panics, forks, threads, submitted calls, and what holds before it loads."""

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from features.plan import compile_plan
from features.slab import Slab
from features.spec import load_spec
from gocore import binding, locate
from gocore.binding import ADVANCE, DRY, RISK, VECTORS, Core, load_core
from gocore.errors import BadArgument, BadHandle, BadModel, CoreBusy, CoreMissing, CorePanic, NoRuntime
from gocore.locate import missing_core, onnxruntime_library
from models.arena import Arena
from models.card import ARTIFACTS, MODEL_FILE

MISSING = missing_core()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

ROOT = Path(__file__).parents[2]
PLAN = compile_plan(load_spec("cards"))
MODEL = ARTIFACTS / "cards" / MODEL_FILE
ROWS, SLOTS = 8, 4
LONG_ROWS = 100_000  # rows that the core works on for tens of milliseconds: long enough to look at it while it does
BASE_MS = 1_750_000_000_000
CLOSED = "closed or was never given out"
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def core() -> Core:
    return load_core()


@pytest.fixture(scope="module")
def plan(core: Core) -> int:
    return core.load_plan(PLAN.to_bytes())


@pytest.fixture(scope="module")
def model(core: Core) -> int:
    return core.load_model(MODEL.read_bytes(), PLAN.n_features)


def make_arena(rows: int = ROWS, slots: int = SLOTS) -> Arena:
    """Rows that can be scored, of profiles that repeat."""
    arena = Arena(PLAN, [Slab(kind, slots) for kind in PLAN.kinds], rows)
    numbers = np.arange(rows)
    arena.lsns[:] = numbers + 1
    arena.slots[:] = (numbers % slots)[:, None]
    arena.columns[:] = -1
    arena.columns[:, 0] = BASE_MS + numbers * 1000
    arena.columns[:, 1] = numbers % 1000
    return arena


@pytest.fixture
def arena(core: Core, plan: int) -> Arena:
    arena = make_arena()
    core.bind(plan, arena)
    return arena


def profiles(arena: Arena) -> list[bytes]:
    return [slab.rows.tobytes() + slab.late_dropped.tobytes() for slab in arena.slabs]


def run_python(program: str, timeout: float = DEADLINE_S) -> "subprocess.CompletedProcess[str]":
    """Run it in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


def test_closed_plan_model_and_arena_raise_bad_handle_twice_and_for_ever(core: Core, arena: Arena) -> None:
    """What is closed is refused by every call and by closing it again; its number never comes back."""
    plan, model = core.load_plan(PLAN.to_bytes()), core.load_model(MODEL.read_bytes(), PLAN.n_features)
    core.close_plan(plan)
    core.close_model(model)
    profile = bytes(PLAN.kinds[0].size)
    before = profiles(arena)
    calls: list[Callable[[], Any]] = [
        lambda: core.close_plan(plan),
        lambda: core.bind(plan, make_arena()),
        lambda: core.merge(plan, 0, profile, profile),
        lambda: core.close_model(model),
        lambda: core.describe_model(model),
        lambda: core.infer(model, [np.zeros((1, 40), np.float32)]),
        lambda: core.score(model, arena, 0, 1, ADVANCE | RISK),
        lambda: core.submit(model, arena, 0, 1, ADVANCE | RISK, 0),
    ]
    for call in calls:
        with pytest.raises(BadHandle, match=CLOSED):
            call()
    assert profiles(arena) == before
    assert core.load_plan(PLAN.to_bytes()) != plan
    assert core.load_model(MODEL.read_bytes(), PLAN.n_features) != model


def test_unbound_arena_raises_bad_handle_until_it_is_bound_again(core: Core, plan: int) -> None:
    """After unbind every call on the arena is refused; its memory is untouched."""
    arena = make_arena()
    handle = core.bind(plan, arena)
    core.unbind(arena)
    before = profiles(arena)
    for number in (0, handle):
        arena.handle = number
        for call in (
            lambda: core.unbind(arena),
            lambda: core.score(0, arena, 0, 1, ADVANCE),
            lambda: core.submit(0, arena, 0, 1, ADVANCE, 0),
            lambda: core.collect(arena),
            lambda: core.label(arena, 0, 0, BASE_MS, 1, 99),
        ):
            with pytest.raises(BadHandle, match=CLOSED):
                call()
    assert profiles(arena) == before
    assert core.bind(plan, arena) != handle
    core.score(0, arena, 0, 1, ADVANCE)


def test_plan_closed_while_an_arena_uses_it_leaves_the_arena_usable(core: Core) -> None:
    """An arena keeps what it needs of its plan."""
    plan, arena = core.load_plan(PLAN.to_bytes()), make_arena()
    core.bind(plan, arena)
    core.close_plan(plan)
    gc.collect()
    core.score(0, arena, 0, ROWS, ADVANCE | VECTORS)
    assert arena.vectors.any()


def test_arena_that_is_garbage_is_unbound(core: Core, plan: int) -> None:
    """Its handle is closed when its memory goes."""
    arena = make_arena()
    handle = core.bind(plan, arena)
    gone = weakref.ref(arena)
    del arena
    gc.collect()
    assert gone() is None
    assert core.call_score(0, handle, 0, 1, ADVANCE) != 0


def test_panic_becomes_an_error_and_the_process_goes_on(core: Core, arena: Arena) -> None:
    """A panic inside is CorePanic with its trace; the next call works."""
    for _ in range(3):
        with pytest.raises(CorePanic, match="asked for"):
            core.panic()
        core.score(0, arena, 0, ROWS, DRY | VECTORS)


def test_message_is_that_of_the_calling_thread(core: Core, arena: Arena) -> None:
    """A failure on another thread does not replace the message of this one."""
    status = core.call_score(0, arena.handle, 0, ROWS + 7, ADVANCE)

    def panic() -> None:
        with pytest.raises(CorePanic):
            core.panic()

    other = threading.Thread(target=panic)
    other.start()
    other.join()
    with pytest.raises(BadArgument, match="15 rows from row 0"):
        core.check(status)


def test_runtime_is_the_wheels_and_no_other(core: Core) -> None:
    """The same library again is fine, another is NoRuntime; the version is onnxruntime's."""
    core.open_runtime(onnxruntime_library())
    with pytest.raises(NoRuntime, match="is open already"):
        core.open_runtime(Path("/no/such/libonnxruntime.so"))
    assert core.runtime_version() == onnxruntime_library().name.partition(".so.")[2]


def test_library_missing_or_none_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library, or with a file that is none, CoreMissing says so."""
    monkeypatch.setattr(locate, "LIBRARY", tmp_path / "libweir.so")
    assert "make go" in (locate.missing_core() or "")
    (tmp_path / "libweir.so").write_bytes(b"no library")
    with pytest.raises(CoreMissing, match=r"libweir\.so cannot be loaded"):
        Core(tmp_path / "libweir.so")


def test_library_of_another_abi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that was built for another version of this program is not used."""
    version = binding.ABI_VERSION
    monkeypatch.setattr(binding, "ABI_VERSION", 999)
    with pytest.raises(CoreMissing, match=rf"ABI version {version}, this program 999"):
        Core(locate.LIBRARY)


def test_fork_after_load_child_is_refused_and_ends_quietly() -> None:
    """In the child every call raises CoreForked at once, also those of scorer and arena as they are thrown away."""
    done = run_python(f"""
        import gc, os, sys
        from pathlib import Path
        from features.plan import compile_plan
        from features.slab import Slab
        from features.spec import load_spec
        from gocore.binding import load_core
        from gocore.errors import CoreForked
        from models.arena import Arena
        from models.go_scorer import GoScorer
        plan = compile_plan(load_spec("cards"))
        arena = Arena(plan, [Slab(kind, 2) for kind in plan.kinds], 4)
        arena.put(0, 1, [0, 0, 0, 0], [{BASE_MS}, 5] + [-1] * 9)
        scorer = GoScorer(plan, Path({str(MODEL)!r}))
        scorer.score(arena, 1)
        pid = os.fork()
        if pid == 0:
            refused = 0
            for call in (lambda: scorer.score(arena, 1), lambda: scorer.advance(arena, 1), lambda: load_core().panic(),
                         lambda: load_core().load_plan(plan.to_bytes()), lambda: load_core().close_plan(1),
                         lambda: load_core().label(arena, 0, 0, 5, 1, 5), lambda: load_core().runtime_version()):
                try:
                    call()
                except CoreForked as error:
                    refused += "load it after the fork" in str(error)
            del scorer, arena, call
            gc.collect()
            sys.exit(refused)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        scorer.score(arena, 1)  # the parent goes on
        print("refused", code)
    """)
    assert done.stdout == "refused 7\n", done.stderr
    assert done.stderr == ""


def test_fork_before_load_child_has_a_core_of_its_own() -> None:
    """A process that forks first loads and uses the library like any other."""
    done = run_python("""
        import os
        import gocore.binding as b
        pid = os.fork()
        if pid == 0:
            b.load_core().runtime_version()
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), bool(b.load_core().runtime_version()))
    """)
    assert done.stdout == "7 True\n", done.stderr


def test_telemetry_is_off_for_c_before_the_library_loads() -> None:
    """Importing models is enough for C's getenv to see the variable, and no onnxruntime is in the process yet."""
    done = run_python("""
        import os
        os.environ.pop("ORT_DISABLE_TELEMETRY", None)
        import models
        import ctypes
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        before = getenv(b"ORT_DISABLE_TELEMETRY"), "onnxruntime" in open("/proc/self/maps").read()
        import gocore.binding
        gocore.binding.load_core()
        print(before, getenv(b"ORT_DISABLE_TELEMETRY"), "libonnxruntime" in open("/proc/self/maps").read())
    """)
    assert done.stdout == "(b'1', False) b'1' True\n", done.stderr


def test_telemetry_is_off_even_if_only_the_core_is_used() -> None:
    """The core sets the variable itself: whoever loads it without models does not phone home either."""
    done = run_python("""
        import os
        os.environ.pop("ORT_DISABLE_TELEMETRY", None)
        import ctypes, gocore.binding
        gocore.binding.load_core()
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        print(getenv(b"ORT_DISABLE_TELEMETRY"))
    """)
    assert done.stdout == "b'1'\n", done.stderr


def submitted(core: Core, arena: Arena, n: int, descriptor: int, model: int = 0, flags: int = ADVANCE | VECTORS) -> None:
    """Submit and wait on the descriptor, without a loop."""
    core.submit(model, arena, 0, n, flags, descriptor)
    assert os.eventfd_read(descriptor) == 1


def test_submit_then_collect_gives_what_score_gives(core: Core, plan: int, model: int) -> None:
    """A submitted call leaves the bytes, vectors and risk of a direct one."""
    one, two = make_arena(), make_arena()
    core.bind(plan, one)
    core.bind(plan, two)
    core.score(model, one, 0, ROWS, ADVANCE | RISK)
    descriptor = os.eventfd(0)
    submitted(core, two, ROWS, descriptor, model, ADVANCE | RISK)
    core.collect(two)
    os.close(descriptor)
    assert profiles(one) == profiles(two)
    assert one.vectors.tobytes() == two.vectors.tobytes()
    assert one.risk.tobytes() == two.risk.tobytes()
    assert two.risk.any()


def test_submit_that_fails_says_so_when_it_is_collected(core: Core, arena: Arena) -> None:
    """Refusals and their messages come out of collect, once; then the arena is free."""
    descriptor = os.eventfd(0)
    before = profiles(arena)
    for n, flags, named in ((ROWS + 1, ADVANCE, "9 rows from row 0"), (1, 0, "flags 0x0"), (1, ADVANCE | RISK, "no model")):
        submitted(core, arena, n, descriptor, 0, flags)
        with pytest.raises(BadArgument, match=named):
            core.collect(arena)
        with pytest.raises(BadArgument, match="nothing was submitted"):
            core.collect(arena)
    with pytest.raises(BadArgument, match="descriptor -1"):
        core.submit(0, arena, 0, 1, ADVANCE, -1)
    assert profiles(arena) == before
    submitted(core, arena, 1, descriptor)
    core.collect(arena)
    os.close(descriptor)


def test_arena_in_use_refuses_everybody_else(core: Core, plan: int) -> None:
    """While a submitted call runs, other calls raise CoreBusy and change nothing; afterwards all is as if they had not been."""
    arena, alone = make_arena(LONG_ROWS, 50), make_arena(LONG_ROWS, 50)
    core.bind(plan, arena)
    core.bind(plan, alone)
    core.score(0, alone, 0, LONG_ROWS, ADVANCE)
    descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    core.submit(0, arena, 0, LONG_ROWS, ADVANCE, descriptor)
    for call in (
        lambda: core.score(0, arena, 0, 1, ADVANCE),
        lambda: core.score(0, arena, 0, 1, DRY | VECTORS),
        lambda: core.submit(0, arena, 0, 1, ADVANCE, descriptor),
        lambda: core.label(arena, 0, 0, BASE_MS, 1, 2**60),
        lambda: core.collect(arena),
        lambda: core.unbind(arena),
    ):
        with pytest.raises(CoreBusy, match="another call"):
            call()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(descriptor)  # else the call was over too soon to prove anything
    os.set_blocking(descriptor, True)
    assert os.eventfd_read(descriptor) == 1
    with pytest.raises(CoreBusy, match="not collected"):
        core.submit(0, arena, 0, 1, ADVANCE, descriptor)
    core.collect(arena)
    os.close(descriptor)
    assert profiles(arena) == profiles(alone)
    core.unbind(arena)


def test_arena_forgotten_while_it_is_worked_on_stays_alive(core: Core, plan: int) -> None:
    """Its memory is not given back under the core's thread, only once it is collected."""
    arena = make_arena(LONG_ROWS, 50)
    core.bind(plan, arena)
    descriptor = os.eventfd(0)
    core.submit(0, arena, 0, LONG_ROWS, ADVANCE, descriptor)
    gone = weakref.ref(arena)
    del arena
    gc.collect()
    kept = gone()
    assert kept is not None
    assert os.eventfd_read(descriptor) == 1
    core.collect(kept)
    del kept
    gc.collect()
    assert gone() is None
    os.close(descriptor)


def test_model_closed_while_a_call_runs_ends_it_whole_or_refused(core: Core, plan: int) -> None:
    """The batch in flight is finished with the model, or ends with BadModel; a later one is refused with BadHandle."""
    model, arena = core.load_model(MODEL.read_bytes(), PLAN.n_features), make_arena(4096, 50)
    core.bind(plan, arena)
    descriptor = os.eventfd(0)
    core.submit(model, arena, 0, 4096, ADVANCE | RISK, descriptor)
    core.close_model(model)
    assert os.eventfd_read(descriptor) == 1
    try:
        core.collect(arena)
    except BadModel:
        assert not arena.risk.any()
    else:
        assert arena.risk.any()
    with pytest.raises(BadHandle):
        core.score(model, arena, 0, 1, ADVANCE | RISK)
    os.close(descriptor)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_submit_wakes_a_loop_that_stays_responsive(
    factory: Callable[[], asyncio.AbstractEventLoop], core: Core, plan: int, model: int
) -> None:
    """loop.add_reader on the eventfd: 50 batches one after the other, while the loop does other things."""
    arena = make_arena(2048, 50)
    core.bind(plan, arena)

    async def score() -> tuple[int, int]:
        loop, descriptor = asyncio.get_running_loop(), os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        done, turns, n_done = asyncio.Event(), 0, 0

        def finished() -> None:
            nonlocal n_done
            n_done += os.eventfd_read(descriptor)  # here: a loop calls its reader for as long as there is something to read
            done.set()

        loop.add_reader(descriptor, finished)
        for _ in range(50):
            core.submit(model, arena, 0, 2048, DRY | RISK, descriptor)
            async with asyncio.timeout(DEADLINE_S):
                while not done.is_set():
                    await asyncio.sleep(0)
                    turns += 1
            done.clear()
            core.collect(arena)
        loop.remove_reader(descriptor)
        os.close(descriptor)
        return n_done, turns

    with asyncio.Runner(loop_factory=factory) as runner:
        n_done, turns = runner.run(score())
    assert n_done == 50
    assert turns > 50


def test_two_threads_on_two_arenas_do_not_disturb_each_other(core: Core, plan: int, model: int) -> None:
    """Each thread's profiles and scores are those of a run alone."""
    n, rounds = 256, 40
    alone, *arenas = (make_arena(n, 20) for _ in range(3))
    for arena in (alone, *arenas):
        core.bind(plan, arena)

    def work(arena: Arena) -> None:
        for number in range(rounds):
            arena.lsns[:] = number * n + np.arange(1, n + 1)
            core.score(model, arena, 0, n, ADVANCE | RISK)

    work(alone)
    threads = [threading.Thread(target=work, args=(arena,)) for arena in arenas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    for arena in arenas:
        assert profiles(arena) == profiles(alone)
        assert arena.risk.tobytes() == alone.risk.tobytes()


def test_many_threads_on_one_arena_are_served_or_refused(core: Core, plan: int) -> None:
    """Nobody sees anything but success or CoreBusy, and the successes are counted by the profiles."""
    arena = make_arena(512, 20)
    core.bind(plan, arena)
    outcomes: list[str] = []

    def work() -> None:
        for _ in range(100):
            try:
                core.score(0, arena, 0, 512, DRY | VECTORS)
                outcomes.append("done")
            except CoreBusy:
                outcomes.append("busy")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(outcomes) == 400
    assert "done" in outcomes
    assert not any(slab.rows.any() for slab in arena.slabs)


def test_descriptor_closed_after_submit_is_not_written_to(core: Core, plan: int, tmp_path: Path) -> None:
    """The core signals a duplicate: a file that gets the closed number stays as it is."""
    arena = make_arena(4096, 50)
    core.bind(plan, arena)
    descriptor, kept = os.eventfd(0), None
    kept = os.dup(descriptor)
    core.submit(0, arena, 0, 4096, ADVANCE, descriptor)
    os.close(descriptor)
    with (tmp_path / "journal").open("w+b") as file:
        assert os.eventfd_read(kept) == 1
        core.collect(arena)
        assert file.fileno() == descriptor
        assert file.read() == b""
    os.close(kept)
