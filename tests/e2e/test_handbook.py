"""The Handbook's stream: features of the live service equal the engine's bit by bit, and agree with the published ones.

The published data is not part of the repository (docs/guides/handbook.md names its source): tests of it skip without it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from features.plan import compile_plan
from features.spec import load_spec
from models.agreement import compare_features
from models.dataset import Dataset, parse_time_ms, read_dataset
from models.matrix import build_matrix
from service.auth import Role, add_key

WEIR = str(Path(sys.executable).with_name("weir"))
DATA = Path(os.environ.get("WEIR_DATA") or Path(__file__).parents[3] / "shared" / "data")
TRANSACTIONS, REFERENCE = DATA / "handbook_transactions.parquet", DATA / "handbook_features_0725_0814.parquet"
SPEC = load_spec("handbook")
PLAN = compile_plan(SPEC)
skip_without_data = pytest.mark.skipif(
    not (TRANSACTIONS.is_file() and REFERENCE.is_file()), reason=f"no Handbook data in {DATA}; set WEIR_DATA to its directory"
)

EXACT_MIN = 0.8  # share of the values of each count
COUNT_ERROR_MAX = 6  # transactions
MEAN_EXACT_MIN = 0.8  # of each average amount
RISK_EXACT_MIN = 0.98  # of each share of frauds
FREE_EXACT = ("TX_DURING_WEEKEND", "TX_DURING_NIGHT")  # no window, no tile error


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own rows in the published columns: 20 days on a grid of ten minutes, so labels fall on later transactions' ts."""
    n, rng = 3_000, np.random.default_rng(11)
    seconds = np.sort(rng.integers(0, 20 * 144, n)) * 600
    table = {
        "TRANSACTION_ID": pa.array(np.arange(n), pa.int32()),
        "TX_DATETIME": pa.array(parse_time_ms("2018-06-18") + seconds * 1000, pa.timestamp("ms")),
        "CUSTOMER_ID": pa.array(rng.integers(0, 60, n), pa.int32()),
        "TERMINAL_ID": pa.array(rng.integers(0, 40, n), pa.int32()),
        "TX_AMOUNT": pa.array(rng.integers(0, 50_000, n) / 100),
        "TX_FRAUD": pa.array(rng.random(n) < 0.05, pa.int8()),
    }
    path = tmp_path_factory.mktemp("generated") / "rows.parquet"
    pq.write_table(pa.table(table), path)
    return path


class Service:
    """A real `weir serve` with the packaged model of the spec."""

    def __init__(self, directory: Path) -> None:
        self.key = add_key(directory / "data", Role.ADMIN, "test")
        settings = ["--set", "spec=handbook", "--set", "time.clock=stream", "--port", "0"]
        command = [WEIR, "serve", "--data-dir", str(directory / "data"), *settings]
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        found = re.match(r"weir ready url=(\S+) ", self.process.stdout.readline())
        assert found, self.log.read_text()
        self.url = found[1]

    def replay(self, file: Path, features: Path, *options: str) -> None:
        """Replay with labels; every transaction must be scored."""
        command = [WEIR, "replay", str(file), "--spec", "handbook", "--labels", "--url", self.url, "--key", self.key]
        done = subprocess.run(
            [*command, "--features", str(features), *options], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.log.read_text()

    def stop(self) -> None:
        """As an operator would; what does not stop is killed."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    running = Service(tmp_path)
    yield running
    running.stop()


def _features_file(path: Path, event_ids: list[str], vectors: NDArray[np.float32]) -> None:
    columns = {name: vectors[:, place] for place, name in enumerate(PLAN.feature_names)}
    pq.write_table(pa.table({"event_id": event_ids, **columns}), path)


def _assert_equal_to_the_engine(features: Path, dataset: Dataset) -> None:
    table, vectors = pq.read_table(features), build_matrix(PLAN, dataset)
    assert table.column_names == ["event_id", *PLAN.feature_names]
    assert table["event_id"].to_pylist() == dataset.event_ids
    for place, name in enumerate(PLAN.feature_names):
        assert table[name].type == pa.float32()
        assert np.array_equal(table[name].to_numpy(), vectors[:, place]), name


@pytest.mark.e2e
@pytest.mark.parametrize("options", [("--mode", "http"), ("--mode", "batch", "--batch-rows", "100")], ids=["http", "batch"])
def test_replay_features_of_the_live_service_are_the_engine_s(
    service: Service, generated: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Every feature of every row is the reference engine's, labels included, one by one and in batches."""
    service.replay(generated, tmp_path / "features.parquet", *options)
    dataset = read_dataset(generated, SPEC.source)
    _assert_equal_to_the_engine(tmp_path / "features.parquet", dataset)
    risk = pq.read_table(tmp_path / "features.parquet")["TERMINAL_ID_RISK_7DAY_WINDOW"]
    assert pc.max(risk).as_py() > 0  # labels did arrive


@pytest.mark.e2e
@pytest.mark.data
@skip_without_data
def test_replay_published_rows_through_the_live_service(service: Service, tmp_path: Path) -> None:
    """A few thousand published rows, some of one second, give the engine's features."""
    service.replay(TRANSACTIONS, tmp_path / "features.parquet", "--mode", "batch", "--from", "2018-07-25", "--limit", "5000")
    dataset = read_dataset(TRANSACTIONS, SPEC.source, parse_time_ms("2018-07-25"), limit=5000)
    _assert_equal_to_the_engine(tmp_path / "features.parquet", dataset)


@pytest.mark.data
@skip_without_data
def test_features_agree_with_the_published_ones_within_the_tile_error(tmp_path: Path) -> None:
    """Two days after 37 of history: every count at least 80 % exact and never off by more than 6, in every window."""
    start = parse_time_ms("2018-07-25")
    dataset = read_dataset(TRANSACTIONS, SPEC.source, parse_time_ms("2018-06-18"), parse_time_ms("2018-07-27"))
    first = int(np.searchsorted(dataset.ts, start))
    _features_file(tmp_path / "ours.parquet", dataset.event_ids[first:], build_matrix(PLAN, dataset, first))
    agreement = compare_features(tmp_path / "ours.parquet", REFERENCE, PLAN, SPEC.source)
    assert (agreement.n_only_in_features, agreement.not_in_reference) == (0, ["TX_AMOUNT"])
    assert agreement.n_rows == dataset.n_rows - first > 19_000
    assert len(agreement.features) == 14
    for feature in agreement.features:
        if feature.name in FREE_EXACT:
            assert feature.exact_share == 1.0, feature
        elif "_NB_TX_" in feature.name:
            assert feature.exact_share >= EXACT_MIN, feature
            assert feature.worst_absolute_error <= COUNT_ERROR_MAX, feature
        elif "_RISK_" in feature.name:
            assert feature.exact_share >= RISK_EXACT_MIN, feature
        else:
            assert feature.exact_share >= MEAN_EXACT_MIN, feature
            assert feature.mean_relative_error < 0.01, feature
