"""`weir bench recovery`: the command line and its table on the terminal."""

from typing import Annotated

import typer
import uvloop

from loadgen.bench.children import BenchError
from loadgen.bench.recovery.page import arms_table, recovery_page
from loadgen.bench.recovery.result import RecoveryOptions
from loadgen.bench.recovery.run import run_recovery
from loadgen.bench.terminal import (
    HtmlOut,
    JsonOut,
    Quick,
    SettingsIn,
    WorkDir,
    one_line_errors,
    print_caveats,
    print_table,
    say,
    write,
)
from models.scorers import NAMES


def register(app: typer.Typer) -> None:
    """Add `recovery` to `weir bench` (entry point group weir.bench)."""
    app.command("recovery")(recovery)


def recovery(
    events: Annotated[int, typer.Option(min=1_000, help="Transactions in the journal.")] = 1_000_000,
    entities: Annotated[int, typer.Option(min=1, help="Cards, each with a device and an address of its own.")] = 20_000,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; results are medians.")] = 5,
    batch_rows: Annotated[int, typer.Option(min=1, max=10_000, help="Events per request, and so per block.")] = 128,
    scorers: Annotated[str, typer.Option(help="Engines to recover with.")] = ",".join(NAMES),
    quick: Quick = False,
    work_dir: WorkDir = None,
    settings: SettingsIn = None,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
) -> None:
    """How fast the service is back after a kill: a journal recovered with each scorer."""
    with one_line_errors("recovery"):
        options = RecoveryOptions(
            rounds=1 if quick else rounds,
            events=min(events, 20_000) if quick else events,
            cards=min(entities, 500) if quick else entities,
            batch_rows=batch_rows,
            scorers=parse_scorers(scorers),
            settings=tuple(settings or ()),
        )
        result = uvloop.run(run_recovery(options, work_dir, say))
        print_table(*arms_table(result))
        for name, reason in result.skipped.items():
            typer.echo(f"{name} was not measured: {reason}")
        typer.echo(f"checksum of profiles and decisions, the same in every run: {result.checksum}")
        print_caveats(result.caveats)
        write(result, json_out, html_out, recovery_page(result))


def parse_scorers(text: str) -> tuple[str, ...]:
    """The engines in "go,onnx", each once. Raises BenchError."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names or set(names) - set(NAMES):
        raise BenchError(f"--scorers {text}: expected some of {', '.join(NAMES)}, with commas between them")
    return tuple(dict.fromkeys(names))
