"""Hooks of mkdocs.yml: pages that are generated while the site is built, and a look at what came out.

The command line's page is typer's own help, the routes of the HTTP page are those that the service registers: neither can be
out of date. After the build no file of the site may load anything from another host; links that a reader clicks may go there.
"""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from service import handlers
from service.__main__ import build_app

HELP_WIDTH = 100
ROUTES_MARK = "<!-- routes -->"
# Written by other parts of the project; left out of the navigation as long as they are not there.
WHERE_PRESENT = ("reference/settings.md", "reference/metrics.md", "explanation/threat-model.md")
# What makes a browser fetch something when a page is opened.
LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\s(?:src|srcset)=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b[^>]*\shref=["']?(?:https?:)?//[^"'\s>]+|<object\b[^>]*\sdata=["']?(?:https?:)?//[^"'\s>]+""",
    re.IGNORECASE,
)
CSS_LOADS = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])(?:https?:)?//[^"')\s]+""", re.IGNORECASE)
CANONICAL = re.compile(r"<link\b[^>]*\brel=[\"']?(?:canonical|prev|next|alternate)\b[^>]*>", re.IGNORECASE)
# The theme's script gets these only for diagrams and for a link to a repository; neither may be on a page.
ASKS_FOR_MORE = re.compile(r"""class=["'][^"']*\bmermaid\b|data-md-component=["']?source\b""")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add results and decisions to the navigation; leave out what is not written yet."""
    docs = Path(config.docs_dir)
    nav: list[Any] = []
    for entry in config.nav or []:
        for name, pages in entry.items():
            kept = pages
            if isinstance(pages, list):
                kept = [page for page in pages if page not in WHERE_PRESENT or (docs / page).is_file()]
            nav.append({name: kept})
    for name, folder in (("Results", "results"), ("Decisions", "adr")):
        nav.append({name: [f"{folder}/{path.name}" for path in sorted((docs / folder).glob("*.md"))]})
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the command line's page."""
    files.append(File.generated(config, "reference/cli.md", content=cli_page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the routes where a page asks for them."""
    return markdown.replace(ROUTES_MARK, routes_table()) if ROUTES_MARK in markdown else markdown


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


def routes_table() -> str:
    """Every route that the service registers: call, role, metric name, as a markdown table."""
    rows = [f"| `{method} {path}` | {role or 'none'} | `{name}` |" for method, path, name, role in routes()]
    return "\n".join(["| call | key's role, at least | `route` in metrics |", "|---|---|---|", *rows])


def routes() -> list[tuple[str, str, str, str | None]]:
    """(method, path, name, role) of each `Route(...)` that the handlers make, read from their source."""
    found = []
    for info in sorted(pkgutil.iter_modules(handlers.__path__), key=lambda info: info.name):
        if info.name == "router":  # its own are refusals
            continue
        module = importlib.import_module(f"{handlers.__name__}.{info.name}")
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Route":
                found += [_values(node.args[:4], module, path) for path in _paths(node.args[1], module)]
    made = {(path, method, name, None if role is None else role.name.lower()) for method, path, name, role in found if path}
    return [(method, path, name, role) for path, method, name, role in sorted(made, key=lambda row: row[:2])]


def _paths(argument: ast.expr, module: Any) -> list[str | None]:
    """What the loop variable `path` of the inference routes stands for; [None] where there is no loop."""
    uses_loop = any(isinstance(node, ast.Name) and node.id == "path" for node in ast.walk(argument))
    return [module._MODEL, module._VERSION] if uses_loop else [None]


def _values(arguments: list[ast.expr], module: Any, path: str | None) -> list[Any]:
    names = vars(module) | ({} if path is None else {"path": path})
    return [eval(compile(ast.Expression(argument), "route", "eval"), names) for argument in arguments]
