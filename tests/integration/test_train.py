"""Training end to end on a small generated stream: stream -> matrix -> network -> ONNX -> card -> figures."""

import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from onnx import numpy_helper
from typer.testing import CliRunner

from features.memory import MemoryEngine
from features.plan import compile_plan
from features.spec import load_spec
from models.card import MODEL_FILE, load_card, read_model
from models.commands import register
from models.dataset import Dataset, read_dataset
from models.evaluate import evaluate_model, evaluate_scores
from models.generator import generate
from models.graph import run_graph
from models.matrix import build_matrix
from models.onnx_scorer import OnnxScorer
from models.train import TrainError, plan_split, train_model

pytestmark = pytest.mark.usefixtures("one_thread")

DAY_MS = 86_400_000
SPEC = load_spec("cards")
PLAN = compile_plan(SPEC)
APP = typer.Typer()
register(APP)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "small.parquet"
    pq.write_table(generate(12_000, seed=4, days=30, fraud_share=0.04), path)
    return path


@pytest.fixture(scope="module")
def dataset(stream: Path) -> Dataset:
    return read_dataset(stream, SPEC.source)


@pytest.fixture(scope="module")
def artifact(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifact")
    train_model(SPEC, dataset, out, seed=3, command="weir train --seed 3")
    return out


@pytest.fixture(scope="module")
def vectors(dataset: Dataset) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return build_matrix(PLAN, dataset)


def test_train_model_same_seed_same_file(artifact: Path, dataset: Dataset, tmp_path: Path) -> None:
    """The same data and seed give the same bytes, so a card's command can be checked."""
    again = train_model(SPEC, dataset, tmp_path, seed=3)
    assert again.sha256 == load_card(artifact).sha256


def test_train_model_card_tells_how_it_was_made(artifact: Path) -> None:
    """The card fits the plan, holds figures that are neither poor nor perfect, and the command."""
    card = load_card(artifact)
    card.check(PLAN)
    assert card.command == "weir train --seed 3"
    assert 0.75 < card.metrics["test_auc"] < 0.999
    assert card.metrics["test_average_precision"] > 0.3
    assert card.metrics["n_parameters"] == 43_521
    assert 0 < card.thresholds.review <= card.thresholds.decline <= 1


def test_train_model_card_holds_reference_golden_and_population(
    artifact: Path, vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]]
) -> None:
    """The model, asked for the golden inputs again, gives the golden scores; the rest has one entry per feature."""
    card = load_card(artifact)
    assert card.golden is not None
    assert card.population is not None
    risk = OnnxScorer(PLAN, artifact / MODEL_FILE).infer(np.array(card.golden.inputs, np.float32))
    assert np.abs(risk - np.array(card.golden.scores)).max() < 1e-6
    assert len(card.golden.scores) == 16
    assert len(card.reference) == len(card.population.edges) == PLAN.n_features
    assert max(len(edges) for edges in card.population.edges) <= 10
    assert all(np.float32(value) in vectors[:, i] for i, value in enumerate(card.reference))


def test_train_model_graph_has_the_promised_names_and_size(artifact: Path) -> None:
    """Input `features` (N, 40), output `risk` (N,), 43,521 learned parameters, provenance in the file."""
    model = onnx.load_model_from_string(read_model(artifact))
    (given,), (answer,) = model.graph.input, model.graph.output
    assert (given.name, [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]) == ("features", ["N", 40])
    assert (answer.name, [d.dim_param for d in answer.type.tensor_type.shape.dim]) == ("risk", ["N"])
    learned = [i for i in model.graph.initializer if i.name.startswith(("weight", "bias"))]
    assert sum(numpy_helper.to_array(i).size for i in learned) == 43_521
    assert {p.key: p.value for p in model.metadata_props}["weir.plan_hash"] == PLAN.hash


@pytest.mark.parametrize("estimator", ["boosting", "forest"])
def test_train_model_trees_same_seed_same_file_and_golden_scores(
    estimator: str, dataset: Dataset, vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]], tmp_path: Path
) -> None:
    """Trees are trained like the network: reproducible, calibrated, with a card that the model keeps."""
    card = train_model(SPEC, dataset, tmp_path / "a", seed=3, estimator=estimator)
    assert card.name == f"cards-{estimator}"
    assert train_model(SPEC, dataset, tmp_path / "b", seed=3, estimator=estimator).sha256 == card.sha256
    assert 0.75 < card.metrics["test_auc"] < 0.999
    scorer = OnnxScorer(PLAN, tmp_path / "a" / MODEL_FILE)
    assert card.golden is not None
    assert np.abs(scorer.infer(np.array(card.golden.inputs, np.float32)) - np.array(card.golden.scores)).max() < 1e-6
    risk = scorer.infer(vectors)
    assert (risk.min() >= 0, risk.max() <= 1) == (True, True)
    if estimator == "boosting":
        share = card.metrics["test_n_frauds"] / card.metrics["test_n_rows"]
        assert 0.4 * share < card.metrics["test_mean_risk"] < 2.5 * share


def test_train_model_scorer_agrees_with_the_reference(
    artifact: Path, vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]]
) -> None:
    """onnxruntime gives the scores that training saw, also for values that training never saw."""
    wild = np.concatenate([vectors[:500], vectors[:20] * 1e12, -vectors[:20] * 1e12])
    risk = OnnxScorer(PLAN, artifact / MODEL_FILE).infer(wild)
    assert np.abs(risk - run_graph(read_model(artifact), wild)).max() < 1e-6
    assert risk.min() >= 0
    assert risk.max() <= 1


def test_train_model_score_is_a_probability(artifact: Path, dataset: Dataset) -> None:
    """Undoing the subsampling and calibrating leaves a mean score near the share of frauds in the test week."""
    card = load_card(artifact)
    share = card.metrics["test_n_frauds"] / card.metrics["test_n_rows"]
    assert 0.5 * share < card.metrics["test_mean_risk"] < 2 * share


def test_build_matrix_equals_the_engine_with_labels_in_time_order(
    dataset: Dataset, vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]]
) -> None:
    """Row by row: labels that have become known first, then the transaction; this is what the service does."""
    engine, n = MemoryEngine(PLAN), 4_000
    known = sorted((int(t), i) for i, t in enumerate(dataset.label_ts[:n].tolist()) if dataset.labels[i] == 1)
    txs = dataset.transactions(0, n)
    for i, tx in enumerate(txs):
        while known and known[0][0] <= tx.ts:
            engine.label(txs[known.pop(0)[1]], 1)
        if i >= n - 1_000:
            assert np.array_equal(engine.vectors([tx])[0], vectors[i]), f"row {i}"
        else:
            engine.vectors([tx])


def test_build_matrix_first_row_skips_output_not_history(
    dataset: Dataset, vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]]
) -> None:
    """Rows before first_row warm the profiles up and give no vectors."""
    assert np.array_equal(build_matrix(PLAN, dataset, first_row=7_777), vectors[7_777:])


def test_plan_split_respects_the_label_delay(dataset: Dataset) -> None:
    """Fit, validation, a gap of the label delay, then the test week; no part overlaps."""
    split = plan_split(dataset, 7 * DAY_MS)
    assert split.fit_from < split.valid_from < split.to
    assert split.test_from == split.to + 7 * DAY_MS
    assert split.test_to - split.test_from == 7 * DAY_MS


def test_plan_split_too_short_says_what_does_not_fit(dataset: Dataset) -> None:
    """A range that leaves no test week after the delay is refused with the dates."""
    with pytest.raises(TrainError, match="label delay of 7 days"):
        plan_split(dataset, 7 * DAY_MS, ts_to=int(dataset.ts[-1]) - DAY_MS)


def test_train_model_without_frauds_is_refused(stream: Path, tmp_path: Path) -> None:
    """A file without labels trains nothing and writes nothing."""
    unlabelled = tmp_path / "unlabelled.parquet"
    pq.write_table(pq.read_table(stream).drop(["label"]), unlabelled)
    with pytest.raises(TrainError, match="0 known frauds"):
        train_model(SPEC, read_dataset(unlabelled, SPEC.source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_evaluate_model_equals_a_file_of_its_scores(
    artifact: Path, dataset: Dataset, vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]], tmp_path: Path
) -> None:
    """Scores written to a file give the figures that the model gives directly."""
    start = int(dataset.ts[9_000])
    first = int(np.searchsorted(dataset.ts, start))
    direct = evaluate_model(PLAN, dataset, artifact, ts_from=start)
    risk = OnnxScorer(PLAN, artifact / MODEL_FILE).infer(vectors[first:])
    columns = {"score": risk, "label": dataset.labels[first:], "ts": dataset.ts[first:], "card_id": dataset.card_ids[first:]}
    pq.write_table(pa.table(columns), tmp_path / "scores.parquet")
    assert evaluate_scores(tmp_path / "scores.parquet") == direct


def test_cli_generate_then_evaluate_prints_figures(artifact: Path, tmp_path: Path) -> None:
    """The commands work together and print a table."""
    out = tmp_path / "s.parquet"
    made = CliRunner().invoke(APP, ["generate", str(out), "--events", "2000", "--seed", "9"])
    assert (made.exit_code, "20 frauds" in made.stdout) == (0, True)
    assert pq.read_schema(out).metadata[b"weir.command"] == b"weir generate s.parquet --events 2000 --seed 9 --days 45"
    shown = CliRunner().invoke(APP, ["evaluate", "--data", str(out), "--model", str(artifact)])
    assert shown.exit_code == 0
    assert "AUC" in shown.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.parquet"]


def test_cli_train_another_spec_on_a_generated_stream(stream: Path, tmp_path: Path) -> None:
    """--columns reads a generated file for a spec of other columns and currencies; the card says how, and what it is."""
    table, out = pq.read_table(stream), tmp_path / "model"
    pq.write_table(table.replace_schema_metadata({"weir.command": "weir generate s.parquet"}), tmp_path / "s.parquet")
    arguments = ["--spec", "handbook", "--columns", "cards", "--data", str(tmp_path / "s.parquet"), "--out", str(out)]
    result = CliRunner().invoke(APP, ["train", *arguments])
    assert result.exit_code == 0, result.output
    card = load_card(out)
    card.check(compile_plan(load_spec("handbook")))
    assert card.command.startswith("weir generate s.parquet && weir train --spec handbook ")
    assert "--columns cards" in card.command
    assert "say nothing about real transactions" in card.note
    shown = CliRunner().invoke(APP, ["evaluate", *arguments[:6], "--model", str(out), "--json", str(tmp_path / "q.json")])
    assert (shown.exit_code, "AUC" in shown.stdout) == (0, True)
    assert msgspec.json.decode((tmp_path / "q.json").read_bytes())["n_rows"] == 12_000


def test_cli_evaluate_features_prints_and_writes_the_agreement(tmp_path: Path) -> None:
    """--features and --reference give one line per feature, and the same as JSON."""
    plan, amount = compile_plan(load_spec("handbook")), "CUSTOMER_ID_AVG_AMOUNT_30DAY_WINDOW"
    features = {name: pa.array([1.5, 2.0], pa.float32()) for name in plan.feature_names}
    pq.write_table(pa.table({"event_id": ["h1", "h2"], **features}), tmp_path / "ours.parquet")
    pq.write_table(pa.table({"TRANSACTION_ID": [2, 1], amount: [2.5, 1.5]}), tmp_path / "reference.parquet")
    files = ["--features", str(tmp_path / "ours.parquet"), "--reference", str(tmp_path / "reference.parquet")]
    result = CliRunner().invoke(APP, ["evaluate", "--spec", "handbook", *files, "--json", str(tmp_path / "a.json")])
    assert result.exit_code == 0, result.output
    assert [amount, "50.00%", "0.25000", "0.5"] == next(row for row in result.stdout.splitlines() if amount in row).split()[:4]
    assert msgspec.json.decode((tmp_path / "a.json").read_bytes())["features"][0]["exact_share"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["train", "--data", "no.parquet", "--out", "x"], "no.parquet: no such file"),
        (["train", "--data", "{stream}", "--out", "x", "--spec", "handbook"], "lacks the columns CUSTOMER_ID"),
        (["train", "--data", "{stream}", "--out", "x", "--spec", "nope"], "neither a packaged spec"),
        (["train", "--data", "{stream}", "--out", "x", "--from", "2030-01-01"], "no transactions in this range"),
        (["train", "--data", "{stream}", "--out", "x", "--from", "soon"], "--from: 'soon' is not a date"),
        (["evaluate"], "either --scores, or --data and --model"),
        (["evaluate", "--scores", "{stream}", "--features", "{stream}"], "either --scores, or --data and --model"),
        (["evaluate", "--scores", "{stream}", "--scores", "{stream}"], "either --scores, or --data and --model"),
        (["evaluate", "--scores", "{stream}"], "lacks the columns score"),
        (["evaluate", "--features", "{stream}", "--reference", "{stream}"], "lacks the columns card_age"),
        (["train", "--data", "{stream}", "--out", "x", "--estimator", "magic"], "none of network, boosting, forest"),
        (["train", "--data", "{stream}", "--out", "x", "--columns", "nope"], "neither a packaged spec"),
        (["evaluate", "--data", "{stream}", "--model", "nowhere"], "nowhere/card.json"),
        (["generate", "nowhere/s.parquet"], "nowhere: no such directory"),
    ],
)
def test_cli_mistake_is_one_line_and_exit_code_2(stream: Path, arguments: list[str], problem: str) -> None:
    """Every mistake is one line that starts with weir: and names the culprit."""
    result = CliRunner().invoke(APP, [argument.format(stream=stream) for argument in arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("weir: ")
    assert result.stderr.count("\n") == 1
    assert problem in result.stderr


def test_cli_train_without_the_extra_says_what_to_install(stream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-learn the command names the extra instead of a traceback."""
    for name in [name for name in sys.modules if name.startswith("models.")]:
        if name in ("models.train", "models.estimators", "models.calibrate"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    result = CliRunner().invoke(APP, ["train", "--data", str(stream), "--out", "x"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "pip install 'weir[train]'" in result.stderr
