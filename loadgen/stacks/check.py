"""Does a stack do the work? Its answers beside the reference's, its errors beside the contract's, over one real connection."""

import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

import msgspec

from loadgen.stacks.manifest import Stack
from loadgen.stacks.pictures import CONTENT_TYPES, body_of, decode_jpeg, jpeg_of, picture
from loadgen.stacks.reference import (
    TOLERANCE,
    Event,
    Prediction,
    Reference,
    Reply,
    bad_batches,
    bad_bodies,
    differs,
)

ASK_TIMEOUT_S = 30.0
N_SINGLES = 40
BATCHES = (1, 16, 64)
N_PICTURES = 3
IMAGE_TOLERANCE = 5e-3  # of a score, relative; rounding in float32 moves it by 2e-4, another picture by far more
# Decoders of JPEG differ by a step of 255 here and there: Go's moves scores by up to 3 %, libjpeg's are equal to the bit.
JPEG_TOLERANCE = 0.1  # of a score, relative
JPEG_BEST = 2  # a class among the reference's first two will do, since two may be next to equal


class Finding(msgspec.Struct, frozen=True):
    """One thing that was asked of a stack, and what was wrong about the answer, or None."""

    what: str
    problem: str | None


class Asker:
    """One keep-alive connection to a stack."""

    def __init__(self, url: str, key: str) -> None:
        address = urlsplit(url).netloc
        self._connection = http.client.HTTPConnection(address, timeout=ASK_TIMEOUT_S)
        self.key = f"Bearer {key}"

    def post(
        self, path: str, body: bytes, content_type: str = "application/json", authorization: str | None = ""
    ) -> tuple[int, bytes]:
        """Status and body. `authorization`: another header than the key's; None sends none. Raises OSError, HTTPException."""
        headers = {"Content-Type": content_type}
        given = self.key if authorization == "" else authorization
        if given is not None:
            headers["Authorization"] = given
        try:
            return self._exchange(path, body, headers)
        except (ConnectionError, http.client.BadStatusLine):
            # A server that refuses before it has read the body may close; the next request then finds out.
            self._connection.close()
            return self._exchange(path, body, headers)

    def _exchange(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        self._connection.request("POST", path, body, dict(headers))
        response = self._connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        self._connection.close()


@contextmanager
def asking(url: str, key: str) -> Iterator[Asker]:
    """A connection for as long as the block runs."""
    asker = Asker(url, key)
    try:
        yield asker
    finally:
        asker.close()


def check_stack(stack: Stack, url: str, key: str, reference: Reference) -> list[Finding]:
    """Ask a running stack everything that the contract says about its workloads. Raises nothing: what fails is a finding."""
    findings: list[Finding] = []
    with asking(url, key) as asker:
        for group, name in ((_check_card, "card"), (_check_images, "image")):
            if any(workload.partition("-")[0] == name for workload in stack.workloads):
                try:
                    findings += group(asker, stack, reference)
                except (OSError, http.client.HTTPException) as error:
                    findings.append(Finding(f"{name}: the connection", f"{type(error).__name__}: {error}"))
    return findings


def _check_card(asker: Asker, stack: Stack, reference: Reference) -> Iterator[Finding]:
    events, replies = reference.events(N_SINGLES, seed=1)
    yield Finding(f"score: {N_SINGLES} events within {TOLERANCE:g}", _first(
        _one_problem(asker, event, reply) for event, reply in zip(events, replies, strict=True)))  # fmt: skip
    for rows in BATCHES:
        yield Finding(f"score/batch: {rows} rows in order", _batch_problem(asker, *reference.events(rows, seed=2 + rows)))
    good, expected = events[0], replies[0]
    body = msgspec.json.encode(good)
    keys = {
        "no key": None,
        "a wrong key": "Bearer nonsense",
        "a longer key": f"{asker.key}x",
        "the key with another end": f"{asker.key[:-1]}~",
        "another scheme": "Basic abc",
        "an empty key": "Bearer ",
    }
    for path, payload in (("/score", body), ("/score/batch", b"[" + body + b"]")):
        for what, header in keys.items():
            yield _status(asker, f"{path}: {what}", 401, path, payload, authorization=header)
    for what, bad in bad_bodies(good).items():
        yield _status(asker, f"score: {what}", 422, "/score", bad)
    for what, bad in bad_batches(events[:3]).items():
        yield _status(asker, f"score/batch: {what}", 422, "/score/batch", bad)
    for field in ("card_id", "merchant_id"):
        stranger = msgspec.json.encode(msgspec.structs.replace(good, **{field: "nobody"}))
        yield _status(asker, f"score: unknown {field}", 404, "/score", stranger)
        yield _status(asker, f"score/batch: unknown {field}", 404, "/score/batch", b"[" + body + b"," + stranger + b"]")
    yield _status(asker, "an unknown path", 404, "/nothing", body)
    odd = msgspec.structs.replace(good, event_id='"\\\u00e9\u4e2d\n ')
    yield Finding(
        "score: an event_id to be escaped", _one_problem(asker, odd, msgspec.structs.replace(expected, event_id=odd.event_id))
    )
    yield Finding("score: after all that", _one_problem(asker, good, expected))


def _check_images(asker: Asker, stack: Stack, reference: Reference) -> Iterator[Finding]:
    kinds = [workload for workload in stack.workloads if workload in CONTENT_TYPES]
    for kind in kinds:
        problems = (_picture_problem(asker, kind, number, reference) for number in range(1_000, 1_000 + N_PICTURES))
        yield Finding(f"predict: {N_PICTURES} pictures, {kind.partition('-')[2]}", _first(problems))
        content_type = CONTENT_TYPES[kind]
        good = body_of(kind, picture(0))
        yield _status(asker, f"predict, {kind}: no key", 401, "/predict", good, content_type, authorization=None)
        for what, bad in _bad_pictures(kind, good).items():
            yield _status(asker, f"predict, {kind}: {what}", 422, "/predict", bad, content_type)
    yield _status(asker, "predict: another content type", 415, "/predict", b"x", "text/plain")
    yield Finding("predict: after all that", _picture_problem(asker, kinds[0], 1_000, reference))


def _bad_pictures(kind: str, good: bytes) -> dict[str, bytes]:
    bad = {"no body": b"", "cut short": good[:-1000]}
    if kind == "image-json":
        bad |= {"no tensor": b"{}", "a flat tensor": b'{"tensor": [1.0, 2.0]}', "words": b'{"tensor": "zeros"}'}
    elif kind == "image-binary":
        bad["one float too many"] = good + bytes(4)
    else:
        small = picture(0)[:100]
        bad |= {"no JPEG": b"x" * 5_000, "224x100 pixels": jpeg_of(small)}
    return bad


def _picture_problem(asker: Asker, kind: str, number: int, reference: Reference) -> str | None:
    pixels = picture(number)
    body = body_of(kind, pixels)
    status, answer = asker.post("/predict", body, CONTENT_TYPES[kind])
    if status != http.client.OK:
        return f"status {status}: {_shown(answer)}"
    try:
        prediction = msgspec.json.decode(answer, type=Prediction)
    except msgspec.DecodeError as error:
        return f"{_shown(answer)}: {error}"
    jpeg = kind == "image-jpeg"
    scores = reference.scores(decode_jpeg(body) if jpeg else pixels)
    best: list[int] = scores.argsort()[::-1][: JPEG_BEST if jpeg else 1].tolist()
    if prediction.label not in best:
        return f"class {prediction.label} instead of {' or '.join(map(str, best))}"
    expected = float(scores[prediction.label])
    allowed = (JPEG_TOLERANCE if jpeg else IMAGE_TOLERANCE) * expected
    if not abs(prediction.score - expected) <= allowed:
        return f"class {prediction.label}: score {prediction.score} instead of {expected}, ± {allowed:.2g}"
    return None


def _one_problem(asker: Asker, event: Event, expected: Reply) -> str | None:
    status, body = asker.post("/score", msgspec.json.encode(event))
    return _reply_problem(status, b"[" + body + b"]", [expected])


def _batch_problem(asker: Asker, events: Sequence[Event], expected: Sequence[Reply]) -> str | None:
    return _reply_problem(*asker.post("/score/batch", msgspec.json.encode(events)), expected)


def _reply_problem(status: int, body: bytes, expected: Sequence[Reply]) -> str | None:
    if status != http.client.OK:
        return f"status {status}: {_shown(body)}"
    try:
        replies = msgspec.json.decode(body, type=list[Reply])
    except msgspec.DecodeError as error:
        return f"{_shown(body)}: {error}"
    if len(replies) != len(expected):
        return f"{len(replies)} replies to {len(expected)} events"
    return _first(differs(*pair) for pair in zip(replies, expected, strict=True))


def _status(
    asker: Asker,
    what: str,
    expected: int,
    path: str,
    body: bytes,
    content_type: str = "application/json",
    authorization: str | None = "",
) -> Finding:
    status, answer = asker.post(path, body, content_type, authorization)
    return Finding(f"{what}: {expected}", None if status == expected else f"status {status}: {_shown(answer)}")


def _first(problems: Iterator[str | None]) -> str | None:
    """The first that is one; the rest is not asked."""
    return next(filter(None, problems), None)


def _shown(body: bytes) -> str:
    return json.dumps(body[:200].decode("utf-8", "replace"))
