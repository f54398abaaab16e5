"""`weir replay`: the command line of the replay. Exit codes: 0 all scored, 1 some failed, 2 could not start, 130 Ctrl-C."""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from features.spec import SpecError
from loadgen.page import micros
from loadgen.recorder import LatencySummary, Recorder
from loadgen.replay import Options, Replay, ReplayStopped, read_tiers
from loadgen.report import replay_page
from loadgen.result import Result, Run, build_result, cpu_seconds, tiers_between
from loadgen.sender import SendError, Target
from loadgen.source import Stream, open_dataset, write_scores
from models.dataset import DatasetError, parse_time_ms

PLAIN_EVERY_S = 5.0  # s between progress lines when the output is not a terminal
PIPE_WIDTH = 120  # columns of the summary when it goes to a file or a pipe
OPEN_LOOP_CONNECTIONS = {"http": 64, "batch": 4, "stream": 1}  # connections of --rate when --clients does not say


class Mode(StrEnum):
    http = "http"
    batch = "batch"
    stream = "stream"


def register(app: typer.Typer) -> None:
    """Add `replay` to the command line (entry point group weir.commands)."""
    app.command("replay")(replay)


def replay(
    file: Annotated[Path, typer.Argument(help="Parquet file of transactions.")],
    url: Annotated[str, typer.Option(help="The service, e.g. http://127.0.0.1:8080")],
    key: Annotated[str, typer.Option(envvar="WEIR_KEY", help="API key (weir keys add).", show_envvar=True)],
    spec: Annotated[str, typer.Option(help="Spec whose column mapping reads the file: a name or a TOML file.")] = "cards",
    mode: Annotated[Mode, typer.Option(help="One request per transaction, arrays of --batch-rows, or one stream.")] = Mode.http,
    clients: Annotated[int | None, typer.Option(min=1, max=10_000, help="Connections. Default 1 (--rate: 64, 4, 1).")] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop: transactions per second, on a schedule.")] = None,
    poisson: Annotated[bool, typer.Option("--poisson", help="With --rate: random instead of even gaps.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of --poisson.")] = 1,
    batch_rows: Annotated[
        int, typer.Option(min=1, max=10_000, help="Transactions per request (batch) or write (stream).")
    ] = 256,
    time_from: Annotated[str | None, typer.Option("--from", help="First event time: a date or ISO time, UTC.")] = None,
    time_to: Annotated[str | None, typer.Option("--to", help="Event time to stop before.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many transactions.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Send labels when they become known in event time.")] = False,
    label_every_s: Annotated[
        float, typer.Option("--label-every", min=0, help="Send labels only each so many seconds of event time.")
    ] = 0.0,
    deadline_s: Annotated[float, typer.Option("--deadline", min=0.001, help="Seconds to wait for a reply.")] = 30.0,
    scores: Annotated[Path | None, typer.Option(help="Write the scores to this Parquet file.")] = None,
    features: Annotated[
        Path | None, typer.Option(help="Ask for traces; write the feature vectors to this Parquet file.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page with plots.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")] = None,
) -> None:
    """Replay a Parquet file of transactions through a running service and report what came back."""
    with _one_line_errors():
        if rate is not None and not rate > 0:
            raise ReplayStopped(f"--rate {rate:g} is not above 0")
        options = Options(
            mode=mode.value,
            clients=clients or (1 if rate is None else OPEN_LOOP_CONNECTIONS[mode]),
            rate=rate,
            arrivals="poisson" if poisson else "constant",
            seed=seed,
            batch_rows=batch_rows,
            labels=labels,
            label_every_ms=round(label_every_s * 1000),
            deadline_s=deadline_s,
            trace=features is not None,
        )
        _check_outputs(scores, features, report, json_out)
        target = Target.parse(url, key)
        dataset = open_dataset(file, spec, _time("--from", time_from), _time("--to", time_to), limit)
        if dataset.n_rows == 0:
            raise ReplayStopped(f"{file}: no transactions in this range")
        if labels and not bool((dataset.labels >= 0).any()):
            raise ReplayStopped(f"{file}: --labels, but spec {spec} finds no labels in it")
        stream = Stream(dataset)
        recorder = Recorder(dataset.n_rows, options.clients)
        started, cpu = time.perf_counter(), cpu_seconds()
        run = uvloop.run(_run(target, stream, options, recorder))
        run.source, run.spec, run.url = file.name, spec, url
        run.wall_s, run.cpu_s = time.perf_counter() - started, cpu_seconds() - cpu
        result = build_result(run, dataset, recorder)
        _print(result)
        _write_rows(scores, features, stream, recorder)
        if json_out is not None:
            json_out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
        if report is not None:
            report.write_text(replay_page(result), encoding="utf-8")
    if result.interrupted:
        raise typer.Exit(130)
    if result.problem or result.errors:
        raise typer.Exit(1)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (ReplayStopped, SendError, DatasetError, SpecError, OSError) as error:
        typer.echo(f"weir: {error}", err=True)
        raise typer.Exit(2) from None


def _write_rows(scores: Path | None, features: Path | None, stream: Stream, recorder: Recorder) -> None:
    if scores is not None:
        write_scores(scores, stream, recorder)
    if features is not None:
        recorder.features.write(features, stream.event_ids)
        left_out = recorder.n_scored - recorder.features.n_known
        if left_out:
            typer.echo(f"{features}: without {left_out:,} transactions that had been decided before", err=True)


def _check_outputs(*paths: Path | None) -> None:
    """Before an hour of replay, not after it."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ReplayStopped(f"{path}: the directory {path.absolute().parent} does not exist")


def _time(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else parse_time_ms(text)
    except ValueError:
        raise ReplayStopped(f"{option} {text}: neither a date (2018-07-25) nor an ISO time") from None


async def _run(target: Target, stream: Stream, options: Options, recorder: Recorder) -> Run:
    before = await read_tiers(target, options.deadline_s)
    replay = Replay(target, stream, options, recorder)
    interrupts = 0
    task = asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        nonlocal interrupts
        interrupts += 1
        replay.stop()
        if interrupts == 2:  # the first lets requests under way finish, the second does not wait
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    with _progress(recorder) as on_tick, contextlib.suppress(asyncio.CancelledError):
        await replay.run(on_tick)
    after = None
    with contextlib.suppress(ReplayStopped, asyncio.CancelledError):
        after = await read_tiers(target, options.deadline_s) if before is not None else None
    return Run(
        source="",
        spec="",
        url="",
        options=options,
        wall_s=0.0,
        cpu_s=0.0,
        interrupted=interrupts > 0,
        problem=replay.problem,
        connects=replay.connects,
        tiers=tiers_between(before, after),
    )


@contextlib.contextmanager
def _progress(recorder: Recorder) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, else a line every few seconds, both on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_progress(recorder)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    # auto_refresh would draw from a second thread, ten times a second, and delay replies that wait for the GIL.
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, auto_refresh=False) as bar:
        task = bar.add_task("replay", total=recorder.n_rows, speed="")

        def on_tick() -> None:
            failed = f", {recorder.n_failed:,} failed" if recorder.n_failed else ""
            bar.update(task, completed=recorder.n_scored + recorder.n_failed, speed=f"{_speed(recorder)}{failed}")
            bar.refresh()

        yield on_tick


def _plain_progress(recorder: Recorder) -> Callable[[], None]:
    last = time.monotonic()

    def on_tick() -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_EVERY_S:
            last = time.monotonic()
            sys.stderr.write(
                f"{recorder.n_scored:,} of {recorder.n_rows:,} scored, {_speed(recorder)}, "
                f"{recorder.n_failed:,} failed, {recorder.n_labels:,} labels\n"
            )
            sys.stderr.flush()

    return on_tick


def _speed(recorder: Recorder) -> str:
    active_s = recorder.active_s()
    return f"{recorder.n_scored / active_s:,.0f}/s" if active_s > 0 else ""


# The terminal's summary


def _print(result: Result) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    rows = result.rows
    table = _table("what", "value")
    table.add_row("scored", f"{rows.scored:,} of {rows.total:,} transactions")
    table.add_row("throughput", f"{result.rows_per_s:,.0f} per second for {result.active_s:.1f} s of sending")
    table.add_row("latency", _latency(result.latency_us))
    if result.send_lag_us:
        table.add_row("sent late by", _latency(result.send_lag_us))
    table.add_row("outcomes", _counts(result.outcomes))
    table.add_row("model", _counts(result.models))
    if result.labels_sent:
        table.add_row("labels", f"{result.labels_sent:,} sent")
    if result.quality:
        q = result.quality
        table.add_row("AUC", f"{q.auc:.4f}  ({q.n_frauds:,} frauds in {q.n_rows:,} labelled rows)")
        table.add_row("average precision", f"{q.average_precision:.4f}")
        table.add_row("card precision at 100", f"{q.card_precision_at_100:.4f}")
    for text, n in (("known before (replayed)", rows.replayed), ("retries", result.retries), ("failed", rows.failed)):
        if n:
            table.add_row(text, f"{n:,}")
    if result.degraded:
        table.add_row("degraded, without", _counts(result.degraded))
    table.add_row("load generator", f"{result.client_cpu_share:.0%} of a core, {result.options.clients} connection(s)")
    console.print(table)
    if result.tiers:
        console.print(_tier_table(result))
    for error in result.errors:
        console.print(f"[bold]{escape(error.kind)}[/] × {error.count:,}: {escape(error.example)}", soft_wrap=True)
    if result.problem:
        console.print(f"[bold]stopped:[/] {escape(result.problem)}", soft_wrap=True)
    if result.interrupted:
        console.print(f"interrupted; {rows.not_sent:,} transactions were not sent")


def _tier_table(result: Result) -> Table:
    table = _table("tier", "state", "look-ups", "hits", "misses", "unavailable", "hit ratio")
    for tier in result.tiers or []:
        ratio = "–" if tier.hit_ratio is None else f"{tier.hit_ratio:.2%}"
        numbers = (f"{n:,}" for n in (tier.lookups, tier.hits, tier.misses, tier.unavailable))
        table.add_row(escape(tier.name), escape(tier.state), *numbers, ratio)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if len(columns) > 2 and place > 1 else "left")
    return table


def _latency(s: LatencySummary) -> str:
    parts = (("p50", s.p50), ("p90", s.p90), ("p95", s.p95), ("p99", s.p99), ("p99.9", s.p99_9), ("max", s.max))
    return "  ".join(f"{name} {micros(us)}" for name, us in parts)


def _counts(counts: dict[str, int]) -> str:
    return "  ".join(f"{escape(word)} {n:,}" for word, n in counts.items()) or "none"
