"""The same profiles and features as plain Python objects: what a straightforward Python service would keep, to compare with.

A profile is a dict; each window is an object with a deque of its tiles and running totals, so an event in an open tile adds and
a new tile drops what has left. Same windows, same 40 features of the spec `cards` (tested against the engine), less work where
that is possible: every entity is given, events come in time order, there is no LSN guard, no label, no merge.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from features.advance_one import GOLDEN
from features.vector import DAY_MS, DISTINCT_BY_BITS, EARTH_KM, EPOCH_WEEKDAY, HOUR_MS, NIGHT_LAST_HOUR

Profile = dict[str, Any]
MINUTE_MS = 60_000
RADIANS = math.pi / 180e6
DISTINCT: list[float] = DISTINCT_BY_BITS.tolist()


class Counts:
    """Count and sum over the last `tiles` tiles. A tile is a list: number, count, sum, ..."""

    __slots__ = ("count", "tile_ms", "tiles", "total", "window")

    def __init__(self, tile_ms: int, tiles: int) -> None:
        self.tile_ms, self.window = tile_ms, tiles
        self.tiles: deque[list[int]] = deque()
        self.count = self.total = 0

    def add(self, ts: int, amount: int) -> None:
        number, tiles = ts // self.tile_ms, self.tiles
        if not tiles or tiles[-1][0] != number:
            while tiles and tiles[0][0] <= number - self.window:
                left = tiles.popleft()
                self.count -= left[1]
                self.total -= left[2]
            tiles.append([number, 0, 0])
        tile = tiles[-1]
        tile[1] += 1
        tile[2] += amount
        self.count += 1
        self.total += amount

    @property
    def mean(self) -> float:
        return self.total / self.count


class Moments(Counts):
    """Also the sum of squares and the largest amount."""

    __slots__ = ("largest", "squares")

    def __init__(self, tile_ms: int, tiles: int) -> None:
        super().__init__(tile_ms, tiles)
        self.squares = self.largest = 0

    def add(self, ts: int, amount: int) -> None:
        number, tiles = ts // self.tile_ms, self.tiles
        if not tiles or tiles[-1][0] != number:
            gone = False
            while tiles and tiles[0][0] <= number - self.window:
                left = tiles.popleft()
                self.count -= left[1]
                self.total -= left[2]
                self.squares -= left[3]
                gone = True
            if gone:
                self.largest = max((tile[4] for tile in tiles), default=0)
            tiles.append([number, 0, 0, 0, 0])
        tile = tiles[-1]
        square = amount * amount
        tile[1] += 1
        tile[2] += amount
        tile[3] += square
        tile[4] = max(tile[4], amount)
        self.count += 1
        self.total += amount
        self.squares += square
        self.largest = max(self.largest, amount)

    @property
    def std(self) -> float:
        return math.sqrt(max(self.squares / self.count - self.mean**2, 0.0))

    def zscore(self, amount: int) -> float:
        std = self.std
        return (amount - self.mean) / std if std else 0.0


class Distinct:
    """How many different values in the last `tiles` tiles, by linear counting in 64 bits per tile, as the slab does."""

    __slots__ = ("bits", "tile_ms", "tiles", "window")

    def __init__(self, tile_ms: int, tiles: int) -> None:
        self.tile_ms, self.window = tile_ms, tiles
        self.tiles: deque[list[int]] = deque()
        self.bits = 0

    def add(self, ts: int, value: int) -> None:
        number, tiles = ts // self.tile_ms, self.tiles
        if not tiles or tiles[-1][0] != number:
            gone = False
            while tiles and tiles[0][0] <= number - self.window:
                tiles.popleft()
                gone = True
            if gone:
                self.bits = 0
                for tile in tiles:
                    self.bits |= tile[1]
            tiles.append([number, 0])
        bit = 1 << (value * GOLDEN >> 58 & 63)
        tiles[-1][1] |= bit
        self.bits |= bit

    @property
    def number(self) -> float:
        return DISTINCT[self.bits.bit_count()]


class Delayed:
    """Events and frauds in `tiles` tiles that are at least `delay` tiles old."""

    __slots__ = ("count", "delay", "frauds", "tile_ms", "tiles", "window", "young")

    def __init__(self, tile_ms: int, tiles: int, delay: int) -> None:
        self.tile_ms, self.window, self.delay = tile_ms, tiles, delay
        self.young: deque[list[int]] = deque()
        self.tiles: deque[list[int]] = deque()
        self.count = self.frauds = 0

    def add(self, ts: int) -> None:
        number, young, tiles = ts // self.tile_ms, self.young, self.tiles
        if not young or young[-1][0] != number:
            while young and young[0][0] <= number - self.delay:
                tile = young.popleft()
                tiles.append(tile)
                self.count += tile[1]
                self.frauds += tile[2]
            while tiles and tiles[0][0] <= number - self.delay - self.window:
                left = tiles.popleft()
                self.count -= left[1]
                self.frauds -= left[2]
            young.append([number, 0, 0])
        young[-1][1] += 1

    @property
    def rate(self) -> float:
        return self.frauds / self.count if self.count else 0.0


def _card(ts: int) -> Profile:
    return {
        "first_seen": ts, "last_seen": None, "country": None, "device": None, "place": None,
        "10m": Counts(5 * MINUTE_MS, 2), "1h": Counts(5 * MINUTE_MS, 12), "24h": Counts(2 * HOUR_MS, 12),
        "7d": Counts(12 * HOUR_MS, 14), "30d": Moments(3 * DAY_MS, 10),
        "merchants_24h": Distinct(2 * HOUR_MS, 12), "devices_7d": Distinct(12 * HOUR_MS, 14),
    }  # fmt: skip


def _merchant(ts: int) -> Profile:
    return {
        "1h": Counts(5 * MINUTE_MS, 12), "24h": Moments(2 * HOUR_MS, 12),
        "cards_1h": Distinct(5 * MINUTE_MS, 12), "frauds": Delayed(DAY_MS, 30, 8),
    }  # fmt: skip


def _device(ts: int) -> Profile:
    return {
        "first_seen": ts, "24h": Counts(2 * HOUR_MS, 12),
        "cards_7d": Distinct(12 * HOUR_MS, 14), "frauds": Delayed(DAY_MS, 30, 8),
    }  # fmt: skip


def _ip(ts: int) -> Profile:
    return {"first_seen": ts, "1h": Counts(5 * MINUTE_MS, 12), "cards_24h": Distinct(2 * HOUR_MS, 12)}


MAKERS: tuple[Callable[[int], Profile], ...] = (_card, _merchant, _device, _ip)


class ObjectEngine:
    """`per_kind` profiles of each kind, begun when they are first met. A look-up is an index into a list: ids cost nothing."""

    def __init__(self, per_kind: int) -> None:
        self.profiles: list[list[Profile | None]] = [[None] * per_kind for _ in MAKERS]

    def vector(self, numbers: Sequence[int], event: Sequence[int]) -> list[float]:
        """Advance the four profiles of one event (its columns) and give its 40 features."""
        found = []
        for of_kind, number, make in zip(self.profiles, numbers, MAKERS, strict=True):
            profile = of_kind[number]
            if profile is None:
                profile = of_kind[number] = make(event[0])
            found.append(profile)
        card, merchant, device, ip = found
        ts, amount, country, _, _, card_id, merchant_id, device_id, _, lat, lon = event
        since = -1.0 if card["last_seen"] is None else (ts - card["last_seen"]) / 1000
        country_changed = card["country"] is not None and card["country"] != country
        device_changed = card["device"] is not None and card["device"] != device_id
        speed = 0.0 if card["place"] is None else _speed_kmh(card["place"], ts, lat, lon)
        card["last_seen"], card["country"], card["device"], card["place"] = ts, country, device_id, (ts, lat, lon)
        for name in ("10m", "1h", "24h", "7d", "30d"):
            card[name].add(ts, amount)
        card["merchants_24h"].add(ts, merchant_id)
        card["devices_7d"].add(ts, device_id)
        for name in ("1h", "24h"):
            merchant[name].add(ts, amount)
        merchant["cards_1h"].add(ts, card_id)
        merchant["frauds"].add(ts)
        device["24h"].add(ts, amount)
        device["cards_7d"].add(ts, card_id)
        device["frauds"].add(ts)
        ip["1h"].add(ts, amount)
        ip["cards_24h"].add(ts, card_id)
        changes = (since if since < 0 else math.log1p(since), country_changed, device_changed, math.log1p(speed))
        return _features(event, changes, card, merchant, device, ip)


def _features(
    event: Sequence[int], changes: tuple[float, ...], card: Profile, merchant: Profile, device: Profile, ip: Profile
) -> list[float]:
    ts, amount, _, mcc, channel = event[:5]
    since, country_changed, device_changed, speed = changes
    log1p = math.log1p
    hour, weekday = ts % DAY_MS // HOUR_MS, (ts // DAY_MS + EPOCH_WEEKDAY) % 7
    hours_1, hours_24, days_7, days_30 = card["1h"], card["24h"], card["7d"], card["30d"]
    merchant_24 = merchant["24h"]
    return [
        log1p(amount), hour, weekday, hour <= NIGHT_LAST_HOUR, weekday >= 5, channel, mcc * 0.001,
        log1p(card["10m"].count), log1p(hours_1.count), log1p(hours_1.total), log1p(hours_24.count), log1p(hours_24.total),
        log1p(card["merchants_24h"].number), log1p(days_7.count), log1p(days_7.mean), log1p(card["devices_7d"].number),
        log1p(days_30.count), log1p(days_30.largest), log1p(days_30.std),
        log1p(amount / days_30.mean if days_30.total else 0.0), days_30.zscore(amount),
        since, log1p((ts - card["first_seen"]) / 1000), country_changed, device_changed, speed,
        log1p(merchant["1h"].count), log1p(merchant["cards_1h"].number), log1p(merchant_24.count),
        log1p(amount / merchant_24.mean if merchant_24.total else 0.0), merchant_24.zscore(amount), merchant["frauds"].rate,
        1.0, log1p(device["24h"].count), log1p(device["cards_7d"].number), log1p((ts - device["first_seen"]) / 1000),
        device["frauds"].rate, log1p(ip["1h"].count), log1p(ip["cards_24h"].number), log1p((ts - ip["first_seen"]) / 1000),
    ]  # fmt: skip


def _speed_kmh(before: tuple[int, int, int], ts: int, lat: int, lon: int) -> float:
    """See features.vector: latitudes are stored shifted by 90 degrees."""
    ts0, lat0, lon0 = before
    up, right = math.sin((lat - lat0) * RADIANS / 2), math.sin((lon - lon0) * RADIANS / 2)
    chord = up * up + math.sin(lat0 * RADIANS) * math.sin(lat * RADIANS) * right * right
    km = 2 * EARTH_KM * math.asin(math.sqrt(min(chord, 1.0)))
    return km / (max(ts - ts0, MINUTE_MS) / HOUR_MS)
