"""`weir bench overload`: the command line, its table on the terminal and its page."""

from pathlib import Path
from typing import Annotated

import typer
import uvloop

from loadgen.bench.arms import SCORERS, best_arm, wants_stores
from loadgen.bench.children import BenchError
from loadgen.bench.http_goals import Goal, goals_table
from loadgen.bench.overload.result import GOODPUT_MIN, RETRY_P99_US_MAX, OverloadOptions, OverloadResult
from loadgen.bench.overload.run import answers_of, run_overload
from loadgen.bench.terminal import HtmlOut, JsonOut, one_line_errors, print_table, say, write
from loadgen.page import Cell, Figure, Table, machine_table, page


def register(app: typer.Typer) -> None:
    """Add `overload` to `weir bench` (entry point group weir.bench)."""
    app.command("overload")(overload)


def overload(
    factor: Annotated[float, typer.Option(min=0.1, help="How many times the capacity is sent.")] = 2.0,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long.")] = 60.0,
    capacity_seconds: Annotated[float, typer.Option(min=1.0, help="How long capacity is measured, each way.")] = 5.0,
    connections: Annotated[int, typer.Option(min=1, max=20_000, help="Connections of the open loop.")] = 64,
    burst: Annotated[int, typer.Option(min=1, max=1_000, help="Requests in one write.")] = 4,
    depth: Annotated[int, typer.Option(min=0, help="Requests under way on one at most; 0: no limit.")] = 0,
    cards: Annotated[int, typer.Option(min=1, help="Cards that events are drawn from.")] = 10_000,
    scorer: Annotated[str | None, typer.Option(help="go or onnx.", show_default="go where it is built")] = None,
    stores: Annotated[
        bool | None,
        typer.Option("--stores/--no-stores", help="With Valkey and Postgres (ledger).", show_default="where installed"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run of seconds; its numbers mean little.")] = False,
    work_dir: Annotated[Path | None, typer.Option(help="Where the data directory is made.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Setting of the service, key=value; repeatable.")] = None,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
) -> None:
    """Twice the requests that the service can answer: goodput, refusals, memory, recovery."""
    with one_line_errors("overload"):
        if scorer not in (None, "go", "onnx"):
            raise BenchError(f"--scorer {scorer}: expected go or onnx")
        options = OverloadOptions(
            factor=factor,
            seconds=min(seconds, 2.0) if quick else seconds,
            capacity_s=1.0 if quick else capacity_seconds,
            connections=connections,
            depth=depth,
            burst=burst,
            cards=min(cards, 1_000) if quick else cards,
            scorer=scorer or SCORERS[best_arm()],
            stores=wants_stores(stores, settings or ()),
            settings=tuple(settings or ()),
        )
        result = uvloop.run(run_overload(options, work_dir, say))
        print_table(*result_table(result))
        typer.echo()
        print_table(*goals_table(make_goals(result)))
        typer.echo("What this does not show:")
        for caveat in result.caveats:
            typer.echo(f"- {caveat}")
        write(result, json_out, html_out, overload_page(result))


def make_goals(result: OverloadResult) -> list[Goal]:
    """What the service is to do at twice its capacity."""
    goals = [Goal("goodput, of capacity", result.goodput_share, GOODPUT_MIN, True)]
    if result.refused:
        goals += [
            Goal("p99 of 429s, µs", result.refused_p99_us, RETRY_P99_US_MAX, False),
            Goal("429s with Retry-After, share", result.retry_after_share, 1.0, True),
        ]
    recovery_s = float("inf") if result.recovery_s is None else result.recovery_s
    return [*goals, Goal("s until single requests are as fast as before", recovery_s, 1.0, False)]


def result_table(result: OverloadResult) -> Table:
    """All figures, one below the other."""
    memory = result.memory
    others: list[list[Cell]] = [[f"status {a.status}", a.n] for a in result.outcome.answers if a.status not in (200, 429)]
    rows: list[list[Cell]] = [
        ["capacity, closed loop, requests/s", result.capacity_closed],
        ["capacity, in bursts, requests/s", result.capacity_bursts],
        ["due, requests/s", result.rate],
        ["sent, requests/s", result.sent_per_s],
        ["answered with 200, requests/s", result.goodput],
        ["of capacity", result.goodput_share],
        ["p50 of those, µs", result.accepted_p50_us],
        ["p99 of those, µs", result.accepted_p99_us],
        ["429s, share of replies", result.refused_share],
        ["p99 of those, µs", result.refused_p99_us],
        ["of them with Retry-After", result.retry_after_share],
        *others,
        ["without a reply", result.outcome.lost],
        ["sent late, p99, µs", result.outcome.late_us.p99],
        ["client, of a core", result.client_cpu_share],
        ["MiB before", memory.before_mb],
        ["MiB most", memory.most_mb],
        ["MiB after", memory.after_mb],
        ["s to recover", result.recovery_s],
        ["p50 of single requests before, µs", result.probe_before_us],
        ["and after, µs", result.probe_after_us],
    ]
    title = f"{result.options.factor:g} times capacity for {result.options.seconds:g} s, {result.options.scorer} scorer"
    return title, ("what", "value"), rows


def overload_page(result: OverloadResult) -> str:
    """The result as one HTML page."""
    facts = [
        ("goodput, of capacity", f"{result.goodput_share:.2f}"),
        ("p99 of 429s", f"{result.refused_p99_us / 1e3:.1f} ms"),
        ("p99 of accepted", f"{result.accepted_p99_us / 1e3:.1f} ms"),
    ]
    data = []
    for status, colour in ((200, "@a"), (429, "@c")):
        answers = answers_of(result.outcome, status)
        if answers is not None:
            data.append({"type": "scatter", "mode": "lines", "name": str(status), "line": {"width": 2, "color": colour},
                         "x": list(range(len(answers.per_second))), "y": answers.per_second})  # fmt: skip
    layout = {"xaxis": {"title": {"text": "s"}}, "yaxis": {"rangemode": "tozero"}}
    replies: Figure = {"data": data, "layout": layout}
    step_s = result.options.seconds / max(1, len(result.memory_series_mb))
    x = [round(n * step_s, 2) for n in range(len(result.memory_series_mb))]
    line = {"type": "scatter", "mode": "lines", "line": {"width": 2, "color": "@b"}, "x": x, "y": result.memory_series_mb}
    memory: Figure = {"data": [line], "layout": layout}
    lead = (
        f"{result.rate:,.0f} requests/s at a capacity of {result.capacity:,.0f}, on {result.created}. Server on core"
        f" {result.server_core}, client and stores on core {result.client_core}."
    )
    figures = [("Replies", "per second of the load, by status", replies), ("Resident memory", "MiB of the server", memory)]
    tables = [goals_table(make_goals(result)), result_table(result), machine_table(result.machine)]
    return page("Weir bench overload", lead, facts, figures, tables, result.caveats)
