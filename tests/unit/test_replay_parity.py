"""The core takes the journal apart as the reference does: the same rows, names, records, other entries, from any position."""

import asyncio
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from features.plan import Plan, compile_plan
from features.slab import Slab
from features.spec import load_spec
from features.transaction import CHANNELS, Transaction, blank
from gocore.locate import missing_core
from models.arena import Arena
from models.card import ARTIFACTS, MODEL_FILE
from models.go_scorer import GoScorer
from service import replay_go
from service.decisions import StoredDecision, encode_body
from service.journal import Journal, JournalCorrupt
from service.lists import ListChange
from service.records import (
    ERASURE,
    LABEL,
    LIST,
    TX,
    ErasureRecord,
    LabelRecord,
    encode_erasure,
    encode_label,
    encode_list_change,
    encode_outcome,
)
from service.replay import REFERENCE_ROWS, Chunk, ReferenceReplay, Replay
from service.replay_go import GoReplay

MISSING = missing_core()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

PLAN = compile_plan(load_spec("cards"))
MODEL = ARTIFACTS / "cards" / MODEL_FILE
BASE_MS = 1_750_000_000_000
EPOCHS = 3
CURRENCIES = list(PLAN.currencies)
Entries = list[tuple[int, bytes, bytes]]


@pytest.fixture
def rng() -> random.Random:
    """Seeded by SEED, which is printed."""
    seed = int(os.environ.get("SEED", "1"))
    print(f"SEED={seed}")  # noqa: T201  # pytest shows it with a failure
    return random.Random(seed)


@pytest.fixture(scope="module")
def scorer() -> GoScorer:
    return GoScorer(PLAN, MODEL)


class Content(NamedTuple):
    """All that a replay gives, with names in the place of numbers."""

    rows: list[tuple[Any, ...]]
    records: dict[bytes, bytes]
    others: list[tuple[int, int, int, bytes]]
    n_entries: int
    n_chunks: int


def random_tx(rng: random.Random, number: int) -> Transaction:
    """Any fields, any time; now and then an id that was erased, or one of many bytes."""
    card = rng.choice([f"c{rng.randrange(30)}", f"卡{rng.randrange(5)}", "x" * 128, "🂡" * 100, blank(f"c{rng.randrange(30)}")])
    maybe = rng.random
    place = maybe() < 0.5
    return Transaction(
        f"e{number}", BASE_MS + number * 1_000 - rng.choice([0, 0, 0, 10_000_000]), rng.randrange(10**rng.randrange(1, 11)),
        rng.choice(CURRENCIES), card, f"m{rng.randrange(9)}",
        f"d{rng.randrange(40)}" if maybe() < 0.6 else None, "2001:db8::1" if maybe() < 0.3 else None,
        rng.choice(["DE", "ZZ", "AA"]) if maybe() < 0.5 else None, rng.randrange(10_000) if maybe() < 0.5 else None,
        rng.choice(CHANNELS) if maybe() < 0.5 else None,
        rng.uniform(-90, 90) if place else None, rng.choice([rng.uniform(-180, 180), 180.0, -0.0]) if place else None,
    )  # fmt: skip


def random_entry(rng: random.Random, number: int) -> tuple[int, bytes, bytes]:
    tx = random_tx(rng, number)
    kind = rng.choices([TX, LABEL, LIST, ERASURE], [50, 3, 1, 1])[0]
    if kind == TX:
        degraded = ("redis", "postgres") if rng.random() < 0.1 else ()
        stored = StoredDecision(
            0, b"", rng.random(), "review", "m" * rng.randrange(40), "go", degraded, ("R1",) * rng.randrange(20)
        )
        return TX, encode_body(tx), encode_outcome(stored)
    if kind == LABEL:
        return LABEL, encode_label(LabelRecord("e1", "fraud", BASE_MS, 1, encode_body(tx), 7)), b""
    if kind == LIST:
        return LIST, encode_list_change(ListChange("deny", "card", "c1", "stolen", None)), b""
    return ERASURE, encode_erasure(ErasureRecord("card", "c1")), b""


def write_journal(directory: Path, rng: random.Random, n_entries: int) -> list[int]:
    """Several runs of a journal of small segments, blocks of any size and LSNs that were never used; returns the LSNs."""
    lsns: list[int] = []
    number = 0
    for _ in range(EPOCHS):
        journal = Journal.open(directory, sync="os", segment_bytes=64 * 1024)
        while number < n_entries * (len({lsn >> 48 for lsn in lsns} | {journal.next_lsn >> 48})) // EPOCHS:
            size = rng.choice([1, 1, 1, 2, 7, rng.randrange(1, 400)])
            if rng.random() < 0.1:
                journal.burn(rng.randrange(1, 50))
            first = journal.append([random_entry(rng, number + i) for i in range(size)])
            lsns += range(first, first + size)
            number += size
        asyncio.run(journal.close())
    return lsns


def arenas(rows: int, plan: Plan = PLAN) -> list[Arena]:
    return [Arena(plan, [Slab(kind, 4) for kind in plan.kinds], rows) for _ in range(2)]


def drain(replay: Replay) -> Content:
    """Names are looked up as recovery does: new ones follow the ones before, or begin anew."""
    content = Content([], {}, [], 0, 0)
    names: list[list[str]] = [[] for _ in PLAN.kinds]
    n_entries = n_chunks = 0
    while (chunk := replay.next()) is not None:
        names = [new if chunk.anew else known + new for known, new in zip(names, chunk.new_ids, strict=True)]
        check_chunk(chunk, names)
        slots = chunk.arena.slots[: chunk.n_rows].tolist()
        lsns, columns = chunk.arena.lsns[: chunk.n_rows].tolist(), chunk.arena.columns[: chunk.n_rows].tolist()
        for lsn, numbers, values in zip(lsns, slots, columns, strict=True):
            ids = [None if n < 0 else known[n] for known, n in zip(names, numbers, strict=True)]
            content.rows.append((lsn, *ids, *values))
        content.records.update(chunk.records)
        base = len(content.rows) - chunk.n_rows
        content.others.extend((base + row, entry.lsn, entry.kind, entry.body) for row, entry in chunk.others)
        n_entries += chunk.n_entries
        n_chunks += 1
    return content._replace(n_entries=n_entries, n_chunks=n_chunks)


def check_chunk(chunk: Chunk, names: Sequence[Sequence[str]]) -> None:
    """Distinct numbers, each with the first of its rows, in the order of those."""
    for kind, known in enumerate(names):
        column = chunk.arena.slots[: chunk.n_rows, kind].tolist()
        distinct = list(dict.fromkeys(number for number in column if number >= 0))
        assert chunk.numbers[kind].tolist() == distinct
        assert chunk.first_rows[kind].tolist() == [column.index(number) for number in distinct]
        assert len(set(known)) == len(known)
    assert chunk.n_entries == chunk.n_rows + len(chunk.others)


def both(
    journal: Journal, scorer: GoScorer, position: int, decisions_position: int, rows: int, ids_max: int
) -> Iterator[Callable[[], Content]]:
    """The reference and the core over the same journal."""
    start = min(position, decisions_position)
    reference = ReferenceReplay(PLAN, arenas(REFERENCE_ROWS), journal.read(start + 1), position, decisions_position)
    yield lambda: drain(reference)
    own = arenas(rows)
    splitter = scorer.splitter(own, ids_max)
    core = GoReplay(PLAN, splitter, own, journal.segments(), journal.read, position, decisions_position, journal.last_lsn)
    yield lambda: drain(core)


@pytest.mark.parametrize("read_bytes", [1_024, 50_000, 4 << 20])
def test_core_gives_what_the_reference_gives(
    tmp_path: Path, rng: random.Random, scorer: GoScorer, monkeypatch: pytest.MonkeyPatch, read_bytes: int
) -> None:
    """From any two positions, in chunks of any size, with few numbers for ids; without once asking the reference."""
    monkeypatch.setattr(replay_go, "READ_BYTES", read_bytes)
    lsns = write_journal(tmp_path, rng, 3_000)
    journal = Journal.open(tmp_path, sync="os")
    monkeypatch.setattr(GoReplay, "_leave", lambda self, problem: pytest.fail(problem))
    for rows, ids_max in ((1, 1), (7, 10), (100, 60), (4_096, 1 << 19)):
        pick = [0, lsns[-1], rng.choice(lsns), rng.choice(lsns), rng.choice(lsns) + 1_000]
        position, decisions_position = rng.choice(pick), rng.choice(pick)
        reference, core = (run() for run in both(journal, scorer, position, decisions_position, rows, ids_max))
        start = min(position, decisions_position)
        assert core.n_entries == reference.n_entries == sum(lsn > start for lsn in lsns)
        assert core.rows == reference.rows
        assert core.others == reference.others
        assert core.records == reference.records
        n_tx_above = sum(row[0] > decisions_position for row in reference.rows)
        assert len(reference.records) == n_tx_above
    journal.abandon()


def test_no_chunk_spans_a_position(tmp_path: Path, rng: random.Random, scorer: GoScorer) -> None:
    """So one look at a chunk's last LSN tells whether all of it is to be applied."""
    lsns = write_journal(tmp_path, rng, 600)
    journal = Journal.open(tmp_path, sync="os")
    position, decisions_position = lsns[200], lsns[400] + 1
    own = arenas(4_096)
    core = GoReplay(
        PLAN, scorer.splitter(own), own, journal.segments(), journal.read, position, decisions_position, journal.last_lsn
    )
    reference = ReferenceReplay(PLAN, arenas(REFERENCE_ROWS), journal.read(position + 1), position, decisions_position)
    for replay in (core, reference):
        after = position
        while (chunk := replay.next()) is not None:
            first = min([*chunk.arena.lsns[: chunk.n_rows].tolist(), *(entry.lsn for _, entry in chunk.others)])
            assert after < first <= chunk.last_lsn
            assert not first <= decisions_position < chunk.last_lsn
            after = chunk.last_lsn
        assert after == lsns[-1]
    journal.abandon()


@pytest.mark.parametrize("where", ["block", "checksum", "segment header", "missing segment", "shorter"])
def test_damage_is_told_in_the_words_of_the_reference(tmp_path: Path, rng: random.Random, scorer: GoScorer, where: str) -> None:
    """A journal that was damaged after its start: the same error from both, naming LSN, file and byte."""
    write_journal(tmp_path, rng, 3_000)
    journal = Journal.open(tmp_path, sync="os")
    victim = sorted(tmp_path.glob("*.seg"))[3]
    data = bytearray(victim.read_bytes())
    if where == "missing segment":
        victim.unlink()
    else:
        at = {"block": 24, "checksum": 24 + 60, "segment header": 9, "shorter": 0}[where]
        data[at] ^= 0x55
        victim.write_bytes(data[:1_000] if where == "shorter" else data)
    told = []
    for run in both(journal, scorer, 0, 0, 512, 1 << 19):
        with pytest.raises((JournalCorrupt, FileNotFoundError)) as caught:
            run()
        told.append(str(caught.value))
    assert told[0] == told[1]
    journal.abandon()


@pytest.mark.parametrize("odd", ["unknown field", "line feed in an id", "unknown currency", "longer outcome"])
def test_entry_that_the_core_does_not_take_is_left_to_the_reference(
    tmp_path: Path, rng: random.Random, scorer: GoScorer, odd: str
) -> None:
    """What comes after it too: the same content, or the same error."""
    journal = Journal.open(tmp_path, sync="os")
    entries = [random_entry(rng, number) for number in range(50)]
    tx = random_tx(rng, 1_000)
    body, outcome = encode_body(tx), encode_outcome(StoredDecision(0, b"", 0.5, "approve", "m", "go", (), ()))
    if odd == "line feed in an id":
        body = encode_body(msgspec.structs.replace(tx, merchant_id="a\nb"))
    elif odd == "unknown currency":
        body = encode_body(msgspec.structs.replace(tx, currency="XXX"))
    elif odd == "unknown field":
        body = msgspec.msgpack.encode(msgspec.to_builtins(tx) | {"colour": "red"})
    else:
        outcome = msgspec.msgpack.encode((0.5, "approve", "m", "go", (), (), "added later"))
    journal.append(entries[:30])
    journal.append([*entries[30:40], (TX, body, outcome), *entries[40:]])
    results: list[Content | str] = []
    for run in both(journal, scorer, 0, 0, 512, 1 << 19):
        try:
            results.append(run()._replace(n_chunks=0))
        except (msgspec.ValidationError, ValueError) as error:
            results.append(repr(error))
    assert results[0] == results[1]
    assert isinstance(results[0], str) == (odd in ("unknown field", "unknown currency"))
    journal.abandon()
