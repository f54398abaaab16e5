"""`weir bench entities`: the command line, its table on the terminal and its page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from loadgen.bench.entities.result import (
    P99_RATIO_MAX,
    SPILL_RATIO_MIN,
    EntitiesOptions,
    EntitiesResult,
)
from loadgen.bench.entities.run import FEW, MANY, run_entities
from loadgen.bench.http_goals import Goal, goals_table
from loadgen.bench.terminal import HtmlOut, JsonOut, one_line_errors, print_table, say, write
from loadgen.page import Cell, Figure, Table, machine_table, page


def register(app: typer.Typer) -> None:
    """Add `entities` to `weir bench` (entry point group weir.bench)."""
    app.command("entities")(entities)


def entities(
    few: Annotated[int, typer.Option(min=1, help="Cards of the first service.")] = 10_000,
    many: Annotated[int, typer.Option(min=1, help="Cards of the other two.")] = 1_000_000,
    spill: Annotated[int, typer.Option(min=2, help="The third one's L1 holds one in so many.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; results are medians.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.05, help="Length of one measurement.")] = 3.0,
    connections: Annotated[int, typer.Option(min=1, help="Connections.")] = 64,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run of seconds; its numbers mean little.")] = False,
    work_dir: Annotated[Path | None, typer.Option(help="Where data directories are made.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Setting of the service, key=value; repeatable.")] = None,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
) -> None:
    """Memory and tail with a million cards in L1, and throughput when L1 holds a tenth of them."""
    with one_line_errors("entities"):
        options = EntitiesOptions(
            few=min(few, 500) if quick else few,
            many=min(many, 3_000) if quick else many,
            spill=spill,
            rounds=1 if quick else rounds,
            measure_s=0.3 if quick else seconds,
            warm_s=0.1 if quick else 1.0,
            connections=min(connections, 8) if quick else connections,
            settings=tuple(settings or ()),
        )
        result = uvloop.run(run_entities(options, work_dir, say))
        print_table(*rows_table(result))
        typer.echo()
        print_table(*goals_table(make_goals(result)))
        typer.echo("What this does not show:")
        for caveat in result.caveats:
            typer.echo(f"- {caveat}")
        for row in result.rows:
            if row.errors:
                say(f"{row.arm}: {row.errors} errors, first {row.error_example}")
        write(result, json_out, html_out, entities_page(result))
    if any(row.errors for row in result.rows):
        raise typer.Exit(1)


def make_goals(result: EntitiesResult) -> list[Goal]:
    """What many cards may cost."""
    many = next(row for row in result.rows if row.arm == MANY)
    return [
        Goal(f"MiB resident with {many.cards:,} cards", many.end_mb, many.limit_mb, False),
        Goal(f"p99, of that with {result.options.few:,} cards", result.p99_ratio, P99_RATIO_MAX, False),
        Goal(f"requests/s with {result.options.spill} times as many as L1 holds, of all in L1", result.spill_ratio,
             SPILL_RATIO_MIN, True),
    ]  # fmt: skip


def rows_table(result: EntitiesResult) -> Table:
    """Every service."""
    columns = ("arm", "cards", "in L1", "profile MiB", "MiB start", "seen", "end", "limit", "req./s", "p50 µs", "p99 µs",
               "CPU µs", "L1 hits")  # fmt: skip
    rows: list[Sequence[Cell]] = [
        (r.arm, r.cards, r.profiles, r.profile_mb, r.start_mb, r.touched_mb, r.end_mb, r.limit_mb, r.requests_per_s, r.p50_us,
         r.p99_us, r.server_cpu_us, r.hit_share)
        for r in result.rows
    ]  # fmt: skip
    return f"{result.options.connections} connections, medians of {result.options.rounds}", columns, rows


def entities_page(result: EntitiesResult) -> str:
    """The result as one HTML page."""
    facts = [
        ("MiB resident, many cards", f"{result.rows[1].end_mb:,.0f}"),
        (f"p99, {MANY} to {FEW}", f"{result.p99_ratio:.2f}"),
        ("requests/s, small L1 to all in L1", f"{result.spill_ratio:.2f}"),
    ]
    x = [row.arm for row in result.rows]
    memory = [
        {"type": "bar", "name": name, "x": x, "y": [getattr(row, field) for row in result.rows], "marker": {"color": colour}}
        for name, field, colour in (("at start", "start_mb", "@d"), ("at the end", "end_mb", "@a"), ("limit", "limit_mb", "@b"))
    ]
    rates = [{"type": "bar", "x": x, "y": [row.requests_per_s for row in result.rows], "marker": {"color": "@a"}}]
    tails = [{"type": "bar", "x": x, "y": [row.p99_us for row in result.rows], "marker": {"color": "@c"}}]
    layout = {"barmode": "group", "xaxis": {"type": "category"}, "yaxis": {"rangemode": "tozero"}}
    figures: list[tuple[str, str, Figure]] = [
        ("Resident memory", "MiB", {"data": memory, "layout": layout}),
        ("Requests per second", "single events", {"data": rates, "layout": layout}),
        ("99th percentile", "µs", {"data": tails, "layout": layout}),
    ]
    lead = f"Measured on {result.created}; server on core {result.server_core}, client on core {result.client_core}."
    tables = [goals_table(make_goals(result)), rows_table(result), machine_table(result.machine)]
    return page("Weir bench entities", lead, facts, figures, tables, result.caveats)
