"""What every stack must answer: onnxruntime in this process, over the seeded population, by the rules of the contract."""

import json
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.stacks.mobilenet import INPUT_NAME as IMAGE_INPUT
from loadgen.stacks.pictures import tensor_of
from loadgen.stacks.seed import Population, card_id, merchant_id
from loadgen.stacks.weights import ModelFiles
from models.card import INPUT_NAME
from models.onnx_session import open_session

REVIEW_FROM, DECLINE_FROM = 0.5, 0.9  # thresholds of all stacks
TOLERANCE = 1e-5  # of a score
TS = 1_760_000_000_000  # ms; any time does
BATCH_ROWS_MAX = 1_024


class Event(msgspec.Struct, frozen=True):
    """A request of POST /score."""

    event_id: str
    card_id: str
    merchant_id: str
    amount: int
    ts: int


class Reply(msgspec.Struct):
    """Its answer. Fields beyond these are an error of the stack."""

    event_id: str
    score: float
    outcome: str


class Prediction(msgspec.Struct):
    """The answer of POST /predict."""

    label: int = msgspec.field(name="class")
    score: float


class Reference:
    """Events of a seeded population and their right answers."""

    def __init__(self, population: Population, models: ModelFiles) -> None:
        self._population = population
        self._card = open_session(models.card)
        self._image = open_session(models.image)

    def events(self, n: int, seed: int) -> tuple[list[Event], list[Reply]]:
        """`n` events of cards and merchants drawn from `seed`, and the replies to them."""
        rng = np.random.default_rng(seed)
        cards = rng.integers(0, len(self._population.cards), n)
        merchants = rng.integers(0, len(self._population.merchants), n)
        amounts: list[int] = rng.integers(1, 100_000, n).tolist()
        (risks,) = self._card.run(None, {INPUT_NAME: self._population.vectors(cards, merchants)})
        events = [
            Event(f"e-{seed}-{i}", card_id(card), merchant_id(merchant), amounts[i], TS + i)
            for i, (card, merchant) in enumerate(zip(cards.tolist(), merchants.tolist(), strict=True))
        ]
        return events, [Reply(e.event_id, risk, outcome_of(risk)) for e, risk in zip(events, risks.tolist(), strict=True)]

    def scores(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The scores of all classes, float32 (1000,), of a picture."""
        scores: NDArray[np.float32] = self._image.run(None, {IMAGE_INPUT: tensor_of(pixels)})[0][0]
        return scores


def outcome_of(risk: float) -> str:
    """The outcome of a risk score."""
    if risk < REVIEW_FROM:
        return "approve"
    return "review" if risk < DECLINE_FROM else "decline"


def differs(reply: Reply, expected: Reply, tolerance: float = TOLERANCE) -> str | None:
    """How a reply differs from the one expected, or None. An outcome may differ where the score is on a threshold."""
    if reply.event_id != expected.event_id:
        return f"event_id {reply.event_id!r} instead of {expected.event_id!r}"
    if not abs(reply.score - expected.score) <= tolerance:
        return f"{reply.event_id}: score {reply.score} instead of {expected.score}"
    on_edge = any(abs(expected.score - edge) <= tolerance for edge in (REVIEW_FROM, DECLINE_FROM))
    if reply.outcome != expected.outcome and not on_edge:
        return f"{reply.event_id}: outcome {reply.outcome!r} instead of {expected.outcome!r}"
    return None


def bad_bodies(good: Event) -> dict[str, bytes]:
    """Bodies of POST /score that must get 422, by what is wrong with them."""
    fields = msgspec.to_builtins(good)

    def but(**changes: object) -> bytes:
        return json.dumps(fields | changes).encode()

    def without(name: str) -> bytes:
        return json.dumps({key: value for key, value in fields.items() if key != name}).encode()

    return {
        "no body": b"",
        "no JSON": b"{",
        "an array": b"[" + but() + b"]",
        "null": b"null",
        "bytes after it": but() + b"}",
        **{f"no {name}": without(name) for name in fields},
        "amount a string": but(amount="12"),
        "amount a fraction": but(amount=1.5),
        "amount null": but(amount=None),
        "amount below 0": but(amount=-1),
        "amount above 10^10": but(amount=10**10 + 1),
        "amount above 64 bits": but(amount=10**20),
        "ts in seconds": but(ts=1_760_000_000),
        "ts above 2^62": but(ts=2**62 + 1),
        "card_id empty": but(card_id=""),
        "card_id of 129 characters": but(card_id="c" * 129),
        "merchant_id a number": but(merchant_id=7),
        "event_id empty": but(event_id=""),
    }


def bad_batches(good: Sequence[Event]) -> dict[str, bytes]:
    """Bodies of POST /score/batch that must get 422, by what is wrong with them."""
    rows: list[dict[str, object]] = [msgspec.to_builtins(event) for event in good]
    return {
        "no rows": b"[]",
        "an object": json.dumps(rows[0]).encode(),
        "one bad row": json.dumps([*rows[:-1], rows[-1] | {"amount": -1}]).encode(),
        f"{BATCH_ROWS_MAX + 1} rows": json.dumps([rows[0]] * (BATCH_ROWS_MAX + 1)).encode(),
    }
