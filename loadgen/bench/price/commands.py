"""`weir bench price`: the command line and its tables on the terminal."""

from pathlib import Path
from typing import Annotated

import typer
import uvloop

from loadgen.bench.children import BenchError
from loadgen.bench.price.flip_page import flip_goals, flip_markdown, flip_page, flips_table
from loadgen.bench.price.flip_result import FLIPS, PAIRS, SLICE_S, FlipOptions
from loadgen.bench.price.flip_run import run_flips
from loadgen.bench.price.page import goals, parts_table, price_page, prices_table
from loadgen.bench.price.result import ARMS, DEFAULT_ARMS, OF, PriceOptions
from loadgen.bench.price.run import SETTLE_MORE_S, best_scorer, flush_interval_s, run_price
from loadgen.bench.terminal import (
    HtmlOut,
    JsonOut,
    MarkdownOut,
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

QUICK_SETTINGS = ("l2.flush_interval_ms=200",)


def register(app: typer.Typer) -> None:
    """Add `price` to `weir bench` (entry point group weir.bench)."""
    app.command("price")(price)


def price(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds, each a pair of every two arms.")] = 10,
    seconds: Annotated[float, typer.Option(min=0.05, help="Length of one load; the rest after it comes on top.")] = 4.0,
    connections: Annotated[str, typer.Option(help="Numbers of connections.")] = "1,10,64",
    cards: Annotated[int, typer.Option(min=1, help="Cards that events are drawn from.")] = 10_000,
    arms: Annotated[str, typer.Option(help=f"What to measure, with ; between: {'; '.join(ARMS)}; or all.")] = ";".join(
        DEFAULT_ARMS
    ),
    flip: Annotated[
        str,
        typer.Option(
            help=f"Instead of arms: what one service switches on and off twice a second, of {'; '.join(FLIPS)}; or all."
        ),
    ] = "",
    quick: Quick = False,
    work_dir: WorkDir = None,
    settings: SettingsIn = None,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
    markdown_out: MarkdownOut = None,
) -> None:
    """What journal and idempotency cost a request, or metrics and traces (--flip): CPU with and without, in turns."""
    with one_line_errors("price"):
        given = (*(QUICK_SETTINGS if quick else ()), *(settings or ()))
        if flip:
            flips = FlipOptions(
                flips=parse_flips(flip),
                rounds=1 if quick else rounds,
                pairs=2 if quick else PAIRS,
                slice_s=0.1 if quick else SLICE_S,
                connections=numbers("--connections", connections),
                cards=min(cards, 1_000) if quick else cards,
                scorer=best_scorer(),
                settings=given,
            )
            _price_flips(flips, work_dir, json_out, html_out, markdown_out)
            return
        options = PriceOptions(
            rounds=1 if quick else rounds,
            measure_s=0.3 if quick else seconds,
            settle_s=flush_interval_s(given) + (0.1 if quick else SETTLE_MORE_S),
            connections=numbers("--connections", connections),
            cards=min(cards, 1_000) if quick else cards,
            scorer=best_scorer(),
            settings=given,
            arms=parse_price_arms(arms),
        )
        result = uvloop.run(run_price(options, work_dir, say))
        for title, columns, rows in (prices_table(result), parts_table(result)):
            if rows:
                print_table(title, columns, rows)
                typer.echo()
        for line in goals(result):
            typer.echo(line)
        print_caveats(result.caveats)
        write(result, json_out, html_out, price_page(result))
    if any(sample.errors for sample in result.samples):
        raise typer.Exit(1)


def _price_flips(
    options: FlipOptions, work_dir: Path | None, json_out: Path | None, html_out: Path | None, markdown_out: Path | None
) -> None:
    result = uvloop.run(run_flips(options, work_dir, say))
    print_table(*flips_table(result))
    typer.echo()
    for line in (*flip_goals(result), "What this does not show:", *(f"- {caveat}" for caveat in result.caveats)):
        typer.echo(line)
    write(result, json_out, html_out, flip_page(result))
    if markdown_out is not None:
        markdown_out.write_text(flip_markdown(result), encoding="utf-8")


def parse_flips(text: str) -> tuple[str, ...]:
    """The parts in "metrics; nothing" or "all". Raises BenchError."""
    names = {part.strip() for part in text.split(";") if part.strip()}
    if names == {"all"}:
        return FLIPS
    if not names or names - set(FLIPS):
        raise BenchError(f"--flip {text}: expected some of {'; '.join(FLIPS)}; or all")
    return tuple(name for name in FLIPS if name in names)


def parse_price_arms(text: str) -> tuple[str, ...]:
    """The arms in "weir serve; timed" or "all", and what they are compared with. Raises BenchError."""
    names = {part.strip() for part in text.split(";") if part.strip()}
    if names == {"all"}:
        return ARMS
    if not names or names - set(ARMS):
        raise BenchError(f"--arms {text}: expected some of {'; '.join(ARMS)}; or all")
    names |= {OF[name] for name in names if name in OF}
    return tuple(name for name in ARMS if name in names)
