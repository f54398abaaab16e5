"""Both engines driven with the same random sequences: the same bytes in profiles, features and scores within the promise.

The reference is features.advance, which test_windows_oracle.py holds against the definition of a window. Here specs are random
too, and late events, repeats in a batch, absences, wrap-around and labels happen in nearly every sequence.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from features import advance
from features.advance_one import label_one
from features.plan import COLUMNS, OPS, TS, KindPlan, Plan, compile_plan
from features.profile import merge
from features.slab import Slab
from features.spec import WINDOW_OPS, Spec, load_spec, parse_spec
from features.vector import VectorBuilder
from gocore.binding import ADVANCE, DRY, VECTORS, Core, load_core
from gocore.locate import missing_core
from models.arena import Arena
from models.card import ARTIFACTS, MODEL_FILE
from models.go_scorer import GoScorer
from models.onnx_scorer import OnnxScorer
from models.scorer import Scorer

MISSING = missing_core()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

SEED = os.environ.get("SEED")
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=False, print_blob=True, suppress_health_check=list(HealthCheck))
PLANS = {name: compile_plan(load_spec(name)) for name in ("cards", "handbook", "handbook40")}
BASE_MS = 1_750_000_000_000
N_SLOTS = 3  # profiles of each kind
ROWS_MAX = 50
SCORE_SLACK = 1e-6
ULPS = 2  # of float32, where a logarithm or trigonometry is involved
ROUNDED = ("std", "zscore", "distinct", "speed_kmh")

IDS = ("card_id", "merchant_id", "device_id", "ip")
OF = ("amount", "country", "mcc", "channel", *IDS)
FIELDS = ("count", "sum", "max", "squares", "frauds", "distinct", "spikes")
LIFE = ["max", "sum", "frauds", "count", "squares", "spikes"]
LIFE_OPS = ("count", "sum", "mean", "max", "std", "ratio", "zscore", "fraud_rate", "frauds", "spikes", "spike_share")
REMEMBERED = ("country", "mcc", "channel", "device_id", "place")
PLACES = [(-1, -1), (0, 0), (180_000_000, 360_000_000), (142_500_000, 193_400_000), (142_500_010, 193_400_000)]

Floats = npt.NDArray[np.float32]
Row = tuple[int, list[int], list[int]]  # LSN, slots, columns
Step = tuple[str, Any]  # ("batch", [Row, ...]) or ("label", (kind, slot, ts, delta, lsn))


def seeded(test: Callable[[], None]) -> None:
    """Run a hypothesis test, drawn from SEED if it is set."""
    (seed(int(SEED))(test) if SEED else test)()


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """One to three kinds of one to three rings of 1 to 80 tiles, every field, every operator that they allow."""
    kinds, features = [], ['{ name = "amount", op = "value", of = "amount" }', '{ name = "hour", op = "hour" }']
    for name in draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=3, unique=True)):
        rings = []
        for number in range(draw(st.integers(1, 3))):
            tile = draw(st.sampled_from([1, 2, 3, 10]))
            keeps = draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=7, unique=True))
            of = f', of = "{draw(st.sampled_from(OF))}"' if "distinct" in keeps else ""
            rings.append(f'{{ name = "r{number}", tile = "{tile}s", keeps = {keeps}{of} }}')
            ops = [op for op, needs in WINDOW_OPS.items() if set(needs) <= set(keeps)]
            for op in draw(st.lists(st.sampled_from(ops), max_size=5)) if ops else []:
                tiles, delay = draw(st.sampled_from([1, 2, 3, 5, 12, 70])), draw(st.sampled_from([0, 0, 1, 2, 7]))
                delay = max(delay, 1) if op == "last_known" else delay
                where = f'ring = "r{number}", window = "{tiles * tile}s", delay = "{delay * tile}s"'
                features.append(_feature(draw, len(features), op, name, where))
        remember = draw(st.lists(st.sampled_from(REMEMBERED), max_size=3, unique=True))
        spikes = ""
        if draw(st.booleans()) or any("spikes" in ring for ring in rings):
            rings.insert(draw(st.integers(0, len(rings))), f'{{ name = "life", tile = "ever", keeps = {LIFE} }}')
            spikes = f", spike_over = {draw(st.sampled_from([0.001, 0.5, 2.5, 100.0]))}"
            for op in draw(st.lists(st.sampled_from(LIFE_OPS), max_size=3)):
                features.append(_feature(draw, len(features), op, name, 'ring = "life", window = "ever"'))
        kinds.append(f'{{ name = "{name}", id = "{name}", remember = {remember}{spikes}, ring = [{", ".join(rings)}] }}')
        of_kind = [("since_last", ""), ("age", ""), ("present", "")]
        of_kind += [("speed_kmh", "") if r == "place" else ("changed", f'of = "{r}"') for r in remember]
        features += [_feature(draw, len(features) + n, op, name, more) for n, (op, more) in enumerate(of_kind)]
    head = 'name = "drawn"\nbase_currency = "EUR"\ncurrencies = { EUR = 1_000_000 }\nsource = { fields = {} }\n'
    text = f"{head}kind = [{', '.join(kinds)}]\nfeature = [{', '.join(features)}]\n".replace("'", '"')
    return parse_spec(text, "drawn.toml")


def _feature(draw: st.DrawFn, number: int, op: str, kind: str, more: str) -> str:
    scale, log1p = draw(st.sampled_from([1.0, 0.01, -2.0])), draw(st.sampled_from(["true", "false"]))
    parts = [f'name = "f{number}"', f'op = "{op}"', f'kind = "{kind}"', f"scale = {scale}", f"log1p = {log1p}", more]
    return "{ " + ", ".join(filter(None, parts)) + " }"


@st.composite
def sequences(draw: st.DrawFn, plan: Plan, scale_ms: int) -> list[Step]:
    """Batches of rows and labels between them. `scale_ms` is the width of a short tile."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from([0, 0, 1, 300, 999, 1000, 2500, 6000, 13000, 90000, -1, -900, -2100, -4000, -9000, -99000]),
                st.lists(st.integers(-1, N_SLOTS - 1), min_size=len(plan.kinds), max_size=len(plan.kinds)),
                st.sampled_from([0, 1, 1299, 5000, 2**32 - 1, 2**32 + 1, 99_999_999_999]),
                st.lists(st.sampled_from([-1, 0, 1, 77]), min_size=7, max_size=7),
                st.sampled_from(PLACES),
                st.sampled_from([1, 1, 1, 1, 0, 5]),  # 0: the LSN of the row before
                st.sampled_from([None, None, None, (0, 1), (1, 1), (2, -1), (5, 1)]),
                st.integers(0, 9),
            ),
            min_size=1,
            max_size=ROWS_MAX,
        )
    )  # fmt: skip
    steps: list[Step] = [("batch", [])]
    ts, lsn, history = BASE_MS + draw(st.integers(0, 10_000)) * scale_ms // 1000, 1, []
    for dt, slots, amount, columns, place, step, label, cut in rows:
        ts += dt * scale_ms // 1000
        lsn += step
        history.append((slots, ts))
        steps[-1][1].append((lsn, slots, [ts, amount, *columns, *place]))
        if label is not None:
            of, delta = label
            slots, at = history[max(len(history) - 1 - of, 0)]
            lsn += 1
            steps += [("label", (k, slot, at, delta, lsn)) for k, slot in enumerate(slots) if slot >= 0]
        if label is not None or cut == 0:
            steps.append(("batch", []))
    return [step for step in steps if step[1]]


class Engines:
    """The numpy engine and the Go core, each with slabs of its own, over the same rows."""

    def __init__(self, plan: Plan, core: Core, n_slots: int = N_SLOTS, rows_max: int = ROWS_MAX) -> None:
        self.plan, self.core = plan, core
        self.numpy = Arena(plan, [Slab(kind, n_slots) for kind in plan.kinds], rows_max)
        self.go = Arena(plan, [Slab(kind, n_slots) for kind in plan.kinds], rows_max)
        self.handle = core.load_plan(plan.to_bytes())
        core.bind(self.handle, self.go)
        self._builder = VectorBuilder(plan)

    def close(self) -> None:
        self.core.unbind(self.go)
        self.core.close_plan(self.handle)

    def put(self, rows: Sequence[Row]) -> int:
        for arena in (self.numpy, self.go):
            for n, row in enumerate(rows):
                arena.put(n, *row)
        return len(rows)

    def advance(self, rows: Sequence[Row]) -> tuple[Floats, Floats]:
        """Vectors of both."""
        n = self.put(rows)
        self.core.score(0, self.go, 0, n, ADVANCE | VECTORS)
        a = self.numpy
        raw, _ = advance.advance(self.plan, a.slabs, a.slots[:n], a.columns[:n], a.lsns[:n])
        return self._builder.build(raw), self.go.vectors[:n].copy()

    def label(self, kind: int, slot: int, ts: int, delta: int, lsn: int) -> None:
        changed = label_one(self.numpy.slabs[kind], slot, ts, delta, lsn)
        assert self.core.label(self.go, kind, slot, ts, delta, lsn) is changed

    def alone(self, row: Row) -> Floats:
        """The vector of `row` as the next event of its profiles, by numpy on copies of them."""
        _, slots, columns = row
        slabs = [Slab(kind, 1) for kind in self.plan.kinds]
        for slab, of, slot in zip(slabs, self.numpy.slabs, slots, strict=True):
            slab.put(0, of.get(max(slot, 0)))
        here = np.array([[min(slot, 0) for slot in slots]])
        raw, _ = advance.advance(self.plan, slabs, here, np.array([columns]), np.array([2**62]))
        vector: Floats = self._builder.build(raw)[0]
        return vector

    def check_state(self) -> None:
        """Profiles and counters are the same."""
        for kind, ours, theirs in zip(self.plan.kinds, self.numpy.slabs, self.go.slabs, strict=True):
            for slot in range(ours.capacity):
                if ours.get(slot) != theirs.get(slot):
                    words = np.flatnonzero(ours.words[slot] != theirs.words[slot]).tolist()
                    raise AssertionError(f"{kind.name} {slot} differs in words {words}")
            assert ours.late_dropped.tolist() == theirs.late_dropped.tolist()


def check_vectors(plan: Plan, want: Floats, got: Floats) -> None:
    """Exactly, but for operators with a logarithm or trigonometry: those within ULPS."""
    places = []
    for side in (want, got):
        bits = side.view(np.int32).astype(np.int64)
        places.append(np.where(bits < 0, -(bits & 0x7FFFFFFF), bits))  # 0 and -0 are one
    apart = np.abs(places[0] - places[1]).reshape(-1, plan.n_features).max(axis=0)
    allowed = [ULPS if f.log1p or OPS[f.op] in ROUNDED else 0 for f in plan.features]
    wrong = {(f.name, OPS[f.op]): int(n) for f, n, m in zip(plan.features, apart, allowed, strict=True) if n > m}
    assert wrong == {}


@pytest.fixture(scope="module")
def core() -> Core:
    return load_core()


@pytest.fixture
def make_engines(core: Core) -> Iterator[Callable[..., Engines]]:
    made: list[Engines] = []

    def make(plan: Plan, **sizes: int) -> Engines:
        while made:
            made.pop().close()
        made.append(Engines(plan, core, **sizes))
        return made[-1]

    yield make
    while made:
        made.pop().close()


def run(engines: Engines, steps: Sequence[Step], one_by_one_rows: int) -> None:
    """Feed `steps` to both and compare after each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(advance, "ONE_BY_ONE_ROWS", one_by_one_rows)  # 0: everything in vectorised waves
        for how, what in steps:
            if how == "label":
                engines.label(*what)
            else:
                check_vectors(engines.plan, *engines.advance(what))
            engines.check_state()


@pytest.mark.parametrize(
    ("name", "scale_ms"),
    [
        ("cards", 600_000),
        ("cards", 43_200_000),
        ("handbook", 10_800_000),
        ("handbook", 86_400_000),
        ("handbook40", 600_000),
        ("handbook40", 86_400_000),
    ],
)
def test_go_packaged_spec_any_sequence_equals_numpy(name: str, scale_ms: int, make_engines: Callable[..., Engines]) -> None:
    """Whatever the stream and however it is cut, the core leaves numpy's bytes and gives its vectors."""

    @EXAMPLES
    @given(sequences(PLANS[name], scale_ms), st.sampled_from([0, 3, 16]))
    def check(steps: list[Step], one_by_one_rows: int) -> None:
        run(make_engines(PLANS[name]), steps, one_by_one_rows)

    seeded(check)


def test_go_any_spec_any_sequence_equals_numpy(make_engines: Callable[..., Engines]) -> None:
    """Rings, fields, windows, delays and operators of any kind: the core runs every plan that a spec compiles to."""

    @settings(EXAMPLES, max_examples=150)
    @given(st.data(), specs(), st.sampled_from([0, 3, 16]))
    def check(data: st.DataObject, spec: Spec, one_by_one_rows: int) -> None:
        plan = compile_plan(spec)
        run(make_engines(plan), data.draw(sequences(plan, 1000)), one_by_one_rows)

    seeded(check)


def test_go_dry_run_changes_no_byte_and_sees_what_advance_would(make_engines: Callable[..., Engines]) -> None:
    """Each row of a dry run gets the vector that it would get as the next event, and nothing anywhere changes."""

    @EXAMPLES
    @given(st.data(), specs())
    def check(data: st.DataObject, spec: Spec) -> None:
        plan = compile_plan(spec)
        engines = make_engines(plan)
        for how, what in data.draw(sequences(plan, 1000)):
            if how == "label":
                engines.label(*what)
                continue
            expected = np.array([engines.alone(row) for row in what])
            n = engines.put(what)
            engines.core.score(0, engines.go, 0, n, DRY | VECTORS)
            engines.check_state()
            check_vectors(plan, expected, engines.go.vectors[:n])
            engines.advance(what)

    seeded(check)


def test_go_merge_of_any_two_profiles_equals_numpy(make_engines: Callable[..., Engines]) -> None:
    """Merging gives the bytes of features.profile.merge, also of merged ones, and whichever comes first."""

    @EXAMPLES
    @given(st.data(), specs(), st.booleans())
    def check(data: st.DataObject, spec: Spec, partial: bool) -> None:
        plan = compile_plan(spec)
        engines = make_engines(plan)
        for slab in (*engines.numpy.slabs, *engines.go.slabs):
            slab.rows[0, 2] = partial
        run(engines, data.draw(sequences(plan, 1000)), 16)
        for kind, slab in zip(plan.kinds, engines.go.slabs, strict=True):
            check_merges(engines, kind, [p for slot in range(N_SLOTS) if (p := slab.get(slot))[0]])

    seeded(check)


def check_merges(engines: Engines, kind: KindPlan, profiles: Sequence[bytes]) -> None:
    """Every pair, and each pair with the last profile."""
    for left in profiles:
        for right in profiles:
            both = merge(kind, left, right)
            assert engines.core.merge(engines.handle, kind.number, left, right) == both
            again = merge(kind, both, profiles[-1])
            assert engines.core.merge(engines.handle, kind.number, both, profiles[-1]) == again


def stream(rng: np.random.Generator, plan: Plan, n_rows: int, n_slots: int) -> list[Row]:
    """Zipf entities, one event in twelve late, gaps up to weeks."""
    weights = 1 / np.arange(1, n_slots + 1) ** 0.99
    weights /= weights.sum()
    gaps = rng.choice([0, 1, 40_000, 2_000_000, 90_000_000, 2_500_000_000], n_rows, p=[0.2, 0.2, 0.3, 0.2, 0.09, 0.01])
    late = np.where(rng.random(n_rows) < 0.08, rng.choice([1000, 400_000, 8_000_000, 400_000_000], n_rows), 0)
    slots = rng.choice(n_slots, (n_rows, len(plan.kinds)), p=weights)
    slots[rng.random(slots.shape) < 0.1] = -1
    columns = rng.integers(-1, 2**32, (n_rows, len(COLUMNS)))
    columns[:, TS] = BASE_MS + np.cumsum(gaps) - late
    columns[:, 1] = rng.lognormal(8, 3, n_rows).astype(np.int64) % 10**10
    columns[:, -2:] = rng.integers(-1, [180_000_001, 360_000_001], (n_rows, 2))
    return [(n, s, c) for n, s, c in zip(range(1, n_rows + 1), slots.tolist(), columns.tolist(), strict=True)]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("size", [1, 17, 256])
def test_go_scorer_long_stream_same_profiles_and_scores(name: str, size: int) -> None:
    """Both scorers, as the service uses them: the same bytes in the slabs, the same risk within the promise."""
    plan, seed_used = PLANS[name], int(SEED or 4117)
    model = ARTIFACTS / name / MODEL_FILE
    rows = stream(np.random.default_rng(seed_used), plan, 2000, 60)
    arenas = [Arena(plan, [Slab(kind, 60) for kind in plan.kinds], size) for _ in range(2)]
    scorers: list[Scorer] = [OnnxScorer(plan, model), GoScorer(plan, model)]
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        for arena, scorer in zip(arenas, scorers, strict=True):
            for n, row in enumerate(part):
                arena.put(n, *row)
            scorer.score(arena, len(part))
        check_vectors(plan, arenas[0].vectors[: len(part)], arenas[1].vectors[: len(part)])
        np.testing.assert_allclose(
            arenas[1].risk[: len(part)], arenas[0].risk[: len(part)], rtol=0, atol=SCORE_SLACK, err_msg=f"SEED={seed_used}"
        )
    for ours, theirs in zip(arenas[0].slabs, arenas[1].slabs, strict=True):
        assert np.array_equal(ours.rows, theirs.rows), f"SEED={seed_used}"
        assert ours.late_dropped.tolist() == theirs.late_dropped.tolist()


def test_go_scorer_advance_alone_leaves_the_bytes_of_score() -> None:
    """Recovery advances without vectors and risk: the profiles are those of scoring."""
    plan = PLANS["cards"]
    scorer = GoScorer(plan, ARTIFACTS / "cards" / MODEL_FILE)
    arenas = [Arena(plan, [Slab(kind, 20) for kind in plan.kinds], 300) for _ in range(2)]
    for arena in arenas:
        for n, row in enumerate(stream(np.random.default_rng(int(SEED or 4117)), plan, 300, 20)):
            arena.put(n, *row)
    scorer.advance(arenas[0], 300)
    scorer.score(arenas[1], 300)
    for ours, theirs in zip(arenas[0].slabs, arenas[1].slabs, strict=True):
        assert np.array_equal(ours.rows, theirs.rows)
        assert ours.rows.any()
