"""Nothing is handed to a store before the disk has it: what a power failure takes from the journal, nobody else remembers."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from features.transaction import Transaction
from service.decisions import decode_stored
from service.ledger import Ledger
from service.tiers.base import lsn_of
from service.tiers.l2 import L2, Column
from service.tiers.postgres import PostgresTier
from service.tiers.redis import RedisTier

if TYPE_CHECKING:
    from tests.integration.conftest import Running

pytestmark = [pytest.mark.redis, pytest.mark.postgres]

FSYNC_S = 0.02  # of a slow disk: many transactions come in meanwhile


class Spy:
    """Sees what goes to each store, and what the disk has at that moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running: Running | None = None
        self.n_seen: dict[str, int] = {}
        self.ahead: dict[str, int] = {}  # by how many LSNs, at most
        self._monkeypatch = monkeypatch
        for tier in (L2, RedisTier, PostgresTier):
            self._watch(tier, "put", tier.name, _of_profiles)
        self._watch(Column, "put_many", "decisions", _of_decisions)
        self._watch(Ledger, "append", "ledger", _of_rows)
        self._watch(Ledger, "append_encoded", "ledger", _of_encoded)

    def _watch(self, owner: type, method: str, name: str, lsns_of: Callable[..., Iterable[int]]) -> None:
        original = getattr(owner, method)

        async def watched(this: Any, *arguments: Any, **named: Any) -> Any:
            if self.running is not None:
                lsns = list(lsns_of(*arguments[:2]))
                self.n_seen[name] = self.n_seen.get(name, 0) + len(lsns)
                ahead = max(lsns, default=0) - self.running.engine.journal.durable_lsn
                if ahead > 0:
                    self.ahead[name] = max(self.ahead.get(name, 0), ahead)
            return await original(this, *arguments, **named)

        self._monkeypatch.setattr(owner, method, watched)


def _of_profiles(profiles: Mapping[bytes, bytes], position: int) -> Iterable[int]:
    return [position, *(lsn_of(profile) for key, profile in profiles.items() if key[0])]  # a claim is of no entry


def _of_decisions(records: Mapping[bytes, bytes]) -> Iterable[int]:
    stored = [decode_stored(value) for key, value in records.items() if key[0]]
    return [lsn for one in stored for lsn in (one.lsn, one.label_lsn)]


def _of_rows(rows: Iterable[Any], position: int) -> Iterable[int]:
    return [position, *(row.lsn for row in rows)]


def _of_encoded(rows: memoryview, position: int) -> Iterable[int]:
    """COPY's binary form: 19 bytes of header, then per row a count of fields and each with its length; the LSN is the first."""
    data, at = bytes(rows), 19
    lsns = [position]
    while at < len(data) and (n_fields := int.from_bytes(data[at : at + 2], signed=True)) >= 0:
        at += 2
        for field in range(n_fields):
            size = int.from_bytes(data[at : at + 4], signed=True)
            at += 4
            if field == 0:
                lsns.append(int.from_bytes(data[at : at + size]))
            at += max(size, 0)
    return lsns


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Set its `running`."""
    return Spy(monkeypatch)


@pytest.mark.parametrize("sync", ["interval", "os"])
async def test_no_store_gets_what_the_disk_does_not_have(
    start: Callable[..., Any], spy: Spy, stream: list[Transaction], redis_url: str, postgres_url: str,
    monkeypatch: pytest.MonkeyPatch, sync: str,
) -> None:  # fmt: skip
    """Transactions and labels without a pause, on a disk that is slow to sync: profiles, decisions, rows come after it."""
    running: Running = await start(
        f"redis.url={redis_url}", f"postgres.url={postgres_url}", f"journal.sync={sync}", "l1.bytes_max=65536",
        "write_behind.interval_ms=5", "l2.flush_interval_ms=10",
    )  # fmt: skip
    fsync = os.fsync

    def slow_fsync(descriptor: Any) -> None:
        time.sleep(FSYNC_S)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    spy.running = running
    for begin in range(0, len(stream), 20):
        await running.send(stream[begin : begin + 20])
        await running.label(stream[begin // 2].event_id)
        await asyncio.sleep(0.002)
    await asyncio.sleep(10 * FSYNC_S)
    assert spy.ahead == {}
    assert all(spy.n_seen.get(name, 0) > 100 for name in ("l2", "redis", "postgres", "decisions", "ledger")), spy.n_seen
    print(f"sync={sync}: LSNs seen on their way {spy.n_seen}")  # noqa: T201  # shown by -s
