"""`weir bench http` and `weir bench memory`: the command lines, their tables on the terminal and their pages."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal

import typer
import uvloop

from loadgen.bench.arms import ARMS, best_arm, parse_arms, parse_syncs, wants_stores
from loadgen.bench.children import BenchError
from loadgen.bench.http import run_http
from loadgen.bench.http_goals import goals_table, make_goals
from loadgen.bench.http_page import http_page, process_table, rates_table, spread_table
from loadgen.bench.http_result import HttpOptions, HttpResult
from loadgen.bench.memory import MemoryOptions, MemoryResult, run_memory
from loadgen.bench.terminal import (
    HtmlOut,
    JsonOut,
    Quick,
    SettingsIn,
    WorkDir,
    numbers,
    one_line_errors,
    print_caveats,
    print_table,
    say,
    write,
)
from loadgen.bench.wrk import missing_wrk
from loadgen.page import Cell, Figure, Table, machine_table, page


class HttpClient(StrEnum):
    wrk = "wrk"
    own = "own"


def register_http(app: typer.Typer) -> None:
    """Add `http` to `weir bench` (entry point group weir.bench)."""
    app.command("http")(http)


def register_memory(app: typer.Typer) -> None:
    """Add `memory` to `weir bench` (entry point group weir.bench)."""
    app.command("memory")(memory)


def register(app: typer.Typer) -> None:
    """Add all of them."""
    register_http(app)
    register_memory(app)


def http(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; results are medians.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.05, help="Length of one measurement.")] = 2.0,
    connections: Annotated[str, typer.Option(help="Numbers of connections, single events.")] = "1,10,64",
    batch_connections: Annotated[str, typer.Option(help="Numbers of connections, batches.")] = "1,4",
    batch_rows: Annotated[int, typer.Option(min=1, max=10_000, help="Events per batch.")] = 256,
    cards: Annotated[int, typer.Option(min=1, help="Cards that events are drawn from.")] = 10_000,
    zipf: Annotated[float, typer.Option(min=0, help="Exponent of the draw; 0 is uniform.")] = 0.0,
    arms: Annotated[
        str | None, typer.Option(help="Servers to measure; ratios need bare aiohttp among them.", show_default=",".join(ARMS))
    ] = None,
    sync: Annotated[
        list[str] | None,
        typer.Option(
            "--sync", help="A sync mode of the journal to compare, or all; repeatable. Arms: weir serve, if none are given."
        ),
    ] = None,
    client: Annotated[
        HttpClient | None,
        typer.Option(help="What sends single events.", show_default="wrk where it is, else own; --quick: own"),
    ] = None,
    stores: Annotated[
        bool | None,
        typer.Option(
            "--stores/--no-stores",
            help="A Valkey and a Postgres (profiles, ledger) for each arm.",
            show_default="where they are installed",
        ),
    ] = None,
    starts: Annotated[int, typer.Option(min=1, help="Starts of each server; the time to ready is their median.")] = 3,
    quick: Quick = False,
    work_dir: WorkDir = None,
    settings: SettingsIn = None,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
) -> None:
    """Single events and batches per second: the service with each scorer and weir-go, beside a bare aiohttp handler."""
    with one_line_errors("http"):
        syncs = parse_syncs(sync or ())
        options = HttpOptions(
            rounds=1 if quick else rounds,
            measure_s=0.3 if quick else seconds,
            warm_s=0.1 if quick else 0.5,
            connections=numbers("--connections", connections),
            batch_connections=numbers("--batch-connections", batch_connections),
            batch_rows=batch_rows,
            cards=min(cards, 1_000) if quick else cards,
            zipf=zipf,
            settings=tuple(settings or ()),
            arms=parse_arms(arms or (best_arm() if syncs else ",".join(ARMS))),
            starts=1 if quick else starts,
            syncs=syncs,
            client=_client(client, quick),
            stores=wants_stores(stores, settings or ()),
        )
        result = uvloop.run(run_http(options, say, work_dir))
        _print_http(result)
        write(result, json_out, html_out, http_page(result))
    if any(cell.errors for cell in result.cells):
        raise typer.Exit(1)


def _print_http(result: HttpResult) -> None:
    print_table(*rates_table(result))
    typer.echo()
    print_table(*spread_table(result))
    typer.echo()
    print_table(*process_table(result))
    if goals := make_goals(result.cells):
        typer.echo()
        print_table(*goals_table(goals))
    print_caveats(result.caveats)
    for cell in result.cells:
        if cell.errors:
            say(f"{cell.arm}, {cell.mode}, {cell.connections}: {cell.errors} errors, first {cell.error_example}")


def _client(given: HttpClient | None, quick: bool) -> Literal["wrk", "own"]:
    """Raises BenchError."""
    reason = missing_wrk()
    if given is HttpClient.wrk and reason is not None:
        raise BenchError(f"--client wrk: {reason}")
    if given is None:
        return "own" if quick or reason is not None else "wrk"
    return "wrk" if given is HttpClient.wrk else "own"


def memory(
    entities: Annotated[str, typer.Option(help="Numbers of cards.")] = "10000,1000000",
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run with 2,000 cards.")] = False,
    settings: SettingsIn = None,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
) -> None:
    """Resident memory after N cards; time to ready with an empty and with a full data directory."""
    with one_line_errors("memory"):
        counts = (2_000,) if quick else numbers("--entities", entities)
        result = uvloop.run(run_memory(MemoryOptions(counts, tuple(settings or ())), say))
        columns, rows = _memory_table(result)
        print_table("MiB resident, seconds to ready", columns, rows)
        write(result, json_out, html_out, _memory_page(result))


def _memory_table(result: MemoryResult) -> tuple[Sequence[str], list[Sequence[Cell]]]:
    columns = ("cards", "ready, empty", "MiB at start", "MiB after", "MiB most", "events/s", "stop", "data, MiB",
               "ready, full", "MiB restarted", "ready, killed")  # fmt: skip
    rows: list[Sequence[Cell]] = [
        (r.entities, r.ready_empty_s, r.memory_start_mb, r.memory_mb, r.memory_max_mb, r.events_per_s, r.stop_s,
         r.data_mb, r.ready_full_s, r.memory_restarted_mb, r.ready_after_kill_s)
        for r in result.rows
    ]  # fmt: skip
    return columns, rows


def _memory_page(result: MemoryResult) -> str:
    columns, rows = _memory_table(result)
    last = result.rows[-1]
    facts = [
        (f"MiB after {last.entities:,} cards", f"{last.memory_mb:,.0f}"),
        ("s to ready, empty", f"{last.ready_empty_s:.2f}"),
        ("s to ready, full", f"{last.ready_full_s:.2f}"),
    ]
    x = [f"{row.entities:,}" for row in result.rows]
    data = [
        {"type": "bar", "name": name, "x": x, "y": [getattr(row, field) for row in result.rows],
         "marker": {"color": colour}}
        for name, field, colour in (("at start", "memory_start_mb", "@d"), ("after", "memory_mb", "@a"))
    ]  # fmt: skip
    figure: Figure = {
        "data": data,
        "layout": {
            "barmode": "group",
            "xaxis": {"type": "category", "title": {"text": "cards"}},
            "yaxis": {"title": {"text": "MiB"}},
        },
    }
    tables: list[Table] = [("Memory and start", columns, rows), machine_table(result.machine)]
    return page("Weir bench memory", f"Measured on {result.created}.", facts,
                [("Resident memory", "MiB, by cards seen", figure)], tables, result.caveats)  # fmt: skip
