"""Blocks to rows of the ledger in the core: what cannot be a job is refused, and no bytes, however damaged, do harm."""

import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from features.transaction import Transaction
from gocore.binding import Core, load_core
from gocore.errors import BadArgument
from gocore.ledger_rows import BEYOND, FULL, LEFT, MORE, LedgerRows
from gocore.locate import missing_core
from service.decisions import StoredDecision, encode_body
from service.journal import LABEL, TX, Journal
from service.records import encode_outcome

MISSING = missing_core()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

HEADER_BYTES = 24
LSN_MAX = (1 << 63) - 1
FIRST_LSN = (1 << 48) | 1
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

Bytes = npt.NDArray[np.uint8]


def entry(number: int) -> tuple[int, bytes, bytes]:
    tx = Transaction(f"e{number}", 1_750_000_000_000, number, "EUR", "c1", "mérchant", channel="pos")
    return TX, encode_body(tx), encode_outcome(StoredDecision(0, b"", 0.5, "approve", "m", "go", (), ("R1",)))


@pytest.fixture(scope="module")
def core() -> Core:
    return load_core()


@pytest.fixture
def blocks(tmp_path: Path) -> Bytes:
    """Three blocks of four transactions, then a label."""
    journal = Journal.open(tmp_path, sync="os")
    for start in (0, 4, 8):
        journal.append([entry(number) for number in range(start, start + 4)])
    journal.append([(LABEL, b"label", b"")])
    journal.abandon()
    (segment,) = tmp_path.glob("*.seg")
    return np.frombuffer(segment.read_bytes()[HEADER_BYTES:], dtype=np.uint8).copy()


def fields(data: memoryview) -> list[list[bytes]]:
    """The tuples of a COPY, whose header and trailer have to be right."""
    assert data[: len(HEADER)] == HEADER
    assert data[-2:] == TRAILER
    rows, at = [], len(HEADER)
    while at < len(data) - len(TRAILER):
        (n,), at = struct.unpack_from(">h", data, at), at + 2
        row = []
        for _ in range(n):
            (size,), at = struct.unpack_from(">i", data, at), at + 4
            row.append(bytes(data[at : at + size]))
            at += size
        rows.append(row)
    return rows


def test_ledger_rows_of_a_segment_have_every_column(core: Core, blocks: Bytes) -> None:
    """Whole blocks up to the label; the calls of one chunk stand behind each other."""
    rows = LedgerRows(core, 1_000, 1 << 16)
    made = rows.add(blocks, 0, FIRST_LSN, LSN_MAX)
    assert (made.state, made.before, rows.n_rows) == (LEFT, FIRST_LSN + 11, 11)
    found = fields(rows.finish())
    kind, body, _ = entry(1)
    assert kind == TX
    assert found[0] == [
        struct.pack(">q", FIRST_LSN + 1), b"e1", struct.pack(">q", 1_750_000_000_000), b"c1", "mérchant".encode(),
        struct.pack(">q", 1), b"EUR", struct.pack(">d", 0.5), b"approve", b"m", b"go",
        struct.pack(">iiiii", 1, 0, 25, 1, 1) + struct.pack(">i", 2) + b"R1", body,
    ]  # fmt: skip
    rows.add(blocks, 0, 0, FIRST_LSN + 3)
    assert len(fields(rows.finish())) == rows.n_rows == 15
    rows.begin()
    assert fields(rows.finish()) == []


def test_ledger_rows_stop_where_they_have_to(core: Core, blocks: Bytes) -> None:
    """At the bound, where there is no room, and where the bytes end in the middle of a block."""
    rows = LedgerRows(core, 8, 1 << 16)
    assert rows.add(blocks, 0, 0, FIRST_LSN + 6).state == BEYOND
    assert rows.n_rows == 4
    assert rows.add(blocks, 0, 0, LSN_MAX).state == FULL
    assert rows.n_rows == 8
    assert LedgerRows(core, 8, 100).add(blocks, 0, 0, LSN_MAX) == (0, 0, FULL)
    rows.begin()
    assert (rows.add(blocks[:-60], 0, 0, LSN_MAX).state, rows.n_rows) == (MORE, 8)
    assert LedgerRows(core, 100, 1 << 16).add(blocks[:100], 0, 0, LSN_MAX) == (0, 0, MORE)
    assert LedgerRows(core, 100, 1 << 16).add(blocks[:0], 7, 0, LSN_MAX) == (0, 7, MORE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"blocks": None}, {"out": None}, {"blocks_size": -1}, {"out_size": -1}, {"blocks_size": 1 << 40}, {"out_size": 1 << 40},
        {"rows_max": 0}, {"rows_max": -5}, {"rows_max": 1 << 40}, {"before_lsn": -1}, {"from_lsn": -1}, {"to_lsn": -1},
    ],
)  # fmt: skip
def test_ledger_job_that_cannot_be_is_refused_and_nothing_written(core: Core, blocks: Bytes, wrong: dict[str, Any]) -> None:
    """Pointers, sizes, LSNs: a status, not a crash."""
    out = np.full(1 << 16, 7, dtype=np.uint8)
    job = core.new_job("weir_ledger_job", {"blocks": blocks, "out": out})
    job.blocks_size, job.out_size, job.rows_max, job.to_lsn = blocks.size, out.size, 100, LSN_MAX
    nothing = core.new_job("weir_ledger_job", {})
    for name, value in wrong.items():
        setattr(job, name, getattr(nothing, name) if value is None else value)
    with pytest.raises(BadArgument):
        core.ledger_rows(job)
    assert (out == 7).all()
    assert job.rows == job.taken == 0


def test_ledger_rows_of_damaged_bytes_are_none_or_those_of_whole_blocks(core: Core, blocks: Bytes) -> None:
    """Flipped, cut and random bytes: the blocks before the damage come out as they are, nothing else."""
    seed = int(os.environ.get("SEED", "1"))
    print(f"SEED={seed}")  # noqa: T201  # pytest shows it with a failure
    rng = random.Random(seed)
    rows = LedgerRows(core, 1_000, 1 << 16)
    rows.add(blocks, 0, 0, LSN_MAX)
    right = fields(rows.finish())
    for _ in range(2_000):
        bad = blocks.copy()
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(bad.size)] ^= rng.randint(1, 255)
        bad = bad[: rng.randint(0, bad.size)]
        rows.begin()
        made = rows.add(bad, 0, 0, LSN_MAX)
        assert made.taken <= bad.size
        assert fields(rows.finish()) == right[: rows.n_rows]
        assert rows.n_rows % 4 == 0
    for _ in range(2_000):
        noise = np.frombuffer(rng.randbytes(rng.randint(0, 200)), dtype=np.uint8)
        rows.begin()
        rows.add(noise, rng.getrandbits(63), rng.getrandbits(63), rng.getrandbits(63))
        assert fields(rows.finish()) == []
