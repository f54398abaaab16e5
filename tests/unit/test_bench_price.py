"""`weir bench price` without servers: pairs and shares, parts, arms, the file system, the launcher that breaks the promise."""

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest

from loadgen.bench.children import BenchError
from loadgen.bench.file_system import file_system, is_memory, probe_sync
from loadgen.bench.price.commands import parse_flips, parse_price_arms
from loadgen.bench.price.flip_result import FlipPrice, Pair, middle, verdict
from loadgen.bench.price.flip_result import make_prices as make_flip_prices
from loadgen.bench.price.result import (
    ARMS,
    CONTROL,
    L3,
    NEITHER,
    NO_LEDGER,
    SERVE,
    TIMED,
    PriceSample,
    make_parts,
    make_prices,
    quartiles,
)
from service.errors import StartError
from service.journal import TX
from service.pieces import Pieces
from service.price_arm import NoIndex, NoJournal, Stopwatch, check_empty
from service.price_arm import main as price_arm


def _sample(
    arm: str, number: int, cpu_us: float, parts: dict[str, float] | None = None, connections: int = 1, rocksdb_us: float = 2.0,
    requests: int = 1,
) -> PriceSample:  # fmt: skip
    return PriceSample(
        arm=arm, connections=connections, round=number, requests=requests, requests_per_s=1.0, p50_us=1.0, p99_us=1.0,
        cpu_us=cpu_us, loop_us=cpu_us - rocksdb_us - 1, rocksdb_us=rocksdb_us, other_us=1.0, parts_us=parts or {},
        rows_per_block=None, errors=0, error_example="",
    )  # fmt: skip


def test_price_is_the_median_of_what_each_round_says() -> None:
    """A machine that is twice as slow in one round doubles both sides of that round's pair, and of no other."""
    samples = [_sample(SERVE, 0, 100.0), _sample(NEITHER, 0, 90.0), _sample(SERVE, 1, 200.0), _sample(NEITHER, 1, 160.0)]
    samples += [_sample(NEITHER, 2, 80.0), _sample(SERVE, 2, 100.0), _sample(NEITHER, 3, 1.0)]  # the last has no partner
    (price,) = make_prices(samples)
    assert (price.arm, price.of, price.connections, price.pairs) == (NEITHER, SERVE, 1, 3)
    assert (price.cpu_us, price.without_us, price.price_us) == (100.0, 90.0, 20.0)
    assert price.price_us_range == (10.0, 40.0)
    assert price.price_us_quartiles == (15.0, 30.0)
    assert price.share == 0.2
    assert (price.loop_us, price.rocksdb_us, price.other_us) == (20.0, 0.0, 0.0)


def test_compaction_is_paid_by_all_requests_of_its_arm() -> None:
    """What RocksDB compacts in one load came from all four: the requests of each of them cost a quarter of it."""
    samples = [_sample(NEITHER, number, 52.0) for number in range(4)]
    samples += [_sample(SERVE, number, 60.0, None, 1, 0.0, 100) for number in range(3)]
    samples.append(_sample(SERVE, 3, 100.0, None, 1, 40.0, 100))
    (price,) = make_prices(samples)
    assert (price.cpu_us, price.without_us, price.price_us, price.rocksdb_us) == (70.0, 52.0, 18.0, 8.0)
    assert price.price_us_range == (18.0, 18.0)


def test_each_arm_is_compared_with_its_own_whole() -> None:
    """What runs beside L3 is compared with what has L3 too; numbers of connections are not mixed."""
    samples = [
        _sample(SERVE, 0, 100.0),
        _sample(L3, 0, 130.0),
        _sample(NO_LEDGER, 0, 120.0),
        _sample(CONTROL, 0, 99.0, None, 64),
    ]
    assert [(p.arm, p.of, p.price_us) for p in make_prices(samples)] == [(NO_LEDGER, L3, 10.0)]


def test_parts_are_medians_dearest_first() -> None:
    """Shares are of a request to the service that nobody times."""
    samples = [_sample(SERVE, n, 100.0) for n in range(3)]
    samples += [_sample(TIMED, n, 300.0, {"look-up": 1.0 + n, "append": 10.0 - n}) for n in range(3)]
    parts = make_parts(samples)
    assert [(p.part, p.us, p.us_min, p.us_max, p.share) for p in parts] == [
        ("append", 9.0, 8.0, 10.0, 0.09),
        ("look-up", 2.0, 1.0, 3.0, 0.02),
    ]
    assert [p.share for p in make_parts(samples[3:])] == [None, None]


def test_quartiles_of_one_value_are_that_value() -> None:
    """One pair has no spread."""
    assert quartiles([1.234], 2) == (1.23, 1.23)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0], 2) == (2.0, 4.0)


@pytest.mark.parametrize(
    ("text", "expected"), [("all", ARMS), ("timed", (TIMED,)), (f"{NO_LEDGER};", (L3, NO_LEDGER)), (NEITHER, (SERVE, NEITHER))]
)
def test_arms_bring_what_they_are_compared_with(text: str, expected: tuple[str, ...]) -> None:
    """An arm alone would have no price."""
    assert parse_price_arms(text) == expected


@pytest.mark.parametrize("text", ["", ";", "weir serve, timed", "all;nothing"])
def test_unknown_arms_are_refused(text: str) -> None:
    """A wrong name is refused with the right ones."""
    with pytest.raises(BenchError, match="expected some of weir serve; control"):
        parse_price_arms(text)


def test_file_system_in_memory_is_told_from_a_disk() -> None:
    """/dev/shm is memory, /proc is neither; a path that is not there yet is where its parent is."""
    if not Path("/dev/shm").is_mount():
        pytest.skip("no /dev/shm here")
    assert file_system(Path("/dev/shm/not/there")) == "tmpfs"
    assert is_memory(Path("/dev/shm"))
    assert file_system(Path("/proc/1")) == "proc"
    assert not is_memory(Path("/proc"))


def test_probe_measures_and_leaves_nothing(tmp_path: Path) -> None:
    """An fsync takes some time; its file is gone afterwards."""
    probe = probe_sync(tmp_path)
    assert 0 < probe.p50_us <= probe.max_us
    assert list(tmp_path.iterdir()) == []


def test_directory_that_is_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The launcher loses what it is given, so it takes nobody's data: only a directory with keys, or with nothing."""
    check_empty(tmp_path / "new")
    (tmp_path / "keys.json").touch()
    (tmp_path / "keys.lock").touch()
    check_empty(tmp_path)
    (tmp_path / "journal").mkdir()
    with pytest.raises(StartError, match="holds journal: what is given here is lost"):
        check_empty(tmp_path)
    assert price_arm(["--without", "journal", "--data-dir", str(tmp_path)]) == 1
    assert "holds journal" in capsys.readouterr().err


async def test_journal_of_the_launcher_keeps_nothing_and_says_that_it_is_durable(tmp_path: Path) -> None:
    """LSNs go on as they should; write-behind and flushes, which wait for durable ones, are not held up; no file is written."""
    journal = NoJournal.open(tmp_path)
    first = journal.append([(TX, b"a", b""), (TX, b"b", b"")])
    assert journal.append([(TX, b"c", b"")]) == first + 2
    assert journal.last_lsn == journal.durable_lsn == first + 2
    async with asyncio.timeout(1):
        await journal.sync_to(journal.last_lsn)
    assert list(journal.read(0)) == []
    assert sorted(os.listdir(tmp_path)) == ["durable", "epoch"]
    journal.abandon()


def test_index_of_the_launcher_knows_nobody() -> None:
    """What was added is new again, and nothing waits for the keeper."""
    index = NoIndex(None, None)
    index.add_batch(b"t-1\n", Pieces.of([b"record"]), 1, 1)
    assert index.suspects(["t-1"]) == []
    assert len(index) == 0


def test_stopwatch_adds_up_the_work_and_not_itself() -> None:
    """Reading the clock takes 7 ns here: calls that do nothing cost nothing, a call that fails counts with what it took."""
    now_ns = 0

    def clock() -> int:
        nonlocal now_ns
        now_ns += 7
        return now_ns

    def work(ns: int, *, fails: bool = False) -> str:
        nonlocal now_ns
        now_ns += ns
        if fails:
            raise ZeroDivisionError
        return "done"

    watch = Stopwatch(clock)
    timed = watch.timed("work", work)
    assert timed(2_000) == "done"
    with pytest.raises(ZeroDivisionError):
        timed(1_000, fails=True)
    nothing = watch.timed("nothing", lambda: None)
    for _ in range(100):
        nothing()
    assert watch.cpu_us() == {"work": 3.0, "nothing": 0.0}
    assert watch.calls == {"work": 2, "nothing": 100}


def test_flipped_share_is_the_median_of_pairs_with_its_interval() -> None:
    """A compaction in one slice moves neither; a traced request costs what all pay, by how few are traced."""
    pairs = [Pair("traces", 10, 100.0 + n % 3, 90.0 + n % 3, 1_000, n % 2 == 0) for n in range(30)]
    pairs += [Pair("traces", 10, 500.0, 90.0, 1_000, True), Pair("traces", 10, 100.0, 300.0, 1_000, False)]
    (price,) = make_flip_prices(pairs, traced_share=0.05)
    assert (price.pairs, price.price_us, price.per_unit_us) == (32, 10.0, 200.0)
    assert price.price_us_interval == (10.0, 10.0)
    assert price.share_interval is not None
    assert 0.098 <= price.share_interval[0] <= price.share <= price.share_interval[1] <= 0.1


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 runs of 40 noisy pairs around 0.01 some 95 % have it between their ends; too few pairs have no interval."""
    rng = np.random.default_rng(4117)
    covered = 0
    for _ in range(200):
        _, interval = middle(rng.normal(0.01, 0.05, 40))
        assert interval is not None
        covered += interval[0] <= 0.01 <= interval[1]
    assert 180 <= covered <= 200
    assert middle(np.array([1.0, 2.0, 3.0])) == (2.0, None)


@pytest.mark.parametrize(
    ("interval", "word"),
    [((0.005, 0.02), "met"), ((0.0201, 0.03), "NOT met"), ((0.01, 0.03), "undecided"), (None, "undecided")],
)
def test_goal_is_met_only_by_the_whole_interval(interval: tuple[float, float] | None, word: str) -> None:
    """An interval that holds the goal says neither."""
    price = FlipPrice("metrics", 1, 80, 40.0, 0.5, None, 0.012, interval, 0.5, None)
    assert verdict(price, 0.02).startswith(word)


@pytest.mark.parametrize("text", ["", "metric", "metrics;arms"])
def test_unknown_flips_are_refused(text: str) -> None:
    """The message says what there is."""
    with pytest.raises(BenchError, match="expected some of metrics; traces; nothing; or all"):
        parse_flips(text)
    assert parse_flips("nothing; metrics") == ("metrics", "nothing")
