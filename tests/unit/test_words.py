"""Features in words: what an analyst reads follows from the spec, with the vector's arithmetic undone."""

import math

import pytest

from features.spec import SPECS, load_spec
from models.words import Words

SPEC = load_spec("cards")
PLACES = {feature.name: place for place, feature in enumerate(SPEC.features)}


@pytest.mark.parametrize(
    ("name", "value", "usual", "said"),
    [
        ("card_count_1h", math.log1p(14), math.log1p(1), "14 payments with this card in the last hour, usually 1"),
        ("card_count_1h", math.log1p(1), math.log1p(1), "1 payment with this card in the last hour"),
        ("card_sum_24h", math.log1p(123_456), math.log1p(1200),
         "1,234.56 EUR paid with this card in the last 24 hours, usually 12.00 EUR"),
        ("card_devices_7d", math.log1p(3.1), math.log1p(1), "3 different devices with this card in the last 7 days, usually 1"),
        ("device_cards_7d", -0.0, 0.0, "0 different cards on this device in the last 7 days"),
        ("device_cards_7d", math.log1p(1), 0.0, "1 card on this device in the last 7 days, usually 0"),
        ("card_amount_ratio_30d", math.log1p(5.25), math.log1p(0.9),
         "5.25 times the card's average payment in the last 30 days, usually 0.9"),
        ("card_amount_zscore_30d", 4.0, 0.0,
         "4 standard deviations above the card's average payment in the last 30 days, usually 0"),
        ("card_amount_zscore_30d", -2.5, 0.25,
         "2.5 standard deviations below the card's average payment in the last 30 days, usually 0.25"),
        ("merchant_fraud_rate_30d", 0.125, 0.001,
         "12.5 % of the payments at this merchant in the 30 days up to 7 days ago were fraud, usually 0.1 %"),
        ("card_since_last", -1.0, math.log1p(3600), "first payment with this card"),
        ("card_since_last", math.log1p(90), math.log1p(7200),
         "1.5 minutes since the last payment with this card, usually 2 hours"),
        ("card_since_last", math.log1p(90), -1.0, "1.5 minutes since the last payment with this card"),
        ("ip_age", math.log1p(0), math.log1p(864_000), "address first seen 0 seconds ago, usually 10 days"),
        ("card_country_changed", 1.0, 0.0, "another country than at the card's last payment"),
        ("device_present", 0.0, 1.0, "no device is given"),
        ("card_speed_kmh", math.log1p(900.2), 0.0, "card travelled at 900 km/h since its last payment, usually 0"),
        ("amount", math.log1p(99_999), math.log1p(1500), "amount 999.99 EUR, usually 15.00 EUR"),
        ("channel", 0.0, 1.0, "channel ecom, usually pos"),
        ("channel", -1.0, 1.0, "channel not given, usually pos"),
        ("mcc", 5.411, 4.0, "mcc 5,411, usually 4,000"),
        ("hour", 3.0, 14.0, "at 3 o'clock UTC, usually 14"),
        ("weekday", 6.0, 2.0, "on a Sunday (UTC), usually Wednesday"),
        ("night", 1.0, 0.0, "at night (UTC)"),
        ("weekend", 0.0, 1.0, "on a working day (UTC)"),
    ],
)  # fmt: skip
def test_words_feature_is_said_beside_what_is_usual(name: str, value: float, usual: float, said: str) -> None:
    """Operator, kind, window, unit and the usual value, which is left out where it would be the same."""
    assert Words(SPEC).say(PLACES[name], value, usual) == said


@pytest.mark.parametrize("spec", sorted(path.stem for path in SPECS.glob("*.toml")))
@pytest.mark.parametrize("value", [-1.0, 0.0, 0.5, 20.0])
def test_words_every_feature_of_a_packaged_spec_has_words(spec: str, value: float) -> None:
    """No feature, whatever its value, is without a printable sentence."""
    loaded = load_spec(spec)
    words = Words(loaded)
    for place, feature in enumerate(loaded.features):
        said = words.say(place, value, 1.0)
        assert said.isprintable(), feature.name
        assert "  " not in said, feature.name
