"""However a stream is cut into batches, profiles are the same bytes and vectors the same floats."""

import functools
import os
from collections.abc import Sequence

import numpy as np
import pytest

from features.advance import ONE_BY_ONE_ROWS, advance
from features.columns import encode_many
from features.memory import MemoryEngine
from features.plan import OBS_FIRST_SEEN, OBS_NEW, OBS_PRESENT, OBS_PREVIOUS_SEEN, Plan, compile_plan
from features.slab import Slab
from features.spec import load_spec
from features.transaction import CHANNELS, Transaction

SEED = int(os.environ.get("SEED", "4117"))
PLANS = {name: compile_plan(load_spec(name)) for name in ("cards", "handbook", "handbook40")}
N_EVENTS = 1500
Label = tuple[int, int]  # the place of a transaction, +1 or -1


def stream(seed: int) -> tuple[list[Transaction], dict[int, Label]]:
    """Zipf entities, one event in twelve late, gaps up to weeks; labels by the place after which they come."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 61) ** 0.99
    weights /= weights.sum()
    gaps = rng.choice([0, 1, 40_000, 2_000_000, 90_000_000, 2_500_000_000], N_EVENTS, p=[0.2, 0.2, 0.3, 0.2, 0.09, 0.01])
    late = np.where(rng.random(N_EVENTS) < 0.08, rng.choice([1000, 400_000, 8_000_000, 400_000_000], N_EVENTS), 0)
    ts = 1_750_000_000_000 + np.cumsum(gaps) - late
    txs = []
    for i in range(N_EVENTS):
        card, merchant, device, ip = (int(n) for n in rng.choice(60, 4, p=weights))
        txs.append(
            Transaction(
                f"e{i}", int(ts[i]), int(rng.lognormal(8, 8)) % 10**10, "EUR" if i % 5 else "USD",
                f"c{card}", f"m{merchant}",
                device_id=f"d{device}" if rng.random() < 0.7 else None, ip=f"i{ip}" if rng.random() < 0.6 else None,
                country=[None, "DE", "FR"][i % 3], mcc=5411, channel=CHANNELS[i % 5],
                lat=float(rng.uniform(-90, 90)) if i % 4 else None, lon=float(i % 360 - 180) if i % 4 else None,
            )
        )  # fmt: skip
    places = rng.choice(N_EVENTS, 60, replace=False).tolist()
    return txs, {place: (int(rng.integers(0, place + 1)), 1 if i % 4 else -1) for i, place in enumerate(places)}


def feed(
    plan: Plan, txs: Sequence[Transaction], labels: dict[int, Label], sizes: Sequence[int]
) -> tuple[MemoryEngine, np.ndarray]:
    """One LSN per transaction and label, in order; batches of `sizes` in turn, cut short where a label comes."""
    engine, vectors, start, turn = MemoryEngine(plan), [], 0, 0
    while start < len(txs):
        stop = min(start + sizes[turn % len(sizes)], len(txs))
        stop = next((place + 1 for place in range(start, stop) if place in labels), stop)
        vectors.append(engine.vectors(txs[start:stop]))
        if stop - 1 in labels:
            of, delta = labels[stop - 1]
            engine.label(txs[of], delta)
        start, turn = stop, turn + 1
    return engine, np.concatenate(vectors)


def profiles(engine: MemoryEngine) -> dict[tuple[str, str], bytes]:
    """Every profile of the engine by kind and id."""
    return {
        (kind.name, entity): engine.slabs[kind.number].get(slot)
        for kind in engine.plan.kinds
        for entity, slot in engine.index[kind.number].items()
    }


@functools.cache
def one_by_one(spec_name: str) -> tuple[list[Transaction], dict[int, Label], MemoryEngine, np.ndarray]:
    """The stream for a spec, and what becomes of it one transaction at a time. Read only."""
    txs, labels = stream(SEED)
    if spec_name != "cards":
        labels = {p: label for p, label in labels.items() if p % 5 == 0}
        txs = [Transaction(t.event_id, t.ts, t.amount, "EUR", t.card_id, t.merchant_id) for t in txs]
    return (txs, labels, *feed(PLANS[spec_name], txs, labels, (1,)))


@pytest.mark.parametrize("spec_name", PLANS)
@pytest.mark.parametrize("sizes", [(7,), (8,), (9,), (64,), (256,), (1, 300, 3, 40, 17)])
def test_advance_any_batch_size_same_bytes_and_vectors(spec_name: str, sizes: tuple[int, ...]) -> None:
    """Batches of any size leave the bytes and give the vectors of one transaction at a time."""
    txs, labels, one, expected = one_by_one(spec_name)
    many, vectors = feed(PLANS[spec_name], txs, labels, sizes)
    assert vectors.tobytes() == expected.tobytes(), f"SEED={SEED}"
    assert profiles(many) == profiles(one), f"SEED={SEED}"
    assert [slab.late_dropped.tolist() for slab in many.slabs] == [slab.late_dropped.tolist() for slab in one.slabs]
    assert any(slab.late_dropped.any() for slab in one.slabs), "the stream is meant to hold events that come too late"


@pytest.mark.parametrize("size", [1, ONE_BY_ONE_ROWS, ONE_BY_ONE_ROWS + 1, 500])
def test_advance_same_lsns_again_changes_nothing(size: int) -> None:
    """A batch or label that the profiles already have leaves every byte and every counter as it was."""
    txs, _ = stream(SEED + 1)
    txs = txs[:500]
    engine, _ = feed(PLANS["cards"], txs, {}, (64,))
    engine.label(txs[3], 1, lsn=501)
    before, dropped = profiles(engine), [list(slab.late_dropped) for slab in engine.slabs]
    for start in range(0, 500, size):
        engine.vectors(txs[start : start + size], first_lsn=start + 1)
    engine.label(txs[3], 1, lsn=501)
    assert profiles(engine) == before
    assert [list(slab.late_dropped) for slab in engine.slabs] == dropped


@pytest.mark.parametrize("size", [1, 500])
def test_advance_batch_partly_applied_applies_the_rest_once(size: int) -> None:
    """Replaying from an LSN in the middle ends in the bytes of one pass."""
    txs, _ = stream(SEED + 2)
    txs = txs[:500]
    whole, _ = feed(PLANS["cards"], txs, {}, (64,))
    part, _ = feed(PLANS["cards"], txs[:300], {}, (64,))
    for start in range(0, 500, size):
        part.vectors(txs[start : start + size], first_lsn=start + 1)
    assert profiles(part) == profiles(whole)


@pytest.mark.parametrize("n_rows", [1, ONE_BY_ONE_ROWS, ONE_BY_ONE_ROWS + 1, 40])
def test_advance_observation_names_presence_and_times(n_rows: int) -> None:
    """The raw input tells an absent entity from a new one and gives the times before the event."""
    plan = PLANS["cards"]
    txs = [Transaction(f"e{i}", 1_750_000_000_000 + i, 5, "EUR", f"c{i}", "m0") for i in range(n_rows)]
    slots = np.full((n_rows, 4), -1, dtype=np.int64)
    slots[:, 0], slots[:, 1] = np.arange(n_rows), 0
    slabs = [Slab(kind, n_rows) for kind in plan.kinds]
    raw, _ = advance(plan, slabs, slots, encode_many(txs, plan), np.arange(1, n_rows + 1))
    card, merchant, device, _ = (raw[:, k.raw_start : k.raw_start + k.n_observed] for k in plan.kinds)
    assert not device.any()
    assert (card[:, OBS_PRESENT] == 1).all()
    assert (card[:, OBS_NEW] == 1).all()
    assert (card[:, OBS_PREVIOUS_SEEN] == -1).all()
    assert merchant[:, OBS_NEW].tolist() == [1] + [0] * (n_rows - 1)
    assert merchant[:, OBS_PREVIOUS_SEEN].tolist() == [-1] + [tx.ts for tx in txs[:-1]]
    assert set(merchant[:, OBS_FIRST_SEEN].tolist()) == {txs[0].ts}


def test_advance_wave_of_distinct_entities_is_vectorised() -> None:
    """Many different cards take one vectorised wave per kind, a repeated merchant none beyond its first."""
    plan = PLANS["cards"]
    txs = [Transaction(f"e{i}", 1_750_000_000_000, 5, "EUR", f"c{i}", "m0") for i in range(64)]
    slots = np.full((64, 4), -1, dtype=np.int64)
    slots[:, 0], slots[:, 1] = np.arange(64), 0
    _, n_waves = advance(plan, [Slab(k, 64) for k in plan.kinds], slots, encode_many(txs, plan), np.arange(1, 65))
    assert n_waves == 1


def test_slab_of_no_profiles_is_possible() -> None:
    """A slab may be made for no profile at all, as when only some kinds of entities have to be rebuilt."""
    for kind in compile_plan(load_spec("cards")).kinds:
        assert Slab(kind, 0).capacity == 0
