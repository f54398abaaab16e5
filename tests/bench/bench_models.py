"""What reasons and samples cost: one explanation by rows, a look at a batch, counting a sample.

`python tests/bench/bench_models.py [--rounds N]`. Packaged model of the cards spec, its golden inputs as vectors, fixed order;
medians over rounds, in the process alone. It does not show what other work on the same cores does to it, nor cold caches.
"""

import argparse
import functools
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from features.plan import compile_plan
from features.slab import Slab
from features.spec import load_spec
from models.arena import Arena
from models.card import ARTIFACTS, MODEL_FILE, load_card
from models.drift import Drift
from models.scorers import NAMES, missing_scorer, open_scorer
from models.words import Words
from service.reasons import Explainer
from service.watch import Watch

ROWS = (1, 8, 32)


def median_us(call: Callable[[], object], rounds: int) -> float:
    """Of one call, after one that warms up."""
    call()
    took: list[float] = []
    for _ in range(rounds):
        before = time.perf_counter_ns()
        call()
        took.append((time.perf_counter_ns() - before) / 1000)
    return round(statistics.median(took), 2)


def run(rounds: int) -> Iterator[tuple[str, float]]:
    """(what, µs), and at last a checksum of the words."""
    spec = load_spec("cards")
    plan, card = compile_plan(spec), load_card(ARTIFACTS / "cards")
    assert card.golden is not None
    assert card.population is not None
    inputs = np.array(card.golden.inputs, dtype=np.float32)
    vectors = np.ascontiguousarray(np.resize(inputs, (256, plan.n_features)))
    reference = np.array(card.reference, dtype=np.float32)
    words: object = None
    for name in NAMES:
        if missing_scorer(name) is not None:
            continue
        scorer = open_scorer(name, plan, ARTIFACTS / "cards" / MODEL_FILE)
        risks = scorer.infer(vectors)
        explainer = Explainer(Words(spec), reference, scorer.infer, 3, 32, 1.0)
        for n in ROWS:
            call = functools.partial(explainer.words, vectors[:n], risks[:n])
            yield f"reasons of {n:2} rows, {name}", median_us(call, rounds)
        words = explainer.words(vectors[:16], risks[:16])
    arena = Arena(plan, [Slab(kind, 256) for kind in plan.kinds], 256)
    for n, share in ((1, 0.01), (256, 0.01), (256, 1.0)):
        watch = Watch(share, 0.1, None)
        batch: Any = SimpleNamespace(n_rows=n, arena=arena, slots=np.zeros((n, len(plan.kinds)), dtype=np.int64), degraded={})

        def look(watch: Watch = watch, batch: Any = batch) -> None:
            watch.look(batch)
            if watch.n_waiting > 10_000:
                watch.forget()

        yield f"a look at a batch of {n:3}, share {share}", median_us(look, rounds)
    drift = Drift(card.feature_names, card.population)
    scores = np.zeros(256, dtype=np.float32)
    yield "counting 256 sampled rows", median_us(lambda: drift.add(vectors, scores), rounds)
    yield "stability of every feature", median_us(drift.stability, min(rounds, 100))
    yield "checksum of the words", float(zlib.crc32(repr(words).encode()))


def main(arguments: Sequence[str]) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    for what, value in run(parser.parse_args(arguments).rounds):
        sys.stdout.write(f"{what:40}{value:14,.2f}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
