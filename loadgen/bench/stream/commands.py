"""`weir bench stream`: the command line and its tables on the terminal."""

from typing import Annotated

import typer
import uvloop

from loadgen.bench.arms import wants_stores
from loadgen.bench.children import BenchError
from loadgen.bench.http_goals import goals_table
from loadgen.bench.stream.page import arms_table, ledger_table, make_goals, stream_page
from loadgen.bench.stream.result import ARMS, StreamOptions
from loadgen.bench.stream.run import run_stream
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

OWN = ("data_dir", "scorer", "server.port")


def register(app: typer.Typer) -> None:
    """Add `stream` to `weir bench` (entry point group weir.bench)."""
    app.command("stream")(stream)


def stream(
    events: Annotated[int, typer.Option(min=1, help="Events of one timed pass.")] = 600_000,
    entities: Annotated[int, typer.Option(min=1, help="Cards, each with a device and an address.")] = 100_000,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Timed passes of each arm.", show_default="5, with --rate 1")
    ] = None,
    connections: Annotated[int, typer.Option(min=1, max=1_000, help="Streams side by side.")] = 1,
    chunk_rows: Annotated[int, typer.Option(min=1, max=65_536, help="Events per write.")] = 1_024,
    batch_rows: Annotated[int, typer.Option(min=1, max=10_000, help="Events per request of the batch arms.")] = 1_024,
    rate: Annotated[float | None, typer.Option(help="Events per second, on a schedule, instead of as many as go.")] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long, with --rate.")] = 5.0,
    zipf: Annotated[float, typer.Option(min=0, help="Exponent of the draw; 0 is uniform.")] = 0.0,
    arms: Annotated[str, typer.Option(help=f"What to measure: {', '.join(ARMS)}.")] = "go",
    stores: Annotated[
        bool | None,
        typer.Option("--stores/--no-stores", help="With Valkey and Postgres (ledger).", show_default="where installed"),
    ] = None,
    quick: Quick = False,
    work_dir: WorkDir = None,
    settings: SettingsIn = None,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
) -> None:
    """Events per second through POST /v1/score/stream, and how far the ledger is behind."""
    with one_line_errors("stream"):
        if rate is not None and not rate > 0:
            raise BenchError(f"--rate {rate:g} is not above 0")
        given = tuple(settings or ())
        for setting in given:
            if setting.partition("=")[0].strip() in OWN:
                raise BenchError(f"--set {setting}: the benchmark sets {', '.join(OWN)} itself; --arms chooses scorers")
        options = StreamOptions(
            events=min(events, 10_000) if quick else events,
            entities=min(entities, 1_000) if quick else entities,
            rounds=1 if quick else rounds or (5 if rate is None else 1),
            connections=connections,
            chunk_rows=chunk_rows,
            batch_rows=batch_rows,
            rate=rate,
            minutes=min(minutes, 0.05) if quick else minutes,
            zipf=zipf,
            arms=parse_stream_arms(arms),
            stores=wants_stores(stores, given),
            settings=given,
        )
        result = uvloop.run(run_stream(options, work_dir, say))
        tables = [arms_table(result), ledger_table(result)]
        if goals := make_goals(result):
            tables.append(goals_table(goals))
        for table in tables:
            print_table(*table)
            typer.echo()
        print_caveats(result.caveats)
        for run in result.runs:
            if run.errors:
                say(f"{run.arm}, pass {run.round + 1}: {run.errors:,} events were refused, first {run.error_example}")
        write(result, json_out, html_out, stream_page(result))
    if any(run.errors for run in result.runs):
        raise typer.Exit(1)


def parse_stream_arms(text: str) -> tuple[str, ...]:
    """The arms in "go, go batch", each once, in the order of ARMS. Raises BenchError."""
    names = {part.strip() for part in text.split(",") if part.strip()}
    if not names or names - set(ARMS):
        raise BenchError(f"--arms {text}: expected some of {', '.join(ARMS)}, with commas between them")
    return tuple(arm for arm in ARMS if arm in names)
