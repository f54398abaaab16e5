"""`weir bench claims`: the command line and its tables on the terminal."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.markup import escape

from loadgen.bench.children import BenchError
from loadgen.bench.claims.page import CLAIMS, MISSING, claims_markdown, claims_page, tables
from loadgen.bench.claims.result import ClaimsOptions, ClaimsResult, Evidence
from loadgen.bench.claims.run import count_steps, missing_inputs, read_stacks, run_claims
from loadgen.bench.load.progress import steps
from loadgen.bench.outputs import check_outputs
from loadgen.bench.stacks.arms import parse_stacks
from loadgen.bench.stacks.result import StacksOptions, StacksResult
from loadgen.bench.stacks.run import count_steps as count_stack_steps
from loadgen.bench.stacks.run import run_stacks
from loadgen.bench.terminal import (
    PIPE_WIDTH,
    HtmlOut,
    JsonOut,
    MarkdownOut,
    Quick,
    end_by_signal,
    one_line_errors,
    print_caveats,
    print_table,
    say,
    write,
)
from loadgen.stacks.manifest import DATA

STYLES = {"holds": "green", "holds partly": "yellow", "does not hold": "red", "cannot be tested here": "dim"}


def register(app: typer.Typer) -> None:
    """Add `claims` to `weir bench` (entry point group weir.bench)."""
    app.command("claims")(claims)


def claims(
    stacks_json: Annotated[
        Path | None, typer.Option(help="A result of weir bench stacks --json, instead of measuring them again.")
    ] = None,
    l1_shares: Annotated[str, typer.Option(help="Shares of the entities that L1 has room for.")] = "0.01,0.1,1",
    distances: Annotated[str, typer.Option(help="Round trips to L3 on top of loopback, ms.")] = "0,0.5,2",
    cards: Annotated[int, typer.Option(min=100, max=1_000_000, help="Cards of the tiered runs.")] = 10_000,
    users: Annotated[int, typer.Option(min=1, max=10_000, help="Connections of the tiered runs.")] = 10,
    seconds: Annotated[float, typer.Option(min=0.2, max=600, help="Length of a tiered run.")] = 3.0,
    copies: Annotated[int, typer.Option(min=2, max=32, help="Worker processes with a copy of the model.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds of the stacks, repeats of small measurements.")] = 3,
    quick: Quick = False,
    data_dir: Annotated[Path, typer.Option(help="Where `make stacks` has put builds and models.")] = DATA,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
    markdown_out: MarkdownOut = None,
) -> None:
    """Published claims and our own: how each was measured here, our figure, and whether it holds."""
    with one_line_errors("claims"):
        check_outputs(json=json_out, html=html_out, markdown=markdown_out)
        options = ClaimsOptions(
            stacks_json=None if stacks_json is None else stacks_json.name,
            cards=min(cards, 500) if quick else cards,
            l1_shares=parse_numbers("--l1-shares", l1_shares, 1.0, least=1e-4)[:: 2 if quick else 1],
            distances_ms=parse_numbers("--distances", distances, 1_000.0)[:1]
            if quick
            else parse_numbers("--distances", distances, 1_000.0),
            measure_s=min(seconds, 0.5) if quick else seconds,
            users=users,
            copies=2 if quick else copies,
            repeats=1 if quick else max(rounds, 3),
            calls=500 if quick else 5_000,
            memory_entities=2_000 if quick else 20_000,
        )
        data_dir.mkdir(parents=True, exist_ok=True)
        command = shlex.join(["weir", "bench", *sys.argv[sys.argv.index("claims") :]] if "claims" in sys.argv else ["weir"])
        end_by_signal()
        stacks = read_stacks(stacks_json) if stacks_json is not None else _measure_stacks(rounds, quick, data_dir, command)
        for text in missing_inputs(stacks, Evidence()):
            say(f"missing: {text}")
        with steps(count_steps(options)) as step:
            result = uvloop.run(run_claims(options, stacks, data_dir, command, step, say))
        _print(result)
        write(result, json_out, html_out, claims_page(result))
        if markdown_out is not None:
            markdown_out.write_text(claims_markdown(result), encoding="utf-8")


def _measure_stacks(rounds: int, quick: bool, data_dir: Path, command: str) -> StacksResult:
    """Those that the claims rest on: one event per request, no open loop."""
    say("measuring the stacks first; weir bench stacks --json FILE and --stacks-json FILE do that once for all")
    options = StacksOptions(
        stacks=parse_stacks("fastapi-onnx,weir go" if quick else None),
        rounds=1 if quick else rounds,
        measure_s=0.4 if quick else 2.0,
        rows=(1,),
        sweep=(),
        cards=500 if quick else 10_000,
        starts=1,
        two_cores=not quick,
        images=not quick,
    )
    with steps(count_stack_steps(options, options.stacks)) as step:
        return uvloop.run(run_stacks(options, data_dir, command, None, step, say))


def parse_numbers(option: str, text: str, most: float, least: float = 0.0) -> tuple[float, ...]:
    """The numbers in "0,0.5,2", ascending, each once. Raises BenchError."""
    try:
        found = tuple(sorted({float(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        found = ()
    if not found or not all(least <= value <= most for value in found):
        raise BenchError(f"{option} {text[:80]}: expected numbers from {least:g} to {most:g} with commas between them")
    return found


def _print(result: ClaimsResult) -> None:
    """A claim is two lines: tables of sentences do not fit a terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    for line in result.lines:
        console.print(f"[bold]{line.group}[/] {escape(line.claim)}", highlight=False)
        tail = f"; needed: {line.needed}" if line.needed else ""
        style = STYLES[line.verdict]
        console.print(
            f"  [{style}]{line.verdict}[/]: {escape(line.figure)} ({escape(line.measured)}; {line.rule}){escape(tail)}\n",
            highlight=False,
        )
    counts = (f"{sum(line.verdict == verdict for line in result.lines)} {verdict}" for verdict in STYLES)
    typer.echo(f"{len(result.lines)} claims: {', '.join(counts)}\n")
    typer.echo("Inputs that are missing:" if result.missing else "All inputs are there.")
    for text in result.missing:
        typer.echo(f"- {text}")
    typer.echo()
    for table in tables(result):
        if table[0] in (CLAIMS, MISSING):  # sentences: they stand above
            continue
        print_table(*table)
        typer.echo()
    print_caveats(result.caveats)
