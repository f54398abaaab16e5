"""What a spec may say of a whole life, of spikes and of known frauds, and which plans it makes."""

from pathlib import Path

import pytest

from features.plan import compile_plan
from features.spec import EVER_MS, SPECS, SpecError, duration_ms, load_spec, parse_spec

TEXT = (SPECS / "handbook40.toml").read_text(encoding="utf-8")
WINDOW_1D = 'op = "count"\nkind = "card"\nring = "card_hours"\nwindow = "1d"'
LIFE_KEEPS = 'tile = "ever"\nkeeps = ["count", "sum", "squares"]'
LAST_KNOWN = 'op = "last_known"\nkind = "merchant"\nring = "merchant_days"\nwindow = "30d"\ndelay = "7d"'


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("spike_over = 2.5", "", "'spikes' need the kind's spike_over"),
        ("spike_over = 2.5", "spike_over = 0.0", "spike_over 0.0 is not above 0"),
        ("spike_over = 2.5", "spike_over = 100.5", "at most 100.0"),
        ("spike_over = 2.5", "spike_over = nan", "spike_over nan"),
        ("spike_over = 2.5", 'spike_over = "2.5"', "spike_over"),
        (LIFE_KEEPS, 'tile = "1d"\nkeeps = ["count", "sum", "squares"]', "tile = 'ever' that keeps count and sum"),
        (LIFE_KEEPS, 'tile = "ever"\nkeeps = ["count", "squares"]', "tile = 'ever' that keeps count and sum"),
        (WINDOW_1D, WINDOW_1D.replace("1d", "ever"), "the window 'ever', without a delay, and the tile 'ever'"),
        (WINDOW_1D, WINDOW_1D.replace("card_hours", "card_life"), "the window 'ever', without a delay, and the tile 'ever'"),
        (LAST_KNOWN, LAST_KNOWN.replace('\ndelay = "7d"', ""), "'last_known' needs a delay"),
        (
            LAST_KNOWN,
            LAST_KNOWN.replace("merchant_days", "card_days").replace('"merchant"', '"card"'),
            "does not keep 'frauds'",
        ),
    ],
)
def test_parse_spec_life_that_cannot_be_kept_is_refused(old: str, new: str, named: str) -> None:
    """The message names the kind, ring or feature and what it lacks."""
    assert TEXT.count(old) == 1
    with pytest.raises(SpecError) as caught:
        parse_spec(TEXT.replace(old, new), "x.toml")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parse_spec_since_fraud_of_a_tile_that_never_closes_is_refused() -> None:
    """It could only ever tell the time since 1970."""
    text = TEXT.replace('keeps = ["count", "sum", "squares"]', 'keeps = ["count", "sum", "squares", "frauds"]')
    more = '[[feature]]\nname = "x"\nop = "since_last_fraud"\nkind = "card"\nring = "card_life"\nwindow = "ever"\n'
    with pytest.raises(SpecError, match="needs tiles that close"):
        parse_spec(text.replace("# How a row", more + "# How a row"), "x.toml")


def test_compile_plan_life_does_not_lengthen_the_history() -> None:
    """What is too old, and how much history warms profiles up, follows from the tiles that close."""
    plan = compile_plan(load_spec("handbook40"))
    assert duration_ms("ever") == EVER_MS
    assert plan.longest_ms == 149 * 6 * 3_600_000
    assert [kind.size for kind in plan.kinds] == [4032, 2752]


def test_compile_plan_kind_without_news_keeps_its_layout_beside_one_that_has() -> None:
    """A stored profile stays usable when another kind's features ask for version 2 of the plan."""
    plain = (SPECS / "handbook.toml").read_text(encoding="utf-8")
    feature = '[[feature]]\nname = "x"\nop = "{}"\nkind = "merchant"\nring = "merchant_hours"\nwindow = "30d"\ndelay = "7d"\n'
    first = compile_plan(parse_spec(plain, "a.toml"))
    frauds, edges = (
        compile_plan(parse_spec(plain.replace("# How a row", feature.format(op) + "# How a row"), "b.toml"))
        for op in ("frauds", "last_known")
    )
    assert (first.to_bytes()[:8], frauds.to_bytes()[:8]) == (b"WEIRPLN1", b"WEIRPLN2")
    assert [k.layout for k in frauds.kinds] == [k.layout for k in first.kinds]
    assert edges.kinds[0].layout == first.kinds[0].layout
    assert edges.kinds[1].layout != first.kinds[1].layout


def test_load_spec_broken_life_names_the_line(tmp_path: Path) -> None:
    """A mistake in a file is found by its line."""
    path = tmp_path / "broken.toml"
    path.write_text(TEXT.replace(WINDOW_1D, WINDOW_1D.replace("1d", "ever")), encoding="utf-8")
    with pytest.raises(SpecError, match=r"broken\.toml:\d+: feature\.card_count_1d"):
        load_spec(path)
