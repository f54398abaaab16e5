"""Labels joined with decisions, by model: precision, recall, calibration; nothing is counted twice."""

from pathlib import Path

import msgspec
import pytest

from service.decisions import StoredDecision
from service.quality import MODELS_MAX, QUALITY_FILE, Quality


def decided(outcome: str, score: float, label: str | None = None, model: str = "m@1") -> StoredDecision:
    return StoredDecision(1, b"", score, outcome, model, "onnx", (), (), label)


@pytest.fixture
def quality(tmp_path: Path) -> Quality:
    return Quality(tmp_path)


def test_rates_by_hand(quality: Quality) -> None:
    """2 of 3 declined and 1 of 2 reviewed are fraud, and 1 that was approved."""
    cases = [("decline", 0.9, 1), ("decline", 0.8, 1), ("decline", 0.7, 0), ("review", 0.2, 1), ("review", 0.1, 0)]
    cases += [("approve", 0.001, 1), ("approve", 0.0, 0), ("approve", 0.0, 0)]
    for lsn, (outcome, score, fraud) in enumerate(cases, 1):
        quality.label(decided(outcome, score), "fraud" if fraud else "legit", lsn)
    shown = quality.describe()["m@1"]
    assert shown["precision_decline"] == pytest.approx(2 / 3, abs=1e-6)
    assert shown["recall_decline"] == pytest.approx(2 / 4)
    assert shown["precision_review"] == pytest.approx(3 / 5)
    assert shown["recall_review"] == pytest.approx(3 / 4)
    assert shown["labelled"]["approve"] == {"legit": 2, "fraud": 1}
    by_edge = {bin_["from"]: bin_ for bin_ in shown["calibration"]}
    assert (by_edge[0.0]["rows"], by_edge[0.0]["fraud_share"]) == (2, 0.0)
    assert (by_edge[0.001]["rows"], by_edge[0.001]["fraud_share"]) == (1, 1.0)  # an edge begins its bin
    assert by_edge[0.7]["mean_score"] == pytest.approx(0.75)
    assert sum(bin_["rows"] for bin_ in shown["calibration"]) == len(cases)
    assert quality.rates("precision") == {("m@1", "decline"): shown["precision_decline"], ("m@1", "review"): 0.6}


def test_label_that_changes_its_mind_is_moved(quality: Quality) -> None:
    """fraud, then legit, then fraud: at the end one fraud, and once legit none."""
    quality.label(decided("decline", 0.9), "fraud", 1)
    quality.label(decided("decline", 0.9, "fraud"), "legit", 2)
    assert quality.describe()["m@1"]["labelled"]["decline"] == {"legit": 1, "fraud": 0}
    assert quality.describe()["m@1"]["recall_decline"] is None
    quality.label(decided("decline", 0.9, "legit"), "fraud", 3)
    assert quality.describe()["m@1"]["labelled"]["decline"] == {"legit": 0, "fraud": 1}


def test_entry_that_is_counted_is_not_counted_again(quality: Quality) -> None:
    """What recovery applies again changes nothing; what is newer does."""
    quality.label(decided("review", 0.2), "fraud", 7)
    quality.label(decided("review", 0.2), "fraud", 7)
    quality.label(decided("review", 0.2), "fraud", 6)
    assert quality.describe()["m@1"]["labelled"]["review"] == {"legit": 0, "fraud": 1}
    quality.label(decided("review", 0.2), "legit", 8)
    assert quality.describe()["m@1"]["labelled"]["review"] == {"legit": 1, "fraud": 1}


def test_models_are_counted_apart_and_bounded(quality: Quality) -> None:
    """Each model has its own counts; the one whose labels are oldest goes first."""
    for number in range(MODELS_MAX + 2):
        quality.label(decided("approve", 0.0, model=f"m@{number}"), "legit", number + 1)
    assert len(quality.describe()) == MODELS_MAX
    assert f"m@{MODELS_MAX + 1}" in quality.describe()


async def test_counts_outlive_a_restart(tmp_path: Path) -> None:
    """Written at the stop, read at the start, with the LSN from which labels are new."""
    quality = Quality(tmp_path)
    quality.start()
    quality.label(decided("decline", 0.9), "fraud", 5)
    await quality.stop()
    again = Quality(tmp_path)
    assert (again.lsn, again.describe()) == (5, quality.describe())


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"lsn":1,"models":{"m":{"bins":[[1,2]]}}}', b"\xff", b'{"lsn":"x","models":{}}']
)
async def test_file_that_cannot_be_read_costs_only_the_counts(tmp_path: Path, content: bytes) -> None:
    """It is no reason not to start."""
    (tmp_path / QUALITY_FILE).write_bytes(content)
    quality = Quality(tmp_path)
    assert (quality.lsn, quality.describe()) == (0, {})
    quality.label(decided("decline", 0.9), "fraud", 5)
    await quality.stop()
    assert msgspec.json.decode((tmp_path / QUALITY_FILE).read_bytes())["lsn"] == 5
