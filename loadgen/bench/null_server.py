"""A server that does nothing: one constant reply per request, whatever it says. It shows the client's own ceiling.

Requests are told apart by their Content-Length alone, with no HTTP parser: what is left is the cost of the sockets.
Run as a script; prints "ready url=..." when it listens.
"""

import asyncio
import sys
from typing import cast

import uvloop

BODY = b'{"event_id":"x","score":0.0,"outcome":"approve","model":"null","scorer":"null","lsn":1,"replayed":false}'
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class NullServer(asyncio.Protocol):
    """One connection; pending input is kept until a request is whole."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._input = b""

    def data_received(self, data: bytes) -> None:
        data = self._input + data if self._input else data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            at = data.find(b"Content-Length: ", 0, end)
            length = int(data[at + 16 : data.find(b"\r\n", at)]) if at >= 0 else 0
            if len(data) < end + 4 + length:
                break
            data = data[end + 4 + length :]
            self._transport.write(REPLY)
        self._input = data


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(NullServer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"ready url=http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
