"""The 40 features of the Handbook's stream through the live service: whatever it is limited to, no score changes.

Rows of our own in the published columns, replayed with labels that become known seven days later. Scores of the running service
are those that the engine and the model give in one process, which is what a model is trained and judged by.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.plan import compile_plan
from features.spec import load_spec
from gocore.locate import missing_core
from models.card import ARTIFACTS, MODEL_FILE
from models.dataset import parse_time_ms, read_dataset
from models.matrix import build_matrix
from models.onnx_scorer import OnnxScorer
from service.auth import Role, add_key

pytestmark = pytest.mark.e2e

WEIR = str(Path(sys.executable).with_name("weir"))
SPEC = load_spec("handbook40")
PLAN = compile_plan(SPEC)
MODEL = ARTIFACTS / "handbook40"
N_ROWS, N_DAYS, MIDDLE = 4_000, 40, "2018-07-10"
REPLAY_AGAIN = "2018-07-03"  # seven days before: labels of this week become known after the middle
SLACK = 1e-6  # between scorers; the go scorer agrees with itself exactly
GO = pytest.mark.skipif(missing_core() is not None, reason=missing_core() or "")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 days of 90 cards at 50 terminals, 4 % frauds, amounts that are sometimes spikes."""
    rng = np.random.default_rng(13)
    seconds = np.sort(rng.integers(0, N_DAYS * 86_400, N_ROWS))
    amounts = rng.lognormal(3, 0.6, N_ROWS) * np.where(rng.random(N_ROWS) < 0.05, 5, 1)
    table = {
        "TRANSACTION_ID": pa.array(np.arange(N_ROWS), pa.int32()),
        "TX_DATETIME": pa.array(parse_time_ms("2018-06-18") + seconds * 1000, pa.timestamp("ms")),
        "CUSTOMER_ID": pa.array(rng.integers(0, 90, N_ROWS), pa.int32()),
        "TERMINAL_ID": pa.array(rng.integers(0, 50, N_ROWS), pa.int32()),
        "TX_AMOUNT": pa.array(np.round(amounts, 2)),
        "TX_FRAUD": pa.array(rng.random(N_ROWS) < 0.04, pa.int8()),
    }
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="module")
def expected(rows: Path) -> dict[str, float]:
    """Scores by event: the engine over events and labels in time order, then the model."""
    dataset = read_dataset(rows, SPEC.source)
    risk = OnnxScorer(PLAN, MODEL / MODEL_FILE).infer(build_matrix(PLAN, dataset))
    return dict(zip(dataset.event_ids, risk.tolist(), strict=True))


class Service:
    """A real `weir serve` on a data directory that outlives it."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.key = add_key(directory / "data", Role.ADMIN, "test")
        settings = ["--set", "spec=handbook40", "--set", "time.clock=stream", "--port", "0", *options]
        self.command = [WEIR, "serve", "--data-dir", str(directory / "data"), *settings]

    def __enter__(self) -> "Service":
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, text=True)
        log.close()
        assert self.process.stdout is not None
        found = re.match(r"weir ready url=(\S+) ", self.process.stdout.readline())
        assert found, (self.directory / "log").read_text()
        self.url = found[1]
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        """As the machine would take it away."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(15)

    def replay(self, rows: Path, *options: str) -> dict[str, float]:
        """Scores of what was not answered before, by event."""
        out = self.directory / "scores.parquet"
        command = [WEIR, "replay", str(rows), "--spec", "handbook40", "--labels", "--mode", "batch", "--url", self.url]
        done = subprocess.run(
            [*command, "--key", self.key, "--scores", str(out), *options],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr + (self.directory / "log").read_text()
        table = pq.read_table(out, columns=["event_id", "score", "replayed"])
        given = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        return {event: score for event, score, again in given if not again}


def assert_scores(found: dict[str, float], expected: dict[str, float]) -> None:
    """Every event once, each with the expected score."""
    assert found.keys() == expected.keys()
    worst = max(abs(found[event] - score) for event, score in expected.items())
    assert worst < SLACK, f"a score is off by {worst}"


PATIENT = ("--set", "redis.deadline_ms=10000", "--set", "postgres.deadline_ms=10000")  # a profile that is late changes a score
LIMITS = {
    "l1 of 300 KB over l2": ("--set", "l1.bytes_max=300000", "--set", "bloom.enabled=false"),
    "no l1": ("--set", "l1.enabled=false"),
    "no l2": ("--set", "l2.enabled=false"),
}


@pytest.mark.parametrize("scorer", [pytest.param("go", marks=GO), "onnx"])
@pytest.mark.parametrize("limits", LIMITS)
def test_replay_with_limited_tiers_changes_no_score(
    scorer: str, limits: str, rows: Path, expected: dict[str, float], tmp_path: Path
) -> None:
    """By either scorer, with profiles read back from RocksDB for nearly every event, or kept in RAM alone."""
    with Service(tmp_path, "--scorer", scorer, *LIMITS[limits]) as service:
        assert_scores(service.replay(rows), expected)


@pytest.mark.parametrize("redis", ["true", "false"])
def test_replay_with_and_without_redis_changes_no_score(
    redis: str, rows: Path, expected: dict[str, float], tmp_path: Path
) -> None:
    """A real Valkey and Postgres behind a small L1, without L2; then without Valkey."""
    small = (
        "--embedded",
        "--set",
        "l1.bytes_max=300000",
        "--set",
        "l2.enabled=false",
        "--set",
        f"redis.enabled={redis}",
        *PATIENT,
    )
    with Service(tmp_path, *small) as service:
        assert_scores(service.replay(rows), expected)


@pytest.mark.parametrize("scorer", [pytest.param("go", marks=GO), "onnx"])
def test_replay_with_a_kill_in_the_middle_changes_no_score(
    scorer: str, rows: Path, expected: dict[str, float], tmp_path: Path
) -> None:
    """Killed half way, started again, fed again from a week before: what was answered is not counted twice, labels go on."""
    service = Service(tmp_path, "--scorer", scorer)
    with service:
        first = service.replay(rows, "--to", MIDDLE)
        service.kill()
    with service:
        second = service.replay(rows, "--from", REPLAY_AGAIN)
    assert len(first) > N_ROWS // 3
    assert not first.keys() & second.keys()
    assert_scores(first | second, expected)
