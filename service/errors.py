"""Errors, split by whose fault they are; each class carries its HTTP status.

    WeirError
    ├── CallerError             the caller can fix it
    │   ├── MalformedBody       400  not JSON, not UTF-8, not the container that the route takes
    │   ├── InvalidTensor       400  a tensor or inference request that the model cannot take; names the tensor
    │   ├── Unauthorized        401  no key, or one that is not known
    │   ├── Forbidden           403  a known key of too low a role
    │   ├── NotFound            404
    │   ├── MethodNotAllowed    405  carries the methods that are allowed
    │   ├── RequestTimeout      408  the body did not arrive within the deadline
    │   ├── Conflict            409  the same event_id with another body
    │   ├── NotPossible         409  not to be had in this installation
    │   ├── ModelRefused        409  a model whose file, card, plan or golden scores are not right
    │   ├── BodyTooLarge        413
    │   ├── UnsupportedMedia    415
    │   ├── InvalidEvent        422  JSON, but a field is missing, of the wrong type or out of bounds
    │   ├── TooManyAttempts     429  to sign in; carries Retry-After
    │   └── RateExceeded        429  the key is ahead of its rate; carries Retry-After
    ├── DependencyError         another system did not answer
    │   └── TierUnavailable     503  names the tier
    ├── ServiceError            our own limit or fault
    │   ├── Overloaded          429  carries Retry-After
    │   ├── ScoringFailed       500  the batch was rolled back
    │   ├── InferenceFailed     500  a model beside the scorer could not be opened or run
    │   ├── InferenceTimeout    504  it ran longer than inference.deadline_ms
    │   ├── NotReady            503
    │   ├── TooManyConnections  503  in all, or from one address; the connection is closed
    │   ├── DiskFull            503  a file beside the journal could not be written
    │   └── JournalUnavailable  503  disk full or broken, journal.bytes_max: nothing is accepted
    └── StartError              the process cannot start or the command cannot run: one line for the CLI, exit code 1
        ├── SettingsError            a setting is unknown or out of range: exit code 2
        └── KeyFileError             keys.json cannot be read, or the key's name is taken: exit code 2

A message gives the value, the limit and the fix. It never holds an API key, and ids only where the caller sent them.
`problem` makes the RFC 9457 reply of any of them.
"""

from typing import ClassVar

import msgspec

PROBLEM_TYPE = "urn:weir:problem:"  # + code; a URN, so that no reply points at a host that we do not run
PROBLEM_CONTENT_TYPE = "application/problem+json"


class WeirError(Exception):
    """Base of every expected failure. `field` is the JSON path of the culprit in the request, if there is one."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    code: ClassVar[str] = "internal"

    def __init__(self, detail: str = "", field: str | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.field = field

    def headers(self) -> dict[str, str]:
        """HTTP headers that the status asks for."""
        return {}


class CallerError(WeirError):
    """The caller can fix it; the same request fails again."""

    status = 400
    title = "Bad request"
    code = "bad-request"


class MalformedBody(CallerError):
    """The bytes are not JSON or not UTF-8, or not the container (object, array) that the route takes."""

    title = "Malformed body"
    code = "malformed-body"


class InvalidTensor(CallerError):
    """An inference request whose tensors the model cannot take; `field` names the tensor."""

    title = "Invalid tensor"
    code = "invalid-tensor"


class Unauthorized(CallerError):
    """No API key, or one that is not in the key file."""

    status = 401
    title = "Unauthorized"
    code = "unauthorized"

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Bearer realm="weir"'}


class Forbidden(CallerError):
    """The key is known, its role is too low."""

    status = 403
    title = "Forbidden"
    code = "forbidden"


class NotFound(CallerError):
    """The path, or the thing that it names, does not exist."""

    status = 404
    title = "Not found"
    code = "not-found"


class MethodNotAllowed(CallerError):
    """The path exists, the method does not. `allowed` are the methods that do."""

    status = 405
    title = "Method not allowed"
    code = "method-not-allowed"

    def __init__(self, detail: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.allowed = allowed

    def headers(self) -> dict[str, str]:
        return {"Allow": ", ".join(self.allowed)}


class RequestTimeout(CallerError):
    """The body did not arrive within server.request_deadline_ms."""

    status = 408
    title = "Request timeout"
    code = "request-timeout"


class Conflict(CallerError):
    """The event_id was accepted before with another body."""

    status = 409
    title = "Conflict"
    code = "conflict"


class NotPossible(CallerError):
    """What is asked for is known but not to be had in this installation, such as the go scorer without its library."""

    status = 409
    title = "Not possible here"
    code = "not_possible"


class ModelRefused(CallerError):
    """A model that may not be loaded: its file, card, plan or golden scores are not right."""

    status = 409
    title = "Model refused"
    code = "model-refused"


class BodyTooLarge(CallerError):
    """The body exceeds the byte or row limit of its route."""

    status = 413
    title = "Body too large"
    code = "body-too-large"


class UnsupportedMedia(CallerError):
    """The Content-Type or Content-Encoding is one that the route does not read."""

    status = 415
    title = "Unsupported media type"
    code = "unsupported-media-type"


class InvalidEvent(CallerError):
    """A well-formed body whose content must be refused; `field` names the culprit."""

    status = 422
    title = "Invalid event"
    code = "invalid-event"


class TooManyAttempts(CallerError):
    """Signing in failed too often; the address has to wait."""

    status = 429
    title = "Too many attempts"
    code = "too-many-attempts"

    def __init__(self, detail: str, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class RateExceeded(CallerError):
    """A key has sent more events than its rate allows; the same request succeeds later."""

    status = 429
    title = "Rate exceeded"
    code = "rate-exceeded"

    def __init__(self, detail: str, retry_after_s: int) -> None:
        super().__init__(detail, "Authorization")
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class DependencyError(WeirError):
    """Another system did not answer in time or answered nonsense."""

    status = 503
    title = "Dependency unavailable"
    code = "dependency-unavailable"


class TierUnavailable(DependencyError):
    """A tier could not be asked or written. The pipeline turns it into UNKNOWN; callers see `degraded`."""

    title = "Tier unavailable"
    code = "tier-unavailable"

    def __init__(self, tier: str, detail: str) -> None:
        super().__init__(f"{tier}: {detail}")
        self.tier = tier


class ServiceError(WeirError):
    """Our own limit or fault; the same request may succeed later."""


class Overloaded(ServiceError):
    """The queue of waiting transactions is full."""

    status = 429
    title = "Overloaded"
    code = "overloaded"

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class NotReady(ServiceError):
    """The service is starting, recovering or stopping."""

    status = 503
    title = "Not ready"
    code = "not-ready"

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"}


class TooManyConnections(ServiceError):
    """As many connections are open as may be, in all or from one address."""

    status = 503
    title = "Too many connections"
    code = "too-many-connections"

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"}


class JournalUnavailable(ServiceError):
    """The journal cannot be appended to (disk full, its bound reached, I/O error): nothing is accepted or changed."""

    status = 503
    title = "Journal unavailable"
    code = "journal-unavailable"

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"}


class DiskFull(ServiceError):
    """A file beside the journal (toggles, audit) could not be written."""

    status = 503
    title = "Disk full"
    code = "disk-full"


class ScoringFailed(ServiceError):
    """The scorer failed; the batch was rolled back and none of it was journaled."""

    title = "Scoring failed"
    code = "scoring-failed"


class InferenceFailed(ServiceError):
    """A model under /v2 could not be opened or run."""

    title = "Inference failed"
    code = "inference-failed"


class InferenceTimeout(ServiceError):
    """A model under /v2 ran longer than inference.deadline_ms and was stopped."""

    status = 504
    title = "Inference timeout"
    code = "inference-timeout"


class StartError(WeirError):
    """The process cannot start or the command cannot run: settings, port in use, data directory locked, model, spec.

    It reaches a terminal as one line, never HTTP. `exit_code` is the process's exit status: 1, or 2 for wrong input.
    """

    title = "Cannot start"
    code = "start"
    exit_code: ClassVar[int] = 1


class SettingsError(StartError):
    """A setting is unknown, of the wrong type or out of range; `field` is its dotted key."""

    code = "settings"
    exit_code = 2


class KeyFileError(StartError):
    """The key file cannot be read or written, or a key of that name exists already."""

    code = "key-file"
    exit_code = 2


class Problem(msgspec.Struct, omit_defaults=True):
    """RFC 9457 problem details, the offending field and the request's id: the client's, or that under which it was logged."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
    request_id: str | None = None


def as_problem(error: WeirError) -> Problem:
    """The problem object of `error`, also for a reply that holds errors in place (batches)."""
    return Problem(PROBLEM_TYPE + error.code, error.title, error.status, error.detail or error.title, error.field)


def problem(error: WeirError, request_id: str | None = None) -> bytes:
    """The body of an application/problem+json reply for `error`, with the request's id if it has one."""
    found = as_problem(error)
    found.request_id = request_id
    return _encode(found)


_encode = msgspec.json.Encoder().encode
