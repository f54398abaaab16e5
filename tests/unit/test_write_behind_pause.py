"""How long write-behind pauses while much waits."""

import math

import pytest

from service.write_behind import hurried_pause_s


@pytest.mark.parametrize(
    ("fullness", "pause_s"), [(0, math.inf), (0.5, math.inf), (0.55, 18), (0.75, 2), (0.9, 0.5), (1, 0), (1.5, 0)]
)
def test_hurried_pause_leaves_writes_a_share_that_rises_with_what_waits(fullness: float, pause_s: float) -> None:
    """Writes of 2 s: no hurry up to half, as long as they took at three quarters, none at the limit and beyond."""
    assert hurried_pause_s(fullness, 2.0) == pytest.approx(pause_s)
