"""Steal is told apart from other time, and its absence is no failure."""

from pathlib import Path

from loadgen.bench.steal import StealMeter


def test_share_is_of_all_processors_time_since_the_start(tmp_path: Path) -> None:
    """Ticks of a guest stand in those of user already, so they are not counted again."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 850 0 0 0 20 7 7\ncpu0 1 2 3\n")
    meter = StealMeter(stat)
    assert meter.share() == 0.0
    stat.write_text("cpu  140 0 60 880 0 0 0 40 90 90\n")
    assert meter.share() == 0.2


def test_a_machine_that_does_not_tell_has_none(tmp_path: Path) -> None:
    """An old kernel's line, and no file."""
    stat = tmp_path / "stat"
    assert StealMeter(stat).share() == 0.0
    stat.write_text("cpu  1 2 3 4\n")
    meter = StealMeter(stat)
    stat.write_text("cpu  2 4 6 8\n")
    assert meter.share() == 0.0


def test_this_machine_can_be_read() -> None:
    """Whatever its host does."""
    assert 0.0 <= StealMeter().share() <= 1.0
