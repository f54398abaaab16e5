"""What issue 8 wants `weir bench stacks` to show: Weir's go scorer against every rival, ten users, one core for the server."""

from collections.abc import Iterator

import msgspec

from loadgen.bench.http_goals import Goal
from loadgen.bench.stacks.result import WEIR_ARMS, WEIR_GO, Cell, StacksResult, ratio

PYTHON_MIN, NATIVE_MIN = 10.0, 3.0  # times the requests per second


class Rival(msgspec.Struct):
    """A rival in the terms of Weir's go scorer: how many times its rate, and both p99s, µs."""

    arm: str
    language: str
    ratio: float
    least: float
    p99_us: int
    own_p99_us: int


def rivals(result: StacksResult) -> Iterator[Rival]:
    """Each that was measured beside Weir's go scorer."""
    own = result.cell(WEIR_GO)
    if own is None:
        return
    for cell in _rival_cells(result):
        process = result.process(cell.arm)
        language = process.language if process is not None else ""
        least = PYTHON_MIN if language == "Python" else NATIVE_MIN
        yield Rival(cell.arm, language, ratio(own, cell), least, cell.percentiles["99"], own.percentiles["99"])


def make_goals(result: StacksResult) -> list[Goal]:
    """At least so many times the rate of each, at a lower p99."""
    goals = []
    for rival in rivals(result):
        goals.append(Goal(f"{WEIR_GO}, requests/s, times {rival.arm}", rival.ratio, rival.least, True))
        share = rival.own_p99_us / rival.p99_us if rival.p99_us else float("inf")
        goals.append(Goal(f"{WEIR_GO}, p99 in terms of {rival.arm}'s", round(share, 3), 1.0, False))
    return goals


def _rival_cells(result: StacksResult) -> list[Cell]:
    return [
        cell for cell in result.cells
        if cell.arm not in WEIR_ARMS and (cell.workload, cell.rows, cell.cores) == ("card", 1, 1)
    ]  # fmt: skip
