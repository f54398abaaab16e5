"""Bloom filters: never a false no, a bounded rate of false maybes, and honest about what they cover."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.plan import Plan, compile_plan
from features.spec import load_spec
from gocore.binding import Core, usable_core
from gocore.errors import BadArgument
from gocore.filter import GoFilter
from gocore.intake import JSON, Intake
from service.tiers.bloom import Backend, MaybeSet, RotatingMaybeSet

BACKENDS: list[Backend] = ["rbloom", "pybloom"]
CORE = usable_core()
NEEDS_CORE = pytest.mark.skipif(CORE is None, reason="the Go core is not built")
WINDOW_MS = 1000


TX = b'{"event_id":"t-%d","ts":1750000000000,"amount":1,"currency":"EUR","card_id":"c","merchant_id":"m"}'


@pytest.fixture(scope="module")
def cards_plan() -> Plan:
    """The default spec's."""
    return compile_plan(load_spec("cards"))


KEYS = st.binary(min_size=1, max_size=4).map(lambda key: key.replace(b"\n", b"x"))  # no id holds a line feed


class FakeClock:
    def __init__(self) -> None:
        self.now_ms = 0

    def __call__(self) -> int:
        return self.now_ms


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=50, deadline=None)
@given(keys=st.lists(st.binary(max_size=40), max_size=200), capacity=st.integers(1, 50))
def test_maybe_set_any_added_key_is_never_denied(backend: Backend, keys: list[bytes], capacity: int) -> None:
    """Whatever was added, in however many generations, is answered maybe."""
    bloom = MaybeSet(capacity, 0.3, backend)
    bloom.cover()
    for i, key in enumerate(keys):
        bloom.add(key)
        assert all(bloom.maybe_has(earlier) for earlier in keys[: i + 1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("times_capacity", [1, 10])
def test_maybe_set_fpp_is_bounded_also_above_capacity(backend: Backend, times_capacity: int) -> None:
    """Of absent keys at most fpp are let through, when the set is full and when it has grown tenfold."""
    bloom = MaybeSet(2_000, 0.02, backend)
    bloom.add_many(b"card:%d" % i for i in range(2_000 * times_capacity))
    bloom.cover()
    assert sum(bloom.maybe_has(b"card:x%d" % i) for i in range(10_000)) <= 250  # 2 % is 200; 3.5 standard deviations
    assert bloom.n_generations == {1: 1, 10: 4}[times_capacity]


@pytest.mark.parametrize("backend", BACKENDS)
def test_maybe_set_uncovered_answers_maybe(backend: Backend) -> None:
    """Before cover, and after clear, absence is not claimed."""
    bloom = MaybeSet(100, 0.01, backend)
    assert bloom.maybe_has(b"card:a")
    bloom.cover()
    assert not bloom.maybe_has(b"card:a")
    bloom.add(b"card:a")
    bloom.clear()
    assert not bloom.covered
    bloom.cover()
    assert not bloom.maybe_has(b"card:a")


def test_maybe_set_counts_lookups_negatives_and_false_positives() -> None:
    """The counters tell what the filter saved; a maybe while uncovered is nobody's false positive."""
    bloom = MaybeSet(100, 0.01)
    bloom.maybe_has(b"a")
    bloom.confirm_absent()
    bloom.cover()
    bloom.add(b"a")
    bloom.maybe_has(b"a")
    bloom.maybe_has(b"b")
    bloom.confirm_absent()
    assert (bloom.lookups, bloom.negatives, bloom.false_positives, bloom.n_keys) == (3, 1, 1, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_maybe_set_repeated_keys_do_not_grow_it(backend: Backend) -> None:
    """Capacity counts distinct keys: one key a thousand times takes one place, the key after the last a generation."""
    bloom = MaybeSet(10, 0.001, backend)
    for _ in range(1000):
        bloom.add(b"card:a")
    assert (bloom.n_keys, bloom.n_generations) == (1, 1)
    bloom.add_many(b"card:%d" % i for i in range(9))
    assert bloom.n_generations == 1
    bloom.add(b"card:one more")
    assert bloom.n_generations == 2


@pytest.mark.parametrize(
    ("backend", "core"), [*((backend, None) for backend in BACKENDS), pytest.param("rbloom", CORE, marks=NEEDS_CORE)]
)
@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.lists(KEYS, min_size=1, max_size=30), st.booleans(), st.integers(-50, 400)),
        max_size=60,
    ),
    capacity=st.integers(4, 40),
    generations_max=st.integers(1, 8),
)
def test_rotating_set_never_denies_a_key_of_the_window(
    backend: Backend, core: Core | None, steps: list[tuple[list[bytes], bool, int]], capacity: int, generations_max: int
) -> None:
    """At any rate, over capacity, one by one or in batches that fill several generations, and with a clock that steps back."""
    clock = FakeClock()
    bloom = RotatingMaybeSet(WINDOW_MS, capacity, 0.2, clock, backend, generations_max, core)
    bloom.cover()
    added: dict[bytes, int] = {}
    newest_ms = 0
    for keys, is_batch, step_ms in steps:
        clock.now_ms += step_ms
        newest_ms = max(newest_ms, clock.now_ms)
        for part in [keys] if is_batch else [[key] for key in keys]:
            bloom.add_many(part)
        added |= dict.fromkeys(keys, newest_ms)
        suspects = {list(added)[place] for place in bloom.suspects(list(added))}
        assert all(newest_ms - ms > WINDOW_MS or key in suspects for key, ms in added.items())
        assert bloom.n_generations <= generations_max


def test_rotating_set_forgets_after_the_window() -> None:
    """A key expires once its window and the rest of its generation are over, and memory goes with it."""
    clock = FakeClock()
    bloom = RotatingMaybeSet(WINDOW_MS, 1000, 0.001, clock)
    bloom.cover()
    bloom.add_many([b"t-1"])
    for now_ms in range(0, 2 * WINDOW_MS, 50):
        clock.now_ms = now_ms
        bloom.add_many([b"t-%d" % (now_ms + 2)])
        if now_ms <= WINDOW_MS:
            assert bloom.suspects([b"t-1"])
    assert not bloom.suspects([b"t-1"])
    assert bloom.n_generations <= 6


def test_rotating_set_over_its_memory_answers_maybe_until_safe() -> None:
    """Too many keys in one window: no denial until those that had to be dropped would have expired."""
    clock = FakeClock()
    bloom = RotatingMaybeSet(WINDOW_MS, 40, 0.01, clock, generations_max=2)
    bloom.cover()
    bloom.add_many(b"t-%d" % i for i in range(20))
    assert not bloom.suspects([b"t-new"])
    bloom.add_many([b"t-20"])
    assert bloom.suspects([b"t-0"])
    assert bloom.suspects([b"t-new"])
    clock.now_ms = WINDOW_MS
    assert bloom.suspects([b"t-new"])
    clock.now_ms = WINDOW_MS + 1
    assert not bloom.suspects([b"t-new"])


def test_rotating_set_uncovered_answers_maybe() -> None:
    """Absence counts only after cover; its counters work as those of a MaybeSet."""
    bloom = RotatingMaybeSet(WINDOW_MS, 100, 0.01, FakeClock())
    assert bloom.suspects([b"t-1"])
    bloom.confirm_absent()
    bloom.cover()
    bloom.add_many([b"t-1"])
    assert bloom.suspects([b"t-1"])
    assert not bloom.suspects([b"t-2"])
    bloom.confirm_absent()
    assert (bloom.lookups, bloom.negatives, bloom.false_positives) == (3, 1, 1)
    assert bloom.n_bytes > 0


@NEEDS_CORE
def test_intake_looks_up_and_fills_the_filters_of_a_rotating_set(cards_plan: Plan) -> None:
    """An event is a suspect once it was taken in, also in the same chunk and after rotations; room is used up."""
    assert CORE is not None
    clock = FakeClock()
    # At 1e-6 one run in 500 had a false positive: filters this small take far more than their capacity.
    events = RotatingMaybeSet(WINDOW_MS, 160, 1e-12, clock, core=CORE)
    events.cover()
    handle = CORE.load_plan(cards_plan.to_bytes())
    intake = Intake(CORE, handle, 64, len(cards_plan.kinds))

    def take(*numbers: int) -> list[int] | None:
        bodies = [TX % number for number in numbers]
        return intake.take(bodies, JSON, events.open(len(bodies))).suspects

    assert take(1, 2, 3, 2) == [3]
    assert take(3, 4) == [0]
    for start in range(100, 250, 30):
        assert take(*range(start, start + 30)) == []
    assert events.n_generations == 3
    assert take(1, 500, 101) == [0, 2]
    assert events.suspects([b"t-2", b"t-501"]) == [0]
    assert events.noted(3, [1]) == [1]
    assert RotatingMaybeSet(WINDOW_MS, 160, 1e-6, clock, core=CORE).noted(3, [1]) == [0, 1, 2]
    assert intake.take([TX % 1], JSON).suspects is None
    CORE.close_plan(handle)


@NEEDS_CORE
def test_filter_of_the_core_refuses_what_cannot_be() -> None:
    """No capacity, a rate that is none: BadArgument."""
    assert CORE is not None
    for capacity, fpp in ((0, 0.01), (-1, 0.01), (1 << 40, 0.01), (10, 0.0), (10, 1.0), (10, float("nan"))):
        with pytest.raises(BadArgument):
            GoFilter(CORE, capacity, fpp)
    assert GoFilter(CORE, 10, 0.01).suspects([]) == []
