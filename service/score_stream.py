"""POST /v1/score/stream without HTTP: endless rows in, replies out, in order, errors in place.

What has been read is cut into rows and scored chunk by chunk; while one chunk is scored the next is decoded. Memory is
bounded: at most AHEAD chunks are under way, and while they are, or while the pipeline has no room, nothing is read, which the
client feels in its socket. A row that is wrong does not end the stream. What ends it early is a row without an end
(server.body_bytes_max) or bytes after which no next row can be found; the last reply then says so. A last line without its
line feed counts if the body ended as it should; if the connection broke it never came. A key that is ahead of its rate is not
read from; one that is revoked or expires ends its streams.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgpack

from service.codec import JSON, MSGPACK
from service.errors import BodyTooLarge, Forbidden, MalformedBody, NotReady, Overloaded, Unauthorized, WeirError
from service.pace import Allowance
from service.score_calls import Flags, ScoreCalls
from service.ticket import Answer, Ticket, resolve

AHEAD: Final = 4  # chunks under way
WAIT_S_MAX: Final = 1.0  # s between two looks whether a key that is ahead of its rate may go on
ROOM_INTERVAL_S: Final = 0.001  # between two looks whether the pipeline has room

Read = Callable[[], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]


class ScoreStream:
    """One stream. `read` gives bytes, none at the end; `write` waits while the client does not read."""

    def __init__(
        self,
        calls: ScoreCalls,
        form: int,
        flags: Flags,
        row_bytes_max: int,
        allowance: Allowance,
        check_key: Callable[[], object],
    ) -> None:
        """`check_key` raises WeirError once the key opens nothing any more: that ends the stream."""
        self._calls = calls
        self._allowance = allowance
        self._check_key = check_key
        self._form = MSGPACK if form == MSGPACK else JSON
        self._flags = flags
        self._row_bytes_max = row_bytes_max
        self._rest = b""
        self._problem: WeirError | None = None  # after which nothing can follow
        self._ticket: Ticket | None = None
        self._under_way: asyncio.Queue[tuple[list[bytes], asyncio.Future[Sequence[Answer]]] | None] = asyncio.Queue(AHEAD)

    async def run(self, read: Read, write: Write) -> None:
        """Until the end of what is read, and of what is to be written. Raises what those two raise."""
        writing = asyncio.create_task(self._write_all(write))
        try:
            reading = asyncio.create_task(self._read_all(read))
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():  # the client has gone
                reading.cancel()
            await asyncio.gather(reading, return_exceptions=writing.done())
            await writing
        finally:
            writing.cancel()

    async def _read_all(self, read: Read) -> None:
        try:
            while self._problem is None and (data := await read()):
                self._check_key()
                await self._submit(self._cut(data))
                while wait_s := self._allowance.wait_s():
                    await asyncio.sleep(min(wait_s, WAIT_S_MAX))
                    self._check_key()
            if self._rest and self._problem is None:
                await self._submit([self._rest])
        except (NotReady, Unauthorized, Forbidden) as error:  # the service stops, the key was revoked or has expired
            self._problem = error
        if self._problem is not None:
            future: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()
            future.set_result([self._problem])
            await self._under_way.put(([b""], future))
        await self._under_way.put(None)

    def _cut(self, data: bytes) -> list[bytes]:
        """The rows that are complete; `_problem` says if none can follow them."""
        data = self._rest + data if self._rest else data
        if self._form == MSGPACK:
            rows, self._rest, self._problem = _cut_packed(data)
        else:
            *lines, self._rest = data.split(b"\n")
            rows = [line for line in lines if line and not line.isspace()]
        if len(self._rest) > self._row_bytes_max:
            limit = f"at most server.body_bytes_max = {self._row_bytes_max} are read"
            self._problem = BodyTooLarge(f"a row has {len(self._rest)} bytes or more, {limit}", "body")
        return rows

    async def _submit(self, rows: list[bytes]) -> None:
        step, loop = self._calls.batch_max, asyncio.get_running_loop()
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            self._allowance.spend(len(part))
            future: asyncio.Future[Sequence[Answer]] = loop.create_future()
            if self._flags.commit:
                await self._submit_when_there_is_room(part, future)
            else:
                future.set_result(await self._calls.rows(part, self._form, self._flags))
            await self._under_way.put((part, future))

    async def _submit_when_there_is_room(self, rows: list[bytes], future: "asyncio.Future[Sequence[Answer]]") -> None:
        deliver = functools.partial(resolve, future)
        while True:
            try:
                self._ticket = self._calls.submit(rows, self._form, deliver, self._flags, self._ticket)
                return
            except Overloaded:
                await asyncio.sleep(ROOM_INTERVAL_S)

    async def _write_all(self, write: Write) -> None:
        while (part := await self._under_way.get()) is not None:
            rows, future = part
            await write(self._calls.lines(rows, await future, self._form, self._flags))


def _cut_packed(data: bytes) -> tuple[list[bytes], bytes, WeirError | None]:
    """Complete values, the rest, and why no value can begin there."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(data))
    unpacker.feed(data)
    rows: list[bytes] = []
    at = 0
    try:
        while True:
            unpacker.skip()
            end = unpacker.tell()
            rows.append(data[at:end])
            at = end
    except msgpack.OutOfData:
        return rows, data[at:], None
    except (ValueError, msgpack.UnpackException) as error:
        return rows, b"", MalformedBody(f"body: this is no MessagePack: {error or type(error).__name__}", "body")
