"""The requests of a run, made while sending, and the check of what comes back: every reply is held against its request.

Events have fields of fixed width, so a request is one bytes format. A decision must name its event, have a score in [0, 1]
(within 1e-5 of the expected one where the server keeps no state) and one of the three outcomes; a batch all of them in order.
An image must get the class that the reference gives it, its score within a tolerance that the folder states.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from loadgen.bench.load.job import LoadJob
from loadgen.bench.payloads import BODY_ALONE
from loadgen.sender import Reply, Target

DRAWS = 1 << 16  # card, merchant and amount are drawn once and gone through in a circle
SCORE_TOLERANCE = 1e-5
OUTCOMES = frozenset(("approve", "review", "decline"))
STACK_BODY = b'{"event_id":"b-%012d","ts":%013d,"amount":%05d,"card_id":"c%08d","merchant_id":"m%05d"}'
IDS_PER_S = 1_000_000  # event numbers that a second has room for; they come again after 10^6 s
IMAGE_TYPES = {"image-json": "application/json", "image-binary": "application/octet-stream", "image-jpeg": "image/jpeg"}
V2_HEADER = "Inference-Header-Content-Length"


def first_event_number() -> int:
    """Where the event numbers of a run that begins now start: no other run of the last eleven days has used them."""
    return int(time.time()) % 1_000_000 * IDS_PER_S


class Requests(Protocol):
    """What a worker sends. `make` gives a request and its number, `check` the reason why a reply is wrong, or None."""

    def make(self) -> tuple[bytes, int]: ...

    def check(self, number: int, reply: Reply) -> str | None: ...


class Answer(msgspec.Struct, gc=False):
    """A decision; in a batch perhaps a problem in its place. Other fields are skipped."""

    event_id: str = ""
    score: float = math.nan
    outcome: str = ""


class ImageAnswer(msgspec.Struct, rename={"class_": "class"}):
    """What POST /predict gives."""

    class_: int
    score: float


class ImageSet(msgspec.Struct):
    """images.json in a folder of image bodies: for each image what the reference says, class and score within the share
    `tolerance` of it.

    JPEG decoders differ in single steps of 255, so there the class may be another, but its score (`jpeg_scores` of all classes)
    must be within the share `jpeg_tolerance` of the reference's.

    Bodies are NAME.N: `image-json.0`, `image-binary.0`, ... The path for /v2 is `v2_path`, its header has `v2_header` bytes.
    """

    classes: list[int]
    scores: list[float]
    tolerance: float = 5e-3
    jpeg_scores: list[list[float]] = []
    jpeg_tolerance: float = 0.1
    v2_path: str = ""
    v2_header: int = 0


def open_requests(job: LoadJob) -> Requests:
    """Raises OSError or ValueError if the folder of images cannot be read."""
    target = Target(job.host, job.port, job.base_path, job.key)
    if job.payload == "null":
        return NullRequests(target, job)
    if job.payload in ("weir", "stack"):
        return CardRequests(target, job)
    return ImageRequests(target, job)


class CardRequests:
    """Events with a card and a merchant. Worker w of n sends the events w, w + n, w + 2n, ..."""

    def __init__(self, target: Target, job: LoadJob) -> None:
        is_weir = job.payload == "weir"
        one, many = ("/v1/score", "/v1/score/batch") if is_weir else ("/score", "/score/batch")
        self._body = BODY_ALONE if is_weir else STACK_BODY
        self._rows, self._step = job.rows, job.workers
        body_bytes = len(self._body % ((0,) * 5))
        head = b"%s%d\r\n\r\n" % (target.head("POST", job.path or one), body_bytes)
        self._one = head.replace(b"%", b"%%") + self._body
        self._many_head = target.head("POST", job.path or many)
        cards, merchants, amounts = draw(job)
        self._cards: list[int] = cards.tolist()
        self._merchants: list[int] = merchants.tolist()
        self._amounts: list[int] = amounts.tolist()
        self._next = job.first + job.worker
        self._expected: list[float] | None = None
        if job.expected:
            self._expected = np.load(job.expected).tolist()
        self._decode = msgspec.json.Decoder(Answer).decode
        self._decode_many = msgspec.json.Decoder(list[Answer]).decode

    def make(self) -> tuple[bytes, int]:
        """The next request, and the number of its first event."""
        number, now_ms = self._next, time.time_ns() // 1_000_000
        self._next = number + self._rows * self._step
        if self._rows == 1:
            return self._one % self._fields(number, now_ms), number
        rows = [self._body % self._fields(number + k * self._step, now_ms) for k in range(self._rows)]
        body = b"[" + b",".join(rows) + b"]"
        return b"%s%d\r\n\r\n%s" % (self._many_head, len(body), body), number

    def check(self, number: int, reply: Reply) -> str | None:
        """Why the reply is not the answer to event `number` (and those after it), or None."""
        if reply.status != 200:
            return f"status {reply.status}"
        try:
            answers = [self._decode(reply.body)] if self._rows == 1 else self._decode_many(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "unreadable reply"
        if len(answers) != self._rows:
            return "wrong number of decisions"
        for k, answer in enumerate(answers):
            wrong = self._wrong(number + k * self._step, answer)
            if wrong is not None:
                return wrong
        return None

    def parts(self) -> tuple[bytes, list[bytes]]:
        """Single requests in pieces, for wrk: all before the event's id, and what follows the time in each draw."""
        head, _, tail = self._one.replace(b"%%", b"%").partition(b"b-%012d")
        tail = tail.partition(b"%013d")[2]
        draws = zip(self._amounts, self._cards, self._merchants, strict=True)
        return head, [tail % fields for fields in draws]

    def _wrong(self, number: int, answer: Answer) -> str | None:
        if answer.event_id != f"b-{number:012d}":
            return "decision of another event" if answer.outcome else "problem in place of a decision"
        if not 0.0 <= answer.score <= 1.0 or answer.outcome not in OUTCOMES:
            return "no decision"
        if self._expected is not None and abs(answer.score - self._expected[number % DRAWS]) > SCORE_TOLERANCE:
            return "wrong score"
        return None

    def _fields(self, number: int, now_ms: int) -> tuple[int, ...]:
        at = number % DRAWS
        return (number, now_ms, self._amounts[at], self._cards[at], self._merchants[at])


class ImageRequests:
    """The images of a folder in turn."""

    def __init__(self, target: Target, job: LoadJob) -> None:
        folder = Path(job.folder)
        images = msgspec.json.decode((folder / "images.json").read_bytes(), type=ImageSet)
        bodies = [(folder / f"{job.payload}.{n}").read_bytes() for n in range(len(images.classes))]
        if not bodies:
            raise ValueError(f"{folder}: no images")
        self._is_v2 = job.payload.startswith("v2")
        path = job.path or (images.v2_path if self._is_v2 else "/predict")
        head = target.head("POST", path)
        if job.payload == "v2-binary":
            extra = f"{V2_HEADER}: {images.v2_header}\r\nContent-Length: ".encode()
            head = head.replace(b"application/json", b"application/octet-stream", 1).replace(b"Content-Length: ", extra)
        elif not self._is_v2:
            head = head.replace(b"application/json", IMAGE_TYPES[job.payload].encode(), 1)
        self._requests = [b"%s%d\r\n\r\n%s" % (head, len(body), body) for body in bodies]
        self._images, self._is_jpeg = images, job.payload == "image-jpeg"
        self._next, self._step = job.worker, job.workers

    def make(self) -> tuple[bytes, int]:
        """The next request, and the number of its image."""
        number = self._next % len(self._requests)
        self._next += self._step
        return self._requests[number], number

    def check(self, number: int, reply: Reply) -> str | None:
        """Why the reply is not about image `number`, or None."""
        if reply.status != 200:
            return f"status {reply.status}"
        try:
            class_, score = _v2_answer(reply.body) if self._is_v2 else _image_answer(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            return "unreadable reply"
        images = self._images
        if self._is_jpeg:
            of_all = images.jpeg_scores[number]
            if not 0 <= class_ < len(of_all):
                return "wrong class"
            expected = of_all[class_]
            return None if abs(score - expected) <= images.jpeg_tolerance * expected else "wrong score"
        if class_ != images.classes[number]:
            return "wrong class"
        expected = images.scores[number]
        return None if abs(score - expected) <= images.tolerance * expected else "wrong score"


class NullRequests:
    """Events for a server that does nothing: its replies are not looked at, but for their status."""

    def __init__(self, target: Target, job: LoadJob) -> None:
        self._cards = CardRequests(target, msgspec.structs.replace(job, payload="weir", expected=""))

    def make(self) -> tuple[bytes, int]:
        return self._cards.make()

    def check(self, number: int, reply: Reply) -> str | None:
        return None if reply.status == 200 else f"status {reply.status}"


def draw(job: LoadJob) -> "tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...]":
    """int64 (DRAWS,) each: cards, merchants, amounts, the same for every worker of a run."""
    rng = np.random.default_rng(job.seed)
    weights = np.arange(1, job.cards + 1, dtype=np.float64) ** -job.zipf
    ranks = rng.choice(job.cards, size=DRAWS, p=weights / weights.sum())
    # A rank is not a neighbourhood: spread the hot cards over the whole range of ids.
    cards = rng.permutation(job.cards)[ranks]
    return cards, rng.integers(0, job.merchants, DRAWS), rng.integers(10_000, 99_999, DRAWS)


def _image_answer(body: bytes) -> tuple[int, float]:
    answer = msgspec.json.decode(body, type=ImageAnswer)
    return answer.class_, answer.score


class _V2Output(msgspec.Struct):
    data: list[float] = []


class _V2Answer(msgspec.Struct):
    outputs: list[_V2Output]


def _v2_answer(body: bytes) -> tuple[int, float]:
    """The largest of the probabilities. Raises ValueError without any."""
    outputs = msgspec.json.decode(body, type=_V2Answer).outputs
    values: Sequence[float] = outputs[0].data if outputs else ()
    score = max(values)
    return values.index(score), score
