"""Arrival times, owners of cards, and stages between label barriers."""

import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.schedule import Stage, constant, groups, owners, poisson, stages

NEVER = 2**63 - 1


def cut(
    ts: list[int], labels: list[int], label_ts: list[int], *, every: int = 0, rows_max: int = 1000
) -> list[tuple[int, int, list[int]]]:
    found = stages(
        np.array(ts, dtype=np.int64),
        np.array(labels, dtype=np.int8),
        np.array(label_ts, dtype=np.int64),
        label_every_ms=every,
        rows_max=rows_max,
    )
    return [(stage.start, stage.stop, stage.label_rows.tolist()) for stage in found]


def test_constant_is_evenly_spaced_from_zero() -> None:
    """At 4 per second, rows are due every 250 ms."""
    assert constant(4, 3).tolist() == [0.0, 0.25, 0.5]
    assert constant(4, 0).tolist() == []


def test_poisson_has_the_rate_and_repeats_with_its_seed() -> None:
    """Gaps are exponential with the right mean, times do not decrease, the same seed gives the same times."""
    due = poisson(1000, 20_000, seed=3)
    assert due[0] == 0
    assert bool(np.all(np.diff(due) >= 0))
    assert 19 < due[-1] < 21
    assert float(np.std(np.diff(due))) == pytest.approx(0.001, rel=0.05)
    assert due.tolist() == poisson(1000, 20_000, seed=3).tolist()
    assert due.tolist() != poisson(1000, 20_000, seed=4).tolist()


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_schedule_rate_not_above_zero_raises(rate: float) -> None:
    """A rate must be above 0."""
    with pytest.raises(ValueError, match="must be above 0"):
        constant(rate, 1)
    with pytest.raises(ValueError, match="must be above 0"):
        poisson(rate, 1, 1)


def test_owners_follow_crc32_of_the_card() -> None:
    """A card always has the same owner, whatever the order and the run."""
    cards = ["c1", "c2", "c1", "é"]
    assert owners(cards, 7).tolist() == [zlib.crc32(card.encode()) % 7 for card in cards]
    assert owners(cards, 1).tolist() == [0, 0, 0, 0]


def test_groups_cut_at_size() -> None:
    """Rows are cut in order; the last piece may be short."""
    assert [list(group) for group in groups(range(10, 15), 2)] == [[10, 11], [12, 13], [14]]
    assert groups([], 2) == []


def test_stages_without_labels_are_cut_by_size() -> None:
    """Without labels a stage ends only at the maximum size."""
    found = list(stages(np.arange(5, dtype=np.int64), rows_max=2))
    assert [(stage.start, stage.stop, len(stage.label_rows)) for stage in found] == [(0, 2, 0), (2, 4, 0), (4, 5, 0)]


def test_stages_fraud_label_stands_before_row_of_equal_time() -> None:
    """A fraud label known at 30 comes before the row with ts 30 and after the one with ts 29."""
    assert cut([10, 29, 30, 31], [1, 0, 0, 0], [30, NEVER, NEVER, NEVER]) == [(0, 2, []), (2, 4, [0])]


def test_stages_legit_label_rides_with_the_next_barrier() -> None:
    """Legit labels make no barrier of their own; they come with the next one, not before their time."""
    found = cut([10, 20, 30, 40, 50], [0, 1, 0, 0, 0], [20, 40, 50, NEVER, NEVER])
    assert found == [(0, 3, []), (3, 5, [0, 1])]


def test_stages_label_after_the_last_row_is_left_out() -> None:
    """A label that becomes known after the stream, or never, is not sent."""
    assert cut([10, 20], [1, 1], [21, NEVER]) == [(0, 2, [])]
    assert cut([10, 20], [1, 1], [21, NEVER], every=1_000_000) == [(0, 2, [])]


def test_stages_label_of_the_past_never_overtakes_its_row() -> None:
    """Even if the file says that a label was known before its transaction, the transaction goes first."""
    assert cut([10, 20, 30], [0, 1, 0], [NEVER, 5, NEVER]) == [(0, 2, []), (2, 3, [1])]


def test_stages_label_every_delays_to_the_next_multiple() -> None:
    """With a grid of 100, a label known at 110 is posted at 200; one known at 200 too."""
    found = cut([100, 150, 199, 200, 250], [1, 0, 1, 0, 0], [110, NEVER, 200, NEVER, NEVER], every=100)
    assert found == [(0, 3, []), (3, 5, [0, 2])]


def test_stages_no_rows_is_no_stage() -> None:
    """An empty stream has no stages."""
    assert cut([], [], []) == []


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 50), st.integers(-1, 1), st.integers(0, 40)), min_size=1, max_size=60),
    every=st.sampled_from([0, 0, 7]),
    rows_max=st.integers(1, 20),
)
def test_stages_any_stream_keeps_the_order_of_rows_and_labels(
    rows: list[tuple[int, int, int]], every: int, rows_max: int
) -> None:
    """Stages cover the rows; a label comes after its row, never early, and a fraud's never late either."""
    rows.sort(key=lambda row: row[0])
    ts: npt.NDArray[np.int64] = np.array([row[0] for row in rows], dtype=np.int64)
    labels = np.array([row[1] for row in rows], dtype=np.int8)
    label_ts = ts + np.array([row[2] for row in rows], dtype=np.int64)
    found: list[Stage] = list(stages(ts, labels, label_ts, label_every_ms=every, rows_max=rows_max))
    assert [row for stage in found for row in range(stage.start, stage.stop)] == list(range(len(rows)))
    sent: list[int] = []
    for stage in found:
        assert stage.stop - stage.start <= rows_max
        for row in stage.label_rows.tolist():
            assert row < stage.start
            assert ts[stage.start] >= label_ts[row]
            sent.append(row)
        if every == 0:
            due = [row for row in range(stage.start) if labels[row] == 1 and label_ts[row] <= ts[stage.stop - 1]]
            assert set(due) <= set(sent)
    assert len(sent) == len(set(sent))
    assert all(labels[row] >= 0 for row in sent)
