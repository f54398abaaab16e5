"""The yardstick: an aiohttp handler that decodes the same JSON as Weir and replies with a constant. No work, no state.

What any service written as a plain aiohttp application can at best reach on this machine. Run as a script; prints
"ready url=..." when it listens.
"""

import asyncio
import sys

import msgspec
import uvloop
from aiohttp import web

from features.transaction import Transaction

DECISION = (
    b'{"event_id":"x","score":0.0123,"outcome":"approve","model":"bare","scorer":"none","lsn":1,"replayed":false,"degraded":[]}'
)

_one = msgspec.json.Decoder(Transaction)
_many = msgspec.json.Decoder(list[Transaction])


async def score(request: web.Request) -> web.Response:
    _one.decode(await request.read())
    return web.Response(body=DECISION, content_type="application/json")


async def batch(request: web.Request) -> web.Response:
    txs = _many.decode(await request.read())
    return web.Response(body=b"[" + b",".join([DECISION] * len(txs)) + b"]", content_type="application/json")


async def serve() -> None:
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/score", score)
    app.router.add_post("/v1/score/batch", batch)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(f"ready url=http://127.0.0.1:{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve())
