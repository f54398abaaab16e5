"""What `weir bench http` is to reach, and whether it does: rates in terms of the yardsticks, CPU, tail, by connections."""

from collections.abc import Callable, Iterable, Iterator

import msgspec

from loadgen.bench.arms import AIOHTTP, BARE, FASTAPI, GO_JSON
from loadgen.bench.http_result import Cell
from loadgen.page import Cell as TableCell
from loadgen.page import Table

SERVE = "weir go"


class Goal(msgspec.Struct):
    """`value` must be at least `limit`, or at most it; `stretch`: good to have."""

    what: str
    value: float
    limit: float
    at_least: bool
    stretch: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def _ratio(reference: str) -> Callable[[Cell], float | None]:
    return lambda cell: cell.ratios.get(reference)


# Arm, connections, what, its value in a cell, the limit, whether at least or at most, stretch.
GOALS: tuple[tuple[str, int, str, Callable[[Cell], float | None], float, bool, bool], ...] = (
    (SERVE, 64, f"of {BARE}", _ratio(BARE), 2.2, True, False),
    (SERVE, 10, f"of {BARE}", _ratio(BARE), 1.8, True, False),
    (SERVE, 64, f"of {FASTAPI}", _ratio(FASTAPI), 8.0, True, False),
    (SERVE, 64, "CPU µs per request", lambda cell: cell.server_cpu_us_per_request, 20.0, False, False),
    (SERVE, 64, "p99, µs", lambda cell: cell.p99_us, 3_000.0, False, False),
    (AIOHTTP, 64, f"of {BARE}", _ratio(BARE), 0.75, True, False),
    (SERVE, 64, f"of {GO_JSON}", _ratio(GO_JSON), 1.0, True, True),
)


def make_goals(cells: Iterable[Cell]) -> list[Goal]:
    """Those that this run can say something about."""
    singles = {(cell.arm, cell.connections): cell for cell in cells if cell.mode == "http"}
    return list(_found(singles))


def _found(singles: dict[tuple[str, int], Cell]) -> Iterator[Goal]:
    for arm, connections, what, read, limit, at_least, stretch in GOALS:
        cell = singles.get((arm, connections))
        value = read(cell) if cell is not None else None
        if value is not None:
            yield Goal(f"{arm}, {connections} connections: {what}", value, limit, at_least, stretch)


def goals_table(goals: Iterable[Goal]) -> Table:
    """Every goal with its value, in words."""
    rows: list[list[TableCell]] = [
        [goal.what, goal.value, f"{'≥' if goal.at_least else '≤'} {goal.limit:g}{' (stretch)' if goal.stretch else ''}",
         "met" if goal.met else "NOT met"]
        for goal in goals
    ]  # fmt: skip
    return "Goals", ("what", "value", "target", "is"), rows
