"""`weir bench tiers`: the command line and its tables on the terminal."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer
import uvloop

from features.spec import SpecError
from loadgen.bench.arms import SCORERS, best_arm, wants_stores
from loadgen.bench.children import BenchError
from loadgen.bench.terminal import (
    HtmlOut,
    JsonOut,
    Quick,
    SettingsIn,
    WorkDir,
    one_line_errors,
    print_caveats,
    print_table,
    write,
)
from loadgen.bench.tiers.configs import DEFAULT_CONFIGS, QUICK_CONFIGS, Arm, parse_delays
from loadgen.bench.tiers.page import decisions_table, example_lines, reads_table, speed_table, tiers_page
from loadgen.bench.tiers.progress import reporter
from loadgen.bench.tiers.result import TiersOptions, TiersResult
from loadgen.bench.tiers.run import arms_of, run_tiers
from loadgen.source import open_dataset
from models.dataset import Dataset, DatasetError
from models.generator import EVENTS_MIN, generate

GENERATED_SPEC = "cards"  # whose columns `weir generate` writes
EXAMPLES_PRINTED = 3
OWN_SETTINGS = ("data_dir", "scorer", "spec", "embedded", "redis.url", "postgres.url", "server.port", "time.clock")


def register(app: typer.Typer) -> None:
    """Add `tiers` to `weir bench` (entry point group weir.bench)."""
    app.command("tiers")(tiers)


def tiers(
    data: Annotated[Path | None, typer.Argument(help="Parquet file of transactions. Default: a generated stream.")] = None,
    spec: Annotated[str, typer.Option(help="Spec that the service runs and DATA is read by: a name or a TOML file.")] = "cards",
    events: Annotated[int, typer.Option(min=EVENTS_MIN, help="Events: of DATA the first so many, else generated.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated stream.")] = 1,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", help='Beside all on: "no-l1", "no-redis no-postgres", "none", "onnx"...; repeatable.'),
    ] = None,
    delays: Annotated[str, typer.Option(help="Round trips to L3 on top of loopback, ms.")] = "0",
    scorer: Annotated[str, typer.Option(help="Engine of configurations that name none: go, onnx or auto.")] = "auto",
    stores: Annotated[
        bool | None,
        typer.Option(
            "--stores/--no-stores", help="A Valkey and a Postgres for each run.", show_default="where they are installed"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Measured rounds, interleaved; results are medians.")] = 3,
    clients: Annotated[int, typer.Option(min=1, max=256, help="Connections of the measured runs.")] = 8,
    batch_rows: Annotated[int, typer.Option(min=1, max=10_000, help="Events per request of the run that decides.")] = 256,
    quick: Quick = False,
    progress: Annotated[
        str, typer.Option(help="bar, or json: an object a line on stderr; then the end of stdin ends it.")
    ] = "bar",
    work_dir: WorkDir = None,
    settings: SettingsIn = None,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
) -> None:
    """What each tier is worth: latency, CPU, reads and decisions without it, beside those with everything on."""
    with one_line_errors("tiers"):
        if progress not in ("bar", "json"):
            raise BenchError(f"--progress {progress[:40]}: expected bar or json")
        options = TiersOptions(
            source=None if data is None else data.name,
            spec=spec,
            events=min(events, 400) if quick else events,
            seed=seed,
            configs=tuple(config or _configs(quick, wants_stores(stores, ()))),
            delays_ms=parse_delays(delays),
            scorer=_scorer(scorer),
            stores=wants_stores(stores, settings or ()),
            rounds=1 if quick else rounds,
            clients=clients,
            batch_rows=batch_rows,
            settings=_checked(settings or ()),
        )
        arms = arms_of(options)
        dataset = _dataset(data, options, work_dir)
        _end_by_signal(progress == "json")
        result = _run(options, arms, dataset, work_dir, progress == "json")
        _print(result)
        write(result, json_out, html_out, tiers_page(result))
    if any(arm.measured.failed for arm in result.arms):
        raise typer.Exit(1)


def _run(options: TiersOptions, arms: Sequence[Arm], dataset: Dataset, work_dir: Path | None, as_json: bool) -> TiersResult:
    with reporter(dataset.n_rows * len(arms) * (1 + options.rounds), as_json) as report:
        return uvloop.run(run_tiers(options, arms, dataset, work_dir, report))


def _configs(quick: bool, has_stores: bool) -> Sequence[str]:
    """Those that are compared unless others are asked for."""
    return [text for text in (QUICK_CONFIGS if quick else DEFAULT_CONFIGS) if has_stores or "no-redis" not in text]


def _scorer(name: str) -> str:
    """Raises BenchError."""
    if name == "auto":
        return SCORERS[best_arm()]
    if name not in SCORERS.values():
        raise BenchError(f"--scorer {name[:40]}: expected go, onnx or auto")
    return name


def _checked(settings: Sequence[str]) -> tuple[str, ...]:
    """Raises BenchError for one that the comparison sets itself."""
    for setting in settings:
        if setting.partition("=")[0].strip() in OWN_SETTINGS:
            raise BenchError(f"--set {setting}: the benchmark sets {', '.join(OWN_SETTINGS)} itself")
    return tuple(settings)


def _dataset(data: Path | None, options: TiersOptions, work_dir: Path | None) -> Dataset:
    """The rows that are sent. Raises BenchError."""
    try:
        if data is not None:
            dataset = open_dataset(data, options.spec, limit=options.events)
        else:
            with tempfile.TemporaryDirectory(prefix="weir-bench-", dir=work_dir) as directory:
                file = Path(directory) / "generated.parquet"
                pq.write_table(generate(max(options.events, EVENTS_MIN), options.seed), file)
                dataset = open_dataset(file, GENERATED_SPEC, limit=options.events)
    except (DatasetError, SpecError) as error:
        raise BenchError(str(error)) from None
    if dataset.n_rows == 0:
        raise BenchError(f"{data}: no transactions")
    return dataset


def _end_by_signal(watch_stdin: bool) -> None:
    """SIGTERM takes everything down as Ctrl-C does; so does the end of stdin, for whoever started it as a child."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    if watch_stdin:

        def watch() -> None:
            while os.read(sys.stdin.fileno(), 4_096):  # not its buffer: a lock that is held at the exit is fatal
                pass
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=watch, daemon=True).start()


def _print(result: TiersResult) -> None:
    for table in (speed_table(result), reads_table(result), decisions_table(result)):
        print_table(*table)
        typer.echo()
    for arm in result.arms:
        for line in example_lines(arm, EXAMPLES_PRINTED):
            typer.echo(f"{arm.name}: {line}")
    for distance in result.distances:
        if distance.measured_ms is not None:
            typer.echo(f"round trip to Redis: {distance.delay_ms:g} ms asked, {distance.measured_ms:.3f} ms measured")
    print_caveats(result.caveats)
