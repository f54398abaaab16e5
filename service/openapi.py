"""GET /openapi.json: what every call takes and answers, as OpenAPI 3.1. `document` needs no running service.

Schemas of bodies come from the very types that decode them; which refusals a call can answer with follows from what it reads
and from the role that it needs. The table of calls is in service/openapi_calls.py; a test compares it with the routes.
"""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from features.plan import Plan
from features.transaction import CHANNELS, ID_LENGTH_MAX, TS_SECONDS_MAX
from service.auth import Role
from service.correlation import REQUEST_ID, REQUEST_ID_FORM, TRACEPARENT, TRACESTATE
from service.errors import PROBLEM_CONTENT_TYPE, Problem
from service.lists import LIST_NAMES
from service.openapi_calls import CALLS, Call, ErrorRow, Query

VERSION: Final = "3.1.0"
_REF: Final = "#/components/schemas/{name}"
_INFER: Final = "/v2"
# What each refusal means here. A call lists the ones that it can answer with.
_MEANINGS: Final = {
    400: "Malformed: not the form or container that the call takes, or no HTTP that can be read.",
    401: "No key, or none that is known here.",
    403: "The key's role is too low, or a session without its CSRF token.",
    404: "What the path names does not exist.",
    408: "The body did not arrive in time.",
    409: "It contradicts what is known, or is not possible in this installation.",
    413: "The body is larger than the call reads.",
    415: "A Content-Type or Content-Encoding that is not read here.",
    422: "A field is missing, unknown, of the wrong type or out of bounds; `field` names it.",
    429: "The queue is full, the key is over its rate, or too many wait already; Retry-After says for how long.",
    500: "Unexpected; `request_id` is in the service's log.",
    503: "Not ready, a disk that is full, or a tier that had to be asked and was not there.",
    504: "The model ran longer than inference.deadline_ms.",
}
_RETRIED: Final = frozenset({429, 503})
_READS_BODY: Final = (400, 408, 413, 415)
_KEYED: Final = (401, 403, 429, 503)
_BEFORE_TRACES: Final = (401, 403)  # nobody without a key makes traces
_PARAMETER: Final = "#/components/parameters/{name}"
_HEADER: Final = "#/components/headers/{name}"
_GIVEN_ID: Final = {"type": "string", "pattern": f"^{REQUEST_ID_FORM}$"}
_CONTEXT: Final = {"type": "string", "pattern": "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"}
_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    REQUEST_ID: {
        "description": "Names the request in the reply, in a problem and in the log. One of another form is ignored.",
        "schema": _GIVEN_ID,
    },
    TRACEPARENT: {
        "description": "W3C trace context: the caller's span; it decides whether this request is traced, where traces are on.",
        "schema": _CONTEXT,
    },
    TRACESTATE: {"description": "Of the same, handed on.", "schema": {"type": "string"}},
}
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    REQUEST_ID: {"description": "What the request brought, if it was taken.", "schema": _GIVEN_ID},
    TRACEPARENT: {"description": "The request's own span, if it is traced.", "schema": _CONTEXT},
}


class InferenceProblem(Problem, omit_defaults=True):
    """A problem under /v2: clients of the protocol show `error`."""

    error: str = ""


def document(
    kinds: Sequence[str] = ("card", "merchant", "device", "ip"), currencies: Sequence[str] = ("EUR",)
) -> dict[str, Any]:
    """The document as a JSON-like tree. `kinds`, `currencies`: of the spec that is served."""
    types = {call.body for call in CALLS.values() if call.body} | {call.reply for call in CALLS.values() if call.reply}
    types |= {Problem, InferenceProblem, ErrorRow}
    ordered = sorted(types, key=str)
    schemas, components = msgspec.json.schema_components(ordered, ref_template=_REF)
    known = dict(zip(ordered, schemas, strict=True))
    _say_what_types_cannot(components, currencies)
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), call in CALLS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, call, known, kinds)
    return {
        "openapi": VERSION,
        "info": {
            "title": "Weir",
            "version": importlib.metadata.version("weir"),
            "summary": "Scores card transactions for fraud while the payment waits.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key: weir keys add --role ROLE --name NAME"},
                "session": {"type": "apiKey", "in": "cookie", "name": "weir_session", "description": "Of the console."},
            },
            "parameters": {
                name: {"name": name, "in": "header", "required": False} | told for name, told in _PARAMETERS.items()
            },
            "headers": _HEADERS,
            "schemas": _plain(components),
        },
    }


def encoded(plan: Plan) -> bytes:
    """The document as a service of this plan sends it."""
    return msgspec.json.encode(document([kind.name for kind in plan.kinds], list(plan.currencies)))


def _say_what_types_cannot(components: dict[str, Any], currencies: Sequence[str]) -> None:
    """What features.transaction.check and the plan refuse of a transaction besides."""
    tx = components["Transaction"]
    tx["properties"]["currency"]["enum"] = list(currencies)
    tx["properties"]["ts"] |= {"minimum": TS_SECONDS_MAX, "description": "ms UTC of the payment"}
    tx["properties"]["amount"]["description"] = "minor units of `currency`"
    tx["properties"]["channel"] = {"enum": [*CHANNELS, None], "default": None}
    tx["dependentRequired"] = {"lat": ["lon"], "lon": ["lat"]}
    tx["examples"] = [
        {
            **{"event_id": "t-1", "ts": 1750000000000, "amount": 1299, "currency": currencies[0], "card_id": "c1"},
            **{"merchant_id": "m1", "device_id": "d1", "ip": "203.0.113.7", "country": "DE", "mcc": 5411, "channel": "ecom"},
        }
    ]


def _operation(method: str, path: str, call: Call, known: Mapping[Any, dict[str, Any]], kinds: Sequence[str]) -> dict[str, Any]:
    words = re.sub(r"[^A-Za-z0-9]+", " ", path).split()
    operation: dict[str, Any] = {
        "operationId": "_".join([method.lower(), *words]),
        "summary": call.summary,
        "tags": [call.tag],
        "responses": _responses(path, call, known),
    }
    if call.about:
        operation["description"] = call.about
    if call.need is None:
        operation["security"] = []
    else:
        operation["x-weir-role"] = call.need.word
        if call.need >= Role.ANALYST:
            operation["security"] = [{"key": []}, {"session": []}]
    parameters = [_path_parameter(name, kinds) for name in re.findall(r"{(\w+)}", path)]
    parameters += [_query_parameter(query) for query in call.queries]
    # Without a key nothing is traced, but everything that has an id gives it back.
    brought = [REQUEST_ID] if call.need is None else list(_PARAMETERS)
    operation["parameters"] = parameters + [{"$ref": _PARAMETER.format(name=name)} for name in brought]
    if call.body is not None:
        schema = _plain(known[call.body])
        content = {kind: {"schema": schema} for kind in call.body_types}
        content |= {kind: {"schema": {}} for kind in call.other_body_types}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _responses(path: str, call: Call, known: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status in call.statuses:
        reply: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        if status != 204:
            schema = _reply_schema(call, known)
            reply["content"] = {kind: {"schema": schema} for kind in call.reply_types}
            reply["content"] |= {kind: {"schema": {}} for kind in call.other_reply_types}
        responses[str(status)] = reply
    refusals = {*call.refuses, 500}
    refusals |= set(_READS_BODY) if call.body is not None else set()
    refusals |= set(_KEYED) if call.need is not None else set()
    schema = _plain(known[InferenceProblem if path.startswith(_INFER) else Problem])
    for status in sorted(refusals):
        reply = {"description": _MEANINGS[status], "content": {PROBLEM_CONTENT_TYPE: {"schema": schema}}}
        if status in _RETRIED:
            reply["headers"] = {"Retry-After": {"schema": {"type": "string", "pattern": "^[0-9]+$"}, "description": "Seconds."}}
        responses[str(status)] = reply
    for code, reply in responses.items():
        # A stream's head is sent before there is a span.
        given = [REQUEST_ID] if call.need is None or (call.streams and int(code) < 400) else list(_HEADERS)
        given = [REQUEST_ID] if int(code) in _BEFORE_TRACES else given
        reply["headers"] = reply.get("headers", {}) | {name: {"$ref": _HEADER.format(name=name)} for name in given}
    return responses


def _reply_schema(call: Call, known: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    if call.reply is None:
        return {"type": "string"}
    schema: dict[str, Any] = _plain(known[call.reply])
    if call.rows:
        schema = {"anyOf": [schema, known[ErrorRow]]}
    return {"type": "array", "items": schema} if call.rows == "array" else schema


def _path_parameter(name: str, kinds: Sequence[str]) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": ID_LENGTH_MAX}
    choices = {"kind": list(kinds), "list": list(LIST_NAMES)}
    schema = {"type": "string", "enum": choices[name]} if name in choices else text
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameter(query: Query) -> dict[str, Any]:
    return {"name": query.name, "in": "query", "required": False, "schema": query.schema, "description": query.about}


def _plain(schema: Any) -> Any:
    """Patterns as JSON Schema reads them: Python's \\Z is its $."""
    if isinstance(schema, dict):
        return {key: _plain(value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_plain(value) for value in schema]
    return schema.replace("\\Z", "$") if isinstance(schema, str) else schema
