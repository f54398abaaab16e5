"""What `weir bench price --flip` writes with --json, and how slices become prices with their intervals."""

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from models.machine import Machine

FLIPS = ("metrics", "traces", "nothing")
METRICS_SHARE_MAX = 0.02  # goal: what is counted for /metrics, of a request's CPU time
RESAMPLES = 4_000
SEED = 7
CONFIDENCE = 0.95
PAIRS = 8  # of one load
SLICE_S = 0.5
PAIRS_MIN = 6  # below that an interval says nothing


class FlipOptions(msgspec.Struct, frozen=True):
    """`rounds` of `pairs` of two slices of `slice_s`; a slice begins `guard_s` after its flip."""

    flips: tuple[str, ...]
    rounds: int = 10
    pairs: int = PAIRS
    slice_s: float = SLICE_S
    guard_s: float = 0.05
    connections: tuple[int, ...] = (1, 10, 64)
    cards: int = 10_000
    scorer: str = "onnx"
    traced_share: float = 0.05
    settings: tuple[str, ...] = ()


class Pair(msgspec.Struct, frozen=True):
    """Two slices next to each other: µs of the server's CPU (all threads) per request with the part on, and off."""

    flip: str
    connections: int
    on_us: float
    off_us: float
    requests: int
    on_came_first: bool


class FlipPrice(msgspec.Struct):
    """µs per request, and the share of it: the median of the pairs, with its 95 % interval by bootstrap.

    `per_unit_us`: of traces, the price of one traced request, of which there are only `traced_share`.
    """

    flip: str
    connections: int
    pairs: int
    on_us: float
    price_us: float
    price_us_interval: tuple[float, float] | None
    share: float
    share_interval: tuple[float, float] | None
    per_unit_us: float
    per_unit_us_interval: tuple[float, float] | None


class FlipResult(msgspec.Struct):
    """What --json writes."""

    kind: str
    created: str
    options: FlipOptions
    machine: Machine
    file_system: str
    server_core: int | None
    client_core: int | None
    prices: list[FlipPrice]
    pairs: list[Pair]
    caveats: list[str]


def make_prices(pairs: Sequence[Pair], traced_share: float) -> list[FlipPrice]:
    """One for each part and number of connections."""
    places = sorted({(FLIPS.index(pair.flip), pair.connections) for pair in pairs})
    prices = []
    for place, connections in places:
        mine = [pair for pair in pairs if (FLIPS.index(pair.flip), pair.connections) == (place, connections)]
        gaps = np.array([pair.on_us - pair.off_us for pair in mine])
        shares = np.array([(pair.on_us - pair.off_us) / pair.on_us for pair in mine])
        unit = traced_share if FLIPS[place] == "traces" else 1.0
        price_us, price_us_interval = middle(gaps)
        share, share_interval = middle(shares)
        per_unit = None if price_us_interval is None else (price_us_interval[0] / unit, price_us_interval[1] / unit)
        prices.append(
            FlipPrice(
                FLIPS[place], connections, len(mine), float(np.median([pair.on_us for pair in mine])), price_us,
                price_us_interval, share, share_interval, price_us / unit, per_unit,
            )
        )  # fmt: skip
    return prices


def middle(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> tuple[float, tuple[float, float] | None]:
    """The median, and the interval in which 95 % of the medians of as many draws with replacement lie.

    A median: the keeper's turns and compactions fall into single slices, on either side, and would move a mean.
    """
    found = float(np.median(values))
    if len(values) < PAIRS_MIN:
        return found, None
    draws = np.random.default_rng(SEED).choice(values, size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return found, (float(low), float(high))


def verdict(price: FlipPrice, most: float) -> Literal["met", "NOT met", "undecided: more rounds, or a quieter machine"]:
    """Whether the share is at most `most`: only if the whole interval says so."""
    if price.share_interval is None or price.share_interval[0] <= most < price.share_interval[1]:
        return "undecided: more rounds, or a quieter machine"
    return "met" if price.share_interval[1] <= most else "NOT met"
