"""Bytes to transactions, labels and list changes; decisions to bytes. The only place where request JSON is parsed.

A body is refused in one of two ways: `MalformedBody` (400) if the bytes are not UTF-8 JSON or not the container that
the route takes, `InvalidEvent` (422) if a field is missing, unknown, of the wrong type or out of bounds. `refusals`
words both and names the field.

Numbers are taken as written: a float where an integer belongs is refused even if it is whole (`12.0`, `1e3`), because
an amount that went through a float may have lost its cents; so are booleans, NaN and integers out of bounds. The last
one of duplicate keys wins, as in every common JSON parser.

Cost, one transaction of 13 fields (230 bytes), measured: decode 0.9 µs, check 0.3; encoding a decision 0.5 µs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from features.transaction import TS_SECONDS_MAX, Id, InvalidTransaction, Timestamp, Transaction, check
from service.errors import BodyTooLarge, InvalidEvent, Problem, UnsupportedMedia, WeirError, as_problem
from service.refusals import DECODE_ERRORS, packed_refusal, refusal

if TYPE_CHECKING:
    from service.decide import Decision

JSON, MSGPACK, NDJSON = range(3)  # forms of a body; a row of NDJSON is JSON
NDJSON_TYPE: Final = "application/x-ndjson"
MSGPACK_TYPE: Final = "application/msgpack"
_MSGPACK_TYPES = frozenset({MSGPACK_TYPE, "application/x-msgpack", "application/vnd.msgpack"})
_NDJSON_TYPES = frozenset({NDJSON_TYPE, "application/ndjson", "application/jsonl", "application/json-lines"})
# Types that mean "I did not say": curl -d sends the form type, many clients send none at all.
_UNSAID_TYPES = frozenset({"", "text/plain", "application/octet-stream", "application/x-www-form-urlencoded"})


TierName = Literal["l1", "bloom", "l2", "redis", "postgres"]


class Label(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What a past transaction turned out to be. `ts`: when that became known, ms UTC."""

    event_id: Id
    label: Literal["fraud", "legit"]
    ts: Timestamp


class LabelReply(msgspec.Struct, frozen=True, gc=False):
    """What became of a label. `lsn` is None unless it was applied."""

    event_id: str
    status: Literal["applied", "unchanged", "unknown_event"]
    lsn: int | None = None


class ListBody(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Body of PUT /v1/lists/...: why, and until when (ms UTC; None: until it is deleted)."""

    reason: Annotated[str, Meta(min_length=1, max_length=256)]
    expires: Timestamp | None = None


class ScorerBody(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Body of PUT /v1/scorer: which engine scores from now on, and why."""

    scorer: Literal["go", "onnx"]
    reason: Annotated[str, Meta(min_length=1, max_length=256)]


class TierBody(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Body of PUT /v1/tiers/{name}: whether the tier is on from now on, and why."""

    enabled: bool
    reason: Annotated[str, Meta(min_length=1, max_length=256)]


class CompareConfig(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One configuration of a comparison: the tiers that are off, and an engine of its own."""

    off: Annotated[tuple[TierName, ...], Meta(max_length=5)] = ()
    scorer: Literal["go", "onnx"] | None = None


class CompareBody(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Body of POST /v1/compare. Everything on, with L3 at the first distance, is the reference and need not be named."""

    configs: Annotated[tuple[CompareConfig, ...], Meta(min_length=1, max_length=12)]
    events: Annotated[int, Meta(ge=1_000, le=200_000)] = 5_000
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 1
    delays_ms: Annotated[tuple[Annotated[float, Meta(ge=0, le=100)], ...], Meta(min_length=1, max_length=3)] = (0.0,)
    rounds: Annotated[int, Meta(ge=1, le=10)] = 1
    clients: Annotated[int, Meta(ge=1, le=64)] = 8


class ModelBody(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Body of PUT /v1/models/{champion|challenger}: which model from now on, or back to the champion before, and why."""

    reason: Annotated[str, Meta(min_length=1, max_length=256)]
    model: Annotated[str, Meta(min_length=1, max_length=256)] | UnsetType | None = UNSET  # None: no challenger
    rollback: bool = False


class _LabelsReply(msgspec.Struct, gc=False):
    labels: Sequence[LabelReply]
    applied: int


class _DecisionReply(msgspec.Struct, gc=False):
    event_id: str
    score: float
    outcome: str
    model: str
    scorer: str
    lsn: int
    replayed: bool
    degraded: tuple[str, ...]
    reasons: tuple[str, ...] | UnsetType = UNSET
    trace: dict[str, Any] | UnsetType = UNSET


class _ErrorReply(msgspec.Struct, gc=False):
    error: Problem
    event_id: str | UnsetType = UNSET


_decode_tx = msgspec.json.Decoder(Transaction).decode
_unpack_tx = msgspec.msgpack.Decoder(Transaction).decode
_decode_rows = msgspec.json.Decoder(list[msgspec.Raw]).decode
_unpack_rows = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_labels = msgspec.json.Decoder(list[Label]).decode
_decode_list_body = msgspec.json.Decoder(ListBody).decode
_decode_scorer_body = msgspec.json.Decoder(ScorerBody).decode
_decode_model_body = msgspec.json.Decoder(ModelBody).decode
_decode_tier_body = msgspec.json.Decoder(TierBody).decode
_decode_compare_body = msgspec.json.Decoder(CompareBody).decode
_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode


def decode_transaction(body: bytes | msgspec.Raw) -> Transaction:
    """The valid transaction that `body` is. Raises MalformedBody or InvalidEvent; currency and clock are not judged."""
    try:
        tx = _decode_tx(body)
        check(tx)
    except InvalidTransaction as error:
        raise InvalidEvent(f"{error.field}: {error.problem}", error.field) from None
    except DECODE_ERRORS as error:
        raise refusal(error, bytes(body)) from None
    return tx


def decode_packed(body: bytes) -> Transaction:
    """`decode_transaction` for a body in MessagePack."""
    try:
        tx = _unpack_tx(body)
        check(tx)
    except InvalidTransaction as error:
        raise InvalidEvent(f"{error.field}: {error.problem}", error.field) from None
    except DECODE_ERRORS as error:
        raise packed_refusal(error, body) from None
    return tx


def form_of(content_type: str) -> int:
    """JSON or MSGPACK, of a content type in lower case without parameters; what says nothing is taken for JSON."""
    return MSGPACK if content_type in _MSGPACK_TYPES else JSON


def stream_form(content_type: str) -> int:
    """NDJSON or MSGPACK, of a content type in lower case without parameters. Raises UnsupportedMedia."""
    if content_type in _MSGPACK_TYPES:
        return MSGPACK
    if content_type in _NDJSON_TYPES or content_type in _UNSAID_TYPES or content_type.endswith("json"):
        return NDJSON
    raise UnsupportedMedia(f"{content_type} is not read here; send {NDJSON_TYPE} or {MSGPACK_TYPE}", "Content-Type")


def split_batch(body: bytes, content_type: str, rows_max: int) -> tuple[list[bytes], int]:
    """The rows of a batch, still encoded, and its form: JSON, NDJSON or MSGPACK.

    NDJSON is told by `content_type` (lower case, without parameters) or by a body that starts with `{`.
    Raises MalformedBody if an array cannot be taken apart (the lines of NDJSON fail one by one, in place),
    BodyTooLarge above `rows_max` rows, UnsupportedMedia for a type that is none of these.
    """
    if content_type in _NDJSON_TYPES:
        form = NDJSON
    elif content_type in _MSGPACK_TYPES:
        form = MSGPACK
    elif content_type in _UNSAID_TYPES or content_type.endswith("json"):
        form = NDJSON if body.lstrip()[:1] == b"{" else JSON
    else:
        known = f"application/json, {NDJSON_TYPE} or {MSGPACK_TYPE}"
        raise UnsupportedMedia(f"{content_type} is not read here; send {known}", "Content-Type")
    try:
        if form == NDJSON:
            rows = [line for line in body.split(b"\n") if line and not line.isspace()]
        elif form == JSON:
            rows = list(map(bytes, _decode_rows(body)))
        else:
            rows = list(map(bytes, _unpack_rows(body)))
    except DECODE_ERRORS as error:
        raise (packed_refusal if form == MSGPACK else refusal)(error, body) from None
    if len(rows) > rows_max:
        limit = f"{len(rows)} transactions in one batch, at most {rows_max}; split it or raise server.batch_rows_max"
        raise BodyTooLarge(limit, "body")
    return rows, form


def decode_labels(body: bytes, rows_max: int) -> list[Label]:
    """All labels of `body`, a JSON array, or none: raises MalformedBody, InvalidEvent or BodyTooLarge."""
    try:
        labels = _decode_labels(body)
    except DECODE_ERRORS as error:
        raise refusal(error, body) from None
    if len(labels) > rows_max:
        raise BodyTooLarge(f"{len(labels)} labels in one request, at most {rows_max}", "body")
    for row, label in enumerate(labels):
        if not label.event_id.isprintable():
            raise InvalidEvent("event_id holds characters that cannot be printed", f"[{row}].event_id")
        _check_ms(label.ts, f"[{row}].ts")
    return labels


def decode_list_body(body: bytes) -> ListBody:
    """The reason and expiry of a list entry. Raises MalformedBody or InvalidEvent."""
    try:
        change = _decode_list_body(body)
    except DECODE_ERRORS as error:
        raise refusal(error, body) from None
    _check_reason(change.reason)
    if change.expires is not None:
        _check_ms(change.expires, "expires")
    return change


def decode_scorer_body(body: bytes) -> ScorerBody:
    """The engine that is asked for. Raises MalformedBody or InvalidEvent."""
    try:
        change = _decode_scorer_body(body)
    except DECODE_ERRORS as error:
        raise refusal(error, body) from None
    _check_reason(change.reason)
    return change


def decode_tier_body(body: bytes) -> TierBody:
    """The body of PUT /v1/tiers/{name}. Raises MalformedBody or InvalidEvent."""
    try:
        change = _decode_tier_body(body)
    except DECODE_ERRORS as error:
        raise refusal(error, body) from None
    _check_reason(change.reason)
    return change


def decode_compare_body(body: bytes) -> CompareBody:
    """The body of POST /v1/compare. Raises MalformedBody or InvalidEvent."""
    try:
        asked = _decode_compare_body(body)
    except DECODE_ERRORS as error:
        raise refusal(error, body) from None
    for row, config in enumerate(asked.configs):
        if len(set(config.off)) < len(config.off):
            raise InvalidEvent(f"configs[{row}].off names a tier twice", f"configs[{row}].off")
    return asked


def decode_model_body(body: bytes, role: str) -> ModelBody:
    """The body of PUT /v1/models/{role}, role champion or challenger. Raises MalformedBody or InvalidEvent."""
    try:
        change = _decode_model_body(body)
    except DECODE_ERRORS as error:
        raise refusal(error, body) from None
    _check_reason(change.reason)
    if role == "challenger" and change.rollback:
        raise InvalidEvent("only a champion is rolled back", "rollback")
    if change.rollback:
        if change.model is not UNSET:
            raise InvalidEvent("rollback goes back to the champion before; it takes no model", "model")
    elif change.model is UNSET:
        missing = "name a model, or null for no challenger" if role == "challenger" else "name a model, or give rollback: true"
        raise InvalidEvent(missing, "model")
    elif change.model is None and role == "champion":
        raise InvalidEvent("there is always a champion; name a model", "model")
    return change


def encode_decision(decision: "Decision", explain: bool = False, form: int = JSON) -> bytes:
    """The reply to one transaction; reasons of an approved one only with `explain`, the trace only if there is one."""
    return (_pack if form == MSGPACK else _encode)(_reply(decision, explain))


def encode_row(row: bytes, answer: "bytes | Decision | WeirError", form: int, explain: bool = False) -> bytes:
    """A reply in its place; bytes are one already. An error in place carries the event_id of its row, if it has one."""
    if isinstance(answer, bytes):
        return answer
    if isinstance(answer, WeirError):
        return (_pack if form == MSGPACK else _encode)(_ErrorReply(as_problem(answer), _event_id(row, form)))
    return encode_decision(answer, explain, form)


def array_head(n_rows: int) -> bytes:
    """What stands before the rows of a MessagePack array."""
    return _pack([None] * n_rows)[:-n_rows] if n_rows else _pack([])


def encode_labels(replies: Sequence[LabelReply]) -> bytes:
    """The JSON reply to POST /v1/labels."""
    return _encode(_LabelsReply(replies, sum(reply.status == "applied" for reply in replies)))


def encode(value: Any) -> bytes:
    """JSON of plain objects: stored decisions, entities, tiers."""
    return _encode(value)


def _reply(decision: "Decision", explain: bool) -> _DecisionReply:
    return _DecisionReply(
        decision.event_id,
        decision.score,
        decision.outcome,
        decision.model,
        decision.scorer,
        decision.lsn,
        decision.replayed,
        decision.degraded,
        (decision.reasons or ()) if explain or decision.outcome != "approve" else UNSET,
        UNSET if decision.trace is None else decision.trace,
    )


def _check_reason(reason: str) -> None:
    if not reason.isprintable():
        raise InvalidEvent("reason holds characters that cannot be printed", "reason")


def _check_ms(ts: int, field: str) -> None:
    if ts < TS_SECONDS_MAX:
        raise InvalidEvent(f"{field}: {ts} looks like seconds; send milliseconds since 1970 UTC", field)


def _event_id(row: bytes, form: int) -> str | UnsetType:
    """The event_id of a refused row, so that its sender can tell which one it was."""
    try:
        value = msgspec.msgpack.decode(row) if form == MSGPACK else msgspec.json.decode(row)
    except (*DECODE_ERRORS, ValueError):  # the latter: a map whose keys cannot be told apart
        return UNSET
    event_id = value.get("event_id") if isinstance(value, dict) else None
    return event_id if isinstance(event_id, str) and len(event_id) <= 128 else UNSET
