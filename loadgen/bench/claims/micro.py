"""Small measurements, each in a process of its own that imports what it needs and nothing else.

`python -m loadgen.bench.claims.micro paths CALLS REPEATS` prints a PathCost; `... threads MODEL SECONDS N` runs per second of a
model in N threads of one process; `... hold MODEL N` opens one session, runs it in N threads, says ready and waits for its end.
"""

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from features.columns import encode
from features.plan import Plan, compile_plan
from features.spec import load_spec
from features.transaction import Transaction
from gocore.binding import load_core
from gocore.index import GoIndex
from gocore.intake import JSON, Intake
from gocore.locate import missing_core
from loadgen.bench.claims.result import PathCost
from models.card import ARTIFACTS, INPUT_NAME, MODEL_FILE
from models.onnx_session import open_session

MODEL = ARTIFACTS / "cards" / MODEL_FILE
IMAGE_SHAPE = (1, 3, 224, 224)
MANY = 64  # requests of one micro-batch
TX: dict[str, Any] = {
    "event_id": "t-000000000001", "ts": 1_750_000_000_000, "amount": 1299, "currency": "EUR", "card_id": "c00000001",
    "merchant_id": "m00001", "device_id": "d00000001", "ip": "203.0.113.7", "country": "DE", "mcc": 5411, "channel": "ecom",
    "lat": 52.5, "lon": 13.4,
}  # fmt: skip
DECISION: dict[str, Any] = {
    "event_id": "t-000000000001", "score": 0.0123, "outcome": "approve", "model": "cards-mlp", "scorer": "go", "lsn": 1,
    "replayed": False, "degraded": [],
}  # fmt: skip
REPLY = b'{"event_id":"%b","score":%b,"outcome":"%b","model":"cards-mlp","scorer":"go","lsn":%d,"replayed":false,"degraded":[]}'


class _Decision(msgspec.Struct):
    """The reply as msgspec writes it."""

    event_id: str
    score: float
    outcome: str
    model: str
    scorer: str
    lsn: int
    replayed: bool
    degraded: list[str]


def main(arguments: Sequence[str]) -> None:
    """What the arguments say."""
    what, *rest = arguments
    if what == "paths":
        sys.stdout.buffer.write(msgspec.json.encode(measure_paths(int(rest[0]), int(rest[1]))))
    elif what == "threads":
        sys.stdout.write(f"{runs_per_s(Path(rest[0]), float(rest[1]), int(rest[2]))}\n")
    elif what == "hold":
        hold(Path(rest[0]), int(rest[1]))
    else:
        raise SystemExit(f"{what}: expected paths, threads or hold")


def measure_paths(calls: int, repeats: int) -> PathCost:
    """Medians of `repeats` series of `calls`."""
    body = json.dumps(TX).encode()
    plan = compile_plan(load_spec("cards"))
    currencies = plan.currencies
    decode, write = msgspec.json.Decoder(Transaction).decode, msgspec.json.Encoder().encode
    decision = _Decision(**DECISION)

    def typed() -> bytes:
        encode(decode(body), currencies)
        return write(decision)

    session = open_session(MODEL)
    vector = np.zeros((1, plan.n_features), dtype=np.float32)
    columns, columns_of_64 = _columns(plan, body, calls, repeats) if missing_core() is None else (None, None)
    return PathCost(
        objects_ns=_objects(body, calls, repeats),
        typed_ns=_ns(typed, calls, repeats),
        columns_ns=columns,
        columns_of_64_ns=columns_of_64,
        inference_ns=_ns(lambda: session.run(None, {INPUT_NAME: vector}), calls, repeats),
    )


def _objects(body: bytes, calls: int, repeats: int) -> float | None:
    """The usual way in and out. None without Pydantic."""
    if find_spec("pydantic") is None:
        return None
    from loadgen.bench.pydantic_models import Decision, Tx  # noqa: PLC0415  # an extra

    def objects() -> str:
        Tx(**json.loads(body))
        return json.dumps(Decision(**DECISION).model_dump())

    return _ns(objects, calls, repeats)


def _columns(plan: Plan, body: bytes, calls: int, repeats: int) -> tuple[float, float]:
    """Bytes to columns in the core, ids looked up, and the reply by one format: alone, and of a micro-batch."""
    core = load_core()
    handle = core.load_plan(plan.to_bytes())
    indexes = [GoIndex(core) for _ in plan.kinds]
    for kind, index in zip(plan.kinds, indexes, strict=True):
        index.put([TX[kind.id_field]], np.array([1]))
    intake = Intake(core, handle, MANY, len(plan.kinds), indexes)
    many = [body] * MANY
    if intake.take(many, JSON).left:
        raise SystemExit("the core does not take the event")

    def reply() -> bytes:
        return REPLY % (b"t-000000000001", b"0.0123", b"approve", 1)

    def one() -> None:
        intake.take([body], JSON)
        reply()

    def of_64() -> None:
        intake.take(many, JSON)
        for _ in range(MANY):
            reply()

    return _ns(one, calls, repeats), _ns(of_64, max(1, calls // MANY), repeats) / MANY


def _ns(call: Callable[[], object], calls: int, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.thread_time_ns()  # all of it runs on this thread, and what else the machine does is left out
        for _ in range(calls):
            call()
        times.append((time.thread_time_ns() - start) / calls)
    return round(statistics.median(times), 1)


def runs_per_s(model: Path, seconds: float, n_threads: int) -> float:
    """Runs of an image model by `n_threads` threads that share one session."""
    session = open_session(model)
    image = {session.get_inputs()[0].name: np.zeros(IMAGE_SHAPE, dtype=np.float32)}
    session.run(None, image)
    counts = [0] * n_threads
    start = threading.Barrier(n_threads + 1)
    end = threading.Event()

    def work(n: int) -> None:
        start.wait()
        while not end.is_set():
            session.run(None, image)
            counts[n] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(n_threads)]
    for thread in threads:
        thread.start()
    start.wait()
    started = time.perf_counter()
    time.sleep(seconds)
    end.set()
    for thread in threads:
        thread.join()
    return round(sum(counts) / (time.perf_counter() - started), 2)


def hold(model: Path, n_threads: int) -> None:
    """Keep a session that has been run by so many threads at once, until stdin ends."""
    session = open_session(model)
    image = {session.get_inputs()[0].name: np.zeros(IMAGE_SHAPE, dtype=np.float32)}
    threads = [threading.Thread(target=session.run, args=(None, image)) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
