"""What the bench commands share: options, errors as one line, tables on the terminal, results in files."""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable

from loadgen.bench.children import BenchError
from loadgen.page import Cell

PIPE_WIDTH = 120  # columns of a table that goes to a file or a pipe
TEXT_COLUMNS = ("arm", "mode", "what", "target")  # aligned to the left

JsonOut = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")]
HtmlOut = Annotated[Path | None, typer.Option("--html", help="Write the result as an HTML page.")]
SettingsIn = Annotated[list[str] | None, typer.Option("--set", help="Setting of the service, key=value; repeatable.")]
WorkDir = Annotated[Path | None, typer.Option(help="Where data directories are made; by default with temporary files.")]
Quick = Annotated[bool, typer.Option("--quick", help="A smoke run of seconds; its numbers mean little.")]
MarkdownOut = Annotated[Path | None, typer.Option("--markdown", help="Write the result as a page for docs/results.")]


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """An expected failure inside is one line on stderr and exit code 2."""
    try:
        yield
    except (BenchError, OSError) as error:
        typer.echo(f"weir bench {name}: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def end_by_signal() -> None:
    """SIGTERM takes everything down as Ctrl-C does: servers that were started are stopped, not left behind."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))


def numbers(option: str, text: str) -> tuple[int, ...]:
    """The numbers above 0 in "1,10,64". Raises BenchError."""
    try:
        found = tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise BenchError(f"{option} {text}: expected numbers above 0 with commas between them")
    return found


def say(text: str) -> None:
    """Progress, on stderr."""
    typer.echo(text, err=True)


def write(result: msgspec.Struct, json_out: Path | None, html_out: Path | None, text: str) -> None:
    """The result as JSON, and its page `text`, where they are wanted."""
    if json_out is not None:
        json_out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    if html_out is not None:
        html_out.write_text(text, encoding="utf-8")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """A table on stdout."""
    table = TerminalTable(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, justify="left" if column in TEXT_COLUMNS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_text(value) for value in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    console.print(table)


def _text(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return escape(value)
    return f"{value:,.0f}" if isinstance(value, int) or value >= 100 else f"{value:.3g}"


def print_caveats(caveats: Sequence[str]) -> None:
    """What a reader should know before quoting a number, last on the terminal."""
    typer.echo("What this does not show:")
    for caveat in caveats:
        typer.echo(f"- {caveat}")
