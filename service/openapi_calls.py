"""The table behind /openapi.json: every call, the role that it needs, what it takes, answers and refuses with.

Bodies and replies are the types that the service decodes and encodes. Replies that are put together from several stops have
a type here, which names the members that clients may count on; there may be more.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from features.transaction import Transaction
from service.auth import Role
from service.codec import (
    CompareBody,
    Label,
    LabelReply,
    ListBody,
    ModelBody,
    ScorerBody,
    TierBody,
    TierName,
)
from service.compare import Comparison
from service.console.sessions import Holder
from service.errors import Problem
from service.handlers.session import SignIn
from service.infer_codec import InferRequest

JSON: Final = "application/json"
_NDJSON: Final = "application/x-ndjson"
_MSGPACK: Final = "application/msgpack"
Outcome = Literal["approve", "review", "decline"]
Reason = Annotated[str, Meta(min_length=1)]


class DecisionReply(msgspec.Struct, omit_defaults=True):
    """What was decided. `lsn`: its place in the journal, 0 with ?commit=false. `degraded`: tiers that could not be asked."""

    event_id: str
    score: Annotated[float, Meta(ge=0, le=1)]
    outcome: Outcome
    model: str
    scorer: Literal["go", "onnx"]
    lsn: Annotated[int, Meta(ge=0)]
    replayed: bool
    degraded: list[TierName]
    reasons: list[Reason] | UnsetType = UNSET
    trace: dict[str, Any] | UnsetType = UNSET


class ErrorRow(msgspec.Struct):
    """The reply in place of a row that was refused."""

    error: Problem
    event_id: str | UnsetType = UNSET


class StoredReply(msgspec.Struct):
    """A decision as it was stored, with its transaction and its label (null: none yet)."""

    event_id: str
    lsn: int
    score: float
    outcome: Outcome
    reasons: list[str]
    model: str
    scorer: str
    degraded: list[str]
    label: Literal["fraud", "legit"] | None
    transaction: dict[str, Any] | None = None
    trace: dict[str, Any] | UnsetType = UNSET


class LabelsReply(msgspec.Struct):
    """One status per label, in order."""

    labels: list[LabelReply]
    applied: int


class EntityReply(msgspec.Struct):
    """An entity's windows, and the LSN that each tier has of it (null: it does not hold it)."""

    kind: str
    id: str
    lsn: int
    windows: dict[str, Any]
    tiers: dict[str, int | None]
    unavailable: list[str]


class ErasureReply(msgspec.Struct):
    """What an erasure has done, and where work is left."""

    kind: str
    id: str
    lsn: int
    state: str
    left: list[str]
    listed: list[str]


class ListReply(msgspec.Struct):
    """An entry of an exact list."""

    list: Literal["deny", "allow"]
    kind: str
    id: str
    reason: str
    expires: int | None


class TierReply(msgspec.Struct):
    """One tier; counts, sizes and latencies besides."""

    name: TierName
    enabled: bool
    state: str


class TiersReply(msgspec.Struct):
    """Every tier, the consumers of the journal, and what an operator should know."""

    tiers: list[TierReply]
    consumers: list[dict[str, Any]]
    warnings: list[str]


class ScorerReply(msgspec.Struct):
    """The engine that scores. `missing`: why one of them is not to be had (null: it is)."""

    scorer: Literal["go", "onnx"]
    model: str
    missing: dict[str, str | None]


class ModelsInUse(msgspec.Struct):
    """The models in use."""

    champion: dict[str, Any]
    previous: Any
    challenger: Any


class ModelsReply(ModelsInUse):
    """And all that may be chosen."""

    models: list[dict[str, Any]]


class AuditReply(msgspec.Struct):
    """Newest first."""

    entries: list[dict[str, Any]]


class ComparisonsReply(msgspec.Struct):
    """All comparisons of this data directory."""

    comparisons: list[Comparison]


class ComparisonReply(Comparison):
    """A comparison; `result` is null until it is done."""

    result: Any = None


class LiveReply(msgspec.Struct):
    """The service answers, or is ready to score."""

    status: Literal["live", "ready"]


class ServerReply(msgspec.Struct):
    """Server metadata of the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class ModelReply(msgspec.Struct):
    """Model metadata of the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


class IndexEntry(msgspec.Struct):
    """A model of the repository."""

    name: str
    version: str
    state: str
    reason: str


class Query(msgspec.Struct, frozen=True):
    """A query parameter."""

    name: str
    schema: dict[str, Any]
    about: str


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path. `need`: the least role, None for open. `refuses`: statuses that do not follow from it.

    `rows`: the reply is one `reply` or ErrorRow per row of the body; "array": all in a JSON array. `streams`: its head is
    sent before the work is done.
    """

    tag: str
    summary: str
    need: Role | None
    about: str = ""
    body: Any = None
    body_types: tuple[str, ...] = (JSON,)
    other_body_types: tuple[str, ...] = ()  # described by words alone
    queries: tuple[Query, ...] = ()
    statuses: tuple[int, ...] = (200,)
    reply: Any = None
    rows: Literal["", "array", "lines"] = ""
    reply_types: tuple[str, ...] = (JSON,)
    other_reply_types: tuple[str, ...] = ()
    refuses: tuple[int, ...] = ()
    streams: bool = False


def _flag(name: str, default: bool, about: str) -> Query:
    return Query(name, {"type": "string", "enum": ["true", "false", "1", "0"], "default": str(default).lower()}, about)


_FLAGS: Final = (
    _flag("commit", True, "false: score without changing any state."),
    _flag("explain", False, "Reasons in words, for approved ones too."),
    _flag("trace", False, "Which tier gave each profile, its age, the features, µs of each stop."),
)
_LIMIT: Final = Query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Entries at most.")
_INGEST, _ANALYST = Role.INGEST, Role.ANALYST
_ENTITY: Final = "/v1/entities/{kind}/{id}"
_LIST: Final = "/v1/lists/{list}/{kind}/{id}"


def _scoring() -> dict[tuple[str, str], Call]:
    return {
        ("POST", "/v1/score"): Call(
            tag="scoring", summary="Score one transaction", need=_INGEST, body=Transaction, other_body_types=(_MSGPACK,),
            queries=_FLAGS, reply=DecisionReply, other_reply_types=(_MSGPACK,), refuses=(409, 422),
            about="The same event_id and body again answers the stored decision, `replayed`; another body is a 409.",
        ),
        ("POST", "/v1/score/batch"): Call(
            tag="scoring", summary="Score many transactions, in order", need=_INGEST, body=list[Transaction],
            other_body_types=(_NDJSON, _MSGPACK), queries=_FLAGS, reply=DecisionReply, rows="array",
            other_reply_types=(_NDJSON, _MSGPACK), refuses=(422,),
            about="A row that is refused is answered in its place; the rest is scored.",
        ),
        ("POST", "/v1/score/stream"): Call(
            tag="scoring", summary="Score an endless stream", need=_INGEST, body=Transaction, body_types=(_NDJSON,),
            other_body_types=(_MSGPACK,), queries=_FLAGS, reply=DecisionReply, rows="lines", reply_types=(_NDJSON,),
            other_reply_types=(_MSGPACK,), refuses=(422,), streams=True,
            about="One transaction a line in, one reply a line out, in order; what ends it early is in the last reply.",
        ),
        ("POST", "/v1/labels"): Call(
            tag="scoring", summary="Tell what transactions turned out to be", need=_INGEST, body=list[Label],
            reply=LabelsReply, refuses=(422,), about="All labels of a request are well-formed, or none is taken.",
        ),
        ("GET", "/v1/decisions/{event_id}"): Call(
            tag="scoring", summary="What was decided about a transaction, and why", need=_INGEST, reply=StoredReply,
            refuses=(404,),
        ),
    }  # fmt: skip


def _analysts() -> dict[tuple[str, str], Call]:
    read = (400, 408, 413, 415)
    return {
        ("GET", _ENTITY): Call(
            tag="entities", summary="An entity's windows and which tiers hold it", need=_ANALYST, reply=EntityReply,
            refuses=(404, 422),
        ),
        ("DELETE", _ENTITY): Call(
            tag="entities", summary="Forget an entity", need=_ANALYST, reply=ErasureReply, statuses=(200, 202),
            refuses=(404, 409, 422), about="200: it is gone everywhere. 202: it counts from now on, and work is `left`.",
        ),
        ("GET", _LIST): Call(tag="lists", summary="An entry", need=_ANALYST, reply=ListReply, refuses=(404, 422)),
        ("PUT", _LIST): Call(
            tag="lists", summary="Deny or allow an entity", need=_ANALYST, body=ListBody, reply=ListReply, refuses=(404, 422)
        ),
        ("DELETE", _LIST): Call(tag="lists", summary="Take an entry away", need=_ANALYST, statuses=(204,), refuses=(404, 422)),
        ("GET", "/v1/tiers"): Call(tag="tiers", summary="Every tier", need=_ANALYST, reply=TiersReply),
        ("PUT", "/v1/tiers/{name}"): Call(
            tag="tiers", summary="Turn a tier on or off", need=_ANALYST, body=TierBody, reply=TierReply, refuses=(404, 409, 422)
        ),
        ("GET", "/v1/scorer"): Call(tag="models", summary="Which engine scores", need=_ANALYST, reply=ScorerReply),
        ("PUT", "/v1/scorer"): Call(
            tag="models", summary="Change the engine", need=_ANALYST, body=ScorerBody, reply=ScorerReply, refuses=(409, 422)
        ),
        ("GET", "/v1/models"): Call(
            tag="models", summary="Models, and how they do", need=_ANALYST, reply=ModelsReply, refuses=(422,)
        ),
        ("PUT", "/v1/models/champion"): Call(
            tag="models", summary="Choose the model that decides, or roll back", need=_ANALYST, body=ModelBody,
            reply=ModelsInUse, refuses=(404, 409, 422),
        ),
        ("PUT", "/v1/models/challenger"): Call(
            tag="models", summary="Choose one that scores in the shadow", need=_ANALYST, body=ModelBody, reply=ModelsInUse,
            refuses=(404, 409, 422),
        ),
        ("DELETE", "/v1/models/challenger"): Call(
            tag="models", summary="Stop the challenger", need=_ANALYST, reply=ModelsInUse, refuses=(404, 409, 422)
        ),
        ("GET", "/v1/audit"): Call(
            tag="operation", summary="Who changed what, and why", need=_ANALYST, queries=(_LIMIT,), reply=AuditReply,
            refuses=(422,),
        ),
        ("GET", "/v1/events"): Call(
            tag="operation", summary="The live feed", need=_ANALYST, reply_types=("text/event-stream",), streams=True,
            about="Server-sent events `stats`, `decisions`, `lost`, `end`. It does not end by itself.",
        ),
        ("POST", "/v1/compare"): Call(
            tag="operation", summary="Measure what each tier is worth", need=_ANALYST, body=CompareBody, statuses=(202,),
            reply=Comparison, refuses=(409, 422),
        ),
        ("GET", "/v1/compare"): Call(tag="operation", summary="All comparisons", need=_ANALYST, reply=ComparisonsReply),
        ("GET", "/v1/compare/{id}"): Call(
            tag="operation", summary="One comparison and its result", need=_ANALYST, reply=ComparisonReply, refuses=(404,)
        ),
        ("DELETE", "/v1/compare/{id}"): Call(
            tag="operation", summary="Cancel it", need=_ANALYST, reply=Comparison, refuses=(404, 409)
        ),
        ("POST", "/v1/session"): Call(
            tag="console", summary="Sign in", need=None, body=SignIn, reply=Holder, refuses=(401, 403, *read, 422, 429),
            about="Sets the cookie weir_session; the reply holds the CSRF token that changes carry in X-CSRF-Token.",
        ),
        ("GET", "/v1/session"): Call(tag="console", summary="Who is signed in", need=None, reply=Holder, refuses=(401,)),
        ("DELETE", "/v1/session"): Call(
            tag="console", summary="Sign out", need=None, statuses=(204,), refuses=(401, 403)
        ),
    }  # fmt: skip


def _inference() -> dict[tuple[str, str], Call]:
    found = {
        ("GET", "/v2/health/live"): Call(tag="inference", summary="Live", need=None, reply=dict[str, Any]),
        ("GET", "/v2/health/ready"): Call(tag="inference", summary="Ready", need=None, reply=dict[str, Any], refuses=(503,)),
        ("GET", "/v2"): Call(tag="inference", summary="Server metadata", need=_INGEST, reply=ServerReply),
        ("POST", "/v2/repository/index"): Call(
            tag="inference", summary="Models", need=_INGEST, body=dict[str, Any], reply=list[IndexEntry]
        ),
        ("POST", "/v2/repository/models/{name}/load"): Call(
            tag="inference", summary="Refused: models are loaded at the start", need=_INGEST, statuses=(), refuses=(409,)
        ),
        ("POST", "/v2/repository/models/{name}/unload"): Call(
            tag="inference", summary="Refused: models are loaded at the start", need=_INGEST, statuses=(), refuses=(409,)
        ),
    }
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        refuses = (404, 500, 503)
        found |= {
            ("GET", path): Call(tag="inference", summary="Model metadata", need=_INGEST, reply=ModelReply, refuses=refuses),
            ("GET", f"{path}/ready"): Call(
                tag="inference", summary="Is it ready", need=_INGEST, reply=dict[str, Any], refuses=refuses
            ),
            ("GET", f"{path}/config"): Call(
                tag="inference", summary="Model configuration", need=_INGEST, reply=dict[str, Any], refuses=refuses
            ),
            ("POST", f"{path}/infer"): Call(
                tag="inference", summary="Run a model", need=_INGEST, body=InferRequest, reply=dict[str, Any],
                other_body_types=("application/octet-stream",), other_reply_types=("application/octet-stream",),
                refuses=(*refuses, 422, 504),
                about="With Inference-Header-Content-Length, raw tensors follow the JSON (docs: inference).",
            ),
        }  # fmt: skip
    return found


def _health() -> dict[tuple[str, str], Call]:
    return {
        ("GET", "/livez"): Call(tag="operation", summary="The process answers", need=None, reply=LiveReply),
        ("GET", "/readyz"): Call(tag="operation", summary="It takes transactions", need=None, reply=LiveReply, refuses=(503,)),
        ("GET", "/metrics"): Call(
            tag="operation", summary="Metrics for Prometheus", need=None, reply_types=("text/plain",)
        ),
        ("GET", "/openapi.json"): Call(tag="operation", summary="This document", need=None, reply=dict[str, Any]),
    }  # fmt: skip


CALLS: Final[dict[tuple[str, str], Call]] = {**_scoring(), **_analysts(), **_inference(), **_health()}
