"""The published protocol: which rows are tested, and that figures come from them and from nothing else."""

import os
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from features.plan import compile_plan
from features.spec import load_spec
from models.card import ARTIFACTS
from models.commands import register
from models.dataset import Dataset, DatasetError, parse_time_ms, read_dataset
from models.metrics import average_precision
from models.published import TRAINING_WEEKS, evaluate_published, read_scores, rows_of_test_week, score_by_models
from models.scorer import ModelError

DAY_MS = 86_400_000
SPEC = load_spec("handbook40")
START = parse_time_ms(TRAINING_WEEKS[0])
DATA = Path(os.environ.get("WEIR_DATA") or Path(__file__).parents[3] / "shared" / "data")
TRANSACTIONS = DATA / "handbook_transactions.parquet"
APP = typer.Typer()
register(APP)


def write_stream(path: Path, rows: list[tuple[int, int, int]]) -> Dataset:
    """(day from the first training week's start, card, fraud), at noon, in the published columns."""
    table = {
        "TRANSACTION_ID": pa.array(range(len(rows)), pa.int32()),
        "TX_DATETIME": pa.array([START + day * DAY_MS + DAY_MS // 2 for day, _, _ in rows], pa.timestamp("ms")),
        "CUSTOMER_ID": pa.array([card for _, card, _ in rows], pa.int32()),
        "TERMINAL_ID": pa.array([0] * len(rows), pa.int32()),
        "TX_AMOUNT": pa.array([1.0] * len(rows)),
        "TX_FRAUD": pa.array([fraud for _, _, fraud in rows], pa.int8()),
    }
    pq.write_table(pa.table(table), path)
    return read_dataset(path, SPEC.source)


def test_rows_of_test_week_cards_known_by_then_are_left_out(tmp_path: Path) -> None:
    """A fraud counts from the day on which its label is a week old, and those of the training week from the start."""
    rows = [(day, card, 0) for day in range(14, 21) for card in range(6)]
    rows += [(0, 0, 1), (6, 1, 1), (7, 2, 1), (9, 3, 1), (13, 4, 1), (-1, 5, 1)]
    dataset = write_stream(tmp_path / "rows.parquet", sorted(rows))
    chosen = rows_of_test_week(dataset, START)
    left: dict[str, list[int]] = {}
    for row in chosen.tolist():
        left.setdefault(dataset.card_ids[row], []).append(int((dataset.ts[row] - START) // DAY_MS))
    # Known in the training week: never tested. On day 7 + k: until day 14 + k. On the day before the training week: not known.
    assert left == {
        "c2": [14],
        "c3": [14, 15, 16],
        "c4": list(range(14, 21)),
        "c5": list(range(14, 21)),
    }


@pytest.mark.skipif(not TRANSACTIONS.is_file(), reason=f"no Handbook data in {DATA}; set WEIR_DATA to its directory")
def test_rows_of_test_week_published_split_has_the_published_size() -> None:
    """58,264 rows and 385 frauds are left of the book's test week."""
    dataset = read_dataset(TRANSACTIONS, SPEC.source, START, START + 21 * DAY_MS)
    chosen = rows_of_test_week(dataset, START)
    assert (len(chosen), int(dataset.labels[chosen].sum())) == (58_264, 385)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Six cards on every day of five weeks; every third payment of card 5 in the test weeks is a fraud."""
    rows = [(day, card, int(card == 5 and day >= 14 and day % 3 == 0)) for day in range(35) for card in range(6)]
    return write_stream(tmp_path / "rows.parquet", rows)


def write_scores(path: Path, dataset: Dataset, rows: range, add: float, replayed: bool) -> Path:
    events = dataset.event_ids
    scores = [dataset.labels[row] * 0.25 + add for row in rows]
    table = {"event_id": [events[row] for row in rows], "score": scores, "replayed": [replayed] * len(rows)}
    pq.write_table(pa.table(table), path)
    return path


def test_evaluate_published_figures_are_those_of_the_rows_left(tmp_path: Path, dataset: Dataset) -> None:
    """Two folds are covered, and mean and spread are over them; scores of other rows change nothing."""
    scores = np.random.default_rng(3).random(dataset.n_rows)
    scores[dataset.ts >= START + 28 * DAY_MS] = np.nan
    found = evaluate_published(dataset, scores)
    assert [fold.test_week for fold in found.folds] == ["2018-08-08", "2018-08-15"]
    for fold, start in zip(found.folds, (START, START + 7 * DAY_MS), strict=True):
        rows = rows_of_test_week(dataset, start)
        assert fold.figures.average_precision == average_precision(scores[rows], dataset.labels[rows])
    assert found.mean[1] == pytest.approx(np.mean([fold.figures.average_precision for fold in found.folds]))
    other = scores.copy()
    other[dataset.ts < START + 14 * DAY_MS] = 1
    assert evaluate_published(dataset, other) == found


def test_evaluate_published_perfect_scores_are_called_a_leak(dataset: Dataset) -> None:
    """Nobody is that good on this stream."""
    found = evaluate_published(dataset, dataset.labels.astype(np.float64))
    assert any("look for a leak" in warning for warning in found.warnings)


def test_evaluate_published_half_a_week_is_refused(dataset: Dataset) -> None:
    """A week without some of its scores would be another week."""
    scores = np.zeros(dataset.n_rows)
    scores[-3:] = np.nan  # one of them is of a card that is known by then
    with pytest.raises(DatasetError, match=r"2018-08-22: 2 of \d+ rows have no score"):
        evaluate_published(dataset, scores)
    with pytest.raises(DatasetError, match="no test week has scores"):
        evaluate_published(dataset, np.full(dataset.n_rows, np.nan))


def test_read_scores_first_answers_count_repeated_ones_do_not(tmp_path: Path, dataset: Dataset) -> None:
    """A replay that begins a week early gets answers of before; whichever file comes first, they do not replace first ones."""
    first = write_scores(tmp_path / "a.parquet", dataset, range(100), 0.1, replayed=False)
    again = write_scores(tmp_path / "b.parquet", dataset, range(50, 150), 0.5, replayed=True)
    scores = read_scores([first, again], dataset)
    assert scores[50:100].tolist() == pytest.approx((dataset.labels[50:100] * 0.25 + 0.1).tolist())
    assert scores[100:150].tolist() == pytest.approx((dataset.labels[100:150] * 0.25 + 0.5).tolist())
    assert np.isnan(scores[150:]).all()
    swapped = read_scores([again, first], dataset)
    assert np.array_equal(swapped, scores, equal_nan=True)


def test_score_by_models_of_another_time_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    """The packaged model was trained on no week of the protocol: its test rows could be its training rows."""
    with pytest.raises(ModelError, match="not trained up to the end of a training week"):
        score_by_models(compile_plan(SPEC), dataset, [ARTIFACTS / "handbook40"])


def test_cli_evaluate_published_prints_and_writes(tmp_path: Path, dataset: Dataset) -> None:
    """Our figures stand beside the book's; the same as JSON."""
    scores = write_scores(tmp_path / "s.parquet", dataset, range(dataset.n_rows), 0.1, replayed=False)
    arguments = ["--spec", "handbook40", "--data", str(tmp_path / "rows.parquet"), "--scores", str(scores)]
    result = CliRunner().invoke(APP, ["evaluate", "--published", *arguments, "--json", str(tmp_path / "p.json")])
    assert result.exit_code == 0, result.output
    assert "0.658" in result.stdout
    assert "look for a leak" in result.stdout
    assert len(msgspec.json.decode((tmp_path / "p.json").read_bytes())["folds"]) == 3


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "--published needs --data"),
        (["--data", "{data}"], "--published needs --data"),
        (["--data", "{data}", "--scores", "{data}", "--model", "x"], "--published needs --data"),
        (["--data", "{data}", "--scores", "{data}"], "not a file of scores"),
        (["--data", "{data}", "--scores", "nowhere.parquet"], "nowhere.parquet"),
        (["--data", "{data}", "--model", "nowhere"], "nowhere/card.json"),
        (["--data", "nowhere.parquet", "--model", "nowhere"], "nowhere.parquet: no such file"),
    ],
)
def test_cli_evaluate_published_mistake_is_one_line(
    arguments: list[str], problem: str, tmp_path: Path, dataset: Dataset
) -> None:
    """Exit code 2 and the culprit."""
    given = [argument.format(data=tmp_path / "rows.parquet") for argument in arguments]
    result = CliRunner().invoke(APP, ["evaluate", "--published", "--spec", "handbook40", *given])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert problem in result.stderr
