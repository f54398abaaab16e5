"""The load generator: schedules, the rule that voids a run, percentiles, checks of replies, the search for a rate."""

from pathlib import Path

import numpy as np
import pytest

from loadgen.bench.children import BenchError
from loadgen.bench.load.job import LoadJob, Outcome, Second
from loadgen.bench.load.requests import DRAWS, CardRequests, draw, first_event_number, open_requests
from loadgen.bench.load.result import (
    PERCENTILES,
    Run,
    find_knee,
    keeps_up,
    make_run,
    merge,
    percentile_table,
    pooled,
    void_reason,
)
from loadgen.bench.load.scenarios import judge_wrk, search_rate
from loadgen.bench.load.worker import _encoded, _histogram, schedule
from loadgen.bench.outputs import check_outputs
from loadgen.recorder import LatencySummary
from loadgen.sender import Reply, Target

JOB = LoadJob("127.0.0.1", 1, "key", rate=1_000.0, warm_s=0.5, seconds=2.0)
TARGET = Target("127.0.0.1", 1, "", "key")


def summary(p99: int, n: int = 1_000) -> LatencySummary:
    return LatencySummary(n, 1.0, 1, 1, 1, p99, p99, p99)


def outcome(latencies_s: list[float], lags_s: list[float] | None = None, failed: int = 0) -> Outcome:
    latency = _histogram(np.array(latencies_s), failed, 5.0)
    lag = _histogram(np.array(lags_s or []), 0, 0.0)
    text = _encoded(latency)
    return Outcome(
        due=len(latencies_s) + failed,
        answered=len(latencies_s),
        failed=failed,
        latency=text,
        latency_max_us=max(latency.values_us, default=0),
        lag=_encoded(lag),
        lag_max_us=max(lag.values_us, default=0),
        waited=0,
        connects=1,
        cpu_s=1.0,
        errors=[],
        seconds=[Second(len(latencies_s), failed, text)],
    )


def test_schedule_of_workers_adds_up_to_the_whole() -> None:
    """Each worker has every n-th request of the same schedule, and all of them lie before the end."""
    whole = schedule(JOB)
    parts = [schedule(LoadJob("", 1, "", rate=1_000.0, warm_s=0.5, seconds=2.0, workers=3, worker=n)) for n in range(3)]
    assert np.array_equal(np.sort(np.concatenate(parts)), whole)
    assert whole[0] == 0
    assert whole[-1] < 2.5
    assert abs(len(whole) - 2_500) < 5 * 2_500**0.5


def test_schedule_poisson_has_exponential_gaps_and_constant_even_ones() -> None:
    """The deviation of exponential gaps is their mean; even gaps have none."""
    gaps = np.diff(schedule(LoadJob("", 1, "", rate=10_000.0, seconds=5.0)))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    even = np.diff(schedule(LoadJob("", 1, "", rate=1_000.0, arrivals="constant")))
    assert even == pytest.approx(np.full(len(even), 0.001))


@pytest.mark.parametrize(
    ("lag", "latency", "is_void"),
    [(50, 1_000, False), (51, 1_000, True), (0, 1_000, False), (5_000, 100_000, False), (5_001, 100_000, True)],
)
def test_void_reason_at_the_limit(lag: int, latency: int, is_void: bool) -> None:
    """5 % of the latency's p99 is still good; one µs more is not, and both figures are named."""
    reason = void_reason(summary(lag), summary(latency))
    assert (reason is not None) == is_void
    if reason is not None:
        assert f"{lag:,}" in reason
        assert f"{latency:,}" in reason


def test_void_reason_without_lag_or_without_requests() -> None:
    """A closed loop has no lag; a run that measured nothing is no result."""
    assert void_reason(None, summary(10)) is None
    assert "no request" in str(void_reason(None, summary(0, n=0)))


def test_merged_percentiles_are_those_of_all_values() -> None:
    """Histograms of workers are added: a percentile of the sum, not a mean of percentiles."""
    rng = np.random.default_rng(5)
    left, right = rng.exponential(0.001, 9_000), rng.exponential(0.02, 1_000)
    run = make_run("open", JOB, [outcome(left.tolist(), [1e-5]), outcome(right.tolist(), [2e-5])])
    both = np.concatenate([left, right]) * 1e6
    for q in PERCENTILES:
        assert run.percentiles[f"{q:g}"] == pytest.approx(np.percentile(both, q, method="inverted_cdf"), rel=0.005, abs=1.0)
    assert run.percentiles["100"] == round(both.max())
    assert run.requests_per_s == 10_000 / 2.0
    assert run.send_lag_us is not None
    assert run.send_lag_us.max == 20


def test_rounds_are_pooled_and_not_averaged() -> None:
    """One round with a stall: a hundredth of its requests is a two hundredth of both rounds."""
    calm = make_run("closed", JOB, [outcome([0.001] * 1_000)])
    stalled = make_run("closed", JOB, [outcome([0.001] * 990 + [1.0] * 10)])
    table = percentile_table(pooled([calm, stalled]))
    assert (table["99"], table["99.9"], table["100"]) == (1_000, 1_000_000, 1_000_000)
    assert pooled([calm, stalled]).get_total_count() == 2_000


def test_failures_count_as_the_deadline() -> None:
    """Two of a hundred fail: the 99th percentile is the deadline, the 95th is not, and the rate leaves them out."""
    run = make_run("closed", LoadJob("", 1, "", seconds=1.0), [outcome([0.001] * 98, failed=2)])
    assert run.percentiles["99"] == 5_000_000
    assert run.percentiles["95"] < 1_010
    assert (run.requests_per_s, run.failures_per_s) == (98.0, 2.0)


def test_percentiles_of_nothing_are_zero() -> None:
    """No values, no error."""
    assert set(percentile_table(merge(["", ""], 0)).values()) == {0}


def reply(body: bytes, status: int = 200) -> Reply:
    return Reply(status, body)


def test_card_requests_check_each_reply(tmp_path: Path) -> None:
    """The right decision passes; a wrong event, score, outcome, status or length does not."""
    file = tmp_path / "scores.npy"
    np.save(file, np.full(DRAWS, 0.25, np.float32))
    requests = CardRequests(TARGET, LoadJob("h", 1, "k", payload="stack", first=DRAWS + 3, expected=str(file)))
    raw, number = requests.make()
    assert number == DRAWS + 3
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"POST /score HTTP/1.1" in head
    assert int(head.partition(b"Content-Length: ")[2]) == len(body)
    good = b'{"event_id":"b-%012d","score":0.250004,"outcome":"approve"}' % number
    assert requests.check(number, reply(good)) is None
    assert requests.check(number + 1, reply(good)) == "decision of another event"
    assert requests.check(number, reply(good.replace(b"0.250004", b"0.2502"))) == "wrong score"
    assert requests.check(number, reply(good.replace(b"0.250004", b"1.5"))) == "no decision"
    assert requests.check(number, reply(good.replace(b"approve", b"fine"))) == "no decision"
    assert requests.check(number, reply(good, 429)) == "status 429"
    assert requests.check(number, reply(good[:-1])) == "unreadable reply"
    assert requests.check(number, reply(b'{"status":422,"title":"no"}')) == "problem in place of a decision"


def test_card_requests_of_many_rows_and_workers() -> None:
    """Two workers share the events between them; a batch is checked in its order and length."""
    job = LoadJob("h", 1, "k", rows=2, workers=2, worker=1, first=100)
    requests = open_requests(job)
    raw, number = requests.make()
    assert number == 101
    assert b"b-000000000101" in raw
    assert b"b-000000000103" in raw
    assert requests.make()[1] == 105
    rows = [b'{"event_id":"b-%012d","score":0.5,"outcome":"review"}' % n for n in (101, 103)]
    assert requests.check(101, reply(b"[" + b",".join(rows) + b"]")) is None
    assert requests.check(101, reply(b"[" + b",".join(rows[::-1]) + b"]")) == "decision of another event"
    assert requests.check(101, reply(b"[" + rows[0] + b"]")) == "wrong number of decisions"


def test_requests_for_wrk_are_the_same_bytes() -> None:
    """Head, id, time and tail give what `make` gives, a percent sign in the key included."""
    job = LoadJob("h", 1, "k%d", payload="stack")
    requests = CardRequests(Target("h", 1, "", "k%d"), job)
    head, tails = requests.parts()
    raw, number = requests.make()
    now = raw[raw.index(b'"ts":') + 5 :][:13]
    assert head + b"b-%012d" % number + b'","ts":' + now + tails[number % DRAWS] == raw


def test_draw_is_the_same_for_all_and_skewed_when_asked() -> None:
    """Zipf 1: the most frequent card has far more than its share."""
    even, skewed = (draw(LoadJob("", 1, "", cards=1_000, zipf=z))[0] for z in (0.0, 1.0))
    assert np.array_equal(even, draw(LoadJob("", 1, "", cards=1_000, worker=1, workers=2))[0])
    assert np.bincount(even).max() < 3 * DRAWS / 1_000
    assert np.bincount(skewed).max() > 50 * DRAWS / 1_000
    assert first_event_number() % 1_000_000 == 0


def run_at(rate: float, p99_us: int, answered: float | None = None, failures: int = 0) -> Run:
    run = make_run("server", LoadJob("", 1, "", rate=rate, seconds=1.0), [outcome([p99_us / 1e6] * 10, [1e-6])])
    run.offered_per_s, run.requests_per_s, run.failures = rate, rate if answered is None else answered, failures
    return run


def test_keeps_up_at_the_limits() -> None:
    """98 % of the offered rate, no failure, p99 at the bound."""
    assert keeps_up(run_at(100.0, 1_000, 98.0), 1_000)
    assert not keeps_up(run_at(100.0, 1_000, 97.9), 1_000)
    assert not keeps_up(run_at(100.0, 1_010), 1_000)
    assert not keeps_up(run_at(100.0, 1_000, failures=1), 1_000)


async def test_search_finds_the_highest_rate() -> None:
    """A server whose p99 passes the bound at 700/s: the search ends just below, and says none where nothing holds."""

    async def measure(rate: float) -> Run:
        return run_at(rate, 500 if rate <= 700 else 50_000)

    best, runs = await search_rate(measure, 1_000.0, 1_000, 8)
    assert best is not None
    assert best.offered_per_s == pytest.approx(700, abs=8)
    assert len(runs) == 8
    none, _ = await search_rate(measure, 1_000.0, 10, 3)
    assert none is None


def test_knee_is_before_the_first_that_does_not_keep_up() -> None:
    """A good run after a bad one does not count."""
    runs = [run_at(300.0, 500), run_at(100.0, 500), run_at(200.0, 50_000)]
    assert find_knee(runs, 1_000) == 100.0
    assert find_knee(runs[2:], 1_000) is None


@pytest.mark.parametrize(
    ("own", "share", "word"),
    [([1_000], 0.5, "agrees"), ([1_100], 0.5, "agrees"), ([900], 0.5, "agrees"), ([800], 0.95, "explained"),
     ([800], 0.5, "differs"), ([1_200], 0.95, "differs"), ([0.0], 0.5, "differs"), ([700, 800, 900], 0.5, "differs"),
     ([700, 700, 800, 1_100, 1_200], 0.5, "not told apart: half of the rounds' ratios lie between 0.70 and 1.10")],
)  # fmt: skip
def test_wrk_verdicts(own: list[float], share: float, word: str) -> None:
    """Within 10 % agrees; slower with a full core is explained; ratios around 1 are noise; else nothing is claimed."""
    assert judge_wrk(64, own, [1_000.0] * len(own), share).verdict.startswith(word)


def test_wrk_is_compared_within_rounds() -> None:
    """A machine that halves its speed for one round changes no ratio."""
    check = judge_wrk(64, [500, 1_010, 1_000], [500, 1_000, 1_020], 0.5)
    assert (check.ratio, check.ratios, check.own_per_s) == (1.0, [0.98, 1.0, 1.01], 1_000)
    assert check.verdict == "agrees within 10%"


def test_outputs_are_checked_before(tmp_path: Path) -> None:
    """A missing directory and a directory in a file's place are named with their option."""
    check_outputs(json=tmp_path / "a.json", html=None)
    with pytest.raises(BenchError, match=r"--json .*/none/a.json: the directory .* does not exist"):
        check_outputs(json=tmp_path / "none" / "a.json")
    with pytest.raises(BenchError, match=r"--html .*: is a directory"):
        check_outputs(html=tmp_path)
