"""A real Chromium, driven by Playwright, in front of a real `weir serve`; skipped, with the reason, where there is none.

One browser serves all tests of a module, which share an event loop for that; each visitor has a context of its own.
"""

import asyncio
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from features.transaction import Transaction
from service.auth import Role, add_key

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
NUMBERS = itertools.count()  # keys and events of one run have names of their own
PATIENCE_MS = 20_000  # a shared machine may be slow; what is awaited is there in a second
EXPECTED = ("status of 401", "status of 404", "status of 403")  # refusals that a page asks for on purpose
MAPS_STYLE = "maplibregl"  # Plotly's bundle carries the style sheet of its maps, which our policy refuses and nobody misses


def find_chromium() -> str | None:
    """CHROMIUM, or the first browser on PATH."""
    given = os.environ.get("CHROMIUM")
    return given or next((path for name in CHROMIUMS if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def chromium_path() -> str:
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium, or say where one is with CHROMIUM=/path")
    return path


class Visitor:
    """Opens pages of one service, and notes what goes wrong in them."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self.url = url
        self.problems: list[str] = []

    async def page(self, width: int = 1280, height: int = 900, scheme: Any = "light") -> Page:
        """A page in a context of its own: no cookies, nothing stored."""
        context: BrowserContext = await self._browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        context.set_default_timeout(PATIENCE_MS)
        page = await context.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self._note(message.type, message.text))
        await page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) =>"
            " console.error(`policy: ${e.violatedDirective} ${e.target?.textContent?.slice(0, 80)}`))"
        )
        await page.goto(f"{self.url}/console")
        return page

    async def signed_in(self, key: str, width: int = 1280, height: int = 900, scheme: Any = "light") -> Page:
        """A page whose visitor has signed in with `key`."""
        page = await self.page(width, height, scheme)
        await page.get_by_label("API key").fill(key)
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Sign out").wait_for()
        return page

    def _note(self, kind: str, text: str) -> None:
        is_expected = any(words in text for words in EXPECTED) or MAPS_STYLE in text or "Applying inline style" in text
        if kind == "error" and not is_expected:
            self.problems.append(text)


Visit = Callable[[str], Visitor]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium_path: str) -> AsyncIterator[Browser]:
    """The browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser: Browser) -> AsyncIterator[Visit]:
    """`visit(url)`: a Visitor. At the end no page may have logged an error, such as an offence against the policy."""
    visitors: list[Visitor] = []

    def make(url: str) -> Visitor:
        visitors.append(Visitor(browser, url))
        return visitors[-1]

    yield make
    for context in browser.contexts:
        await context.close()
    assert [problem for visitor in visitors for problem in visitor.problems] == []


@pytest.fixture(scope="module")
def weir(tmp_path_factory: pytest.TempPathFactory, make_one: Any) -> Iterator[Any]:
    """One service for the tests of a module; an event far ahead in time makes nobody too late."""
    yield from make_one(tmp_path_factory.mktemp("weir"), ["time.past_ms_max=315360000000"])


class Load:
    """Sends the stream again and again, under event ids of its own, until it is stopped."""

    def __init__(self, url: str, key: str, name: str, stream: Sequence[Transaction], per_s: float) -> None:
        self._url = url
        self.name = name
        self._key = key
        self._stream = stream
        self._interval_s = 1 / per_s
        self.n_sent = 0
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        async with aiohttp.ClientSession(self._url, headers={"Authorization": f"Bearer {self._key}"}) as session:
            loop = asyncio.get_running_loop()
            due = loop.time()
            for number, tx in enumerate(itertools.cycle(self._stream)):
                sent = msgspec.structs.replace(tx, event_id=f"{self.name}-{number}")
                async with session.post("/v1/score", data=msgspec.json.encode(sent)) as reply:
                    assert reply.status == 200, await reply.text()
                self.n_sent += 1
                due = max(due + self._interval_s, loop.time() - 1)
                await asyncio.sleep(max(0.0, due - loop.time()))


MakeLoad = Callable[[Any, float], Load]


@pytest_asyncio.fixture(loop_scope="module")
async def load(stream: list[Transaction]) -> AsyncIterator[MakeLoad]:
    """`load(weir, per_s)`: transactions from here on."""
    loads: list[Load] = []

    def start(weir: Any, per_s: float) -> Load:
        name = f"load-{next(NUMBERS)}"
        loads.append(Load(weir.url, add_key(weir.directory, Role.INGEST, name), name, stream, per_s))
        return loads[-1]

    yield start
    for one in loads:
        await one.stop()


@pytest.fixture
def keys() -> Callable[[Any, Role], str]:
    """`keys(weir, role)`: a new key."""
    return lambda weir, role: add_key(weir.directory, role, f"{role.word}-{next(NUMBERS)}")


@pytest.fixture
def until() -> Callable[..., Awaitable[Any]]:
    """`await until(read, good)`: what `read` gives once `good` likes it."""

    async def wait(read: Callable[[], Awaitable[Any]], good: Callable[[Any], bool], deadline_s: float = 20.0) -> Any:
        loop = asyncio.get_running_loop()
        stop_at = loop.time() + deadline_s
        while not good(value := await read()):
            assert loop.time() < stop_at, f"still {value!r}"
            await asyncio.sleep(0.1)
        return value

    return wait


@pytest.fixture
def picture_directory(tmp_path: Path) -> Path:
    """Where screenshots go: SCREENSHOTS (make screenshots), else somewhere temporary."""
    directory = Path(os.environ.get("SCREENSHOTS", tmp_path / "pictures"))
    directory.mkdir(parents=True, exist_ok=True)
    return directory
