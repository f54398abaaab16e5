"""The launcher behind `weir bench price`: the service with parts of its promise taken out, or with their cost timed.

    python -m service.price_arm --without journal,index | --timed | --flip metrics   and then the options of `weir serve`

It breaks the promise that `weir serve` gives, so nothing else starts it: no setting, no option and no command of `weir` leads
here, and it takes an empty data directory only (API keys aside). What it replaces goes through `_replace`, which fails
on a name that is gone: an arm that quietly kept its journal would measure nothing.

`--timed` takes nothing out. It adds up the CPU time of the thread in every part and, on SIGUSR1, writes the sums to
DATA_DIR/price.json (see Sums). A reading of that clock is a system call; its own cost is measured at the start and taken off.
`--flip`: see service/price_flip.py.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from gocore.filter import GoFilter
from gocore.locate import missing_core
from models.scorer import Scorer
from service import app
from service.admission import Admission
from service.decisions import Decisions, StoredDecision
from service.engine import Engine
from service.errors import StartError
from service.express import Express
from service.gauges import watch_engine
from service.journal import Block, Journal
from service.journal_sync import Syncer
from service.ledger_feed import LedgerFeed
from service.logs import configure_logs
from service.metrics import Metrics
from service.pieces import Pieces
from service.price_flip import FLIPS, Switch, install, listen
from service.row_codec import ReferenceCodec
from service.row_codec_go import GoCodec
from service.settings import Settings, load_settings
from service.tiers.l2 import RocksStore

log = structlog.get_logger(__name__)

PARTS = ("journal", "index", "ledger")
SUMS_FILE = "price.json"
CALIBRATION_CALLS = 20_000


class NoJournal(Journal):
    """Numbers entries and forgets them. What waits for the disk (write-behind, flushes of L2) goes on at once."""

    def append_encoded(self, entries: bytes, n_entries: int) -> int:
        first_lsn = self._next_lsn
        self._next_lsn = first_lsn + n_entries
        self._last_lsn = self._syncer.durable_lsn = self._next_lsn - 1
        return first_lsn

    def read(self, from_lsn: int = 0) -> Iterator[Block]:
        return iter(())


class NoIndex(Decisions):
    """Every event is new, no decision is kept: nothing is looked up, and the keeper has nothing to write."""

    def suspects(self, event_ids: Sequence[str]) -> list[int]:
        return []

    def add_batch(
        self, event_id_lines: bytes, records: Pieces, first_lsn: int, last_lsn: int, is_remembered: bool = False
    ) -> None:
        """Forget them."""

    def change(self, event_id: str, stored: StoredDecision) -> None:
        """Forget it."""


class NoLedgerFeed(LedgerFeed):
    """The ledger gets nothing; nothing is read back from the journal for it."""

    def start(self) -> None:
        self.position = sys.maxsize  # holds up no trimming

    async def stop(self, deadline_s: float) -> None:
        pass


class Sums(msgspec.Struct):
    """What SUMS_FILE holds: µs of CPU by part, and the transactions and blocks that were journaled meanwhile."""

    transactions: int
    blocks: int
    cpu_us: dict[str, float]


class Stopwatch:
    """CPU time of the calling thread, summed by part."""

    def __init__(self, clock: Callable[[], int] = time.thread_time_ns) -> None:
        self._clock = clock
        self.ns: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self._own_ns = 0.0
        self._own_ns = self._calibrate()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, its CPU time added to `part`. Only for calls that run to their end on one thread."""
        self.ns.setdefault(part, 0)
        self.calls.setdefault(part, 0)
        ns, calls, clock = self.ns, self.calls, self._clock

        def run(*arguments: Any, **named: Any) -> Any:
            start = clock()
            try:
                return call(*arguments, **named)
            finally:
                ns[part] += clock() - start
                calls[part] += 1

        return run

    def cpu_us(self) -> dict[str, float]:
        """µs by part, without what the stopwatch itself costs."""
        return {part: max(ns - self.calls[part] * self._own_ns, 0.0) / 1e3 for part, ns in self.ns.items()}

    def _calibrate(self) -> float:
        empty = self.timed("", lambda: None)
        for _ in range(CALIBRATION_CALLS):
            empty()
        return self.ns.pop("") / self.calls.pop("")


def take_out(parts: Sequence[str]) -> None:
    """Replace what belongs to `parts` before the service is built."""
    if "journal" in parts:
        _replace(app, "Journal", NoJournal)
    if "index" in parts:
        _replace(app, "Decisions", NoIndex)
        _replace(app, "RotatingMaybeSet", _no_filter)
        _replace(GoCodec, "open_events", _no_filters)  # without a filter nobody would go by express
    if "ledger" in parts:
        _replace(app, "LedgerFeed", NoLedgerFeed)


def _no_filters(codec: GoCodec, n_rows: int) -> list[GoFilter]:
    """Every event is new."""
    return []


def _no_filter(*arguments: Any, **named: Any) -> None:
    """Nobody remembers event ids."""


def time_parts(settings: Settings) -> None:
    """Have every part timed, and the sums written at SIGUSR1."""
    watch = Stopwatch()

    def time_method(owner: type, name: str, part: str) -> None:
        _replace(owner, name, watch.timed(part, getattr(owner, name)))

    _replace(Express, "takes", _takes_nothing)  # in it all parts are one call
    time_method(GoCodec if missing_core() is None else ReferenceCodec, "encode", "encode")
    time_method(Journal, "append_encoded", "append")
    time_method(Syncer, "begin", "fsync, on the loop")
    time_method(Syncer, "_end", "fsync, on the loop")
    time_method(Syncer, "_sync_files", "fsync, its thread")
    time_method(Admission, "admit", "look-up")
    time_method(Decisions, "add_batch", "remember")
    time_method(Decisions, "take", "keeper: take")
    time_method(Decisions, "taken", "keeper: take")
    write = RocksStore.try_write
    timed_write = watch.timed("keeper: write", write)

    def try_write(store: RocksStore, family: str, items: Any) -> Any:
        return (timed_write if family == "decisions" else write)(store, family, items)

    _replace(RocksStore, "try_write", try_write)

    def watch_and_sum(metrics: Metrics, engine: Engine) -> None:
        watch_engine(metrics, engine)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, dump, engine)

    def dump(engine: Engine) -> None:
        file = settings.data_dir / SUMS_FILE
        fresh = file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(Sums(engine.pipeline.n_rows, engine.pipeline.n_batches, watch.cpu_us())))
        fresh.replace(file)

    _replace(app, "watch_engine", watch_and_sum)


def flip_at_signals(switch: Switch) -> None:
    """Once the loop runs."""

    def watch_and_listen(metrics: Metrics, engine: Engine) -> None:
        watch_engine(metrics, engine)
        listen(switch)

    _replace(app, "watch_engine", watch_and_listen)


def _takes_nothing(express: Express, scorer: Scorer, n_rows: int) -> bool:
    """Every stop is called."""
    return False


def check_empty(data_dir: Path) -> None:
    """Raise StartError if somebody's data may be here."""
    names = (path.name for path in data_dir.iterdir() if path.stem not in ("keys", "audit")) if data_dir.is_dir() else ()
    found = sorted(names)
    if found:
        raise StartError(f"{data_dir} holds {', '.join(found[:3])}: what is given here is lost, so only an empty one is taken")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m service.price_arm", description=__doc__, allow_abbrev=False)
    parser.add_argument("--without", default="", metavar=",".join(PARTS), help="parts of the promise to take out")
    parser.add_argument("--timed", action="store_true", help="take nothing out; add up what each part costs")
    parser.add_argument("--flip", choices=FLIPS, help="take nothing out; SIGUSR1 and SIGUSR2 turn this on and off")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; repeatable")
    given = parser.parse_args(arguments)
    parts = [part for part in given.without.split(",") if part]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--without {', '.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
    settings = load_settings(None, [*given.set, f"data_dir={given.data_dir}"], os.environ)
    configure_logs()
    try:
        check_empty(settings.data_dir)
        take_out(parts)
        if given.timed:
            time_parts(settings)
        if given.flip:
            flip_at_signals(install(given.flip))
        if parts:
            log.warning("this process breaks its promise: for measurements only", without=parts)
        app.run(settings)
    except StartError as error:
        sys.stderr.write(f"price_arm: {error}\n")
        return 1
    return 0


def _replace(owner: Any, name: str, by: Any) -> None:
    """Set what is there already. Raises AttributeError for a name that is not."""
    getattr(owner, name)
    setattr(owner, name, by)


if __name__ == "__main__":
    sys.exit(main())
