"""GET /console and its files: open, since they hold nothing but the page; all it shows comes from /v1 with a session."""

import asyncio
import functools

from aiohttp import web

from service.console.assets import PAGE, PLOTLY_NAME, Asset, load_assets, load_plotly
from service.errors import NotFound
from service.handlers.exchange import Front, Route


def routes(front: Front) -> list[Route]:
    """The routes of this resource; none if the console is off."""
    if not front.settings.console.enabled:
        return []
    assets = load_assets()
    plotly = functools.lru_cache(1)(lambda: asyncio.ensure_future(asyncio.to_thread(load_plotly)))

    async def page(request: web.Request) -> web.Response:
        return _reply(request, assets[PAGE])

    async def file(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name == PLOTLY_NAME:  # once, at the first chart
            return _reply(request, await asyncio.shield(plotly()))
        asset = assets.get(name)
        if asset is None or name == PAGE:
            raise NotFound("the console has no such file", "name")
        return _reply(request, asset)

    return [
        Route("GET", "/console", "console", None, page),
        Route("GET", "/console/", "console", None, page),
        Route("GET", "/console/{name}", "console", None, file),
    ]


def _reply(request: web.Request, asset: Asset) -> web.Response:
    if asset.etag in [tag.strip() for tag in request.headers.get("If-None-Match", "").split(",")]:
        return web.Response(status=304, headers=asset.headers)
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        return web.Response(body=asset.gzipped, headers={**asset.headers, "Content-Encoding": "gzip"})
    return web.Response(body=asset.body, headers=asset.headers)
