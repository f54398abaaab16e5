"""What `service.price_arm --flip` can switch off and on while the service runs: what is compared is one process with itself.

Two processes that should be equal differ by some per cent for their whole life (where their memory lies, what shares a cache
line), and two measurements that lie seconds apart by more. So the parts that cost one or two per cent are flipped in place, a
dozen times a minute, by SIGUSR1 (on) and SIGUSR2 (off). Where a part is flipped both sides go through one call more.
"""

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Final

from service import app
from service.fastlane import _OK, FastLane
from service.metrics import Histogram, Metrics
from service.settings import OtelSettings
from service.tally import BatchTally
from service.tracing import Tracing

FLIPS: Final = ("nothing", "metrics", "traces")


class Switch:
    """Whether the part is on."""

    def __init__(self) -> None:
        self.is_on = True

    def flip(self, *, is_on: bool) -> None:
        self.is_on = is_on

    def between(self, on: Callable[..., Any], off: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is one or the other, as the switch stands."""

        def run(*arguments: Any) -> Any:
            return on(*arguments) if self.is_on else off(*arguments)

        return run


def install(part: str) -> Switch:
    """Before the service is built: `part` (of FLIPS; nothing: the control) can be flipped. Returns the switch."""
    switch = Switch()
    if part == "metrics":
        for owner, name, off in (
            (Histogram, "observe", _count_nothing),
            (BatchTally, "note", _count_nothing),
            (FastLane, "reply", _reply_uncounted),
        ):
            setattr(owner, name, switch.between(getattr(owner, name), off))
    if part == "traces":
        _flip_share(switch)
    return switch


def listen(switch: Switch) -> None:
    """Let the signals flip it; called on the running loop."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: switch.flip(is_on=True))
    loop.add_signal_handler(signal.SIGUSR2, lambda: switch.flip(is_on=False))


def _count_nothing(self: object, value: object) -> None:
    """In the place of what counts."""


def _reply_uncounted(lane: FastLane, body: bytes, form: int, started: float, more: bytes = b"") -> bytes:
    """FastLane.reply without its counts."""
    lane.now = now = time.perf_counter()
    rest = lane._rest if now < lane._rest_until else lane._end_of_head()
    return b"%b%bContent-Length: %d%b%b" % (_OK[form], more, len(body), rest, body)


def _flip_share(switch: Switch) -> None:
    """Traces: the share that is set, or none. What asks for each request stays on both sides."""
    opened = app.open_tracing

    async def open_flipped(settings: OtelSettings, metrics: Metrics, stack: AsyncExitStack) -> Tracing | None:
        tracing = await opened(settings, metrics, stack)
        assert tracing is not None, "--flip traces needs otel.endpoint"
        draw = tracing._draw
        tracing._draw = lambda: draw() if switch.is_on else 1.0
        return tracing

    app.open_tracing = open_flipped
