"""How many bytes of batches may be held at a time, by all requests together: otherwise each of thousands of connections could
hold its own `server.batch_body_bytes_max`. Counted from what a request announces, or from its limit where it announces nothing
or will be decompressed, until it has been answered. One request alone is always let in.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from service.errors import Overloaded


class Bodies:
    """The bodies of one service that are being read or worked on."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held = 0

    @contextmanager
    def hold(self, request: web.Request, bytes_max: int) -> Iterator[None]:
        """Room for the body of `request`, which has at most `bytes_max` bytes. Raises Overloaded."""
        announced = request.content_length
        is_known = announced is not None and "Content-Encoding" not in request.headers
        n = min(announced or 0, bytes_max) if is_known else bytes_max
        if self._held and self._held + n > self._bytes_max:
            limit = f"bodies of {self._held} bytes are held, {n} more would exceed server.bodies_bytes_max = {self._bytes_max}"
            raise Overloaded(f"{limit}; send smaller batches, or fewer at a time")
        self._held += n
        try:
            yield
        finally:
            self._held -= n
