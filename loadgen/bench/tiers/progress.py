"""How far the comparison is: a bar on a terminal, lines in a pipe, or JSON objects for a program that shows its own."""

import contextlib
import sys
import time
from collections.abc import Iterator

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SAY_EVERY_S = 0.25  # s between two JSON lines


class Step(msgspec.Struct):
    """`done` of `total` events have been sent, in all runs together; `what` is going on now."""

    done: int
    total: int
    what: str


class Reporter:
    """Where progress goes. `begin` names what comes next, `at` counts events within it, `end` closes it."""

    def __init__(self, total: int) -> None:
        self._step = Step(0, total, "starting")
        self._before = 0

    def begin(self, what: str) -> None:
        self._step.what = what
        self.show(self._step, at_once=True)

    def at(self, n_events: int) -> None:
        self._step.done = self._before + n_events
        self.show(self._step, at_once=False)

    def end(self, n_events: int) -> None:
        self._before += n_events
        self._step.done = self._before
        self.show(self._step, at_once=True)

    def show(self, step: Step, at_once: bool) -> None:
        """Overridden. `at_once`: not only a count has changed."""


class JsonReporter(Reporter):
    """One line of JSON a step on stderr."""

    _said_at = 0.0

    def show(self, step: Step, at_once: bool) -> None:
        now = time.monotonic()
        if at_once or now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            sys.stderr.write(msgspec.json.encode(step).decode() + "\n")
            sys.stderr.flush()


class PlainReporter(Reporter):
    """A line when something begins."""

    _said = ""

    def show(self, step: Step, at_once: bool) -> None:
        if at_once and step.what != self._said:
            self._said = step.what
            sys.stderr.write(f"{step.done / max(step.total, 1):4.0%}  {step.what}\n")
            sys.stderr.flush()


class BarReporter(Reporter):
    """A bar that is drawn when told to: a second thread would take time from the load generator."""

    def __init__(self, total: int, bar: Progress) -> None:
        super().__init__(total)
        self._bar = bar
        self._task = bar.add_task("", total=total, what="")

    def show(self, step: Step, at_once: bool) -> None:
        self._bar.update(self._task, completed=step.done, what=step.what)
        self._bar.refresh()


@contextlib.contextmanager
def reporter(total: int, as_json: bool) -> Iterator[Reporter]:
    """The right one for `total` events."""
    console = Console(stderr=True)
    if as_json:
        yield JsonReporter(total)
    elif not console.is_terminal:
        yield PlainReporter(total)
    else:
        columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[what]}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, auto_refresh=False) as bar:
            yield BarReporter(total, bar)
