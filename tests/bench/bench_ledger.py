"""What the ledger costs a row: CPU of this process, of its loop's thread, and of Postgres, by the reference and by the core.

`python tests/bench/bench_ledger.py [--rows N] [--block N] [--json]`. A journal is filled from a fixed seed, then the feed ships
it to an embedded Postgres that is empty, once in each way, the journal in the page cache. `held_ms` is the longest CPU time of
one turn of the loop. It does not show contention: nothing is scored meanwhile, and both sides share whatever cores are left.
"""

import argparse
import asyncio
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import numpy as np
import psutil
import uvloop

from features.transaction import CHANNELS, Transaction
from service.decisions import StoredDecision, encode_body
from service.embedded import EmbeddedServers
from service.journal import TX, Journal
from service.ledger import Ledger
from service.ledger_chunks import open_maker
from service.ledger_feed import LedgerFeed
from service.records import encode_outcome
from service.tiers.postgres import PostgresPool

SEED = 4117
OUTCOMES = ("approve", "review", "decline")


def fill(journal: Journal, n_rows: int, block: int) -> None:
    """`n_rows` transactions of all 13 fields with their decisions, in blocks of `block`."""
    rng = np.random.default_rng(SEED)
    cards, amounts = rng.integers(0, 100_000, n_rows).tolist(), rng.lognormal(8, 1, n_rows).astype(int).tolist()
    scores = rng.random(n_rows).astype(np.float32).tolist()
    entries = []
    for i in range(n_rows):
        tx = Transaction(
            f"event-{i:012d}", 1_750_000_000_000 + i, amounts[i], "EUR", f"card-{cards[i]:08d}", f"merchant-{cards[i] % 999}",
            device_id=f"device-{cards[i]:08d}", ip=f"10.0.{cards[i] % 250}.{i % 250}", country="DE", mcc=5411,
            channel=CHANNELS[i % 3], lat=52.5, lon=13.4,
        )  # fmt: skip
        reasons = ("AMOUNT_HIGH", "CARD_NEW") if i % 10 == 0 else ()
        stored = StoredDecision(0, b"", scores[i], OUTCOMES[i % 3], "cards-1", "go", (), reasons)
        entries.append((TX, encode_body(tx), encode_outcome(stored)))
    for start in range(0, n_rows, block):
        journal.append(entries[start : start + block])


async def watch(held: list[float]) -> None:
    """Note the longest turn of the loop."""
    last = time.thread_time()
    while True:
        await asyncio.sleep(0)
        now = time.thread_time()
        held[0] = max(held[0], now - last)
        last = now


async def measure(
    way: str, directory: Path, url: str, n_rows: int, postgres: psutil.Process, *, watched: bool
) -> dict[str, float]:
    """Ship the journal in `directory` to a database of its own."""
    name = f"ledger_{way}_{int(watched)}"
    connection = await asyncpg.connect(url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    journal = Journal.open(directory, sync="os")
    journal.start()
    pool = PostgresPool(url.replace("/postgres?", f"/{name}?"))
    await pool.open()
    feed = LedgerFeed(Ledger(pool), journal, 0, 1_000, None if way == "reference" else open_maker())
    held = [0.0]
    watcher = asyncio.get_running_loop().create_task(watch(held)) if watched else None
    before, cpu, thread, wall = _cpu_of(postgres), time.process_time(), time.thread_time(), time.perf_counter()
    await feed.ship()
    found = {
        "process_us": (time.process_time() - cpu) / n_rows * 1e6,
        "loop_us": (time.thread_time() - thread) / n_rows * 1e6,
        "postgres_us": (_cpu_of(postgres) - before) / n_rows * 1e6,
        "rows_per_s": n_rows / (time.perf_counter() - wall),
    }
    if watcher is not None:
        watcher.cancel()
        found = {"held_ms": held[0] * 1e3}
    async with pool.connection(60_000) as connection:
        stored = await connection.fetchrow(
            "SELECT count(*), sum(lsn % 1000003), md5(string_agg(tx::text, '' ORDER BY lsn)) FROM weir_ledger"
        )
    assert stored[0] == n_rows, f"{stored[0]} rows of {n_rows}"
    print(f"{way}: checksum {stored[1]} {stored[2]}", file=sys.stderr)  # noqa: T201
    await pool.close()
    journal.abandon()
    return found


def _cpu_of(server: psutil.Process) -> float:
    """s of CPU of a Postgres: of its processes now, and of those that ended."""
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return float(sum(t.user + t.system for t in times) + times[0].children_user + times[0].children_system)


async def run(n_rows: int, block: int) -> dict[str, dict[str, float]]:
    """Both ways: CPU first, then once more with somebody who watches the loop, which costs CPU itself."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as directory:
        journal = Journal.open(Path(directory) / "journal", sync="os")
        fill(journal, n_rows, block)
        journal.abandon()
        servers = await EmbeddedServers.start(Path(directory) / "servers")
        postgres = next(p for p in map(psutil.Process, servers.pids) if "postgres" in p.name())
        try:
            for way in ("reference", "core"):
                for watched in (False, True):
                    args = way, Path(directory) / "journal", servers.postgres_url, n_rows, postgres
                    found.setdefault(way, {}).update(await measure(*args, watched=watched))
        finally:
            await servers.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU per row of the ledger")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = uvloop.run(run(arguments.rows, arguments.block))
    if arguments.json:
        print(json.dumps({"rows": arguments.rows, "machine": platform.platform(), "found": found}))  # noqa: T201
        return
    for way, numbers in found.items():
        print(way, *(f"{name}={value:.2f}" for name, value in numbers.items()), sep="  ")  # noqa: T201


if __name__ == "__main__":
    main()
