"""Seeded streams of labelled card transactions: own code, no personal data, the same table for the same arguments.

A world of places, merchants and cards with habits is drawn first; habits make the genuine payments, four kinds of
fraud are laid over them. Genuine life is made hard to tell from fraud on purpose (travel, new phones, big one-off
purchases, bursts of small ones), and part of the fraud keeps quiet, so no model can be perfect. Everything is
vectorised over events: about 2 µs an event. Fraud kinds:

    card_testing          tiny amounts on many stolen cards within minutes, at one online merchant, few devices
    account_takeover      one card's account from a new device, often from far away, larger amounts
    compromised_merchant  cards that paid at one merchant are defrauded in the following days, there or online
    stolen_card           many purchases in a few hours around one place

`label` is the truth; `label_ts` says when it becomes known (null: never). `fraud_kind` explains a label and must never
be used as a feature.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.population import (
    CHANNEL_NAMES,
    DAY_MS,
    ECOM,
    FAR,
    FAVOURITES,
    PLACES,
    POOL,
    Bools,
    Floats,
    Ints,
    World,
    draw_world,
    popular,
    popular_online,
)

VERSION = "1"  # raise it when the same arguments give another table
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
DAYS = 45  # long enough for a 30-day window and a week of label delay
DAYS_MIN = 10  # a compromised merchant takes a week to show
FRAUD_SHARE = 0.01
EVENTS_MIN = 1_000  # below that a fraud kind could stay empty
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
_LEAK_MS = 7 * DAY_MS  # the last fraud after a leak: 6 days and a half

FRAUD_KINDS = ("", "card_testing", "account_takeover", "compromised_merchant", "stolen_card")
FRAUD_MIX = (0.20, 0.25, 0.30, 0.25)  # share of each kind among the fraudulent events
QUIET_SHARE = 0.15  # of the frauds after card testing: own device, own place, usual amounts


class Events(msgspec.Struct, frozen=True):
    """Columns of equal length; ts_ms counts from the start of the stream; device and ip: -1 is absent."""

    ts_ms: Ints
    card: Ints
    merchant: Ints
    log_amount: Floats
    device: Ints
    ip: Ints
    place: Ints  # where the buyer (or the address used) is
    kind: Ints  # index into FRAUD_KINDS


def generate(
    n_events: int,
    seed: int,
    days: int = DAYS,
    start_ms: int = START_MS,
    fraud_share: float = FRAUD_SHARE,
    n_cards: int | None = None,
) -> pa.Table:
    """A table of n_events transactions, sorted by ts (int64 ms UTC); amount is int64 minor units of its currency.

    n_cards defaults to one per 40 events. Raises ValueError for fewer than EVENTS_MIN events, days < DAYS_MIN or a fraud
    share outside (0, 0.2].
    """
    if n_events < EVENTS_MIN:
        raise ValueError(f"{n_events} events asked for, at least {EVENTS_MIN} are needed")
    if days < DAYS_MIN:
        raise ValueError(f"{days} days asked for, at least {DAYS_MIN} are needed")
    if not 0 < fraud_share <= 0.2:
        raise ValueError(f"a fraud share of {fraud_share} asked for, it must lie in (0, 0.2]")
    rng = np.random.default_rng([seed, int(VERSION)])
    world = draw_world(rng, n_cards or max(n_events // 40, 25), max(n_events // 120, 300), days * DAY_MS)
    n_fraud = max(round(n_events * fraud_share), len(FRAUD_MIX))
    genuine = _genuine(rng, world, n_events - n_fraud)
    events = _concat([genuine, _frauds(rng, world, genuine, n_fraud)])
    return _to_table(rng, world, events, seed, start_ms)


# --- genuine life ----------------------------------------------------------------------------------------------------


def _genuine(rng: np.random.Generator, world: World, n: int) -> Events:
    n_bursts, n_tours = n // 40, n // 40  # 2.5 % each: the look-alikes of card testing and of a stolen card
    habits = _habits(rng, world, n - n_bursts - n_tours)
    return _concat([habits, _bursts(rng, world, n_bursts), _tours(rng, world, n_tours)])


def _habits(rng: np.random.Generator, world: World, n: int) -> Events:
    cards, merchants = world.cards, world.merchants
    card = _active_cards(rng, world, n)
    ts_ms = _waking_times(rng, world, card)
    away = (ts_ms >= cards.trip_from_ms[card]) & (ts_ms < cards.trip_to_ms[card])
    place = np.where(away, cards.trip_place[card], cards.place[card])
    online = rng.random(n) < cards.online_share[card]
    rank = _ranks(rng, n)
    explored = popular(rng, merchants, merchants.local_from[place], merchants.local_to[place], 1)[:, 0]
    tried = popular_online(rng, merchants, n, 1)[:, 0]
    curious = rng.random(n) < 0.2
    local_merchant = np.where(away | curious, explored, cards.local[card, rank])
    merchant = np.where(online, np.where(curious, tried, cards.online[card, rank]), local_merchant)
    log_amount = _usual_amounts(rng, world, card, merchant)
    big = rng.random(n) < 0.012
    log_amount += np.where(big, rng.uniform(1.0, 2.8, n), 0.0)
    return _as_owner(rng, world, Events(ts_ms, card, merchant, log_amount, card, card, place, np.zeros(n, np.int64)))


def _bursts(rng: np.random.Generator, world: World, n: int) -> Events:
    """Games and apps: a few small payments within minutes at one online merchant, from the owner's device."""
    owner, _, step = _campaigns(rng, n, 2, 7)
    card = _active_cards(rng, world, int(owner[-1]) + 1)
    start = _waking_times(rng, world, card)
    merchant = world.cards.online[card, _ranks(rng, len(card))]
    ts_ms = start[owner] + _gaps(rng, owner, step, 2 * MINUTE_MS)
    log_amount = rng.normal(np.log(400), 0.8, n)
    zero = np.zeros(n, np.int64)
    who = card[owner]
    return _as_owner(rng, world, Events(ts_ms, who, merchant[owner], log_amount, who, who, world.cards.place[who], zero))


def _tours(rng: np.random.Generator, world: World, n: int) -> Events:
    """A shopping afternoon or a journey day: many shops in a few hours, amounts above the usual."""
    owner, _, step = _campaigns(rng, n, 3, 9)
    card = _active_cards(rng, world, int(owner[-1]) + 1)[owner]
    place = world.cards.place[card]
    start = _waking_times(rng, world, card[step == 0])
    ts_ms = start[owner] + _gaps(rng, owner, step, 35 * MINUTE_MS)
    merchants = world.merchants
    merchant = popular(rng, merchants, merchants.local_from[place], merchants.local_to[place], 1)[:, 0]
    log_amount = _usual_amounts(rng, world, card, merchant) + rng.normal(0.3, 0.4, n)
    return _as_owner(rng, world, Events(ts_ms, card, merchant, log_amount, card, card, place, np.zeros(n, np.int64)))


def _active_cards(rng: np.random.Generator, world: World, n: int) -> Ints:
    cumulative = world.cards.cumulative
    drawn: Ints = np.searchsorted(cumulative, rng.random(n) * cumulative[-1], "right")
    return np.minimum(drawn, world.n_cards - 1)


def _waking_times(rng: np.random.Generator, world: World, card: Ints) -> Ints:
    n = len(card)
    day = rng.integers(0, world.span_ms // DAY_MS, n)
    day = np.where((day % 7 >= 5) & (rng.random(n) < 0.2), rng.integers(0, world.span_ms // DAY_MS, n), day)
    hour = np.where(
        rng.random(n) < 0.08, rng.uniform(0, 24, n), rng.normal(world.cards.hour[card], world.cards.hour_spread[card])
    )
    return day * DAY_MS + (np.mod(hour, 24) * HOUR_MS).astype(np.int64)


def _ranks(rng: np.random.Generator, n: int) -> Ints:
    weight = 1.0 / np.arange(1, FAVOURITES + 1)
    return rng.choice(FAVOURITES, n, p=weight / weight.sum())


def _usual_amounts(rng: np.random.Generator, world: World, card: Ints, merchant: Ints) -> Floats:
    merchants = world.merchants
    return merchants.price[merchant] + world.cards.spend[card] + rng.normal(0, 1, len(card)) * merchants.spread[merchant]


def _as_owner(rng: np.random.Generator, world: World, events: Events) -> Events:
    """The owner's own device and address at that time (a second device, a new phone, a shared address)."""
    n, card = len(events.card), events.card
    second = world.cards.two_devices[card] & (rng.random(n) < 0.3)
    replaced = events.ts_ms >= world.cards.new_phone_ms[card]
    device = 3 * card + np.where(second, 1, np.where(replaced, 2, 0))
    shared = (rng.random(n) < 0.25) | (events.place != world.cards.place[card])
    ip = np.where(shared, _pool_ips(rng, world, events.place), 3 * card + second)
    return msgspec.structs.replace(events, device=device, ip=ip)


def _pool_ips(rng: np.random.Generator, world: World, place: Ints) -> Ints:
    return 3 * world.n_cards + place * POOL + rng.integers(0, POOL, len(place))


# --- fraud -----------------------------------------------------------------------------------------------------------


def _frauds(rng: np.random.Generator, world: World, genuine: Events, n: int) -> Events:
    sizes = np.maximum(np.round(np.array(FRAUD_MIX) * n).astype(int), 1)
    sizes[-1] += n - int(sizes.sum())
    loud = _concat(
        [
            _card_testing(rng, world, int(sizes[0])),
            _account_takeover(rng, world, int(sizes[1])),
            _compromised_merchant(rng, world, genuine, int(sizes[2])),
            _stolen_card(rng, world, int(sizes[3])),
        ]
    )
    return _keep_quiet(rng, world, loud)


def _card_testing(rng: np.random.Generator, world: World, n: int) -> Events:
    campaign, count, step = _campaigns(rng, n, 8, 30)
    merchants = world.merchants
    online = popular_online(rng, merchants, count, 1)[:, 0]
    start = rng.integers(0, world.span_ms - 3 * HOUR_MS, count)
    pace = rng.uniform(0.3, 2.5, count) * MINUTE_MS
    # Each stolen card is tried about twice in a row.
    tried = np.cumsum(rng.random(n) < 0.5)
    card = _active_cards(rng, world, int(tried[-1]) + 1)[tried]
    place = rng.choice(FAR, count)[campaign]
    place = np.where(rng.random(n) < 0.5, place, world.cards.place[card])
    device = np.where(rng.random(n) < 0.6, _thief_devices(world, campaign, 0), -1)
    ip = np.where(rng.random(n) < 0.5, _thief_ips(rng, world, campaign, 0, 4), _pool_ips(rng, world, place))
    ts_ms = start[campaign] + _gaps(rng, campaign, step, pace[campaign])
    return Events(ts_ms, card, online[campaign], rng.normal(np.log(180), 0.7, n), device, ip, place, np.full(n, 1))


def _account_takeover(rng: np.random.Generator, world: World, n: int) -> Events:
    campaign, count, step = _campaigns(rng, n, 1, 6)
    card = _active_cards(rng, world, count)[campaign]
    start = rng.integers(0, world.span_ms - 2 * DAY_MS, count)
    far = (rng.random(count) < 0.55)[campaign]
    place = np.where(far, rng.choice(FAR, count)[campaign], world.cards.place[card])
    merchant = _cash_out(rng, world, n)
    log_amount = _usual_amounts(rng, world, card, merchant) + rng.normal(0.9, 0.6, n)
    device = _thief_devices(world, campaign // 2, 1)  # a thief's device serves two accounts
    ip = np.where(rng.random(n) < 0.6, _thief_ips(rng, world, campaign // 2, 1, 2), _pool_ips(rng, world, place))
    ts_ms = start[campaign] + _gaps(rng, campaign, step, 90 * MINUTE_MS)
    return Events(ts_ms, card, merchant, log_amount, device, ip, place, np.full(n, 2))


def _compromised_merchant(rng: np.random.Generator, world: World, genuine: Events, n: int) -> Events:
    campaign, count, step = _campaigns(rng, n, 8, 40)
    # Its leak starts with a purchase early enough for the days that follow; most such merchants sell online.
    early = genuine.ts_ms < world.span_ms - _LEAK_MS
    sells_online = (genuine.merchant < world.merchants.n_online) | (rng.random(len(early)) < 0.3)
    order = np.lexsort((genuine.ts_ms, genuine.merchant))
    anchors = np.flatnonzero((early & sells_online)[order])
    leak = anchors[rng.integers(0, len(anchors), count)][campaign]
    # The following buyers are the victims, each hit about twice in a row.
    victim = order[np.minimum(leak + step // 2, len(order) - 1)]
    source = genuine.merchant[order[leak]]
    same = (genuine.merchant[victim] == source) & early[victim]
    victim = np.where(same, victim, order[leak])
    card = genuine.card[victim]
    there = rng.random(n) < 0.5
    merchant = np.where(there, source, _cash_out(rng, world, n))
    first_of_pair = np.arange(n) - step % 2  # both purchases of a pair happen on one occasion
    days = rng.uniform(0.3, 6, n)[np.maximum(first_of_pair, 0)]
    again = np.where(step % 2 == 1, rng.exponential(10 * MINUTE_MS, n), 0.0)
    ts_ms = genuine.ts_ms[victim] + (days * DAY_MS + np.minimum(again, DAY_MS / 2)).astype(np.int64)
    log_amount = _usual_amounts(rng, world, card, merchant) + rng.normal(0.9, 0.6, n)
    place = np.where(rng.random(n) < 0.3, rng.choice(FAR, n), world.cards.place[card])
    device = np.where(rng.random(n) < 0.7, _thief_devices(world, campaign, 2), -1)
    ip = np.where(rng.random(n) < 0.5, _thief_ips(rng, world, campaign, 2, 6), _pool_ips(rng, world, place))
    return Events(ts_ms, card, merchant, log_amount, device, ip, place, np.full(n, 3))


def _stolen_card(rng: np.random.Generator, world: World, n: int) -> Events:
    campaign, count, step = _campaigns(rng, n, 3, 12)
    card = _active_cards(rng, world, count)[campaign]
    elsewhere = (rng.random(count) < 0.3)[campaign]
    place = np.where(elsewhere, rng.integers(0, len(PLACES), count)[campaign], world.cards.place[card])
    merchants = world.merchants
    merchant = popular(rng, merchants, merchants.local_from[place], merchants.local_to[place], 1)[:, 0]
    start = rng.integers(0, world.span_ms - DAY_MS, count)
    ts_ms = start[campaign] + _gaps(rng, campaign, step, 15 * MINUTE_MS)
    log_amount = _usual_amounts(rng, world, card, merchant) + rng.normal(1.0, 0.6, n)
    none = np.full(n, -1)
    return Events(ts_ms, card, merchant, log_amount, none, none, place, np.full(n, 4))


def _keep_quiet(rng: np.random.Generator, world: World, loud: Events) -> Events:
    """Part of the thieves use the owner's device and place and ordinary amounts (malware, family, patience)."""
    n = len(loud.card)
    quiet = (rng.random(n) < QUIET_SHARE) & (loud.kind > 1)
    home = world.cards.place[loud.card]
    # A payment in a shop cannot move: only its amount becomes ordinary.
    online = loud.merchant < world.merchants.n_online
    place = np.where(quiet & online, home, loud.place)
    usual = _usual_amounts(rng, world, loud.card, loud.merchant)
    owner = _as_owner(rng, world, msgspec.structs.replace(loud, place=place))
    return msgspec.structs.replace(
        loud,
        place=place,
        log_amount=np.where(quiet, usual, loud.log_amount),
        device=np.where(quiet, owner.device, loud.device),
        ip=np.where(quiet, owner.ip, loud.ip),
    )


def _cash_out(rng: np.random.Generator, world: World, n: int) -> Ints:
    """Online merchants for stolen data: a third of them among those that check little."""
    end = np.where(rng.random(n) < 0.35, world.merchants.n_weak, world.merchants.n_online)
    return popular(rng, world.merchants, np.zeros(n, np.int64), end, 1)[:, 0]


def _thief_devices(world: World, campaign: Ints, family: int) -> Ints:
    return 3 * world.n_cards + 3 * campaign + family


def _thief_ips(rng: np.random.Generator, world: World, campaign: Ints, family: int, n_each: int) -> Ints:
    first = 3 * world.n_cards + len(PLACES) * POOL
    return first + (campaign * 3 + family) * 8 + rng.integers(0, n_each, len(campaign))


# --- shared ----------------------------------------------------------------------------------------------------------


def _campaigns(rng: np.random.Generator, n: int, size_min: int, size_max: int) -> tuple[Ints, int, Ints]:
    """Cut n events into campaigns: (campaign of each event, number of campaigns, step within its campaign)."""
    sizes = rng.integers(size_min, size_max + 1, n // size_min + 1)
    campaign = np.repeat(np.arange(len(sizes)), sizes)[:n]
    first = np.searchsorted(campaign, campaign)
    return campaign, int(campaign[-1]) + 1, np.arange(n) - first


def _gaps(rng: np.random.Generator, campaign: Ints, step: Ints, mean_ms: float | Floats) -> Ints:
    """Time since the campaign's start: running sum of exponential gaps, starting at 0."""
    gap = rng.exponential(1.0, len(campaign)) * mean_ms
    gap[step == 0] = 0.0
    total = np.cumsum(gap)
    return (total - total[np.searchsorted(campaign, campaign)]).astype(np.int64)


def _concat(parts: Sequence[Events]) -> Events:
    return Events(*(np.concatenate(columns) for columns in zip(*map(msgspec.structs.astuple, parts), strict=True)))


def _to_table(rng: np.random.Generator, world: World, events: Events, seed: int, start_ms: int) -> pa.Table:
    n = len(events.card)
    order = np.argsort(events.ts_ms, kind="stable")
    card, merchant = events.card[order], events.merchant[order]
    kind, buyer_place = events.kind[order], events.place[order]
    ts = start_ms + np.clip(events.ts_ms[order], 0, world.span_ms - 1)
    merchants = world.merchants
    channel = merchants.channel[merchant]
    online = channel == ECOM
    place = np.where(online, buyer_place, merchants.place[merchant])
    lat = np.where(online, np.array([p[2] for p in PLACES])[place] + rng.normal(0, 0.2, n), merchants.lat[merchant])
    lon = np.where(online, np.array([p[3] for p in PLACES])[place] + rng.normal(0, 0.2, n), merchants.lon[merchant])
    located = rng.random(n) < np.array([0.6, 0.85, 0.95, 0.0, 0.2])[channel]
    device, ip = events.device[order], events.ip[order]
    # Genuine shops lose them too: a missing device must not give a fraud away.
    known_device, known_ip = online & (rng.random(n) > 0.12), online & (rng.random(n) > 0.03)
    amount = np.clip(np.rint(np.exp(events.log_amount[order])), 1, 5_000_000).astype(np.int64)
    label = (kind > 0).astype(np.int8)
    label_ts, known = _label_times(rng, ts, label)
    columns = {
        "event_id": pa.array([f"g{seed}-{i}" for i in range(n)]),
        "ts": pa.array(ts),
        "amount": pa.array(amount),
        "currency": _names([p[1] for p in PLACES], merchants.place[merchant]),
        "card_id": _names([f"c{i}" for i in range(world.n_cards)], card),
        "merchant_id": _names([f"m{i}" for i in range(len(merchants.place))], merchant),
        "device_id": _names([f"d{i}" for i in range(int(device.max()) + 1)], device, known_device & (device >= 0)),
        "ip": _names([_address(i) for i in range(int(ip.max()) + 1)], ip, known_ip & (ip >= 0)),
        "country": _names([p[0] for p in PLACES], place),
        "mcc": pa.array(merchants.mcc[merchant]),
        "channel": _names(list(CHANNEL_NAMES), channel),
        "lat": pa.array(np.round(lat, 4), mask=~located),
        "lon": pa.array(np.round(lon, 4), mask=~located),
        "label": pa.array(label),
        "label_ts": pa.array(label_ts, mask=~known),
        "fraud_kind": _names(list(FRAUD_KINDS), kind),
    }
    origin = {"weir.generator": VERSION, "weir.seed": str(seed), "weir.events": str(n)}
    return pa.table(columns).replace_schema_metadata(origin)


def _label_times(rng: np.random.Generator, ts: Ints, label: NDArray[np.int8]) -> tuple[Ints, Bools]:
    """When each label becomes known. Frauds: days, 6 % weeks, 3 % never. Genuine: after a quiet week, 2 % never."""
    n = len(ts)
    days = np.minimum(rng.lognormal(np.log(3.0), 0.6, n), 14.0)
    days = np.where(rng.random(n) < 0.06, rng.uniform(14, 40, n), days)
    days = np.where(label == 1, days, 7.0)
    known = rng.random(n) >= np.where(label == 1, 0.03, 0.02)
    return ts + (days * DAY_MS).astype(np.int64), known


def _names(names: list[str], index: Ints, present: Bools | None = None) -> pa.Array:
    mask = None if present is None else ~present
    return pa.array(names).take(pa.array(np.where(mask, 0, index) if mask is not None else index, mask=mask))


def _address(i: int) -> str:
    """The i-th address of 10.0.0.0/8: a private range, so no address of the stream is anybody's."""
    return f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}"
