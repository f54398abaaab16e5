"""The soak's instruments: slopes with honest intervals, causes of incidents, recounts; what they are to find, they find."""

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from features.plan import Plan, compile_plan
from features.spec import load_spec
from features.transaction import Transaction
from loadgen.soak.book import Ack, Book
from loadgen.soak.check import (
    Recount,
    Told,
    check_events,
    check_ledger,
    check_profiles,
)
from loadgen.soak.holdings import LedgerRow
from loadgen.soak.journal_file import ERASURE, LABEL, TX, JournalFileError, read_blocks
from loadgen.soak.places import Life, Sample
from loadgen.soak.run import memory_of
from loadgen.soak.slope import Slope, fit, pooled
from service.decisions import StoredDecision, encode_body
from service.journal import Journal
from service.records import ErasureRecord, LabelRecord, encode_erasure, encode_label, encode_outcome

HOUR_S = 3_600
N = 600


def noise(draw: np.random.Generator, r: float) -> list[float]:
    """N values of mean 0 whose neighbours correlate by r, one MiB wide."""
    values, value = [], 0.0
    for step in draw.normal(0, (1 - r * r) ** 0.5, N):
        value = r * value + float(step)
        values.append(value)
    return values


@pytest.mark.parametrize("r", [0.0, 0.9])
def test_fit_interval_holds_the_true_slope_nineteen_times_in_twenty(r: float) -> None:
    """Also where neighbours resemble each other: an interval that counted every sample would miss it half of the time."""
    draw = np.random.default_rng(4117)
    seconds = [float(n) for n in range(N)]
    hits = 0
    for _ in range(300):
        slope = fit(seconds, [30.0 * s / HOUR_S + v for s, v in zip(seconds, noise(draw, r), strict=True)])
        assert slope.low is not None
        assert slope.high is not None
        hits += slope.low <= 30.0 <= slope.high
    assert hits >= 300 * 0.88


def test_fit_tells_growth_from_flat() -> None:
    """A leak of 100 MiB an hour is found in ten minutes; a flat line is flat; a wide one is neither."""
    draw = np.random.default_rng(1)
    seconds = [float(n) for n in range(N)]
    flat = noise(draw, 0.5)
    leaking = [v + 100.0 * s / HOUR_S for s, v in zip(seconds, flat, strict=True)]
    assert fit(seconds, leaking).verdict(20.0) == "grows"
    assert fit(seconds, flat).verdict(20.0) == "flat"
    assert fit(seconds, [50 * v for v in flat]).verdict(20.0) == "undecided"


@pytest.mark.parametrize("n", [0, 1, 2, 4])
def test_fit_of_few_samples_says_so(n: int) -> None:
    """No interval from nothing."""
    assert fit([float(k) for k in range(n)], [1.0, 5.0, 2.0, 8.0][:n]).verdict(20.0) == "too short"


def test_fit_of_a_straight_line_is_exact() -> None:
    """10 MiB a second."""
    slope = fit([0.0, 1.0, 2.0, 3.0], [0.0, 10.0, 20.0, 30.0])
    assert slope.per_hour == pytest.approx(36_000)
    assert slope.verdict(20.0) == "grows"


def test_pooled_is_surer_than_each_and_ignores_what_says_nothing() -> None:
    """Two lives of the same slope: the interval is narrower by the square root of two."""
    one = Slope(100, 50.0, 10.0, -10.0, 30.0)
    both = pooled([one, one, Slope(2, 2.0, 5.0, None, None)])
    assert both.per_hour == pytest.approx(10.0)
    assert both.high == pytest.approx(10 + 20 / 2**0.5)
    assert pooled([]).verdict(20.0) == "too short"


def test_memory_of_a_life_leaves_its_beginning_out_and_ends_with_its_last_sample() -> None:
    """Caches fill for two minutes; the comparison at the end, in which nobody samples, does not count; a short life says so."""
    values = noise(np.random.default_rng(2), 0.5)
    samples = [Sample(float(n), 100 + 5 * min(n, 100) + values[n], 60, 16) for n in range(400)]
    long = memory_of(Life(0.0, 1.0, 1, samples, ended_s=2_000.0, ending="SIGTERM"), 100.0)
    assert (long.left_out_s, long.rss.n, long.verdict) == (120.0, 280, "flat")
    short = memory_of(Life(0.0, 1.0, 1, samples[:150], ended_s=150.0, ending="SIGKILL"), 100.0)
    assert (short.left_out_s, short.verdict) == (74.5, "too short")
    assert memory_of(Life(0.0, 1.0, 1, [], ended_s=1.0, ending="SIGKILL"), 100.0).verdict == "too short"


def test_incidents_are_explained_by_the_fault_that_may_cause_them_and_by_no_other() -> None:
    """Kind and time have to fit both."""
    book = Book()
    book.note("lost", book.clock_s(), "before")
    fault = book.begin("restart", ["lost"])
    book.note("lost", book.clock_s(), "during")
    book.note("degraded redis", book.clock_s(), "not of a restart")
    book.end(fault)
    book.note("lost", fault.ended_s + 1e-9, "after")
    assert [(i.detail, i.cause) for i in book.explained()] == [
        ("before", None), ("during", "restart"), ("not of a restart", None), ("after", None),
    ]  # fmt: skip


def test_a_second_answer_that_differs_is_a_violation() -> None:
    """The same event, another LSN; or the same but not marked as replayed."""
    book = Book()
    tx = transactions(1)[0]
    reply = {"lsn": 5, "score": 0.5, "outcome": "approve", "replayed": False, "degraded": ["redis"]}
    book.decided(tx, reply, 0.0)
    book.decided(tx, reply | {"replayed": True}, 0.0)
    assert book.n_violations == 0
    assert [i.kind for i in book.incidents] == ["degraded redis"]
    book.decided(tx, reply | {"replayed": True, "lsn": 6}, 0.0)
    book.decided(tx, reply, 0.0)
    assert book.n_violations == 2


def transactions(n: int) -> list[Transaction]:
    """Of three cards and two merchants, 90 s apart, every fifth one late."""
    draw = random.Random(7)
    return [
        Transaction(
            event_id=f"e-{k}", ts=1_750_000_000_000 + k * 90_000 - 400_000 * (k % 5 == 4), amount=100 + k, currency="EUR",
            card_id=f"c{draw.randrange(3)}", merchant_id=f"m{draw.randrange(2)}",
        )
        for k in range(n)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Of the cards spec."""
    return compile_plan(load_spec("cards"))


@pytest.fixture
async def journaled(tmp_path: Path) -> tuple[Book, Path]:
    """A book of 60 events, two labels and an erasure, and the journal that the service's own code wrote of the same."""
    book, txs = Book(), transactions(60)
    journal = Journal.open(tmp_path / "journal", sync="os", epoch_floor=3)
    for start in range(0, 60, 4):
        made = [StoredDecision(0, encode_body(tx), 0.25, "approve", "m", "go", (), ()) for tx in txs[start : start + 4]]
        first = journal.append([(TX, one.body, encode_outcome(one)) for one in made])
        for number, tx in enumerate(txs[start : start + 4]):
            book.sent[tx.event_id] = tx
            book.acks[tx.event_id] = Ack(first + number, 0.25, "approve")
        if start == 20:
            for tx in txs[:2]:
                ack = book.acks[tx.event_id]
                record = LabelRecord(tx.event_id, "fraud", 1, 1, encode_body(tx), ack.lsn)
                journal.append([(LABEL, encode_label(record), b"")])
                book.labels[tx.event_id] = "fraud"
            lsn = journal.append([(ERASURE, encode_erasure(ErasureRecord("card", "c1")), b"")])
            book.erasures.append((lsn, "card", "c1"))
    await journal.close()
    return book, tmp_path / "journal"


def rows_of(book: Book) -> list[LedgerRow]:
    """A ledger that is as it should be."""
    marks = {None: None, "fraud": 1, "legit": 0}
    return [
        LedgerRow(ack.lsn, e, book.sent[e].amount, ack.score, ack.outcome, marks[book.labels.get(e)])
        for e, ack in book.acks.items()
    ]


def test_own_reader_reads_the_services_journal(journaled: tuple[Book, Path]) -> None:
    """Entries in the order of LSNs, of every kind; a flipped byte is noticed."""
    book, path = journaled
    entries = [entry for block in read_blocks(path) for entry in block]
    assert [e.lsn for e in entries if e.kind == TX] == [ack.lsn for ack in book.acks.values()]
    assert [e.kind for e in entries if e.kind != TX] == [LABEL, LABEL, ERASURE]
    segment = max(path.glob("*.seg"), key=lambda p: p.stat().st_size)
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    with pytest.raises(JournalFileError, match="damaged"):
        list(read_blocks(path))


def test_equal_tellings_have_no_problems(journaled: tuple[Book, Path], plan: Plan) -> None:
    """The book, the journal and a ledger of the same run."""
    book, path = journaled
    told = Told(plan, path, book)
    assert check_events(book, told) == []
    assert check_ledger(book, told, rows_of(book)) == []
    assert check_profiles("redis", told.profiles(), told.profiles()) == []


def test_each_loss_and_each_change_is_found(journaled: tuple[Book, Path], plan: Plan) -> None:
    """An event missing here or there, another LSN, a label, an amount, a row twice, a byte of a profile."""
    book, path = journaled
    told, rows = Told(plan, path, book), rows_of(book)
    ack = book.acks.pop("e-7")
    assert "journaled were not acknowledged" in check_events(book, told)[0]
    book.acks["e-7"] = Ack(ack.lsn + 1, ack.score, ack.outcome)
    assert "e-7: answered" in check_events(book, told)[0]
    book.acks["e-7"], book.labels["e-0"] = ack, "legit"
    assert "labelled legit, journaled fraud" in check_events(book, told)[0]
    assert "are not in the ledger" in check_ledger(book, told, rows[1:])[0]
    assert "rows of" in check_ledger(book, told, [*rows, rows[3]])[0]
    assert "in the ledger" in check_ledger(book, told, [msgspec.structs.replace(rows[0], amount=1), *rows[1:]])[0]
    assert (
        "label None in the journal"
        in check_ledger(book, told, [*rows[:9], msgspec.structs.replace(rows[9], label=0), *rows[10:]])[0]
    )
    profiles = told.profiles()
    key = next(iter(profiles))
    wrong = profiles | {key: profiles[key][:-1] + bytes([profiles[key][-1] ^ 1])}
    assert "1 of" in check_profiles("redis", profiles, wrong)[0]
    assert "were not" in check_profiles("redis", {}, profiles)[0]
    tombstone = bytearray(profiles[key])
    tombstone[2] |= 2
    assert check_profiles("redis", {}, {key: bytes(tombstone)}) == []


def test_recount_equals_the_engines_windows_and_finds_one_too_many(journaled: tuple[Book, Path], plan: Plan) -> None:
    """Counts by the book, with late events and an erasure, against those that the reference engine keeps."""
    book, path = journaled
    profiles, recount = Told(plan, path, book).profiles(), Recount(plan, book)
    assert {f"{kind}:{entity}".encode() for kind, entity in recount.entities} == profiles.keys()
    for kind_name, entity in recount.entities:
        kind = next(kind for kind in plan.kinds if kind.name == kind_name)
        words = np.frombuffer(profiles[f"{kind_name}:{entity}".encode()], dtype="<i8")
        counts = {w.name: {"count": int(words[w.word])} for ring in kind.rings for w in ring.windows if w.code == 0}
        assert recount.differs(kind_name, entity, {"windows": counts}) == ""
        name = next(iter(counts))
        counts[name]["count"] += 1
        assert name in recount.differs(kind_name, entity, {"windows": counts})
