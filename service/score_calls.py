"""What the scoring routes do, whichever lane a request came by: bodies and flags in, bytes of a reply out. No HTTP here.

`?commit=false` scores without changing any state, `?explain=1` adds reason codes, `?trace=1` says where each profile
came from. A batch answers 200 if its body can be taken apart; what is wrong with a row is said in its place.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from service.codec import (
    JSON,
    MSGPACK,
    MSGPACK_TYPE,
    NDJSON,
    NDJSON_TYPE,
    array_head,
    encode_decision,
    encode_row,
    split_batch,
)
from service.errors import WeirError
from service.metrics import Metrics
from service.pace import Allowance
from service.pieces import Replies
from service.settings import QueueSettings, ServerSettings
from service.ticket import DECISIONS, REASONS, REPLIES, TRACES, Answer, Ticket
from service.tracing import Trace, current
from service.turnstile import Turnstile

if TYPE_CHECKING:
    from service.engine import Engine

JSON_TYPE: Final = "application/json"
SLICE_ROWS: Final = 1024  # rows encoded between two turns of the event loop: about 2 ms
TYPES: Final = {JSON: JSON_TYPE, NDJSON: NDJSON_TYPE, MSGPACK: MSGPACK_TYPE}


class Flags(msgspec.Struct, frozen=True):
    """The query of a scoring route."""

    commit: bool = True
    explain: bool = False
    trace: bool = False

    def wanted(self, form: int) -> int:
        """In which form the pipeline's answers are needed."""
        if not (self.explain or self.trace):
            return DECISIONS if form == MSGPACK else REPLIES
        return DECISIONS | (REASONS if self.explain else 0) | (TRACES if self.trace else 0)


PLAIN: Final = Flags()


class ScoreCalls:
    """The calls of one service."""

    def __init__(self, engine: "Engine", metrics: Metrics, server: ServerSettings) -> None:
        self._engine = engine
        self._pipeline = engine.pipeline
        self._metrics = metrics
        self._server = server

    def offer(self, body: bytes, form: int, answered: Callable[[Answer], object], trace: Trace | None = None) -> None:
        """One transaction without flags; see Pipeline. For MSGPACK, `encode_decision` makes the reply. Raises WeirError.

        One that is traced has a ticket of its own.
        """
        if trace is None:
            self._pipeline.offer(body, form, answered)
        else:
            trace.note(self._pipeline.submit([body], form, lambda answers: answered(answers[0]), wanted=PLAIN.wanted(form)))

    def turnstile(self, queue: QueueSettings) -> Turnstile:
        """What keeps the turns of `offer` short and its queue bounded."""
        return Turnstile(self._pipeline, queue)

    @property
    def batch_max(self) -> int:
        """Rows that `submit` takes at once."""
        return self._pipeline.batch_max

    def submit(
        self, rows: list[bytes], form: int, deliver: Callable[[Sequence[Answer]], object], flags: Flags, after: Ticket | None
    ) -> Ticket | None:
        """A part of a stream, to be scored after `after`; see Pipeline. Raises WeirError."""
        ticket, trace = self._pipeline.submit(rows, form, deliver, wanted=flags.wanted(form), after=after), current()
        if trace is not None and ticket is not after:
            trace.note(ticket)
        return ticket

    async def one(self, body: bytes, form: int, flags: Flags) -> bytes:
        """The reply to one transaction. Raises WeirError."""
        (answer,) = await self.rows([body], form, flags)
        if isinstance(answer, WeirError):
            raise answer
        return answer if isinstance(answer, bytes) else encode_decision(answer, flags.explain, form)

    async def batch(self, body: bytes, content_type: str, flags: Flags, allowance: Allowance) -> tuple[bytes, str]:
        """The reply to a batch and its content type. `content_type`: lower case, without parameters. Raises WeirError."""
        rows, form = split_batch(body, content_type, self._server.batch_rows_max)
        allowance.spend(len(rows) - 1)
        answers = await self.rows(rows, form, flags) if rows else []
        if isinstance(answers, Replies) and form in (JSON, NDJSON):
            lines = answers.lines
            return (lines if form == NDJSON else b"[%b]" % lines[:-1].replace(b"\n", b",")), TYPES[form]
        parts: list[bytes] = []
        for start in range(0, len(rows), SLICE_ROWS):
            if start:
                await asyncio.sleep(0)
            stop = start + SLICE_ROWS
            parts += self.encode(rows[start:stop], answers[start:stop], form, flags)
        if form == NDJSON:
            reply = b"\n".join([*parts, b""])
        elif form == JSON:
            reply = b"[%b]" % b",".join(parts)
        else:
            reply = array_head(len(parts)) + b"".join(parts)
        return reply, TYPES[form]

    async def rows(self, rows: list[bytes], form: int, flags: Flags) -> Sequence[Answer]:
        """The answers to the rows of one request, in order. Raises WeirError."""
        form = MSGPACK if form == MSGPACK else JSON
        if flags.commit:
            return await self._engine.submit_many(rows, form, flags.wanted(form))
        self._pipeline.check_open()
        return await self._engine.try_many(rows, form, flags.wanted(form))

    def lines(self, rows: list[bytes], answers: Sequence[Answer], form: int, flags: Flags) -> bytes:
        """The replies to rows of a stream, with a line feed after each if it is one of lines."""
        if isinstance(answers, Replies) and form == JSON:
            return answers.lines
        end = b"" if form == MSGPACK else b"\n"
        return end.join([*self.encode(rows, answers, form, flags), b""])

    def encode(self, rows: list[bytes], answers: Sequence[Answer], form: int, flags: Flags) -> list[bytes]:
        """The reply in place of each row."""
        for answer in answers:
            if isinstance(answer, WeirError):
                self._metrics.refused[answer.code,] += 1
        return [encode_row(row, answer, form, flags.explain) for row, answer in zip(rows, answers, strict=True)]
