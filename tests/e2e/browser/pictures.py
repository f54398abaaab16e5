"""Pictures of every page, for the docs and for looking at them: `make screenshots`. pytest does not find it by itself."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.generator import generate
from service.auth import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZES = {"wide": (1280, 860), "phone": (390, 844)}
COLOURS = 224  # of a picture: a third of the bytes, and no difference to see
N_LABELS = 1_500
LABEL_TS = 1_775_000_000_000  # ms; after the stream
WARM_UP_S = 20.0


async def test_pictures(make_weir: Any, visit: Any, keys: Any, load: Any, picture_directory: Path) -> None:
    """Embedded stores, a stream that comes back to its cards, a small L1 so that every tier has work; then each page."""
    weir = make_weir("embedded=true", "l1.bytes_max=196608", "watch.share=1.0", "shadow.share=0.2")
    await weir.start()
    key = keys(weir, Role.ADMIN)
    running = load(weir, 150.0)
    warm = await visit(weir.url).signed_in(key)
    await asyncio.sleep(WARM_UP_S)
    event_id = await _interesting(warm, weir)
    comparison = await _compare(weir)
    _label(weir, running.name)
    for tier, enabled in (("redis", False), ("redis", True)):
        body = {"enabled": enabled, "reason": "what would an outage on Friday cost?" if not enabled else "seen enough"}
        weir.call("PUT", f"/v1/tiers/{tier}", json.dumps(body).encode())
    await asyncio.sleep(3)
    pages = {
        "overview": "overview", "tiers": "tiers", "models": "models", "decisions": "decisions",
        "decision": f"decisions/{event_id}", "entity": "entity/card/c7", "compare": "compare", "audit": "audit",
    }  # fmt: skip
    if comparison:
        pages["comparison"] = f"compare/{comparison}"
    for scheme in ("light", "dark"):
        for size, (width, height) in SIZES.items():
            page = await visit(weir.url).page(width, height, scheme)
            await page.screenshot(path=picture_directory / f"sign-in-{size}-{scheme}.png")
            await page.get_by_label("API key").fill(key)
            await page.keyboard.press("Enter")
            await page.get_by_role("button", name="Sign out").wait_for()
            await page.wait_for_timeout(12_000)  # some seconds for the curves
            for name, path in pages.items():
                await page.goto(f"{weir.url}/console#/{path}")
                await page.locator("h1").wait_for()
                await page.wait_for_timeout(2500)
                is_long = name == "decisions" or size == "phone"
                await page.screenshot(path=picture_directory / f"{name}-{size}-{scheme}.png", full_page=not is_long)
            await page.context.close()
    _make_small(picture_directory)
    weir.stop()


def _make_small(directory: Path) -> None:
    for path in directory.glob("*.png"):
        with Image.open(path) as picture:
            small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(path, optimize=True)


def _label(weir: Any, name: str) -> None:
    """What the stream's first transactions turned out to be."""
    rows = generate(3_000, seed=7, n_cards=75).to_pylist()[:N_LABELS]
    labels = [
        {"event_id": f"{name}-{number}", "label": "fraud" if row["label"] else "legit", "ts": LABEL_TS}
        for number, row in enumerate(rows)
    ]
    assert weir.call("POST", "/v1/labels", json.dumps(labels).encode()).status == 200


async def _interesting(page: Any, weir: Any) -> str:
    """The riskiest of the decisions that are listed."""
    await page.goto(f"{weir.url}/console#/decisions")
    await page.locator("tr[data-event]").nth(20).wait_for()
    rows = await page.locator("tr[data-event]").evaluate_all(
        "rows => rows.map((row) => [Number(row.cells[2].textContent), row.dataset.event])"
    )
    return str(max(rows)[1])


async def _compare(weir: Any) -> str | None:
    """A comparison that is done; None where the service offers none."""
    body = {"configs": [{"off": ["l1"]}, {"off": ["l1", "l2"]}, {"off": ["redis"]}], "events": 2000, "delays_ms": [0]}
    reply = weir.call("POST", "/v1/compare", json.dumps(body).encode())
    if reply.status == 404:
        return None
    path = f"/v1/compare/{reply.json['id']}"
    while (told := await asyncio.to_thread(weir.call, "GET", path)).json["state"] == "running":  # noqa: ASYNC110  # another process works
        await asyncio.sleep(1)
    return str(told.json["id"])
