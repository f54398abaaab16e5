"""Hooks of mkdocs.yml: pages that are generated while the site is built, and a look at what came out.

The command line's page is typer's own help, the calls of the HTTP page are those of the OpenAPI document: neither can be out of
date. After the build no file of the site may load anything from another host; links that a reader clicks may go there.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from service.__main__ import build_app
from service.openapi import document

HELP_WIDTH = 100
ROUTES_MARK = "<!-- routes -->"
BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "minLength": "of", "maxLength": "to"}
# What makes a browser fetch something when a page is opened.
LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\s(?:src|srcset)=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b[^>]*\shref=["']?(?:https?:)?//[^"'\s>]+|<object\b[^>]*\sdata=["']?(?:https?:)?//[^"'\s>]+""",
    re.IGNORECASE,
)
CSS_LOADS = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])(?:https?:)?//[^"')\s]+""", re.IGNORECASE)
CANONICAL = re.compile(r"<link\b[^>]*\brel=[\"']?(?:canonical|prev|next|alternate)\b[^>]*>", re.IGNORECASE)
TWO_SCHEMES = re.compile(r"""(<img\b[^>]*\ssrc="[^"]+)-(?:light|dark)\.png("[^>]*>)""")
# The theme's script gets these only for diagrams and for a link to a repository; neither may be on a page.
ASKS_FOR_MORE = re.compile(r"""class=["'][^"']*\bmermaid\b|data-md-component=["']?source\b""")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add results, by the first words of their titles, and decisions to the navigation."""
    docs, nav = Path(config.docs_dir), list(config.nav or [])
    results = sorted((docs / "results").glob("*.md"))
    nav.append({"Results": [{_title(path).partition(":")[0]: f"results/{path.name}"} for path in results]})
    nav.append({"Decisions": [f"adr/{path.name}" for path in sorted((docs / "adr").glob("*.md"))]})
    config.nav = nav
    return config


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the command line's page."""
    files.append(File.generated(config, "reference/cli.md", content=cli_page()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put the routes where a page asks for them; a page that stands alone has no neighbours to list beside it."""
    if page.parent is None:
        page.meta["hide"] = ["navigation"]
    if page.file.src_uri.startswith("adr/"):
        page.meta["search"] = {"boost": 0.5}  # who searches for a word wants to know what is, before why
    return markdown.replace(ROUTES_MARK, openapi_calls(document())) if ROUTES_MARK in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """A picture of the console comes in both schemes, the reader's own is shown (the theme's #only-light and #only-dark)."""
    return TWO_SCHEMES.sub(r"\1-light.png#only-light\2\1-dark.png#only-dark\2", html)


def on_post_build(config: MkDocsConfig) -> None:
    """Raises PluginError if a page, a style sheet or a page's script would fetch anything from another host."""
    found = []
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css", ".svg"):
            text = path.read_text(encoding="utf-8")
            found += [f"{path.name}: {hit}" for hit in foreign_loads(text)]
    if found:
        raise PluginError("the site must not load from other hosts: " + "; ".join(found[:5]))


def foreign_loads(text: str) -> list[str]:
    """What HTML or CSS fetches from other hosts. Links to click are fine."""
    text = CANONICAL.sub("", text)
    return [hit.group() for pattern in (LOADS, CSS_LOADS, ASKS_FOR_MORE) for hit in pattern.finditer(text)]


def cli_page() -> str:
    """Every command with its help, as markdown."""
    parts = ["# Command line\n", "Generated from the commands' own help (`weir COMMAND --help`).\n"]
    everything: Any = typer.main.get_command(build_app([]))
    bench: Any = typer.main.get_command(build_app(["bench"]))  # the others are imported only when they are named
    everything.commands["bench"] = bench.commands["bench"]
    for words, help_text in _commands(everything, "weir"):
        parts.append(f"## {words}\n\n```text\n{help_text.rstrip()}\n```\n")
    return "\n".join(parts)


def _commands(command: Any, words: str) -> Iterator[tuple[str, str]]:
    context = command.make_context(words, [], resilient_parsing=True, max_content_width=HELP_WIDTH, terminal_width=HELP_WIDTH)
    yield words, command.get_help(context)
    for name in sorted(getattr(command, "commands", {})):
        yield from _commands(command.commands[name], f"{words} {name}")


def openapi_calls(openapi: dict[str, Any]) -> str:
    """A section for each tag, in it each call with its role, parameters, body and replies; then the fields of all schemas."""
    by_tag: dict[str, list[str]] = {}
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault(operation.get("tags", ["other"])[0], []).append(_call(method.upper(), path, operation))
    parts = [f"### {tag}\n\n" + "\n".join(calls) for tag, calls in by_tag.items()]
    schemas = openapi.get("components", {}).get("schemas", {})
    fields = [_schema(name, schema) for name, schema in sorted(schemas.items()) if schema.get("properties")]
    return "\n\n".join([*parts, "### Bodies and replies\n\n" + "\n\n".join(fields)])


def _call(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"#### `{method} {path}`\n", operation.get("summary", "")]
    if operation.get("description"):
        parts.append(f"\n{operation['description']}")
    told = [f"role: {operation.get('x-weir-role', 'none')}"]
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]
        told.append("body: " + ", ".join(f"`{kind}` {_type(body.get('schema', {}))}".strip() for kind, body in content.items()))
    refusals = []
    for status, reply in operation.get("responses", {}).items():
        types = sorted({_type(body.get("schema", {})) for body in reply.get("content", {}).values()} - {""})
        if status.startswith(("4", "5")):
            refusals.append(status)
        else:
            told.append(f"reply: {status} {' or '.join(types)}".strip())
    if refusals:
        told.append("refusals: " + ", ".join(refusals))
    parts.append("\n" + "".join(f"\n- {line}" for line in told))
    parameters = [
        f"| `{p['name']}` | {p['in']}{'' if p.get('required') else ', optional'} | {_cell(p.get('description', ''))} |"
        for p in operation.get("parameters", [])
        if "$ref" not in p  # those of all calls, which the page tells once
    ]
    if parameters:
        parts.append("\n" + "\n".join(["| parameter | where | |", "|---|---|---|", *parameters]))
    return "\n".join(parts) + "\n"


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        f"| `{field}` | {_type(inner)} | {'required' if field in required else ''} | {_cell(inner.get('description', ''))} |"
        for field, inner in schema["properties"].items()
    ]
    head = f"#### {name}\n\n{schema.get('description', '')}".rstrip()
    return "\n".join([f"{head}\n", "| field | type | | |", "|---|---|---|---|", *rows])


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return " / ".join(f"`{value}`" for value in schema["enum"][:8]) + (" ..." if len(schema["enum"]) > 8 else "")
    several = schema.get("anyOf") or schema.get("oneOf")
    if several:
        return " or ".join(dict.fromkeys(filter(None, map(_type, several))))
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {})) or 'anything'}"
    bounds = [f"{word} {schema[key]}" for key, word in BOUNDS.items() if key in schema]
    kind = schema.get("type", "")
    return f"{kind if isinstance(kind, str) else ' or '.join(kind)}{' (' + ' '.join(bounds) + ')' if bounds else ''}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
