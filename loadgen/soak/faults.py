"""What is done to a service on purpose while it is under load, and which incidents each of them explains.

One after the other, in an order drawn from the seed, every kind once before any comes twice; a restart now and then. A fault
has ended when every tier is on again and lacks nothing: `Fault.ended_s` of the book.
"""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from loadgen.bench.children import BenchError
from loadgen.soak.book import Book, Fault
from loadgen.soak.load import GaveUp, Load
from loadgen.soak.places import Service, Store
from models.scorers import NAMES, missing_scorer

SETTLED_S = 60.0  # s; more is an incident
OFF_S = (0.5, 3.0)  # s that a tier is off, or a store away
RESTART_EXPLAINS = ("lost", "status 503", "held back", "deadline")
REASON = "weir bench soak"

_encode = msgspec.json.Encoder().encode


class Faults:
    """`run` until `until_s` of the book's clock; `restarts_s`: when the service is to be restarted."""

    def __init__(
        self, load: Load, service: Service, stores: Sequence[Store], rivals: Sequence[str], rng: random.Random,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._load, self._service, self._rng, self._say = load, service, rng, say
        self._stores = {store.name: store for store in stores}
        self._rivals = list(rivals)
        self._kinds: dict[str, Callable[[Fault], Awaitable[None]]] = {}
        tiers = ["l1", "bloom", "l2", *self._stores]
        for tier in tiers:
            self._add(f"toggle {tier}", self._toggle, tier)
        for name in self._stores:
            self._add(f"pause {name}", self._pause, name)
            self._add(f"kill {name}", self._kill, name)
        if sum(missing_scorer(name) is None for name in NAMES) > 1:
            self._add("switch scorer", self._switch_scorer, "")
        if self._rivals:
            self._add("swap champion", self._swap_champion, "")
            self._add("challenger", self._challenge, "")
        self._add("erase", self._erase, "")
        self._queue: list[str] = []

    @property
    def stores(self) -> list[Store]:
        return list(self._stores.values())

    @property
    def book(self) -> Book:
        return self._load.book

    async def run(self, until_s: float, rest_s: float, restarts_s: Sequence[float]) -> None:
        """Raises BenchError if the service does not come back."""
        due = list(restarts_s)
        n_restarts = 0
        while (now := self.book.clock_s()) < until_s:
            if due and now >= due[0]:
                due.pop(0)
                await self.restart(signal.SIGTERM if n_restarts % 2 else signal.SIGKILL)
                n_restarts += 1
            else:
                await self._one(self._next())
            left = min([until_s, *due[:1]]) - self.book.clock_s()
            await asyncio.sleep(max(0.0, min(rest_s, left)))

    async def restart(self, number: signal.Signals) -> None:
        """SIGTERM has to end it with code 0."""
        fault = self.book.begin(f"restart by {number.name}", RESTART_EXPLAINS)
        self._say(f"{fault.began_s:6.0f} s  {fault.name}")
        code = await asyncio.to_thread(self._service.stop, number)
        if code != (0 if number == signal.SIGTERM else -number):
            self.book.violate(f"after {number.name} the service ended with code {code}")
        await asyncio.to_thread(self._service.start)
        fault.note = f"ready after {self._service.lives[-1].ready_s:.1f} s"
        await self._settled(fault)

    async def settle(self) -> None:
        """Wait until nothing is under way between the tiers; what does not come to rest is an incident."""
        await self._settled(None)

    def _add(self, name: str, act: Callable[[Fault, str], Awaitable[None]], argument: str) -> None:
        async def run(fault: Fault) -> None:
            await act(fault, argument)

        self._kinds[name] = run

    def _next(self) -> str:
        if not self._queue:
            self._queue = list(self._kinds)
            self._rng.shuffle(self._queue)
        return self._queue.pop()

    async def _one(self, name: str) -> None:
        what, _, place = name.partition(" ")
        explains = [f"degraded {place}"] if what in ("toggle", "pause", "kill") else []
        fault = self.book.begin(name, explains)
        self._say(f"{fault.began_s:6.0f} s  {name}")
        try:
            await self._kinds[name](fault)
            await self._settled(fault)
        except GaveUp:
            self.book.end(fault)

    async def _toggle(self, fault: Fault, tier: str) -> None:
        await self._put(f"/v1/tiers/{tier}", {"enabled": False})
        await asyncio.sleep(self._rng.uniform(*OFF_S))
        await self._put(f"/v1/tiers/{tier}", {"enabled": True})

    async def _pause(self, fault: Fault, name: str) -> None:
        store = self._stores[name]
        store.pause()
        try:
            await asyncio.sleep(self._rng.uniform(*OFF_S))
        finally:
            store.resume()

    async def _kill(self, fault: Fault, name: str) -> None:
        store = self._stores[name]
        await asyncio.to_thread(store.kill)
        await asyncio.sleep(self._rng.uniform(*OFF_S))
        await asyncio.to_thread(store.restart)

    async def _switch_scorer(self, fault: Fault, _: str) -> None:
        reply = await self._get("/v1/scorer")
        other = next(name for name in NAMES if name != reply["scorer"] and missing_scorer(name) is None)
        await self._put("/v1/scorer", {"scorer": other})
        await asyncio.sleep(self._rng.uniform(*OFF_S))
        await self._put("/v1/scorer", {"scorer": reply["scorer"]})

    async def _swap_champion(self, fault: Fault, _: str) -> None:
        await self._put("/v1/models/champion", {"model": self._rng.choice(self._rivals)})
        await asyncio.sleep(self._rng.uniform(*OFF_S))
        await self._put("/v1/models/champion", {"rollback": True})

    async def _challenge(self, fault: Fault, _: str) -> None:
        await self._put("/v1/models/challenger", {"model": self._rng.choice(self._rivals)})
        await asyncio.sleep(self._rng.uniform(*OFF_S))
        await self._put("/v1/models/challenger", {"model": None})

    async def _erase(self, fault: Fault, _: str) -> None:
        """A card: whoever asks for it until the reply may find it or not."""
        order = self.book.order
        if not order:
            return
        card = self.book.sent[order[self._rng.randrange(len(order))]].card_id
        place = len(self.book.erasures)
        self.book.erasures.append((0, "card", card))
        status, reply = await self._load.ask("DELETE", f"/v1/entities/card/{card}", what="an entity")
        if status not in (200, 202):
            self.book.violate(f"DELETE card {card}: {status} {reply}")
            self.book.erasures.pop(place)
            return
        self.book.erasures[place] = (reply["lsn"], "card", card)
        fault.note = reply["state"]

    async def _get(self, path: str) -> Any:
        return (await self._load.ask("GET", path))[1]

    async def _put(self, path: str, body: dict[str, Any]) -> None:
        status, reply = await self._load.ask("PUT", path, body | {"reason": REASON})
        if status != 200:
            self.book.violate(f"PUT {path} {body}: {status} {reply}")

    async def _settled(self, fault: Fault | None) -> None:
        began_s, deadline = self.book.clock_s(), time.monotonic() + SETTLED_S
        while True:
            reply = await self._get("/v1/tiers")
            waiting = [t["name"] for t in reply["tiers"] if not t["enabled"] or t["state"] != "on"]
            waiting += [c["name"] for c in reply["consumers"] if c["state"] != "on"]
            if not waiting and not reply["warnings"]:
                break
            if time.monotonic() > deadline:
                states = {t["name"]: (t["state"], t.get("reason", ""), t.get("lag")) for t in reply["tiers"]}
                self.book.note("not settled", began_s, f"{waiting}: {states} {reply['consumers']} {reply['warnings']}")
                break
            if not self._service.is_running():
                raise BenchError("the service has ended by itself; its log is in the work directory")
            await asyncio.sleep(0.1)
        if fault is not None:
            self.book.end(fault)
