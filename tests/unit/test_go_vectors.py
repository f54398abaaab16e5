"""Shared vectors: event sequences with the profiles, features and scores that the numpy engine gives and every other must give.

`python tests/unit/test_go_vectors.py` writes them anew; `go test ./internal/score` reads the same files. In a file: `steps` are
batches of rows, [lsn, slot per kind (-1: absent), the event's columns], with `features` and `scores` of each row, and labels,
[kind, slot, ts, delta, lsn], with whether they changed anything; then all profiles (base64) and each ring's count of late ones.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from features.advance import advance
from features.advance_one import label_one
from features.plan import COLUMNS, OPS, TS, Plan, compile_plan
from features.slab import Slab
from features.spec import load_spec
from features.vector import VectorBuilder
from gocore.binding import ADVANCE, RISK, Core, load_core
from gocore.locate import missing_core
from models.arena import Arena
from models.onnx_scorer import OnnxScorer

ROOT = Path(__file__).parents[2]
TESTDATA = ROOT / "gocore" / "internal" / "score" / "testdata"
PLANS = {name: compile_plan(load_spec(name)) for name in ("cards", "handbook", "handbook40")}
MODELS = {name: ROOT / "models" / "artifacts" / name / "model.onnx" for name in PLANS}
SEED = 4117
BASE_MS = 1_750_000_000_000
N_ROWS = 400
SLOTS = {
    "cards": 12,
    "handbook": 5,
    "handbook40": 5,
}  # profiles of each kind: few, so that they repeat in a batch and rings turn round
KIB_MAX = 400
SCORE_SLACK = 1e-6
ULPS = 2  # of float32, where a logarithm or trigonometry is involved

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
GAPS = (0, 1, 40_000, 20 * MINUTE, 9 * HOUR, 3 * DAY, 60 * DAY)
GAP_SHARES = (0.2, 0.1, 0.3, 0.2, 0.13, 0.06, 0.01)
LATE = (1000, 10 * MINUTE, 3 * HOUR, 5 * DAY, 80 * DAY)
BATCHES = (1, 1, 2, 7, 16, 17, 64)  # numpy goes another way above 16 rows

Steps = list[dict[str, Any]]
Floats = npt.NDArray[np.float32]


def draw_steps(plan: Plan, seed: int) -> Steps:
    """Late events, duplicates in a batch, absent entities, gaps of weeks, labels and repeated LSNs."""
    rng = np.random.default_rng(seed)
    n_slots = SLOTS[plan.spec_name]
    steps: Steps = []
    history: list[list[int]] = []
    ts, lsn = BASE_MS, 1 << 48
    while len(history) < N_ROWS:
        rows = []
        for _ in range(int(rng.choice(BATCHES))):
            ts += int(rng.choice(GAPS, p=GAP_SHARES))
            lsn += 1
            rows.append([lsn, *_slots(rng, plan, n_slots), *_columns(rng, ts)])
        history += rows
        steps.append({"rows": rows})
        if rng.random() < 0.3:  # what was in the journal before is fed again
            steps.append({"rows": history[-int(rng.integers(1, 6)) :]})
        for _ in range(int(rng.integers(0, 4))):
            lsn += 1
            steps += _labels(rng, plan, history, lsn) * int(rng.integers(1, 3))
    return steps


def _slots(rng: np.random.Generator, plan: Plan, n_slots: int) -> list[int]:
    # Half of all events are of the first two profiles.
    slots = np.where(
        rng.random(len(plan.kinds)) < 0.5, rng.integers(0, 2, len(plan.kinds)), rng.integers(0, n_slots, len(plan.kinds))
    )
    absent = rng.random(len(plan.kinds)) < (0.02 if len(plan.kinds) == 2 else 0.15)
    return [int(slot) for slot in np.where(absent, -1, slots)]


def _columns(rng: np.random.Generator, ts: int) -> list[int]:
    row = dict.fromkeys(COLUMNS, -1)
    row["ts"] = ts - int(rng.choice(LATE)) if rng.random() < 0.12 else ts
    row["amount"] = int(rng.choice([0, 1, 1299, 5000, int(rng.lognormal(8, 2)), 2**33, 99_999_999_999]))
    row["card_id"], row["merchant_id"] = (int(n) for n in rng.integers(0, 2**32, 2))
    for name, most in (("country", 676), ("mcc", 10_000), ("channel", 5), ("device_id", 2**32), ("ip", 2**32)):
        if rng.random() < 0.8:
            row[name] = int(rng.integers(0, min(most, 3 if most == 676 else most)))
    if rng.random() < 0.7:
        far = rng.random() < 0.3
        row["lat"] = int(rng.integers(0, 180_000_001)) if far else 142_500_000 + int(rng.integers(0, 3000))
        row["lon"] = int(rng.integers(0, 360_000_001)) if far else 193_400_000 + int(rng.integers(0, 3000))
    return [row[name] for name in COLUMNS]


def _labels(rng: np.random.Generator, plan: Plan, history: Sequence[Sequence[int]], lsn: int) -> Steps:
    """One label of one earlier event, for every profile of it that keeps frauds."""
    event = history[max(len(history) - 1 - int(rng.exponential(40)), 0)]
    delta = 1 if rng.random() < 0.7 else -1
    kinds = [k for k in plan.kinds if k.keeps_frauds and event[1 + k.number] >= 0]
    ts = event[1 + len(plan.kinds) + TS]
    return [{"label": [kind.number, event[1 + kind.number], ts, delta, lsn]} for kind in kinds]


def run_numpy(plan: Plan, steps: Steps) -> dict[str, Any]:
    """What the file holds: `steps` completed by what the numpy engine gives, and the profiles at the end."""
    slabs = [Slab(kind, SLOTS[plan.spec_name]) for kind in plan.kinds]
    builder, scorer = VectorBuilder(plan), OnnxScorer(plan, MODELS[plan.spec_name])
    done: Steps = []
    for step in steps:
        if "label" in step:
            number, *label = step["label"]
            done.append({**step, "changed": label_one(slabs[number], *label)})
            continue
        lsns, slots, columns = _split(plan, step["rows"])
        raw, _ = advance(plan, slabs, slots, columns, lsns)
        vectors = builder.build(raw)
        done.append({**step, "features": _numbers(vectors), "scores": _numbers(scorer.infer(vectors))})
    return {
        "plan": plan.spec_name,
        "plan_hash": plan.hash,
        "seed": SEED,
        "capacity": SLOTS[plan.spec_name],
        "steps": done,
        "profiles": [[base64.b64encode(slab.get(i)).decode() for i in range(slab.capacity)] for slab in slabs],
        "late_dropped": [slab.late_dropped.tolist() for slab in slabs],
    }


def _split(plan: Plan, rows: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], ...]:
    table = np.array(rows, dtype=np.int64)
    return table[:, 0], table[:, 1 : 1 + len(plan.kinds)], table[:, 1 + len(plan.kinds) :]


def _numbers(values: Floats) -> Any:
    """As lists of the shortest numbers that a float32 reads back exactly."""
    if values.ndim > 1:
        return [_numbers(row) for row in values]
    return [int(v) if v == int(v) else float(str(v)) for v in values]


def to_text(vectors: Mapping[str, Any]) -> str:
    """JSON, a step in each line."""
    steps = ",\n".join(json.dumps(step, separators=(",", ":")) for step in vectors["steps"])
    rest = {key: value for key, value in vectors.items() if key != "steps"}
    return json.dumps(rest, indent=1)[:-2] + f',\n "steps": [\n{steps}\n]}}\n'


def load_vectors(name: str) -> dict[str, Any]:
    """The file of the plan `name`."""
    loaded: dict[str, Any] = json.loads((TESTDATA / f"vectors-{name}.json").read_text(encoding="utf-8"))
    return loaded


def ulps_apart(left: Floats, right: Floats) -> npt.NDArray[np.int64]:
    """How many float32 values lie between; 0 and -0 are one."""
    places = [
        np.where((bits := side.view(np.int32).astype(np.int64)) < 0, -(bits & 0x7FFFFFFF), bits) for side in (left, right)
    ]
    apart: npt.NDArray[np.int64] = np.abs(places[0] - places[1])
    return apart


def check_features(plan: Plan, got: Floats, want: Floats) -> None:
    """Exactly, but for operators with a logarithm or trigonometry: those within ULPS."""
    rounded = [f.log1p or OPS[f.op] in ("std", "zscore", "distinct", "speed_kmh") for f in plan.features]
    worst = ulps_apart(got, want).max(axis=0)
    wrong = {f.name: int(n) for f, n, r in zip(plan.features, worst, rounded, strict=True) if n > (ULPS if r else 0)}
    assert wrong == {}


@pytest.fixture
def core() -> Core:
    """The Go core; skips with its reason where it is not built."""
    missing = missing_core()
    if missing is not None:
        pytest.skip(missing)
    return load_core()


@pytest.mark.parametrize("name", PLANS)
def test_vectors_numpy_engine_gives_what_the_file_holds(name: str) -> None:
    """Drawn and run again, the sequence is the file's: profiles to the byte, features and scores within the promise."""
    plan, stored = PLANS[name], load_vectors(name)
    assert stored["plan_hash"] == plan.hash, "the plan changed: python tests/unit/test_go_vectors.py writes the vectors anew"
    fresh = run_numpy(plan, draw_steps(plan, stored["seed"]))
    for key in ("plan", "capacity", "profiles", "late_dropped"):
        assert fresh[key] == stored[key], key
    for ours, theirs in zip(fresh["steps"], stored["steps"], strict=True):
        assert {k: v for k, v in ours.items() if k not in ("features", "scores")} == {
            k: v for k, v in theirs.items() if k not in ("features", "scores")
        }
        if "rows" in ours:
            check_features(plan, np.array(ours["features"], np.float32), np.array(theirs["features"], np.float32))
            np.testing.assert_allclose(ours["scores"], theirs["scores"], rtol=0, atol=SCORE_SLACK)


@pytest.mark.parametrize("name", PLANS)
def test_vectors_sequence_holds_what_it_is_for(name: str) -> None:
    """Late and too late events, duplicates, absences, repeats, and labels with and without effect are all in it."""
    plan, stored = PLANS[name], load_vectors(name)
    batches = [_split(plan, step["rows"]) for step in stored["steps"] if "rows" in step]
    assert all(any(dropped) for dropped in stored["late_dropped"])
    assert any((slots < 0).any() for _, slots, _ in batches)
    assert any(len(set(slots[:, 0].tolist())) < len(slots) for _, slots, _ in batches)
    lsns = [lsn for lsns, _, _ in batches for lsn in lsns.tolist()]
    assert len(set(lsns)) < len(lsns)
    assert {step["changed"] for step in stored["steps"] if "label" in step} == {True, False}
    assert {1, -1} == {step["label"][3] for step in stored["steps"] if "label" in step}
    times = np.concatenate([columns[:, TS] for _, _, columns in batches])
    assert np.diff(times).max() > 30 * DAY
    assert np.diff(times).min() < -30 * DAY
    assert (TESTDATA / f"vectors-{name}.json").stat().st_size < KIB_MAX * 1024


@pytest.mark.parametrize("name", PLANS)
def test_vectors_plan_of_the_go_tests_is_the_compiled_spec(name: str) -> None:
    """The plans that the Go tests read are the bytes that the packaged specs compile to."""
    path = ROOT / "gocore" / "internal" / "plan" / "plantest" / f"{name}.plan"
    assert path.read_bytes() == PLANS[name].to_bytes(), "python tests/unit/test_go_vectors.py writes it anew"


@pytest.mark.parametrize("rows_max", [1, 13, 64])
@pytest.mark.parametrize("name", PLANS)
def test_vectors_go_core_gives_what_the_file_holds(name: str, rows_max: int, core: Core) -> None:
    """However the batches are cut, the core's profiles are the file's bytes, its features and scores within the promise."""
    plan, stored = PLANS[name], load_vectors(name)
    arena = Arena(plan, [Slab(kind, stored["capacity"]) for kind in plan.kinds], rows_max)
    handle, model = core.load_plan(plan.to_bytes()), core.load_model(MODELS[name].read_bytes(), plan.n_features)
    core.bind(handle, arena)
    for step in stored["steps"]:
        if "label" in step:
            assert core.label(arena, *step["label"]) is step["changed"]
            continue
        features, scores = np.array(step["features"], np.float32), np.array(step["scores"], np.float32)
        for start in range(0, len(scores), rows_max):
            part = _split(plan, step["rows"][start : start + rows_max])
            n = len(part[0])
            arena.lsns[:n], arena.slots[:n], arena.columns[:n] = part
            core.score(model, arena, 0, n, ADVANCE | RISK)
            check_features(plan, arena.vectors[:n], features[start : start + n])
            np.testing.assert_allclose(arena.risk[:n], scores[start : start + n], rtol=0, atol=SCORE_SLACK)
    got = [[base64.b64encode(slab.get(i)).decode() for i in range(slab.capacity)] for slab in arena.slabs]
    assert got == stored["profiles"]
    assert [slab.late_dropped.tolist() for slab in arena.slabs] == stored["late_dropped"]
    core.unbind(arena)
    core.close_model(model)
    core.close_plan(handle)


def write() -> None:
    """Write the files and the plans of the Go tests anew."""
    TESTDATA.mkdir(exist_ok=True)
    for name, plan in PLANS.items():
        (TESTDATA.parents[1] / "plan" / "plantest" / f"{name}.plan").write_bytes(plan.to_bytes())
        text = to_text(run_numpy(plan, draw_steps(plan, SEED)))
        (TESTDATA / f"vectors-{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
