"""The world a generated stream plays in: places, merchants and cards with habits. Drawn once, deterministic for a seed.

A merchant is online, or stands in one place; popularity follows Zipf's law. A card has a home, active hours, a spending
level, merchants it returns to, one or two devices and addresses, perhaps a journey or a new phone.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

DAY_MS = 86_400_000

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# country, currency, latitude, longitude, weight as somebody's home (0: only travelled to, or attacked from)
PLACES: tuple[tuple[str, str, float, float, float], ...] = (
    ("DE", "EUR", 52.52, 13.40, 10),
    ("DE", "EUR", 48.14, 11.58, 7),
    ("DE", "EUR", 53.55, 9.99, 6),
    ("FR", "EUR", 48.86, 2.35, 10),
    ("FR", "EUR", 45.76, 4.84, 4),
    ("ES", "EUR", 40.42, -3.70, 7),
    ("ES", "EUR", 41.39, 2.17, 4),
    ("IT", "EUR", 41.90, 12.50, 6),
    ("IT", "EUR", 45.46, 9.19, 5),
    ("NL", "EUR", 52.37, 4.90, 5),
    ("AT", "EUR", 48.21, 16.37, 3),
    ("BE", "EUR", 50.85, 4.35, 3),
    ("GB", "GBP", 51.51, -0.13, 10),
    ("GB", "GBP", 53.48, -2.24, 4),
    ("CH", "CHF", 47.38, 8.54, 5),
    ("CH", "CHF", 46.20, 6.14, 2),
    ("US", "USD", 40.71, -74.01, 6),
    ("US", "USD", 34.05, -118.24, 3),
    ("BR", "USD", -23.55, -46.63, 0),
    ("TH", "USD", 13.76, 100.50, 0),
    ("NG", "USD", 6.52, 3.38, 0),
    ("VN", "USD", 10.82, 106.63, 0),
    ("MA", "USD", 33.57, -7.59, 0),
)
FAR = np.flatnonzero(np.array([place[4] for place in PLACES]) == 0)

ECOM, POS, ATM, MOTO, OTHER = range(5)
CHANNEL_NAMES = ("ecom", "pos", "atm", "moto", "other")
_CHANNEL_MIX = (0.30, 0.55, 0.07, 0.03, 0.05)
# mcc, median amount in minor units, spread of its logarithm; by channel
_TRADES: tuple[tuple[tuple[int, int, float], ...], ...] = (
    ((5816, 900, 0.7), (5942, 2200, 0.6), (5732, 12000, 0.8), (5651, 5500, 0.6), (4722, 24000, 0.7), (5999, 3000, 0.8)),
    ((5411, 2800, 0.7), (5812, 3200, 0.6), (5541, 5200, 0.4), (5912, 1700, 0.6), (5311, 4800, 0.8), (5944, 16000, 0.8)),
    ((6011, 9000, 0.6),),
    ((5969, 4500, 0.7), (7011, 15000, 0.6)),
    ((4111, 450, 0.6), (7523, 600, 0.5)),
)
FAVOURITES = 8  # merchants a card returns to, per kind of shopping (local, online)
POOL = 64  # shared addresses (mobile carriers, hotels, offices) per place


class Merchants(msgspec.Struct, frozen=True):
    """Merchants sorted by (online first, place), so that a range of `cumulative` is one place's local merchants."""

    place: Ints
    channel: Ints
    mcc: Ints
    price: Floats  # log of the median amount
    spread: Floats
    lat: Floats
    lon: Floats
    cumulative: Floats  # running sum of popularity (Zipf)
    n_online: int
    n_weak: int  # the first n_weak online merchants check little: stolen data is cashed there
    local_from: Ints  # per place: first index of its local merchants
    local_to: Ints


class Cards(msgspec.Struct, frozen=True):
    """The cards' habits; a device or address is 3 * card (usual), + 1 (second one), + 2 (the next phone)."""

    place: Ints
    spend: Floats  # log factor on a merchant's price
    cumulative: Floats  # running sum of activity
    hour: Floats  # centre of the active hours, local time is taken as UTC
    hour_spread: Floats
    online_share: Floats
    local: Ints  # (n_cards, FAVOURITES) merchants, most visited first
    online: Ints
    two_devices: Bools
    new_phone_ms: Ints  # offset from the start; past the end: keeps the old one
    trip_from_ms: Ints
    trip_to_ms: Ints
    trip_place: Ints


class World(msgspec.Struct, frozen=True):
    merchants: Merchants
    cards: Cards
    span_ms: int
    n_cards: int


def draw_world(rng: np.random.Generator, n_cards: int, n_merchants: int, span_ms: int) -> World:
    merchants = _draw_merchants(rng, n_merchants)
    return World(merchants, _draw_cards(rng, merchants, n_cards, span_ms), span_ms, n_cards)


def _draw_merchants(rng: np.random.Generator, n: int) -> Merchants:
    home = np.array([place[4] for place in PLACES])
    weight = np.maximum(home, 0.7)  # far places have a few merchants too
    channel = rng.choice(5, n, p=_CHANNEL_MIX)
    place = rng.choice(len(PLACES), n, p=weight / weight.sum())
    channel[: len(PLACES)], place[: len(PLACES)] = POS, np.arange(len(PLACES))  # each place has a shop
    channel[len(PLACES) : len(PLACES) + 12] = ECOM
    local = (channel != ECOM) & (channel != MOTO)
    order = np.lexsort((place, local))
    channel, place, local = channel[order], place[order], local[order]
    popularity = 1.0 / (rng.permutation(n) + 5.0)
    trade = np.array([rng.integers(len(_TRADES[c])) for c in channel])
    chosen = [_TRADES[c][t] for c, t in zip(channel, trade, strict=True)]
    n_online = int((~local).sum())
    return Merchants(
        place=place,
        channel=channel,
        mcc=np.array([mcc for mcc, _, _ in chosen], np.int64),
        price=np.log([median for _, median, _ in chosen]) + rng.normal(0, 0.25, n),
        spread=np.array([spread for _, _, spread in chosen]),
        lat=np.array([PLACES[p][2] for p in place]) + rng.normal(0, 0.08, n),
        lon=np.array([PLACES[p][3] for p in place]) + rng.normal(0, 0.08, n),
        cumulative=np.cumsum(popularity),
        n_online=n_online,
        n_weak=max(n_online // 10, 2),
        local_from=n_online + np.searchsorted(place[n_online:], np.arange(len(PLACES))),
        local_to=n_online + np.searchsorted(place[n_online:], np.arange(len(PLACES)), "right"),
    )


def _draw_cards(rng: np.random.Generator, merchants: Merchants, n: int, span_ms: int) -> Cards:
    home = np.array([place[4] for place in PLACES])
    place = rng.choice(len(PLACES), n, p=home / home.sum())
    local = popular(rng, merchants, merchants.local_from[place], merchants.local_to[place], FAVOURITES)
    trip_from = rng.integers(0, span_ms, n)
    trips = rng.random(n) < 0.25
    trip_days = rng.uniform(2, 10, n)
    nearby = rng.choice(len(PLACES), n, p=home / home.sum())
    return Cards(
        place=place,
        spend=rng.normal(0, 0.45, n),
        cumulative=np.cumsum(rng.gamma(1.5, 1.0, n) + 0.1),
        hour=rng.normal(14, 3, n),
        hour_spread=rng.uniform(2, 5, n),
        online_share=rng.beta(2, 3, n),
        local=local,
        online=popular_online(rng, merchants, n, FAVOURITES),
        two_devices=rng.random(n) < 0.3,
        new_phone_ms=np.where(rng.random(n) < 0.15, rng.integers(0, span_ms, n), span_ms),
        trip_from_ms=trip_from,
        trip_to_ms=np.where(trips, trip_from + (trip_days * DAY_MS).astype(np.int64), trip_from),
        trip_place=np.where(rng.random(n) < 0.35, rng.choice(FAR, n), nearby),
    )


def popular(rng: np.random.Generator, merchants: Merchants, first: Ints, end: Ints, n_each: int) -> Ints:
    """(len(first), n_each) merchants out of [first, end), by popularity."""
    below = np.concatenate([[0.0], merchants.cumulative])
    low, high = below[first][:, None], below[end][:, None]
    drawn: Ints = np.searchsorted(merchants.cumulative, low + rng.random((len(first), n_each)) * (high - low), "right")
    clipped: Ints = np.minimum(drawn, end[:, None] - 1)  # rounding can put a draw on the end itself
    return clipped


def popular_online(rng: np.random.Generator, merchants: Merchants, n: int, n_each: int) -> Ints:
    """(n, n_each) online merchants, by popularity."""
    return popular(rng, merchants, np.zeros(n, np.int64), np.full(n, merchants.n_online), n_each)
