"""The page of a replay and of a benchmark: self-contained, escaped, complete."""

import json
import re
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest

from loadgen.page import latency_figure, micros, page
from loadgen.recorder import Recorder
from loadgen.replay import Options, TierCount
from loadgen.report import replay_page
from loadgen.result import Result, Run, build_result, tiers_between
from models.dataset import Dataset, Texts

T0 = 1_750_000_000_000
EVIL = "</script><script>alert('x')</script>"


@pytest.fixture
def result() -> Result:
    """1,000 rows, of which 900 were scored, 40 failed with a nasty message and 60 were not sent."""
    n_rows = 1000
    rng = np.random.default_rng(2)
    codes = (np.arange(n_rows) % 50).astype(np.int32)
    values = np.array([*(f"c{n}" for n in range(50)), None], dtype=object)
    labels = (rng.random(n_rows) < 0.05).astype(np.int8)
    ts = T0 + np.arange(n_rows, dtype=np.int64) * 90_000
    dataset = Dataset(n_rows, ts, ts, labels, ts, {"card_id": Texts(codes, values)})
    recorder = Recorder(n_rows, 1)
    recorder.mark(active=True)
    for row in range(900):
        score = float(0.3 * labels[row] + 0.6 * rng.random())
        recorder.scored(row, score, "review" if score > 0.5 else "approve", row + 1, False, "", 250 + row % 40)
        recorder.requests[0].add(250 + row % 40)
    recorder.answered(900, EVIL)
    recorder.failed(40, "422", EVIL)
    recorder.mark(active=False)
    run = Run(
        source=EVIL, spec="cards", url="http://127.0.0.1:8080", options=Options(), wall_s=2.0, cpu_s=0.5,
        interrupted=True, problem=None, connects=1, tiers=[TierCount(EVIL, True, "on", 10, 9, 1)],
    )  # fmt: skip
    return build_result(run, dataset, recorder)


def test_result_adds_up(result: Result) -> None:
    """Scored, failed and not sent make the total; quality, tiers and series are there."""
    assert (result.rows.scored, result.rows.failed, result.rows.not_sent, result.rows.total) == (900, 40, 60, 1000)
    assert result.client_cpu_share == 0.25
    assert result.latency_us.n == 900
    assert result.quality is not None
    assert result.quality.n_rows == 900
    assert result.quality.auc > 0.7
    assert result.tiers is not None
    assert result.tiers[0].hit_ratio == 0.9
    assert sum(sum(counts) for counts in result.series.outcomes.values()) == 900
    assert sum(sum(counts) for counts in result.series.scores.values()) == 900
    assert len(result.series.outcome_ts) <= 60


def test_result_json_is_read_back_equal(result: Result) -> None:
    """What --json writes is the whole result."""
    assert msgspec.json.decode(msgspec.json.encode(result), type=Result) == result


def test_result_nothing_scored_has_no_quality() -> None:
    """A run in which all failed still gives a result and a page."""
    ts = np.array([T0], dtype=np.int64)
    dataset = Dataset(1, ts, ts, np.array([1], np.int8), ts, {"card_id": Texts(np.zeros(1, np.int32), np.array(["c", None]))})
    recorder = Recorder(1, 1)
    recorder.failed(1, "500", "broken")
    run = Run("f", "cards", "u", Options(rate=5.0), 0.0, 0.0, False, "the server went away", 0, None)
    empty = build_result(run, dataset, recorder)
    assert empty.quality is None
    assert empty.tiers is None
    assert empty.rows_per_s == 0
    assert "the server went away" in replay_page(empty)


class Tags(HTMLParser):
    """Collects tags with their attributes, as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_page_loads_nothing_and_inlines_plotly_once(result: Result) -> None:
    """No tag points anywhere, a policy forbids the network, and Plotly's bundle is there exactly once."""
    text = replay_page(result)
    parser = Tags()
    parser.feed(text)
    assert not [tag for tag in parser.tags if {"src", "href"} & tag[1].keys()]
    assert len([tag for tag, _ in parser.tags if tag == "script"]) == 3
    assert "default-src 'none'" in text
    assert len(re.findall(r"plotly\.js v\d", text)) == 1
    assert 3_000_000 < len(text) < 8_000_000


def test_page_escapes_all_text(result: Result) -> None:
    """What the server or a file name says never becomes markup, neither in the text nor in the figures' data."""
    text = replay_page(result)
    assert "<script>alert" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert" in text
    data = re.search(r'id="figures">(.*?)</script>', text)
    assert data is not None
    assert len(json.loads(data.group(1))) == text.count("<figure>") == 5


def test_page_follows_light_and_dark(result: Result) -> None:
    """Both schemes have colours, and the figures take theirs from them."""
    text = replay_page(result)
    assert "prefers-color-scheme:dark" in text
    assert '"@a"' in text


def test_page_of_a_benchmark_needs_only_its_parts() -> None:
    """The same page serves the benchmarks; numbers are grouped and an absent one is a dash."""
    figure = latency_figure({"a": [(2.0, 10)], "b": [(2.0, 0)]})
    assert figure["layout"]["showlegend"]
    text = page("T", "lead", [("f", "1")], [("F", "n", figure)], [("c", ("x", "y", "z"), [(12345, None, 0.5)])], ["none"])
    assert '<td class="n">12,345</td><td>–</td><td class="n">0.5</td>' in text


@pytest.mark.parametrize(("us", "text"), [(0, "0 µs"), (850, "850 µs"), (12_340, "12.3 ms"), (1_200_000, "1.20 s")])
def test_micros_picks_the_unit(us: int, text: str) -> None:
    """Microseconds, milliseconds and seconds, each with its unit."""
    assert micros(us) == text


def test_tiers_between_subtracts_and_survives_a_restart() -> None:
    """Counters are differences; a tier whose counter went back counts from 0, a new one too."""
    before = [TierCount("l1", True, "on", 100, 90, 10), TierCount("l2", True, "on", 50, 50)]
    after = [TierCount("l1", True, "on", 160, 140, 20), TierCount("l2", True, "on", 7, 3), TierCount("redis", lookups=4)]
    found = tiers_between(before, after)
    assert found is not None
    assert [(tier.name, tier.lookups, tier.hits, tier.misses) for tier in found] == [
        ("l1", 60, 50, 10), ("l2", 7, 3, 0), ("redis", 4, 0, 0),
    ]  # fmt: skip
    assert tiers_between(None, after) is None
