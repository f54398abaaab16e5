"""How far a benchmark of known steps is: a bar on a terminal, else a line per step, both on stderr."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loadgen.bench.terminal import say

Step = Callable[[str], None]
REFRESH_PER_S = 2  # the bar is drawn by this process, not by the workers that send


@contextlib.contextmanager
def steps(total: int) -> Iterator[Step]:
    """Gives `step(text)`, to be called before each of `total` steps with what it is."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield say
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, refresh_per_second=REFRESH_PER_S) as bar:
        task = bar.add_task("", total=total)
        begun = False

        def step(text: str) -> None:
            nonlocal begun
            bar.update(task, advance=1 if begun else 0, description=text)
            begun = True

        yield step
        bar.update(task, completed=total)
