"""Specs: the packaged ones load, and every way of breaking one is refused with file, line and key."""

from pathlib import Path

import pytest

from features.spec import RING_TILES_MAX, SpecError, duration_ms, load_spec, parse_spec

GOOD = """\
name = "good"
base_currency = "EUR"

[currencies]
EUR = 1_000_000
USD = 920_000

[[kind]]
name = "card"
id = "card_id"
remember = ["country"]

[[kind.ring]]
name = "hours"
tile = "1h"
keeps = ["count", "sum"]

[[kind.ring]]
name = "days"
tile = "1d"
keeps = ["count", "distinct"]
of = "merchant_id"

[[feature]]
name = "amount"
op = "value"
of = "amount"

[[feature]]
name = "paid"
op = "sum"
kind = "card"
ring = "hours"
window = "24h"

[[feature]]
name = "shops"
op = "distinct"
kind = "card"
ring = "days"
window = "7d"
delay = "7d"

[[feature]]
name = "moved"
op = "changed"
kind = "card"
of = "country"

[source.fields]
event_id = { column = "id" }
"""


def test_parse_spec_the_unbroken_text_is_good() -> None:
    """The text that the table below breaks is valid as it stands."""
    spec = parse_spec(GOOD, "good.toml")
    assert [k.name for k in spec.kinds] == ["card"]
    assert [f.name for f in spec.features] == ["amount", "paid", "shops", "moved"]
    assert spec.features[2].delay == "7d"


# (what is replaced, by what, line in the message or None, what the message names)
BROKEN: list[tuple[str, str, int | None, str]] = [
    ('name = "good"', "name = ", 1, "line 1"),
    ('name = "good"', "", None, "name"),
    ('name = "good"', 'name = "good"\ncolour = 1', None, "colour"),
    ('name = "good"', "name = 5", None, "$.name"),
    ('base_currency = "EUR"', 'base_currency = "GBP"', 2, "currencies.GBP must be 1000000"),
    ("EUR = 1_000_000", "EUR = 999_999", 2, "currencies.EUR must be 1000000"),
    ("USD = 920_000", "USD = 0", 6, "currencies.USD"),
    ("USD = 920_000", "USD = 10_000_001", 6, "currencies.USD"),
    ("USD = 920_000", 'USD = "0.92"', None, "currencies"),
    ("USD = 920_000", "USD = 0.92", None, "currencies"),
    ("USD = 920_000", "usd = 920_000", 6, "currencies.usd"),
    ("USD = 920_000", "U2D = 920_000", 6, "currencies.U2D"),
    ("USD = 920_000", '"ÀÀÀ" = 920_000', None, "currencies.ÀÀÀ"),
    ('id = "card_id"', 'id = "customer"', 8, "$.kind[0].id"),
    ('id = "card_id"', 'id = "card_id"\nring_size = 5', 8, "ring_size"),
    ('remember = ["country"]', 'remember = ["amount"]', 8, "remember"),
    ('remember = ["country"]', 'remember = ["country", "country"]', 9, "remember"),
    ('tile = "1h"', 'tile = "1x"', 14, "kind.card.ring.hours: tile: '1x'"),
    ('tile = "1h"', 'tile = ""', 14, "kind.card.ring.hours"),
    ('tile = "1h"', 'tile = "-1h"', 14, "kind.card.ring.hours"),
    ('tile = "1h"', 'tile = "0h"', 14, "not within 1s to 366d"),
    ('tile = "1h"', 'tile = "367d"', 14, "not within 1s to 366d"),
    ('tile = "1h"', "tile = 3600", 8, "tile"),
    ('keeps = ["count", "sum"]', "keeps = []", 14, "kind.card.ring.hours: keeps"),
    ('keeps = ["count", "sum"]', 'keeps = ["sum", "sum"]', 14, "kind.card.ring.hours: keeps"),
    ('keeps = ["count", "sum"]', 'keeps = ["sum", "median"]', 8, "median"),
    ('keeps = ["count", "sum"]', 'keeps = ["count"]', 30, "feature.paid: ring 'hours' does not keep 'sum'"),
    ('keeps = ["count", "sum"]', 'keeps = ["count", "sum"]\nof = "card_id"', 14, "'distinct' and 'of' belong together"),
    ('of = "merchant_id"', "", 19, "kind.card.ring.days: 'distinct' and 'of' belong together"),
    ('of = "merchant_id"', 'of = "event_id"', 8, "event_id"),
    ('name = "days"', 'name = "hours"', 14, "kind.card.ring.hours: the name is used twice"),
    ('name = "days"', 'name = "a day"', 19, "kind.card.ring.a day"),
    ('name = "days"', 'name = ""', 19, "kind.card.ring."),
    ('name = "card"', f'name = "{"c" * 65}"', 9, "names are up to 64"),
    ('name = "shops"', 'name = "paid"', 30, "feature.paid: the name is used twice"),
    ('op = "sum"', 'op = "median"', 29, "$.feature[1].op"),
    ('op = "sum"', 'op = "sum"\nunit = "EUR"', 29, "unit"),
    ('op = "sum"', 'op = "max"', 30, "feature.paid: ring 'hours' does not keep 'max'"),
    ('op = "sum"', 'op = "std"', 30, "feature.paid: ring 'hours' does not keep 'squares'"),
    ('op = "sum"', 'op = "fraud_rate"', 30, "feature.paid: ring 'hours' does not keep 'frauds'"),
    ('op = "sum"', 'op = "distinct"', 30, "feature.paid: ring 'hours' does not keep 'distinct'"),
    ('op = "sum"', 'op = "sum"\nof = "amount"', 30, "feature.paid: op 'sum' takes no 'of'"),
    ('op = "sum"', 'op = "sum"\nscale = inf', 30, "feature.paid: scale"),
    ('op = "sum"', 'op = "sum"\nscale = nan', 30, "feature.paid: scale"),
    ('op = "sum"', 'op = "age"', 30, "feature.paid: op 'age' takes no ring"),
    ('op = "sum"\nkind = "card"', 'op = "sum"', 30, "feature.paid: op 'sum' needs kind"),
    ('op = "sum"\nkind = "card"', 'op = "sum"\nkind = "shop"', 30, "feature.paid: unknown kind 'shop'"),
    ('ring = "hours"', 'ring = "weeks"', 30, "feature.paid: kind 'card' has no ring 'weeks'"),
    ('ring = "hours"\n', "", 30, "feature.paid: op 'sum' needs kind, ring and window"),
    ('window = "24h"', "", 30, "feature.paid: op 'sum' needs kind, ring and window"),
    ('window = "24h"', 'window = "90m"', 30, "feature.paid: window and delay must be whole numbers of 1h tiles"),
    ('window = "24h"', 'window = "0h"', 30, "feature.paid: window"),
    ('window = "24h"', 'window = "1 day"', 30, "feature.paid: window or delay: '1 day' is not a duration"),
    ('window = "24h"', 'window = ""', 30, "feature.paid: window or delay: '' is not a duration"),
    ('window = "24h"', f'window = "{RING_TILES_MAX}h"', 30, f"feature.paid: window and delay need {RING_TILES_MAX} tiles"),
    ('delay = "7d"', 'delay = "12h"', 37, "feature.shops: window and delay must be whole numbers of 1d tiles"),
    ('delay = "7d"', 'delay = "d"', 37, "feature.shops: window or delay: 'd' is not a duration"),
    ('op = "value"', 'op = "value"\ndelay = "7d"', 25, "feature.amount: op 'value' takes no ring, window or delay"),
    ('op = "value"', 'op = "value"\nkind = "card"', 25, "feature.amount: op 'value' takes no kind"),
    ('op = "value"\nof = "amount"', 'op = "value"', 25, "feature.amount: op 'value' needs 'of'"),
    ('op = "value"\nof = "amount"', 'op = "hour"\nof = "amount"', 25, "feature.amount: op 'hour' takes no 'of'"),
    ('op = "changed"\nkind = "card"', 'op = "changed"', 45, "feature.moved: op 'changed' needs kind"),
    ('of = "country"', 'of = "device_id"', 45, "feature.moved: kind 'card' does not remember 'device_id'"),
    ('of = "country"', "", 45, "feature.moved: op 'changed' needs 'of'"),
    ('op = "changed"\nkind = "card"\nof = "country"', 'op = "speed_kmh"\nkind = "card"', 45, "does not remember 'place'"),
    ('event_id = { column = "id" }', 'event_id = { columns = "id" }', None, "columns"),
    ("[source.fields]", "[sauce.fields]", None, "sauce"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "named"), BROKEN)
def test_load_spec_broken_file_names_file_line_and_key(
    tmp_path: Path, old: str, new: str, line: int | None, named: str
) -> None:
    """The message starts with the file, gives the line where the name or table stands, and says which key."""
    assert GOOD.count(old) == 1
    path = tmp_path / "broken.toml"
    path.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    message = str(caught.value)
    assert named in message
    if "line 1" in named or line is None:
        assert message.startswith(f"{path}: ")
    else:
        assert message.startswith(f"{path}:{line}: "), message


@pytest.mark.parametrize("section", ["[[kind]]", "[[feature]]"])
def test_parse_spec_without_kinds_or_features_is_refused(section: str) -> None:
    """A spec needs one kind and one feature at least."""
    body = (
        'kind = []\nfeature = []\nname = "x"\nbase_currency = "EUR"\ncurrencies = { EUR = 1_000_000 }\nsource = { fields = {} }'
    )
    with pytest.raises(SpecError, match="at least one kind and one feature"):
        parse_spec(body, section)


def test_load_spec_missing_file_names_the_packaged_ones(tmp_path: Path) -> None:
    """A name that is no file lists what there is."""
    with pytest.raises(SpecError, match=r"neither a packaged spec \(cards, handbook, handbook40\) nor a file"):
        load_spec(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"name = 'caf\xe9'"])
def test_load_spec_not_utf8_is_refused(tmp_path: Path, content: bytes) -> None:
    """Bytes that are no text are a SpecError with the file's name."""
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"broken\.toml: cannot be read"):
        load_spec(path)


@pytest.mark.parametrize(
    ("text", "ms"), [("1s", 1000), ("90s", 90_000), ("5m", 300_000), ("1h", 3_600_000), ("30d", 2_592_000_000)]
)
def test_duration_ms_reads_each_unit(text: str, ms: int) -> None:
    """Seconds, minutes, hours and days."""
    assert duration_ms(text) == ms


@pytest.mark.parametrize("text", ["", "s", "1", "1w", "1.5h", "-1h", "+1h", "1 h", "1H", "²s", "1_0s"])
def test_duration_ms_refuses_everything_else(text: str) -> None:
    """No sign, fraction, space or unknown unit."""
    with pytest.raises(ValueError, match="is not a duration"):
        duration_ms(text)


@pytest.mark.parametrize(("name", "n_features"), [("cards", 40), ("handbook", 15), ("handbook40", 40)])
def test_load_spec_packaged_specs_have_their_features(name: str, n_features: int) -> None:
    """Exactly the 40 features of the published comparison, or the 15 of the Handbook's baseline, all with a source."""
    spec = load_spec(name)
    assert spec.name == name
    assert len(spec.features) == n_features
    assert {"event_id", "ts", "amount", "currency", "card_id", "merchant_id"} <= set(spec.source.fields)
    assert spec.source.label is not None
