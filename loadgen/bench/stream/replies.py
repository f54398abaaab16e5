"""What comes back on one connection: the body of HTTP replies taken apart, its lines counted, some of them looked at.

Lines are counted by their newlines, refused rows by the `"status":` that only a problem has; of each part that arrives one line
is parsed, and has to be the reply to the event that stands in its place. A microsecond or two per part, not per line.
"""

import re

import msgspec

_HEAD_END = b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_PROBLEM = b'"status":'


class BadReply(Exception):
    """The server did not answer as the contract says; the message is for the user."""


class _Line(msgspec.Struct):
    event_id: str | None = None
    score: float | None = None


_line = msgspec.json.Decoder(_Line)


class Lines:
    """The lines of all replies of a connection. `first` is the number of the event that the first line answers."""

    def __init__(self, first: int) -> None:
        self.n = self.errors = self.checked = 0
        self.error_example = ""
        self._first = first
        self._tail = b""  # what came after the last newline

    def feed(self, part: bytes) -> None:
        """Raises BadReply for a line that answers another event."""
        whole, newline, tail = part.rpartition(b"\n")
        if not newline:
            self._tail += part
            return
        whole = self._tail + whole
        self._tail = tail
        end = whole.find(b"\n")
        line = whole if end < 0 else whole[:end]
        self._check(line, self._first + self.n)
        errors = whole.count(_PROBLEM)
        if errors and not self.error_example:
            self._keep_example(whole)
        self.errors += errors
        self.n += whole.count(b"\n") + 1

    def unfinished(self) -> bytes:
        return self._tail

    def _check(self, line: bytes, number: int) -> None:
        try:
            answer = _line.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadReply(f"reply {number} is not readable: {error}: {line[:200]!r}") from None
        if answer.event_id != f"b-{number:012d}" and answer.score is not None:
            raise BadReply(f"the reply to event b-{number:012d} is that to {answer.event_id}: they are out of order")
        self.checked += 1

    def _keep_example(self, whole: bytes) -> None:
        at = whole.find(_PROBLEM)
        start, end = whole.rfind(b"\n", 0, at) + 1, whole.find(b"\n", at)
        self.error_example = whole[start : end if end >= 0 else len(whole)][:400].decode("utf-8", "replace")


class Replies:
    """HTTP replies, chunked or with a length, one after the other. `whole` counts those that are complete."""

    def __init__(self, lines: Lines) -> None:
        self.whole = 0
        self._lines = lines
        self._input = b""
        self._left: int | None = None  # bytes of this chunk or body; None: a head comes, or a chunk's size
        self._chunked = False
        self._in_body = False

    def feed(self, data: bytes) -> None:
        """Raises BadReply for a status other than 200, or what is not HTTP."""
        data = self._input + data if self._input else data
        at = 0
        while at < len(data):
            if self._left is not None:
                part = data[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                self._lines.feed(part) if part else None
                if self._left == 0:
                    self._end_part()
                continue
            step = self._size(data, at) if self._in_body else self._head(data, at)
            if step == at:
                break
            at = step
        self._input = data[at:]

    def _end_part(self) -> None:
        self._left = None
        if not self._chunked:
            self._in_body = False
            self.whole += 1

    def _head(self, data: bytes, at: int) -> int:
        end = data.find(_HEAD_END, at)
        if end < 0:
            return at
        head = data[at : end + 2]
        status = _STATUS.match(head)
        if status is None:
            raise BadReply(f"the reply is not HTTP/1.1: {head[:80]!r}")
        if status[1] == b"100":
            return end + 4
        if status[1] != b"200":
            raise BadReply(f"{status[1].decode()}: {data[end + 4 : end + 600].decode('utf-8', 'replace')}")
        length = _LENGTH.search(head)
        self._chunked = _CHUNKED.search(head) is not None
        if length is None and not self._chunked:
            raise BadReply("the reply has neither a length nor chunks")
        self._in_body = True
        self._left = None if length is None else int(length[1])
        if self._left == 0:
            self._end_part()
        return end + 4

    def _size(self, data: bytes, at: int) -> int:
        """A chunk's size line; the line end after the chunk before it is skipped."""
        start = at + 2 if data[at : at + 2] == b"\r\n" else at
        end = data.find(b"\r\n", start)
        if end < 0:
            return at
        try:
            size = int(data[start:end].partition(b";")[0], 16)
        except ValueError:
            raise BadReply(f"a chunk begins with {data[start : start + 40]!r}, not with its size") from None
        if size:
            self._left = size
            return end + 2
        if data[end : end + 4] != _HEAD_END:
            if len(data) >= end + 4:
                raise BadReply("the last chunk is followed by something else")
            return at
        self._in_body = False
        self.whole += 1
        return end + 4
