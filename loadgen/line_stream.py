"""One POST /v1/score/stream over one connection: lines of NDJSON go out, the line that answers each comes back in their order.

Invariant: the replies that `on_line` gets are those of the lines written, one each, in order; whatever ends that (the server's
refusal, a lost connection, a line that is not one) calls `on_end` once. The sender bounds what is under way, not this.
"""

from collections.abc import Callable

from loadgen.sender import ConnectionLost, Reply, SendError, Target, Wire

NDJSON = b"application/x-ndjson"


class LineStream:
    """Use `connect`. `on_line(line)` for each reply; `on_end(reply, error)` at the end: a refusal, an error, or neither."""

    def __init__(self, wire: Wire, on_line: Callable[[bytes], None], on_end: Callable[[Reply | None, SendError | None], None]):
        self._wire = wire
        self._on_line = on_line
        self._on_end = on_end
        self._rest = b""
        wire.on_part, wire.on_reply, wire.on_lost = self._part, self._replied, self._lost

    @classmethod
    async def connect(
        cls,
        target: Target,
        path: str,
        on_line: Callable[[bytes], None],
        on_end: Callable[[Reply | None, SendError | None], None],
    ) -> "LineStream":
        """Connect and begin the request. Raises Unreachable."""
        wire = await Wire.connect(target)
        stream = cls(wire, on_line, on_end)
        head = target.head("POST", path).replace(b"application/json", NDJSON)
        wire.send(head.replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n\r\n"))
        return stream

    def write(self, lines: bytes) -> None:
        """Whole lines, each with its newline."""
        self._wire.send_more(b"%x\r\n%b\r\n" % (len(lines), lines))

    def end(self) -> None:
        """No more lines; the server ends its reply after the last one."""
        self._wire.send_more(b"0\r\n\r\n")

    def close(self) -> None:
        self._wire.on_part = None
        self._wire.close()

    def abandon(self, error: SendError) -> None:
        """Drop the connection; `on_end` gets `error`."""
        self._wire.abandon(error)

    def _part(self, part: bytes) -> None:
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            if line:
                self._on_line(line)

    def _replied(self, reply: Reply) -> None:
        if reply.status != 200:
            self._on_end(reply, None)
        elif self._rest:
            self._on_end(None, ConnectionLost(f"the last reply is cut off: {self._rest[:80]!r}"))
        else:
            self._on_end(None, None)

    def _lost(self, error: SendError) -> None:
        self._on_end(None, error)
