"""/livez, /readyz, /metrics: for orchestrators and Prometheus. Open: they hold counts, no ids and no amounts."""

from aiohttp import web

from service.errors import NotReady
from service.handlers.exchange import Front, Route, json_reply
from service.metrics import CONTENT_TYPE


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""

    async def live(request: web.Request) -> web.Response:
        return json_reply(b'{"status":"live"}')

    async def ready(request: web.Request) -> web.Response:
        is_ready, reason = front.engine.ready
        if not is_ready:
            raise NotReady(reason)
        return json_reply(b'{"status":"ready"}')

    async def metrics(request: web.Request) -> web.Response:
        return json_reply(await front.metrics.render_in_turns(), content_type=CONTENT_TYPE)

    return [
        Route("GET", "/livez", "livez", None, live),
        Route("GET", "/readyz", "readyz", None, ready),
        Route("GET", "/metrics", "metrics", None, metrics),
    ]
