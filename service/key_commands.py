"""`weir keys add|list|revoke`: the keys of a data directory, whether a service runs over it or not. Each change is audited."""

import getpass
import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.audit import Audit
from service.auth import RATE_MAX, KeyEntry, add_key, list_keys, parse_role, revoke_key
from service.settings import load_settings

PIPE_WIDTH = 120  # columns of the table when it goes to a file or a pipe

DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Directory of journal, RocksDB and keys.")]


def register(app: typer.Typer) -> None:
    """Add the group `keys`."""
    keys = typer.Typer(help="API keys.", no_args_is_help=True)
    keys.command("add")(add)
    keys.command("list")(list_)
    keys.command("revoke")(revoke)
    app.add_typer(keys, name="keys")


def add(
    role: Annotated[str, typer.Option(help="ingest, analyst or admin.")],
    name: Annotated[str, typer.Option(help="Who the key is for; unique.")],
    days: Annotated[
        float | None, typer.Option(min=0.0001, max=36_500, help="Days that it is good for. [default: no end]")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0, max=RATE_MAX, help="Events a second; 0: no limit. [default: its role's]")
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make an API key and print it, alone, on stdout. A running service accepts it at once."""
    directory = _directory(data_dir)
    key = add_key(directory, parse_role(role), name, days, rate)
    _note(directory, "key added", name=name, role=role, days=days, rate=rate)
    typer.echo(key)


def list_(data_dir: DataDirOption = None) -> None:
    """The keys: name, role, when they were made and when they expire. Nobody can read a key again."""
    entries = list_keys(_directory(data_dir))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("name", "role", "events/s", "created", "expires"):
        table.add_column(column, no_wrap=True)
    for entry in entries:
        table.add_row(entry.name, entry.role, _rate(entry), _date(entry.created), _expiry(entry))
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table)


def revoke(
    name: Annotated[str, typer.Option(help="The name that the key was made with.")],
    data_dir: DataDirOption = None,
) -> None:
    """Take a key away. A running service refuses it within a second."""
    directory = _directory(data_dir)
    entry = revoke_key(directory, name)
    _note(directory, "key revoked", name=name, role=entry.role)
    typer.echo(f"{name} ({entry.role}) is revoked")


def _directory(data_dir: Path | None) -> Path:
    return data_dir or load_settings(None, [], os.environ).data_dir


def _note(directory: Path, action: str, **what: object) -> None:
    audit = Audit(directory)
    try:
        audit.note(f"{_user()} at the command line", action, **what)
    finally:
        audit.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def _expiry(entry: KeyEntry) -> str:
    if entry.expires is None:
        return "never"
    return f"{_date(entry.expires)}{' (expired)' if entry.expires <= time.time_ns() // 1_000_000 else ''}"


def _rate(entry: KeyEntry) -> str:
    return "role's" if entry.rate is None else f"{entry.rate:g}" if entry.rate else "unlimited"


def _date(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ms / 1000))
