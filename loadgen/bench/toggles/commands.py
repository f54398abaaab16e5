"""`weir bench toggles`: the command line and its tables on the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from loadgen.bench.terminal import HtmlOut, JsonOut, Quick, SettingsIn, one_line_errors, print_caveats, print_table, say, write
from loadgen.bench.toggles.result import TogglesOptions, TogglesResult
from loadgen.bench.toggles.run import run_toggles
from loadgen.page import Cell, Figure, Table, machine_table, micros, page

GOAL = 1.5  # p99 with toggles over p99 without


def register(app: typer.Typer) -> None:
    """Add `toggles` to `weir bench` (entry point group weir.bench)."""
    app.command("toggles")(toggles)


def toggles(
    toggles: Annotated[int, typer.Option(min=2, help="Changes in all; off and on again are two.")] = 100,
    windows: Annotated[int, typer.Option(min=1, help="Quiet windows, and as many with toggles, in turn.")] = 10,
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of a window.")] = 4.0,
    rate: Annotated[float, typer.Option(min=1, help="Requests per second, open loop.")] = 300.0,
    clients: Annotated[int, typer.Option(min=1, max=256, help="Connections.")] = 16,
    quick: Quick = False,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the data directory is made; by default with temporary files.")
    ] = None,
    settings: SettingsIn = None,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
) -> None:
    """What toggles do to latency: tiers and engines switched under load, beside the same load left alone."""
    with one_line_errors("toggles"):
        options = TogglesOptions(
            toggles=12 if quick else toggles,
            windows=1 if quick else windows,
            seconds=2.0 if quick else seconds,
            rate=min(rate, 100.0) if quick else rate,
            clients=clients,
            settings=tuple(settings or ()),
        )
        result = uvloop.run(run_toggles(options, work_dir, say))
        for table in tables(result)[:2]:
            print_table(*table)
            typer.echo()
        typer.echo(f"p99 with toggles is {result.p99_ratio:.2f} times that without; the goal is at most {GOAL}")
        print_caveats(result.caveats)
        write(result, json_out, html_out, _page(result))
    if result.failed:
        raise typer.Exit(1)


def tables(result: TogglesResult) -> list[Table]:
    """Latency, what was switched, and the windows one by one."""
    latency: list[Sequence[Cell]] = [
        (name, s.n, s.p50, s.p90, s.p99, s.p99_9, s.max)
        for name, s in (("left alone", result.quiet), ("toggled", result.toggling))
    ]
    switched: list[Sequence[Cell]] = [
        (t.name, t.n, t.p50_ms, t.max_ms, t.request_p99_us, t.request_max_us) for t in result.toggled
    ]
    pairs: list[Sequence[Cell]] = [(number + 1, *pair) for number, pair in enumerate(result.pairs)]
    title = f"{result.options.rate:g} requests/s, {result.degraded} degraded, {result.failed} failed; µs"
    return [
        (title, ("what", "requests", "p50", "p90", "p99", "p99.9", "max"), latency),
        (
            "Changes, ms until answered, and the requests due meanwhile and 0.2 s after it, µs",
            ("what", "changes", "median ms", "most ms", "request p99", "request max"),
            switched,
        ),
        ("p99 of each window, µs", ("window", "left alone", "toggled"), pairs),
    ]


def _page(result: TogglesResult) -> str:
    facts = [
        ("p99, left alone", micros(result.quiet.p99)),
        ("p99, toggled", micros(result.toggling.p99)),
        ("ratio", f"{result.p99_ratio:.2f}"),
        ("changes", str(sum(t.n for t in result.toggled))),
    ]
    x = [str(number + 1) for number in range(len(result.pairs))]
    data = [
        {"type": "bar", "name": name, "x": x, "y": [pair[place] for pair in result.pairs], "marker": {"color": colour}}
        for place, (name, colour) in enumerate((("left alone", "@a"), ("toggled", "@c")))
    ]
    figure: Figure = {"data": data, "layout": {"barmode": "group", "yaxis": {"title": {"text": "µs"}}}}
    lead = f"{result.options.rate:g} requests a second, {result.created}."
    return page("Weir bench toggles", lead, facts, [("p99 of each window", "µs", figure)],
                [*tables(result), machine_table(result.machine)], result.caveats)  # fmt: skip
