"""The documentation as a reader opens it: from a disk, where a page may start no worker, and on a phone."""

import subprocess
import sys
from pathlib import Path

import pytest
from playwright.async_api import async_playwright

ROOT = Path(__file__).parents[3]
PHONE, DESK = 390, 1360
pytest.importorskip("mkdocs", reason="mkdocs is not installed; pip install 'weir[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The built site's address on this disk."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    subprocess.run(command, cwd=ROOT, env={"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, check=True)
    return out.as_uri()


async def test_search_from_a_disk_finds_part_of_a_setting(chromium_path: str, site: str) -> None:
    """bytes_max stands in l1.bytes_max; the theme's worker runs in our frame (docs/assets/iframe-worker.js)."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=["--no-sandbox"])
        page = await browser.new_page()
        await page.goto(f"{site}/index.html")
        await page.keyboard.press("f")
        await page.keyboard.type("bytes_max")
        results = page.locator(".md-search-result__article h1")
        await results.filter(has_text="Settings").first.wait_for()
        await browser.close()


@pytest.mark.parametrize("width", [PHONE, DESK])
async def test_no_page_is_wider_than_its_window(chromium_path: str, site: str, width: int) -> None:
    """Wide tables and long commands scroll by themselves."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": width, "height": 900})
        wide = {}
        for name in (
            "index",
            "tutorial",
            "reference/http",
            "reference/settings",
            "reference/cli",
            "results/stacks",
            "benchmarks",
        ):
            await page.goto(f"{site}/{name}.html")
            beyond = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if beyond > 0:
                wide[name] = beyond
        await browser.close()
        assert wide == {}
