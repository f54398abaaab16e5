"""Features in words that an analyst understands: "14 payments of this card in the last hour, usually 1".

What is said follows from the spec: operator, kind, window, and the scale and logarithm that the vector's number has gone
through. Both engines leave the same number, so both give the same words.
"""

import math
from collections.abc import Callable
from typing import Final

from features.spec import UNITS_MS, Feature, Ring, Spec, duration_ms
from features.transaction import CHANNELS

WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ON: Final = {"card": "with this card", "merchant": "at this merchant", "device": "on this device", "ip": "from this address"}
_THINGS: Final = {"ip": "address"}
_COUNTED: Final = {  # one, several
    "merchant_id": ("merchant", "merchants"),
    "card_id": ("card", "cards"),
    "device_id": ("device", "devices"),
    "ip": ("address", "addresses"),
    "mcc": ("category of merchant", "categories of merchant"),
    "country": ("country", "countries"),
    "channel": ("channel", "channels"),
}
_UNITS: Final = (("day", 86_400.0), ("hour", 3_600.0), ("minute", 60.0), ("second", 1.0))
_SPANS: Final = {"d": "day", "h": "hour", "m": "minute", "s": "second"}

Phrase = Callable[[float], str]  # of a value in the feature's own unit


class Words:
    """The words of one spec's features, in the order of the vector."""

    def __init__(self, spec: Spec) -> None:
        self._features = spec.features
        self._rings = {ring.name: ring for kind in spec.kinds for ring in kind.ring}
        self._currency = spec.base_currency
        self._sentences = [self._sentence(feature) for feature in spec.features]
        self._usual: dict[tuple[int, float], str] = {}  # what is usual is always the same

    def say(self, place: int, value: float, usual: float) -> str:
        """What the feature at `place` says where the vector has `value`, beside what is usual."""
        feature = self._features[place]
        now = _undone(feature, value)
        if feature.op in _YES_NO:
            return self._yes_no(feature, now)
        if feature.op in _SINCE and now < 0:
            return f"{_SINCE[feature.op]} {_on(feature)} {_window(feature)}".rstrip()
        shown = self._amount_of(feature, now)
        sentence = self._sentences[place].format(
            shown=shown,
            plural="" if shown == "1" else "s",
            size=shown.lstrip("-"),
            side="below" if shown.startswith("-") else "above",
            counted=self._counted(feature, shown) if feature.op == "distinct" else "",
        )
        shown_before = self._usual.get((place, usual))
        if shown_before is None:
            before = _undone(feature, usual)
            is_none = feature.op in _SINCE and before < 0
            shown_before = self._usual[place, usual] = "" if is_none else self._amount_of(feature, before)
        return sentence if shown_before in (shown, "") else f"{sentence}, usually {shown_before}"

    def _sentence(self, f: Feature) -> str:
        """The phrase around a value that is a text already, with {places} for what depends on that."""
        when, thing, of = _window(f), _thing(f), f.of or ""
        shown, plural, side = "{shown}", "{plural}", "{side}"
        sentences = {
            "value": f"{of.removesuffix('_id')} {shown}",
            "hour": f"at {shown} o'clock UTC",
            "weekday": f"on a {shown} (UTC)",
            "count": f"{shown} payment{plural} {_on(f)} {when}",
            "sum": f"{shown} paid {_on(f)} {when}",
            "mean": f"average payment {_on(f)} {when} of {shown}",
            "max": f"largest payment {_on(f)} {when} of {shown}",
            "std": f"payments {_on(f)} {when} spread by {shown}",
            "ratio": f"{shown} times the {thing}'s average payment {when}",
            "zscore": f"{{size}} standard deviations {side} the {thing}'s average payment {when}",
            "distinct": f"{{counted}} {_on(f)} {when}",
            "since_last": f"{shown} since the last payment {_on(f)}",
            "age": f"{thing} first seen {shown} ago",
            "speed_kmh": f"{thing} travelled at {shown} km/h since its last payment",
            "fraud_rate": f"{shown} of the payments {_on(f)} {when} were fraud",
            "frauds": f"{shown} known fraud{plural} {_on(f)} {when}",
            "spikes": f"{shown} unusually large payment{plural} {_on(f)} {when}",
            "spike_share": f"{shown} of the payments {_on(f)} {when} were unusually large",
            "since_first_fraud": f"first known fraud {_on(f)} {when} was {shown} ago",
            "since_last_fraud": f"last known fraud {_on(f)} {when} was {shown} ago",
        }
        return sentences.get(f.op) or f"{f.name} {{shown}}"

    def _amount_of(self, f: Feature, value: float) -> str:
        """The value with its unit."""
        if f.op in ("sum", "mean", "max", "std") or (f.op == "value" and f.of == "amount"):
            return f"{value / 100:,.2f} {self._currency}"
        if f.op == "value" and f.of == "channel":
            return CHANNELS[round(value)] if 0 <= round(value) < len(CHANNELS) else "not given"
        if f.op == "value":
            return _number(value) if value >= 0 else "not given"
        if f.op == "weekday":
            return WEEKDAYS[round(value) % 7]
        if f.op == "age" or f.op in _SINCE:
            return _duration(max(value, 0.0))
        if f.op.endswith(("_rate", "_share")):
            return f"{_number(value * 100)} %"
        if f.op in _WHOLE:
            return f"{round(value):,}"
        return _number(value)

    def _yes_no(self, f: Feature, value: float) -> str:
        is_so = value >= 0.5
        thing = _thing(f)
        if f.op == "changed":
            what = (f.of or "").removesuffix("_id")
            return f"another {what} than at the {thing}'s last payment" if is_so else f"same {what} as before, or not known"
        if f.op.endswith("_known"):
            return f"latest known payments {_on(f)} {'had' if is_so else 'were without'} fraud"
        if f.op == "present":
            return f"{thing} is given" if is_so else f"no {thing} is given"
        if f.op == "night":
            return "at night (UTC)" if is_so else "not at night (UTC)"
        return "on a weekend (UTC)" if is_so else "on a working day (UTC)"

    def _counted(self, f: Feature, shown: str) -> str:
        ring: Ring | None = self._rings.get(f.ring or "")
        one, several = _COUNTED.get((ring.of if ring is not None else None) or "", ("value", "values"))
        return f"1 {one}" if shown == "1" else f"{shown} different {several}"


_YES_NO: Final = ("night", "weekend", "changed", "present", "last_known")
_WHOLE: Final = ("count", "distinct", "hour", "speed_kmh", "frauds", "spikes")
_SINCE: Final = {  # op -> what is said where there is nothing since which to count
    "since_last": "first payment",
    "since_first_fraud": "no known fraud",
    "since_last_fraud": "no known fraud",
}


def _undone(feature: Feature, value: float) -> float:
    """The value before scale and logarithm."""
    plain = math.expm1(value) if feature.log1p and value > 0 else value
    return plain / feature.scale if feature.scale else plain


def _on(feature: Feature) -> str:
    return _ON.get(feature.kind or "", f"of this {feature.kind}")


def _thing(feature: Feature) -> str:
    return _THINGS.get(feature.kind or "", feature.kind or "")


def _window(feature: Feature) -> str:
    if feature.window is None:
        return ""
    if feature.window == "ever":
        return "so far"
    if duration_ms(feature.delay):
        return f"in the {_span(feature.window).removeprefix('1 ')} up to {_span(feature.delay)} ago"
    return f"in the last {_span(feature.window).removeprefix('1 ')}"


def _span(text: str) -> str:
    """ "24h" as "24 hours"."""
    number, unit = int(text[:-1]), text[-1]
    assert unit in UNITS_MS
    return f"{number} {_SPANS[unit]}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    for name, width in _UNITS:
        if seconds >= width:
            number = seconds / width
            shown = f"{number:.0f}" if number >= 10 else f"{number:.1f}".removesuffix(".0")
            return f"{shown} {name}{'' if shown == '1' else 's'}"
    return "0 seconds"


def _number(value: float) -> str:
    """Two digits behind the point where they matter, none where there are none; no "-0", which is where engines may differ."""
    shown = f"{round(value):,}" if abs(value) >= 100 else f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if shown == "-0" else shown
