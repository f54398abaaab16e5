"""`weir bench stacks`: the command line and its tables on the terminal."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from loadgen.bench.children import BenchError
from loadgen.bench.load.progress import steps
from loadgen.bench.outputs import check_outputs
from loadgen.bench.stacks.arms import parse_stacks
from loadgen.bench.stacks.page import stacks_markdown, stacks_page, tables
from loadgen.bench.stacks.result import StacksOptions, StacksResult
from loadgen.bench.stacks.run import count_steps, run_stacks
from loadgen.bench.terminal import (
    HtmlOut,
    JsonOut,
    MarkdownOut,
    Quick,
    WorkDir,
    end_by_signal,
    numbers,
    one_line_errors,
    print_caveats,
    print_table,
    say,
    write,
)
from loadgen.page import Cell
from loadgen.stacks.manifest import DATA

TEXT_MAX = 48  # characters of a cell on the terminal
SHARE_MAX = 3.0  # of the closed-loop rate; beyond it nothing but the deadline is measured


def register(app: typer.Typer) -> None:
    """Add `stacks` to `weir bench` (entry point group weir.bench)."""
    app.command("stacks")(stacks)


def stacks(
    names: Annotated[
        str | None, typer.Option("--stacks", help="Which, with commas between them: rival stacks, weir onnx, weir go, weir-go.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Interleaved rounds; results are medians.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.2, max=600, help="Length of one measurement.")] = 2.0,
    users: Annotated[int, typer.Option(min=1, max=10_000, help="Connections of the closed loop.")] = 10,
    rows: Annotated[str, typer.Option(help="Events per request.")] = "1,16,64",
    sweep: Annotated[str, typer.Option(help='Rates of the open loop, of the closed loop\'s; "" for none.')] = "0.3,0.6,0.8,1.0",
    deadline: Annotated[float, typer.Option(min=0.05, max=60, help="Seconds; failures count as long as this.")] = 2.0,
    cards: Annotated[int, typer.Option(min=10, max=1_000_000, help="Cards that events are drawn from.")] = 10_000,
    zipf: Annotated[float, typer.Option(min=0, max=10, help="Exponent of the draw; 0 is even.")] = 0.0,
    starts: Annotated[int, typer.Option(min=1, max=20, help="Starts of each server; the last one is measured.")] = 2,
    memory_mb: Annotated[int, typer.Option(min=64, help="memory.max of a server, MiB, where cgroup v2 can be used.")] = 2_048,
    two_cores: Annotated[bool, typer.Option("--two-cores/--no-two-cores", help="With two cores, too.")] = True,
    images: Annotated[bool, typer.Option("--images/--no-images", help="The image workload, too.")] = True,
    quick: Quick = False,
    data_dir: Annotated[Path, typer.Option(help="Where `make stacks` has put builds and models.")] = DATA,
    work_dir: WorkDir = None,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
    markdown_out: MarkdownOut = None,
) -> None:
    """The rival stacks and Weir in turn under the same limits: rates, percentiles, CPU, memory, start, size."""
    with one_line_errors("stacks"):
        check_outputs(json=json_out, html=html_out, markdown=markdown_out)
        sizes = numbers("--rows", rows)
        if max(sizes) > 1_024:
            raise BenchError(f"--rows {rows}: a request holds at most 1,024 events")
        options = StacksOptions(
            stacks=parse_stacks(names),
            rounds=1 if quick else rounds,
            measure_s=min(seconds, 0.4) if quick else seconds,
            warm_s=0.2 if quick else 0.5,
            users=users,
            rows=sizes[:2] if quick else sizes,
            sweep=parse_sweep(sweep)[:1] if quick else parse_sweep(sweep),
            deadline_s=deadline,
            cards=min(cards, 500) if quick else cards,
            zipf=zipf,
            starts=1 if quick else starts,
            memory_bytes=memory_mb << 20,
            two_cores=two_cores and not quick,
            images=images and not quick,
        )
        data_dir.mkdir(parents=True, exist_ok=True)
        command = shlex.join(["weir", "bench", *sys.argv[sys.argv.index("stacks") :]] if "stacks" in sys.argv else ["weir"])
        end_by_signal()
        with steps(count_steps(options, options.stacks)) as step:
            result = uvloop.run(run_stacks(options, data_dir, command, work_dir, step, say))
        print_result(result)
        write(result, json_out, html_out, stacks_page(result))
        if markdown_out is not None:
            markdown_out.write_text(stacks_markdown(result), encoding="utf-8")
    if any(cell.failures_per_s for cell in result.cells):
        raise typer.Exit(1)


def print_result(result: StacksResult) -> None:
    """All tables, failures, caveats."""
    for title, columns, rows in tables(result):
        print_table(title, columns, [[_short(value) for value in row] for row in rows])
        typer.echo()
    for cell in result.cells:
        if cell.error:
            say(f"{cell.arm}, {cell.workload}, {cell.rows} per request, {cell.cores} core(s): {cell.error}")
    print_caveats(result.caveats)


def _short(value: Cell) -> Cell:
    """A long reason leaves no room for numbers; it stands below in full."""
    return f"{value[: TEXT_MAX - 1]}…" if isinstance(value, str) and len(value) > TEXT_MAX else value


def parse_sweep(text: str) -> tuple[float, ...]:
    """The shares in "0.3,0.6,1.0", ascending; none in "". Raises BenchError."""
    try:
        shares = tuple(sorted({float(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        shares = (-1.0,)
    if not all(0 < share <= SHARE_MAX for share in shares):
        raise BenchError(f"--sweep {text}: expected shares above 0, at most {SHARE_MAX:g}, with commas between them")
    return shares
