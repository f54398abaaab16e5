"""`weir bench scorers`: the command line and its tables on the terminal."""

from collections.abc import Sequence
from typing import Annotated

import typer

from loadgen.bench.children import BenchError
from loadgen.bench.scorers.page import COLUMNS, cell_row, plain, scorers_page
from loadgen.bench.scorers.result import ScorersOptions, ScorersResult
from loadgen.bench.scorers.run import run_scorers
from loadgen.bench.terminal import HtmlOut, JsonOut, Quick, numbers, one_line_errors, print_caveats, print_table, say, write

ENTITIES_MIN = 400
ROWS_MAX = 65_536
QUICK = ScorersOptions(
    rounds=1, rows=(1, 64, 256), entities=(2_000,), batch_rows_min=512, batches_max=20,
    memory_entities=8_000, full_entities=0, call_batches=20,
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add `scorers` to `weir bench` (entry point group weir.bench)."""
    app.command("scorers")(scorers)


def scorers(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; results are medians.")] = 5,
    rows: Annotated[str, typer.Option(help="Sizes of a batch.")] = "1,8,64,256,1024",
    entities: Annotated[str, typer.Option(help="Numbers of entities, all kinds together.")] = "10000,1000000",
    objects_max: Annotated[int, typer.Option(min=0, help="Most entities that Python objects are measured with.")] = 1_000_000,
    events_per_s: Annotated[float, typer.Option(min=1, help="How fast event time moves, events per second.")] = 20_000.0,
    slow_hours: Annotated[float, typer.Option(min=0.01, help="The slow pace: hours between two events of an entity.")] = 4.0,
    huge_pages: Annotated[bool, typer.Option("--huge-pages", help="Huge pages under the slabs, as l1.huge_pages.")] = False,
    quick: Quick = False,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
) -> None:
    """What a transaction costs in each scoring engine, beside bare onnxruntime and plain Python objects."""
    with one_line_errors("scorers"):
        options = QUICK
        if not quick:
            options = ScorersOptions(
                rounds=rounds,
                rows=numbers("--rows", rows),
                entities=numbers("--entities", entities),
                objects_entities_max=objects_max,
                events_per_s=events_per_s,
                slow_hours=slow_hours,
                huge_pages=huge_pages,
            )
        if min(options.entities) < ENTITIES_MIN or max(options.rows) > ROWS_MAX:
            raise BenchError(f"--entities below {ENTITIES_MIN} or --rows above {ROWS_MAX:,} are not measured")
        result = run_scorers(options, say)
        _print(result)
        write(result, json_out, html_out, scorers_page(result))


def _print(result: ScorersResult) -> None:
    for scene in result.scenes:
        cells = [cell for cell in result.cells if cell.scene == scene.name]
        title = (
            f"{scene.name}: {scene.entities:,} entities, {plain(scene.events_per_s)} events per second of event time,"
            f" {scene.ring_moves_per_tx:.2g} rings moved per transaction; µs per transaction, medians"
        )
        print_table(title, COLUMNS, [cell_row(cell) for cell in cells])
        typer.echo()
    print_table(
        "µs, what surrounds a call", ("cores", "empty call", "put a row", "eventfd", "256 inline", "256 submitted"),
        [(c.cores, c.empty_call_us, c.put_us, c.eventfd_us, c.inline_us, c.submit_us) for c in result.calls],
    )  # fmt: skip
    memory: list[Sequence[str | int | float]] = [
        (f"bytes per entity, {row.holder}, {row.history}", row.bytes_per_entity) for row in result.entity_memory
    ]
    memory += [(f"MiB resident, scorers: {row.scorers}", row.rss_mb) for row in result.process_memory]
    memory += [(f"bytes of a profile, {kind}", size) for kind, size in result.profile_bytes.items()]
    print_table("Memory", ("what", "value"), memory)
    for target in result.targets:
        state = {None: "not measured", True: "met", False: "NOT met"}[target.met]
        value = "" if target.value is None else f" {target.value:,.4g} of {target.limit:,.4g}"
        typer.echo(f"{state}:{value} {target.name}" + (f" ({target.note})" if target.note else ""))
    print_caveats(result.caveats)
