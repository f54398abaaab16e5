"""The site is built strictly, and loads nothing from other hosts."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("mkdocs", reason="mkdocs is not installed; pip install 'weir[docs]'")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/site_hooks.py, which is no package's module."""
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_site_builds_strictly(tmp_path: Path) -> None:
    """No broken link or anchor, no page outside the navigation, every generated page there, nothing foreign in it.

    Not with --quiet: MkDocs counts the warnings that it prints, and then there are none.
    """
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    assert "weir bench http" in (site / "reference" / "cli.html").read_text()
    assert "/v1/score/stream" in (site / "reference" / "http.html").read_text()
    assert (site / "adr" / "0000-intended-oddities.html").is_file()
    assert not (site / "site_hooks.py").exists()


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<script async src=//cdn.example/x.js>",
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<link rel="preconnect" href="//fonts.example">',
        '<img alt="a" src="http://example/a.png">',
        '<iframe src="https://example/">',
        "body{background:url(https://example/a.png)}",
        '@import "https://example/a.css";',
        '<pre class="mermaid">graph</pre>',
    ],
)
def test_foreign_loads_are_found(hooks: ModuleType, text: str) -> None:
    """Whatever a browser would fetch by itself."""
    assert hooks.foreign_loads(f"<p>before</p>{text}<p>after</p>")


@pytest.mark.parametrize(
    "text",
    [
        '<a href="https://example/">a link to click</a>',
        '<script src="assets/bundle.js"></script>',
        '<link rel="canonical" href="https://example/page.html">',
        '<img src="../img/a.png">',
        "a{background:url(data:image/svg+xml,x)}",
        '<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    ],
)
def test_links_and_own_files_are_fine(hooks: ModuleType, text: str) -> None:
    """What stays on this host, or waits for a click."""
    assert hooks.foreign_loads(text) == []


def test_calls_of_an_openapi_document_are_told(hooks: ModuleType) -> None:
    """Role, parameters, body, replies, and the fields of what they refer to."""
    schema = {"type": "object", "description": "A payment.", "required": ["id"],
              "properties": {"id": {"type": "string", "minLength": 1, "maxLength": 128},
                             "mcc": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}}}  # fmt: skip
    reference = {"schema": {"$ref": "#/components/schemas/Payment"}}
    operation = {
        "tags": ["scoring"], "summary": "Score one", "x-weir-role": "ingest",
        "parameters": [{"name": "trace", "in": "query", "description": "a | b"}],
        "requestBody": {"content": {"application/json": reference}},
        "responses": {"200": {"content": {"application/json": {"schema": {"type": "array", "items": reference["schema"]}}}},
                      "422": {"content": {}}},
    }  # fmt: skip
    text = hooks.openapi_calls({"paths": {"/v1/x": {"post": operation}}, "components": {"schemas": {"Payment": schema}}})
    for part in (
        "### scoring", "#### `POST /v1/x`", "role: ingest", "body: `application/json` [Payment](#payment)",
        "reply: 200 array of [Payment](#payment)", "refusals: 422", "| `trace` | query, optional | a \\| b |", "#### Payment",
        "| `id` | string (of 1 to 128) | required |", "| `mcc` | integer (from 0) or null |",
    ):  # fmt: skip
        assert part in text


def test_picture_comes_in_both_schemes(hooks: ModuleType) -> None:
    """Each shown in its own scheme only, with the same description; any other picture stays as it is."""
    html = '<p><img alt="Tiers" src="../img/tiers-wide-dark.png" /></p><img src="plot.png">'
    assert hooks.on_page_content(html) == (
        '<p><img alt="Tiers" src="../img/tiers-wide-light.png#only-light" />'
        '<img alt="Tiers" src="../img/tiers-wide-dark.png#only-dark" /></p><img src="plot.png">'
    )
