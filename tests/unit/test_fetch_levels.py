"""The fetcher over levels that hit, miss, fail, lag or break: what is new, unknown, partial; one read for many."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from features.advance_one import advance_one
from features.columns import encode
from features.plan import Plan, compile_plan
from features.profile import is_partial
from features.slab import Slab
from features.spec import load_spec
from features.transaction import Transaction
from service.errors import TierUnavailable
from service.fetch import BLOOM_NEW, NEW, UNKNOWN, WAITING, Fetcher, Miss
from service.levels import CATCHING_UP, DOWN, Level
from service.tiers.bloom import MaybeSet
from service.tiers.l1 import L1

CARD = 0


class DictTier:
    """A tier over a dict; `error` is raised instead of an answer; `calls` are the keys of each fill."""

    def __init__(self, name: str, profiles: Mapping[bytes, bytes] | None = None) -> None:
        self.name = name
        self.profiles = dict(profiles or {})
        self.error: Exception | None = None
        self.calls: list[list[bytes]] = []

    async def fill(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.calls.append(list(keys))
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return [self.profiles.get(key) for key in keys]

    async def put(self, profiles: Mapping[bytes, bytes], position: int) -> None:
        raise AssertionError("the fetcher does not write")

    async def read_position(self) -> int:
        return 0


class Waiting:
    """Bytes that wait, without a write-behind."""

    def __init__(self) -> None:
        self.profiles: dict[bytes, bytes] = {}

    def waiting(self, key: bytes) -> bytes | None:
        return self.profiles.get(key)

    def take_waiting(self, key: bytes) -> bytes | None:
        return self.profiles.pop(key, None)

    fullness = ""


class Bench:
    """A fetcher, its L1, and what became of each look-up."""

    def __init__(self, plan: Plan, *levels: Level, bloom: MaybeSet | None = None) -> None:
        self.waiting = Waiting()
        self.l1 = L1(plan, 1 << 20, 64, lambda kind, entities, slots: None)
        self.fetcher = Fetcher(plan, self.l1, levels, bloom, self.waiting)

    async def find(self, *entities: str) -> list[tuple[str, list[str]]]:
        """(source, degraded) of each, all looked up in one turn; every slot has exactly the caller's pin."""
        done: dict[int, tuple[str, list[str]]] = {}

        def waiter(number: int) -> Callable[[Miss], None]:
            def found(miss: Miss) -> None:
                assert self.l1.find(CARD, miss.entity) >= 0
                done[number] = (miss.source, miss.degraded)

            return found

        for number, entity in enumerate(entities):
            slot, source = self.fetcher.find(CARD, entity, waiter(number))
            if slot >= 0:
                done[number] = (source, [])
        async with asyncio.timeout(5):
            while len(done) < len(entities):  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0)
        for entity in entities:
            self.l1.unpin(CARD, self.l1.slot_of(CARD, entity))
        assert all(pins == 0 for pins in self.l1.sieves[CARD].pins)
        return [done[number] for number in range(len(entities))]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_plan(load_spec("cards"))


@pytest.fixture(scope="module")
def profile(plan: Plan) -> bytes:
    slab = Slab(plan.kinds[CARD], 1)
    tx = Transaction("e1", 1_750_000_000_000, 1000, "EUR", "c1", "m1")
    advance_one(slab, 0, encode(tx, plan.currencies), 7)
    return slab.get(0)


async def test_find_hit_in_a_lower_level_fills_l1(plan: Plan, profile: bytes) -> None:
    """Missed above, found below: the bytes are in L1 and nothing is degraded, though a level in between failed."""
    top, middle, bottom = DictTier("l2"), DictTier("redis"), DictTier("postgres", {b"card:c1": profile})
    middle.error = TierUnavailable("redis", "gone")
    bench = Bench(plan, Level(top, False), Level(middle, False), Level(bottom, True))
    assert await bench.find("c1", "c2") == [("postgres", []), (NEW, [])]
    assert bench.l1.peek(CARD, "c1") == profile
    assert not bench.fetcher.partial


async def test_find_miss_in_a_complete_level_asks_no_further(plan: Plan) -> None:
    """A miss in a level that has been there from the first event on is a new entity."""
    top, bottom = DictTier("l2"), DictTier("postgres")
    assert await Bench(plan, Level(top, True), Level(bottom, True)).find("c1") == [(NEW, [])]
    assert not bottom.calls


async def test_find_with_a_level_that_could_not_be_asked_is_unknown_and_partial(plan: Plan) -> None:
    """The reply names the level, the slot is flagged partial and has no version yet."""
    top, bottom = DictTier("l2"), DictTier("postgres")
    bottom.error = TierUnavailable("postgres", "gone")
    bench = Bench(plan, Level(top, False), Level(bottom, True))
    assert await bench.find("c1") == [(UNKNOWN, ["postgres"])]
    assert bench.fetcher.partial == {(CARD, "c1"): ["postgres"]}
    slot_bytes = bench.l1.slabs[CARD].get(bench.l1.slot_of(CARD, "c1"))
    assert is_partial(slot_bytes)
    assert slot_bytes[0] == 0


async def test_find_does_not_believe_a_level_that_lacks_the_key(plan: Plan, profile: bytes) -> None:
    """A level with an old copy is not asked for this key: neither its hit nor its miss counts."""
    lagging, bottom = DictTier("redis", {b"card:c1": profile}), DictTier("postgres", {b"card:c2": profile})
    level = Level(lagging, False)
    level.lacks = lambda keys: {b"card:c1"}.intersection(keys)
    bench = Bench(plan, level, Level(bottom, True))
    assert await bench.find("c1", "c2") == [(NEW, []), ("postgres", [])]
    assert lagging.calls == [[b"card:c2"]]
    alone = Level(DictTier("redis", {b"card:c1": profile}), False)
    alone.lacks = lambda keys: keys
    assert await Bench(plan, alone).find("c1") == [(UNKNOWN, ["redis"])]


@pytest.mark.parametrize("state", [DOWN, CATCHING_UP])
async def test_find_does_not_ask_a_level_that_is_not_on(plan: Plan, profile: bytes, state: str) -> None:
    """A level that is down or catching up is not read; the copies that it has are for those who complete them."""
    tier = DictTier("redis", {b"card:c1": profile})
    level = Level(tier, False)
    level.state = state
    bench = Bench(plan, level)
    assert await bench.find("c1") == [(UNKNOWN, ["redis"])]
    assert not tier.calls
    found = [f.profile async for _, f in bench.fetcher.read_levels([b"card:c1"], [level])]
    assert found == [profile if state == CATCHING_UP else None]


async def test_find_same_profile_twice_is_one_read(plan: Plan, profile: bytes) -> None:
    """Misses of one turn are one call, and two of them on one key one read."""
    tier = DictTier("postgres", {b"card:c1": profile})
    bench = Bench(plan, Level(tier, True))
    assert await bench.find("c1", "c2", "c1") == [("postgres", []), (NEW, []), ("postgres", [])]
    assert tier.calls == [[b"card:c1", b"card:c2"]]


class NearDictTier(DictTier):
    """One that can be asked with no await, for `n_now` keys at a time."""

    def __init__(self, profiles: Mapping[bytes, bytes], n_now: int) -> None:
        super().__init__("l2", profiles)
        self.n_now = n_now

    def fill_now(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if self.error is not None:
            raise self.error
        return [self.profiles.get(key) for key in keys[: self.n_now]]


@pytest.mark.parametrize("n_now", [0, 1, 2, 9])
async def test_find_in_a_near_tier_awaits_only_what_it_does_not_read_at_once(plan: Plan, profile: bytes, n_now: int) -> None:
    """The first keys have their slots with no await, found or new; the others are read as in any tier; all are counted once."""
    tier = NearDictTier({b"card:c1": profile}, n_now)
    level = Level(tier, True, is_local=True)
    bench = Bench(plan, level)
    below = bench.fetcher.find_below(CARD, ["c1", "c2"])
    assert below.sources == ["l2", NEW][:n_now] + [""] * (2 - n_now)
    assert [slot >= 0 for slot in below.slots] == [bool(source) for source in below.sources]
    assert [miss.entity for _, miss in below.misses] == ["c1", "c2"][n_now:]
    for _, miss in below.misses:
        miss.waiters.append(lambda miss: bench.l1.pin_slot(CARD, miss.slot))
    await asyncio.sleep(0)  # what is looked for is asked for in the next turn
    await bench.fetcher.close()
    assert tier.calls == ([[b"card:c1", b"card:c2"][n_now:]] if n_now < 2 else [])
    assert bench.l1.peek(CARD, "c1") == profile
    assert bench.l1.slot_of(CARD, "c2") >= 0
    assert (level.n_lookups, level.n_hits) == (2, 1)


async def test_find_in_a_near_tier_that_fails_or_lags_goes_on_as_in_any_other(plan: Plan, profile: bytes) -> None:
    """What it lacks it is not asked for; an error makes it down, and the next level is asked."""
    tier, bottom = NearDictTier({b"card:c1": profile}, 9), DictTier("postgres", {b"card:c2": profile})
    level = Level(tier, True, is_local=True)
    level.lacks = lambda keys: {b"card:c1"}.intersection(keys)
    bench = Bench(plan, level, Level(bottom, True))
    assert await bench.find("c1") == [(NEW, [])]
    assert bottom.calls == [[b"card:c1"]]
    tier.error = TierUnavailable("l2", "gone")
    assert await bench.find("c2") == [("postgres", [])]
    assert level.state == DOWN


async def test_find_waiting_bytes_are_taken_not_copied(plan: Plan, profile: bytes) -> None:
    """What waits goes back to L1 for good: a second copy would soon be an old one."""
    bench = Bench(plan, Level(DictTier("l2"), True))
    bench.waiting.profiles[b"card:c1"] = profile
    assert await bench.find("c1") == [(WAITING, [])]
    assert bench.l1.peek(CARD, "c1") == profile
    assert not bench.waiting.profiles


async def test_find_prefers_bytes_that_came_to_wait_during_the_read(plan: Plan, profile: bytes) -> None:
    """Put together while a level is being asked: those bytes count, not the level's."""
    old = bytearray(profile)
    old[16:24] = (3).to_bytes(8, "little")
    bench = Bench(plan, Level(DictTier("l2", {b"card:c1": bytes(old)}), True))
    asyncio.get_running_loop().call_later(0, bench.waiting.profiles.__setitem__, b"card:c1", profile)
    assert await bench.find("c1") == [(WAITING, [])]
    assert bench.l1.peek(CARD, "c1") == profile


async def test_find_with_a_covering_bloom_filter_asks_nobody_once(plan: Plan) -> None:
    """A surely new entity costs no read; the second time the filter says maybe."""
    tier = DictTier("postgres")
    bloom = MaybeSet(1_000, 0.01)
    bloom.cover()
    bench = Bench(plan, Level(tier, True), bloom=bloom)
    assert await bench.find("c1") == [(BLOOM_NEW, [])]
    assert not tier.calls
    assert bloom.maybe_has(b"card:c1")


async def test_find_survives_a_tier_that_breaks_its_contract(plan: Plan) -> None:
    """Whatever a tier raises, nobody waits for ever: the profiles are unknown, the next look-up works."""
    tier = DictTier("l2")
    tier.error = ZeroDivisionError("a bug")
    bench = Bench(plan, Level(tier, True))
    assert await bench.find("c1", "c2") == [(UNKNOWN, [UNKNOWN])] * 2
    tier.error = None
    assert await bench.find("c3") == [(NEW, [])]


async def test_find_refuses_bytes_that_are_no_profile(plan: Plan, profile: bytes) -> None:
    """Bytes of another layout are not taken; the next level is asked."""
    bad = DictTier("redis", {b"card:c1": bytes(np.roll(np.frombuffer(profile, dtype=np.uint8), 1))})
    bench = Bench(plan, Level(bad, False), Level(DictTier("postgres", {b"card:c1": profile}), True))
    assert await bench.find("c1") == [("postgres", [])]
    assert bench.l1.peek(CARD, "c1") == profile
