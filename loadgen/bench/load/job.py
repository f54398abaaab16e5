"""What a worker of the load generator is told (stdin) and what it answers (stdout): one JSON document each."""

from typing import Literal

import msgspec

from loadgen.recorder import ErrorCount

Payload = Literal["weir", "stack", "image-json", "image-binary", "image-jpeg", "v2-json", "v2-binary", "null"]
PAYLOADS: tuple[Payload, ...] = ("weir", "stack", "image-json", "image-binary", "image-jpeg", "v2-json", "v2-binary", "null")


class LoadJob(msgspec.Struct, frozen=True):
    """One run. `rate` (requests/s of all workers together) makes it an open loop over at most `connections`; without it each
    connection is a user who sends the next request when the last one is answered.

    Cards and merchants are drawn from `cards` and `merchants` (Zipf exponent of cards, 0: uniform), `rows` of them a request.
    A run begins with `warm_s` that count for nothing. Every failure counts as a latency of `deadline_s`. Event numbers
    begin at `first`. `folder` holds the bodies of images and what must come back, `expected` (.npy, float32 (DRAWS,))
    the scores of the drawn pairs by a stateless server. Worker `worker` sends every `workers`-th request of the schedule.
    `realtime`: an open loop's worker goes before all others on its core, where that is permitted.
    """

    host: str
    port: int
    key: str
    base_path: str = ""
    payload: Payload = "weir"
    rows: int = 1
    connections: int = 1
    rate: float | None = None
    arrivals: Literal["constant", "poisson"] = "poisson"
    seed: int = 1
    warm_s: float = 0.5
    seconds: float = 2.0
    deadline_s: float = 5.0
    cards: int = 10_000
    merchants: int = 1_000
    zipf: float = 0.0
    first: int = 0
    folder: str = ""
    expected: str = ""
    path: str = ""
    workers: int = 1
    worker: int = 0
    core: int | None = None
    realtime: bool = True


class Second(msgspec.Struct):
    """One second of the measured time: what was answered well, what failed, latencies as an encoded HDR histogram."""

    answered: int
    failed: int
    histogram: str


class Outcome(msgspec.Struct):
    """What one worker saw of the measured time. Histograms are HDR, in µs, encoded; the largest values are exact.

    `due`: requests of the open loop that were due in it. `waited`: those of them that found no free connection.
    """

    due: int
    answered: int
    failed: int
    latency: str
    latency_max_us: int
    lag: str
    lag_max_us: int
    waited: int
    connects: int
    cpu_s: float
    errors: list[ErrorCount]
    seconds: list[Second]
    realtime: bool = False
