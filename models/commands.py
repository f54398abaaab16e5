"""The CLI of the models: `weir generate`, `weir train`, `weir evaluate`. Every expected failure is one line and exit code 2."""

import importlib
import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from features.plan import Plan, compile_plan
from features.spec import Spec, SpecError, load_spec
from features.transaction import InvalidTransaction
from gocore.errors import GoCoreError
from models import generator
from models.agreement import Agreement, compare_features
from models.card import ModelCard
from models.dataset import Dataset, DatasetError, convert_amounts, parse_time_ms, read_dataset
from models.evaluate import evaluate_model, evaluate_scores
from models.metrics import Quality
from models.published import TRAINING_WEEKS, Published, evaluate_published, read_scores, score_by_models
from models.published_table import published_table
from models.scorer import ModelError

DAY_MS = 86_400_000
PIPE_WIDTH = 120  # columns


class CommandError(ValueError):
    """Options that do not go together or cannot be read."""


TRAIN_EXTRA = ("sklearn", "onnx", "scipy", "joblib", "threadpoolctl")
EXPECTED = (CommandError, SpecError, DatasetError, ModelError, InvalidTransaction, GoCoreError, OSError)

SpecOption = Annotated[str, typer.Option(help="packaged spec (cards, handbook, handbook40) or a TOML file")]
FromOption = Annotated[str | None, typer.Option("--from", metavar="DATE", help="first day, 2018-07-25 (UTC)")]
ToOption = Annotated[str | None, typer.Option("--to", metavar="DATE", help="day after the last one")]
WarmUpOption = Annotated[
    int | None, typer.Option(min=0, help="days of history read before --from [default: the spec's longest ring]")
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="read the file by this spec's columns (cards: weir generate) [default: --spec]"),
]

GENERATED_NOTE = (
    "Trained on a generated stream, so that the service starts out of the box: its scores say nothing about real"
    " transactions. Train a model on your own file: weir train --spec {spec} --data FILE.parquet --out DIR, then"
    " weir serve --set spec={spec} --set model=DIR"
)


def register(app: typer.Typer) -> None:
    """Add the three commands to the CLI."""
    register_generate(app)
    register_train(app)
    register_evaluate(app)


def register_generate(app: typer.Typer) -> None:
    """Add `generate`; entry points name one command each."""
    app.command("generate")(generate)


def register_train(app: typer.Typer) -> None:
    """Add `train`."""
    app.command("train")(train)


def register_evaluate(app: typer.Typer) -> None:
    """Add `evaluate`."""
    app.command("evaluate")(evaluate)


def generate(
    out: Annotated[Path, typer.Argument(metavar="OUT.parquet")],
    events: Annotated[int, typer.Option(min=generator.EVENTS_MIN, help="number of transactions")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same stream")] = 1,
    days: Annotated[int, typer.Option(min=generator.DAYS_MIN, help="length of the stream")] = generator.DAYS,
) -> None:
    """Write a seeded, labelled stream of card transactions to a Parquet file."""
    with _one_line_errors():
        if not out.parent.is_dir():
            raise CommandError(f"{out.parent}: no such directory")
        table = generator.generate(events, seed, days)
        command = f"weir generate {out.name} --events {events} --seed {seed} --days {days}"
        table = table.replace_schema_metadata({**table.schema.metadata, "weir.command": command})
        temporary = out.with_name(f".{out.name}.part")
        try:
            pq.write_table(table, temporary, compression="zstd")
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    n_frauds = int(table["label"].to_numpy().sum())
    typer.echo(f"{out}: {events} transactions over {days} days, {n_frauds} frauds, seed {seed}")


def train(
    data: Annotated[Path, typer.Option(help="Parquet file with labelled transactions")],
    out: Annotated[Path, typer.Option(help="directory for model.onnx and card.json")],
    spec: SpecOption = "cards",
    seed: Annotated[int, typer.Option(min=0)] = 1,
    estimator: Annotated[str, typer.Option(help="network, boosting or forest")] = "network",
    from_: FromOption = None,
    to: ToOption = None,
    warm_up_days: WarmUpOption = None,
    columns: ColumnsOption = None,
) -> None:
    """Train a model on [--from, --to), test it on the week that follows the label delay, write the artifact."""
    with _one_line_errors():
        training = _training_module()
        if estimator not in training.SHORT_NAMES:
            raise CommandError(f"--estimator: {estimator!r} is none of {', '.join(training.SHORT_NAMES)}")
        if out.exists() and not out.is_dir():
            raise CommandError(f"{out}: is not a directory")
        loaded, plan = _load(spec)
        ts_from, ts_to = _time(from_, "--from"), _time(to, "--to")
        delay_ms = loaded.source.label.delay_ms if loaded.source.label is not None else 0
        end = None if ts_to is None else ts_to + delay_ms + training.TEST_MS
        dataset = _read(data, loaded, plan, ts_from, end, warm_up_days, columns)
        origin = _origin(data)
        given = {"--from": from_, "--to": to, "--warm-up-days": warm_up_days, "--columns": columns}
        given["--estimator"] = None if estimator == training.NETWORK else estimator
        command = _train_command(origin, data, out, spec, seed, given)
        note = GENERATED_NOTE.format(spec=spec) if origin else ""
        with _bars() as progress:
            card = training.train_model(loaded, dataset, out, seed, ts_from, ts_to, command, progress, note, estimator)
    _print_card(card, out)


def evaluate(
    scores: Annotated[list[Path] | None, typer.Option(help="file that weir replay --scores wrote")] = None,
    spec: SpecOption = "cards",
    data: Annotated[Path | None, typer.Option(help="Parquet file with labelled transactions")] = None,
    model: Annotated[list[Path] | None, typer.Option(help="directory with model.onnx and card.json")] = None,
    from_: FromOption = None,
    to: ToOption = None,
    warm_up_days: WarmUpOption = None,
    columns: ColumnsOption = None,
    features: Annotated[Path | None, typer.Option(help="file that weir replay --features wrote")] = None,
    reference: Annotated[Path | None, typer.Option(help="published features to compare --features with")] = None,
    published: Annotated[
        bool,
        typer.Option("--published", help="by the Fraud Detection Handbook's protocol: --data and several --scores or --model"),
    ] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="write the figures as JSON")] = None,
) -> None:
    """Print AUC, average precision and card precision at 100 of a file of scores, or of a model on a file;
    or how far --features are from a published --reference, value by value."""
    with _one_line_errors():
        scores, model = scores or None, model or None
        asked = (scores is not None, data is not None, model is not None, features is not None, reference is not None)
        table: Table
        found: Quality | Agreement | Published
        if published:
            found = _published(spec, data, scores or [], model or [], features is not None or reference is not None)
            table = published_table(found)
        elif features is not None and reference is not None and sum(asked) == 2:
            loaded, plan = _load(spec)
            agreement = compare_features(features, reference, plan, loaded.source)
            found, table = agreement, _agreement_table(f"{features.name} against {reference.name}", agreement)
        elif scores is not None and sum(asked) == 1 and len(scores) == 1:
            figures = evaluate_scores(scores[0])
            found, table = figures, _quality_table(scores[0].name, figures)
        elif data is not None and model is not None and sum(asked) == 2 and len(model) == 1:
            loaded, plan = _load(spec)
            ts_from, ts_to = _time(from_, "--from"), _time(to, "--to")
            dataset = _read(data, loaded, plan, ts_from, ts_to, warm_up_days, columns)
            with _bars() as progress:
                figures = evaluate_model(plan, dataset, model[0], ts_from, progress)
            found, table = figures, _quality_table(f"{model[0].name} on {data.name}", figures)
        else:
            raise CommandError("evaluate needs either --scores, or --data and --model, or --features and --reference")
        if json_out is not None:
            json_out.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    _print(table)


def _published(spec: str, data: Path | None, scores: list[Path], models: list[Path], has_others: bool) -> Published:
    if data is None or bool(scores) == bool(models) or has_others:
        raise CommandError(
            "evaluate --published needs --data, and either --scores or --model (each of them may come several times)"
        )
    loaded, plan = _load(spec)
    # Scores need the labels of the protocol's weeks alone, models all the history that fills profiles.
    dataset = read_dataset(data, loaded.source, parse_time_ms(TRAINING_WEEKS[0]) if scores else None)
    if scores:
        return evaluate_published(dataset, read_scores(scores, dataset))
    with _bars() as progress:
        return evaluate_published(dataset, score_by_models(plan, dataset, models, progress))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except EXPECTED as error:
        typer.echo(f"weir: {error}", err=True)
        raise typer.Exit(2) from None


def _training_module() -> ModuleType:
    """models.train, imported when it is asked for: it needs an optional extra and a second for scikit-learn."""
    try:
        return importlib.import_module("models.train")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in TRAIN_EXTRA:
            raise
        raise ModelError(f"training needs {error.name}: pip install 'weir[train]'") from None


def _load(spec: str) -> tuple[Spec, Plan]:
    loaded = load_spec(spec)
    return loaded, compile_plan(loaded)


def _time(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    try:
        return parse_time_ms(text)
    except ValueError:
        raise CommandError(f"{option}: {text!r} is not a date such as 2018-07-25") from None


def _read(
    data: Path,
    spec: Spec,
    plan: Plan,
    ts_from: int | None,
    ts_to: int | None,
    warm_up_days: int | None,
    columns: str | None,
) -> Dataset:
    """The rows up to ts_to with the history before ts_from that fills the profiles. Raises DatasetError.

    `columns` names another spec whose column mapping reads the file; amounts are then given in that spec's base currency.
    """
    if ts_from is not None and ts_to is not None and ts_from >= ts_to:
        raise CommandError("--from must be before --to")
    warm_up_ms = plan.longest_ms if warm_up_days is None else warm_up_days * DAY_MS
    source = spec if columns is None else load_spec(columns)
    dataset = read_dataset(data, source.source, None if ts_from is None else ts_from - warm_up_ms, ts_to)
    if dataset.n_rows == 0:
        raise DatasetError(f"{data}: holds no transactions in this range")
    return dataset if columns is None else convert_amounts(dataset, source.currencies, source.base_currency)


def _origin(data: Path) -> str | None:
    """The command that generated the file; None for a file of the user's own."""
    try:
        origin = (pq.read_schema(data).metadata or {}).get(b"weir.command")
    except pa.ArrowException:
        return None
    return None if origin is None else origin.decode()


def _train_command(origin: str | None, data: Path, out: Path, spec: str, seed: int, given: dict[str, str | int | None]) -> str:
    """The command that makes this artifact again; for a generated stream also the one that makes the stream."""
    parts = ["weir", "train", "--spec", spec, "--data", data.name, "--out", str(out), "--seed", str(seed)]
    for option, value in given.items():
        if value is not None:
            parts += [option, str(value)]
    return shlex.join(parts) if origin is None else f"{origin} && {shlex.join(parts)}"


@contextmanager
def _bars() -> Iterator["_Bars"]:
    bars = _Bars()
    try:
        yield bars
    finally:
        bars.stop()


class _Bars:
    """A models.matrix.Progress that draws one bar for each step, and nothing at all before the first."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        if not self._tasks:
            self._progress.start()
        if step not in self._tasks:
            self._tasks[step] = self._progress.add_task(step, total=total)
        self._progress.update(self._tasks[step], completed=done, total=total)

    def stop(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        if self._tasks:
            self._progress.stop()


def _print(table: Table) -> None:
    console = Console()
    # A pipe has no width: 80 columns would cut the names of the features.
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table)


def _print_card(card: ModelCard, out: Path) -> None:
    test = {name: card.metrics.get(f"test_{name}", math.nan) for name in Quality.__struct_fields__}
    figures = Quality(
        n_rows=int(test["n_rows"]),
        n_frauds=int(test["n_frauds"]),
        auc=test["auc"],
        average_precision=test["average_precision"],
        card_precision_at_100=test["card_precision_at_100"],
    )
    _print(_quality_table(f"{card.model}, test week from {card.data['test_from'][:10]}", figures))
    typer.echo(f"{out}: review from {card.thresholds.review:.4f}, decline from {card.thresholds.decline:.4f}")
    if card.note:
        typer.echo(card.note)


def _agreement_table(what: str, agreement: Agreement) -> Table:
    title = f"{what}: {agreement.n_rows:,} events in both"
    for n, where in ((agreement.n_only_in_features, "the first"), (agreement.n_only_in_reference, "the second")):
        title += f", {n:,} only in {where}" if n else ""
    table = Table(title=title, title_justify="left", caption_justify="left", box=None, pad_edge=False)
    if agreement.not_in_reference:
        table.caption = f"not in the reference: {', '.join(agreement.not_in_reference)}"
    table.add_column("feature", no_wrap=True)
    for name in ("exact", "mean error", "worst", "mean rel.", "worst rel."):
        table.add_column(name, justify="right", no_wrap=True)
    for f in agreement.features:
        relative = (f"{f.mean_relative_error:.3%}", f"{f.worst_relative_error:.1%}")
        table.add_row(
            f.name, f"{f.exact_share:.2%}", f"{f.mean_absolute_error:.5f}", f"{f.worst_absolute_error:.5g}", *relative
        )
    return table


def _quality_table(what: str, figures: Quality) -> Table:
    table = Table(title=what, title_justify="left", min_width=70)
    for name in ("transactions", "frauds", "AUC", "avg. precision", "card prec.@100"):
        table.add_column(name, justify="right")
    values = (figures.auc, figures.average_precision, figures.card_precision_at_100)
    table.add_row(f"{figures.n_rows:,}", f"{figures.n_frauds:,}", *(f"{value:.3f}" for value in values))
    return table
