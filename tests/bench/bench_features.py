"""What a transaction costs in the pure core: advance and vectors, by batch size, spec and spread of merchants.

`python tests/bench/bench_features.py [--rows N] [--json]`. Profiles are warm (one pass before the clock starts), the stream is
drawn from a fixed seed, in time order, over 2,000 cards. It does not show decoding, look-ups,
the model, or cold memory: all profiles of this run fit the processor's caches far better than two million cards would.
"""

import argparse
import json
import platform
import statistics
import sys
import time
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.advance import advance
from features.columns import encode_many
from features.plan import Plan, compile_plan
from features.slab import Slab
from features.spec import load_spec
from features.transaction import CHANNELS, Transaction
from features.vector import VectorBuilder

Int64s = npt.NDArray[np.int64]

SEED = 4117
BATCHES = (1, 8, 64, 256, 1024)
N_CARDS, N_MERCHANTS, N_DEVICES, N_IPS = 2000, 500, 1500, 1200
ZIPF = 0.99  # exponent of YCSB's usual skew
START_MS, STEP_MS = 1_750_000_000_000, 700  # a stream of 1.4 events a second, so a card pays every 23 minutes


def draw(rng: np.random.Generator, n: int, n_values: int, exponent: float) -> list[int]:
    """`n` entity numbers below `n_values`, the k-th most frequent with weight 1 / k^exponent (0 = uniform)."""
    weights = np.arange(1, n_values + 1) ** -exponent
    return [int(v) for v in rng.choice(n_values, n, p=weights / weights.sum())]


def stream(n: int, exponent: float) -> list[Transaction]:
    """`n` transactions in time order; one in four lacks a device, one in three an address."""
    rng = np.random.default_rng(SEED)
    cards, merchants = draw(rng, n, N_CARDS, 0.0), draw(rng, n, N_MERCHANTS, exponent)
    devices, ips = draw(rng, n, N_DEVICES, 0.0), draw(rng, n, N_IPS, 0.0)
    amounts = rng.lognormal(8, 1, n).astype(int).tolist()
    places = rng.uniform(-80, 80, (n, 2)).tolist()
    return [
        Transaction(
            f"e{i}", START_MS + i * STEP_MS, amounts[i], "EUR", f"c{cards[i]}", f"m{merchants[i]}",
            device_id=f"d{devices[i]}" if i % 4 else None, ip=f"i{ips[i]}" if i % 3 else None,
            country="DE" if i % 7 else "FR", mcc=5411 + i % 5, channel=CHANNELS[i % 3], lat=places[i][0], lon=places[i][1],
        )
        for i in range(n)
    ]  # fmt: skip


def slots_of(plan: Plan, txs: Sequence[Transaction]) -> Int64s:
    """int64 (rows, kinds): slot numbers in order of first appearance, -1 where the entity is absent."""
    slots = np.full((len(txs), len(plan.kinds)), -1, dtype=np.int64)
    for kind in plan.kinds:
        index: dict[str, int] = {}
        ids = [getattr(tx, kind.id_field) for tx in txs]
        slots[:, kind.number] = [-1 if i is None else index.setdefault(i, len(index)) for i in ids]
    return slots


def measure(spec_name: str, exponent: float, n_rows: int, batch: int) -> dict[str, object]:
    """Median µs per transaction of advance and of the vectors over the batches of the second half of the stream."""
    plan = compile_plan(load_spec(spec_name))
    txs = stream(n_rows, exponent)
    columns, slots = encode_many(txs, plan), slots_of(plan, txs)
    lsns = np.arange(1, n_rows + 1, dtype=np.int64)
    slabs = [Slab(kind, int(slots[:, kind.number].max()) + 1) for kind in plan.kinds]
    builder = VectorBuilder(plan)
    half = n_rows // 2
    advance(plan, slabs, slots[:half], columns[:half], lsns[:half])
    advance_us: list[float] = []
    vectors_us: list[float] = []
    waves, checksum = [], 0
    for start in range(half, n_rows - batch + 1, batch):
        rows = slice(start, start + batch)
        t0 = time.perf_counter_ns()
        raw, n_waves = advance(plan, slabs, slots[rows], columns[rows], lsns[rows])
        t1 = time.perf_counter_ns()
        vectors = builder.build(raw)
        t2 = time.perf_counter_ns()
        advance_us.append((t1 - t0) / 1000 / batch)
        vectors_us.append((t2 - t1) / 1000 / batch)
        waves.append(n_waves)
        checksum = zlib.crc32(vectors.tobytes(), checksum)
    return {
        "spec": spec_name,
        "merchants": f"zipf {exponent}" if exponent else "uniform",
        "batch": batch,
        "advance_us": round(statistics.median(advance_us), 2),
        "vectors_us": round(statistics.median(vectors_us), 2),
        "total_us": round(statistics.median(a + v for a, v in zip(advance_us, vectors_us, strict=True)), 2),
        "waves": round(statistics.mean(waves), 1),
        "checksum": f"{checksum:08x}",
    }


def run(n_rows: int, batches: Sequence[int] = BATCHES) -> list[dict[str, object]]:
    """Every combination of spec, spread and batch size; `n_rows` is the length of the stream, half of it warms up."""
    return [
        measure(spec_name, exponent, max(n_rows, 2 * batch), batch)
        for spec_name in ("cards", "handbook")
        for exponent in (0.0, ZIPF)
        for batch in batches
    ]


def main(arguments: Sequence[str]) -> None:
    """Print a table, or JSON with the machine and the versions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8192, help="events per run, half of them to warm up")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    results = run(chosen.rows)
    if chosen.json:
        machine = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.platform(), "seed": SEED}
        sys.stdout.write(json.dumps({**machine, "rows": chosen.rows, "results": results}, indent=1) + "\n")
        return
    row = (
        "{spec:9} {merchants:10} n={batch:<5} advance {advance_us:7.2f}  vectors {vectors_us:7.2f}  total {total_us:7.2f} µs/tx"
    )
    for result in results:
        sys.stdout.write((row + "  waves {waves:5}  {checksum}\n").format(**result))


if __name__ == "__main__":
    main(sys.argv[1:])
