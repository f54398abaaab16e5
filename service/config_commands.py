"""`weir config check|show|reference`: the settings as they would count, what is wrong with them, and the reference pages."""

import enum
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from service.errors import SettingsError
from service.metrics_page import metrics_page
from service.setting_sources import DEFAULT, Sources, masked, written
from service.settings import CATALOGUE, Settings, read_settings
from service.settings_page import settings_page

PIPE_WIDTH = 160  # columns of the table when it goes to a file or a pipe

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeatable.")]


class Page(enum.StrEnum):
    """The generated pages."""

    SETTINGS = "settings"
    METRICS = "metrics"


class Shown(msgspec.Struct):
    """One setting as `show --json` gives it. value: secrets masked; origin: default, file:line, a variable, command line."""

    key: str
    value: Any
    origin: str
    default: Any


def register(app: typer.Typer) -> None:
    """Add the group `config`."""
    config = typer.Typer(help="Settings: check and show them.", no_args_is_help=True)
    config.command("check")(check)
    config.command("show")(show)
    config.command("reference")(reference)
    app.add_typer(config, name="config")


def check(config: ConfigOption = None, settings: SetOption = None) -> None:
    """Tell everything that is wrong with the settings, a line each. Exit code 2 if anything is."""
    _, sources = read_settings(config, settings or [], os.environ)
    for note in sources.notes:
        typer.echo(f"note: {note}")
    _refuse(sources)
    n_given = len(sources.values)
    typer.echo(f"the settings are right: {len(CATALOGUE.types)}, of which {n_given} given")


def show(
    config: ConfigOption = None,
    settings: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with the defaults.")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not left at its default.")] = False,
) -> None:
    """Every setting with its value and where that comes from. Secrets are masked. Exit code 2 if anything is wrong."""
    merged, sources = read_settings(config, settings or [], os.environ)
    _refuse(sources)
    found = [setting for setting in all_shown(merged, sources) if not changed or setting.origin != DEFAULT]
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("setting", "value", "origin"):
        table.add_column(column, overflow="fold")
    for setting in found:
        value = "" if setting.value is None else setting.value
        table.add_row(setting.key, written(value), setting.origin)
    console = Console(markup=False, highlight=False)
    (console if console.is_terminal else Console(width=PIPE_WIDTH, markup=False, highlight=False)).print(table)


def reference(
    page: Annotated[Page, typer.Argument(help="Which page.")] = Page.SETTINGS,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; without one it goes to stdout.")] = None,
) -> None:
    """A reference page as Markdown: of all settings, or of all metrics."""
    text = settings_page() if page is Page.SETTINGS else metrics_page()
    if out is None:
        sys.stdout.write(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


def all_shown(settings: Settings, sources: Sources) -> list[Shown]:
    """Every setting, in the order of the reference."""
    found = []
    for key, default in CATALOGUE.defaults.items():
        table, dot, leaf = key.rpartition(".")
        value = getattr(getattr(settings, table) if dot else settings, leaf)
        origin = sources.origin(key)
        if origin == DEFAULT and value != default:
            origin = "from other settings"
        found.append(Shown(key, masked(key, value), origin, masked(key, default)))
    return found


def _refuse(sources: Sources) -> None:
    """Raise SettingsError, the last line of all problems being its own."""
    if sources.problems:
        for _, text in sources.problems[:-1]:
            typer.echo(f"weir: {text}", err=True)
        key, text = sources.problems[-1]
        raise SettingsError(text, key or None)
