"""What clients of a soak do: transactions on a schedule, and beside them labels, reads, lists, repeats and the live feed.

The schedule is an open loop: transactions are due at a rate, alone, in batches and in one endless stream. As real clients do,
they send again, with the same event_id, whatever got no answer, until there is one; each such try is an incident in the book.
"""

import asyncio
import contextlib
import json
import random
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import aiohttp
import msgspec

from features.transaction import Transaction
from loadgen.soak.book import Book

DEADLINE_S = 30.0  # of one request
IN_FLIGHT_MAX = 400  # requests; beyond that nothing more is sent until there is room, and the book says so
BACKOFF_S, BACKOFF_S_MAX = 0.05, 1.0
BATCH_MAX = 32
LABELS_AT_ONCE = 10
FRAUD_SHARE = 0.3  # of labels
TICK_S = 0.02  # between two looks at what is due
ENTITY_KINDS = {"card": "card_id", "merchant": "merchant_id", "device": "device_id", "ip": "ip"}
LABEL_TS = 1_775_000_000_000  # ms; after the stream
SHARES = (("single", 0.4), ("batch", 0.75), ("stream", 1.0))  # cumulative, of requests

TIER_AWAY = re.compile(rb'problem:tier-unavailable".*"detail":"(\w+):')  # a 503 of one tier: GET of an entity that only it has

_encode = msgspec.json.Encoder().encode


class GaveUp(Exception):
    """The run is over, and this request has no answer."""


class Load:
    """`run` until `stop` is set, then `drain`. `txs` in the order of time; each is sent once, whatever the transport."""

    def __init__(self, url: str, key: str, txs: Iterator[Transaction], rate: float, book: Book, rng: random.Random) -> None:
        self.book = book
        self.url, self._rate, self._txs, self._rng = url, rate, txs, rng
        self.headers = {"Authorization": f"Bearer {key}"}
        self.stopping = asyncio.Event()
        self._gave_up = False
        self._under_way: set[asyncio.Task[None]] = set()
        self._line = LineClient(self)
        self.session: aiohttp.ClientSession

    async def run(self) -> None:
        """Everything at once, until `stopping` is set and what is under way has its answers."""
        async with self.opened():
            beside = [self._labels, self._reads, self._lists, self._repeats, self._follow]
            tasks = [asyncio.create_task(self._each(job)) for job in beside] + [asyncio.create_task(self._line.run())]
            try:
                await self._schedule()
                while self._under_way:
                    await asyncio.wait(self._under_way)
                await self._line.finish()
                await asyncio.gather(*tasks[:-2])
            finally:
                for task in (*tasks, *self._under_way):
                    task.cancel()
                results = await asyncio.gather(*tasks, *self._under_way, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                self.book.violate(f"a client failed: {result!r}")

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """With a session, for `ask` and `batch` outside of `run`."""
        timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
        async with aiohttp.ClientSession(self.url, headers=self.headers, timeout=timeout) as self.session:
            yield

    def give_up(self) -> None:
        """No request is sent again from here on."""
        self._gave_up = True
        self.stopping.set()

    async def ask(self, method: str, path: str, body: Any = None, what: str = "") -> tuple[int, Any]:
        """Status and reply of the first answer that is none of 429, 500, 503; the others are incidents. Raises GaveUp."""
        data = None if body is None else body if isinstance(body, bytes) else _encode(body)
        pause_s = BACKOFF_S
        while not self._gave_up:
            began_s = self.book.clock_s()
            try:
                async with self.session.request(method, path, data=data) as response:
                    raw, status = await response.read(), response.status
            except TimeoutError:
                self.book.note("deadline", began_s, f"{method} {what or path}: nothing within {DEADLINE_S:.0f} s")
            except (aiohttp.ClientError, OSError) as error:
                self.book.note("lost", began_s, f"{method} {what or path}: {type(error).__name__}")
            else:
                if status not in (429, 500, 503):
                    return status, raw if path == "/metrics" or not raw else json.loads(raw)
                tier = TIER_AWAY.search(raw)
                kind = f"degraded {tier[1].decode()}" if tier else f"status {status}"
                self.book.note(kind, began_s, f"{method} {what or path}: {raw[:200]!r}")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, BACKOFF_S_MAX)
        raise GaveUp

    # The schedule

    async def _schedule(self) -> None:
        """Sends what is due; ends with the transactions or with `stopping`."""
        started_s, n_due = self.book.clock_s(), 0
        while not self.stopping.is_set():
            held_s = self.book.clock_s()
            if len(self._under_way) >= IN_FLIGHT_MAX:
                while len(self._under_way) >= IN_FLIGHT_MAX:
                    await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
                self.book.note("held back", held_s, f"{IN_FLIGHT_MAX} requests were under way")
            until = int((self.book.clock_s() - started_s) * self._rate)
            while n_due < until:
                n_due += self._send_next(started_s + n_due / self._rate)
            await asyncio.sleep(TICK_S)

    def _send_next(self, due_s: float) -> int:
        """One request, alone, a batch, or lines of the stream; how many transactions it holds."""
        choice = self._rng.random()
        how = next(name for name, share in SHARES if choice <= share)
        txs = [tx for _, tx in zip(range(1 if how == "single" else self._rng.randrange(2, BATCH_MAX)), self._txs, strict=False)]
        if not txs:
            self.stopping.set()
            return 1 << 40
        self.book.counts[f"{how} requests"] += 1
        if how == "stream":
            self._line.send(txs)
        else:
            self.start(self._single(txs[0], due_s) if how == "single" else self.batch(txs))
        return len(txs)

    def start(self, sending: Any) -> None:
        task = asyncio.create_task(sending)
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.book.violate(f"a client failed: {error!r}")

    async def _single(self, tx: Transaction, due_s: float) -> None:
        began_s = self.book.clock_s()
        status, reply = await self.ask("POST", "/v1/score", tx)
        if status != 200:
            self.book.violate(f"{tx.event_id}: {status} {reply}")
            return
        self.book.decided(tx, reply, began_s)
        self.book.latency_s.append(self.book.clock_s() - due_s)
        self.book.latency_at_s.append(due_s)

    async def batch(self, txs: Sequence[Transaction]) -> None:
        """All of them, and again those that were refused for now."""
        left = list(txs)
        while left and not self._gave_up:
            began_s = self.book.clock_s()
            status, replies = await self.ask("POST", "/v1/score/batch", left)
            if status != 200 or len(replies) != len(left):
                self.book.violate(f"a batch of {len(left)}: {status} {replies}")
                return
            again = []
            for tx, reply in zip(left, replies, strict=True):
                if self.settle(tx, reply, began_s):
                    again.append(tx)
            left = again
            if left:
                await asyncio.sleep(BACKOFF_S)

    def settle(self, tx: Transaction, reply: dict[str, Any], began_s: float) -> bool:
        """Take the reply of a row; True if the row has to be sent again."""
        if "score" in reply:
            if reply["event_id"] != tx.event_id:
                self.book.violate(f"{tx.event_id} got the answer of {reply['event_id']}")
            self.book.decided(tx, reply, began_s)
            return False
        problem = reply.get("error", reply)
        status = problem.get("status", 0)
        if status in (429, 500, 503):
            self.book.note(f"status {status}", began_s, f"a row: {problem}")
            return True
        self.book.violate(f"{tx.event_id}: {problem}")
        return False

    # Beside the schedule

    async def _each(self, job: Any) -> None:
        while not self.stopping.is_set():
            try:
                await job()
            except GaveUp:
                return

    async def _labels(self) -> None:
        await asyncio.sleep(0.4)
        order = self.book.order
        chosen = [order[self._rng.randrange(len(order))] for _ in range(LABELS_AT_ONCE)] if order else []
        # One label per event: which of two at once was the last one, only the journal would know.
        new = {e: "fraud" if self._rng.random() < FRAUD_SHARE else "legit" for e in chosen if e not in self.book.labels}
        if not new:
            return
        content = [{"event_id": e, "label": label, "ts": LABEL_TS} for e, label in new.items()]
        status, reply = await self.ask("POST", "/v1/labels", content)
        rows = reply.get("labels", []) if status == 200 else []
        if len(rows) != len(new) or any(row["status"] not in ("applied", "unchanged") for row in rows):
            self.book.violate(f"labels: {status} {reply}")
        self.book.labels |= new
        self.book.counts["labels"] += len(new)

    async def _repeats(self) -> None:
        await asyncio.sleep(0.5)
        order = self.book.order
        if order:
            await self.batch([self.book.sent[e] for e in {order[self._rng.randrange(len(order))] for _ in range(10)}])

    async def _reads(self) -> None:
        await asyncio.sleep(0.1)
        if not self.book.order:
            return
        event_id = self.book.order[self._rng.randrange(len(self.book.order))]
        tx, began_s, choice = self.book.sent[event_id], self.book.clock_s(), self._rng.random()
        self.book.counts["reads"] += 1
        if choice < 0.5:
            status, reply = await self.ask("GET", f"/v1/decisions/{event_id}", what="a decision")
            if status != 200 or reply["lsn"] != self.book.acks[event_id].lsn:
                self.book.violate(f"GET {event_id}: {status} {reply}, answered was {self.book.acks[event_id]}")
        elif choice < 0.9:
            kind = self._rng.choice(list(ENTITY_KINDS))
            entity = getattr(tx, ENTITY_KINDS[kind]) or tx.card_id
            kind = kind if getattr(tx, ENTITY_KINDS[kind]) else "card"
            status, reply = await self.ask("GET", f"/v1/entities/{kind}/{entity}", what="an entity")
            for tier in reply.get("unavailable", []):
                self.book.note(f"degraded {tier}", began_s, f"GET {kind}: {tier} unavailable")
            if status not in (200, 404) or (status == 404 and not any(e[1:] == (kind, entity) for e in self.book.erasures)):
                self.book.violate(f"GET {kind} {entity}: {status} {reply}")
        else:
            path = self._rng.choice(["/v1/tiers", "/v1/models", "/v1/scorer", "/v1/audit", "/metrics", "/readyz"])
            status, reply = await self.ask("GET", path)
            if status != 200:
                self.book.violate(f"GET {path}: {status} {reply!r}")

    async def _lists(self) -> None:
        await asyncio.sleep(1.0)
        name, entity = self._rng.choice(["deny", "allow"]), f"soak-{self._rng.randrange(1_000_000)}"
        path = f"/v1/lists/{name}/card/{entity}"
        for method, body, expected in (
            ("PUT", {"reason": "soak"}, 200),
            ("GET", None, 200),
            ("DELETE", None, 204),
            ("GET", None, 404),
        ):
            status, reply = await self.ask(method, path, body)
            # A DELETE whose first answer was lost finds nothing to delete the second time.
            if status != expected and not (method == "DELETE" and status == 404):
                self.book.violate(f"{method} {path}: {status} {reply}")
        self.book.counts["list changes"] += 2

    async def _follow(self) -> None:
        """The live feed, for as long as it lasts."""
        began_s = self.book.clock_s()
        try:
            async with self.session.get(
                "/v1/events", timeout=aiohttp.ClientTimeout(total=None, sock_read=DEADLINE_S)
            ) as response:
                if response.status != 200:
                    self.book.note(f"status {response.status}", began_s, "GET /v1/events")
                async for line in response.content:
                    if line.startswith(b"event: "):
                        self.book.counts[f"feed {line[7:].decode().strip()}"] += 1
                    if self.stopping.is_set():
                        return
            self.book.note("lost", began_s, "the feed ended")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.book.note("lost", began_s, f"the feed: {type(error).__name__}")
        await asyncio.sleep(0.2)


class LineClient:
    """POST /v1/score/stream, one after the other: lines in, lines out, in order. What a lost one left goes in batches."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._todo: deque[Transaction] = deque()
        self._pending: deque[tuple[Transaction, float]] = deque()
        self._news = asyncio.Event()
        self._is_over = False

    def send(self, txs: Sequence[Transaction]) -> None:
        self._todo.extend(txs)
        self._news.set()

    async def finish(self) -> None:
        """Wait until every line has its answer."""
        while (self._todo or self._pending) and not self._load._gave_up:  # noqa: ASYNC110  # lines come from several places
            await asyncio.sleep(0.01)
        self._is_over = True
        self._news.set()

    async def run(self) -> None:
        """One stream after the other."""
        while not self._is_over:
            began_s = self._load.book.clock_s()
            why = "the stream ended"
            try:
                timeout = aiohttp.ClientTimeout(total=None, sock_read=DEADLINE_S)
                headers = {"Content-Type": "application/x-ndjson"}
                post = self._load.session.post("/v1/score/stream", data=self._lines(), headers=headers, timeout=timeout)
                async with post as response:
                    if response.status != 200:
                        why = f"the stream: {response.status}"
                    else:
                        async for line in response.content:
                            self._take(json.loads(line))
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                why = f"the stream: {type(error).__name__}"
            if not self._is_over:
                self._load.book.note("lost", began_s if not self._pending else self._pending[0][1], why)
                left = [tx for tx, _ in self._pending]
                self._pending.clear()
                if left:
                    self._load.start(self._load.batch(left))
                await asyncio.sleep(0.2)

    async def _lines(self) -> AsyncIterator[bytes]:
        while not self._is_over:
            self._news.clear()
            while self._todo:
                tx = self._todo.popleft()
                self._pending.append((tx, self._load.book.clock_s()))
                yield _encode(tx) + b"\n"
            if not self._todo and not self._is_over:
                await self._news.wait()

    def _take(self, reply: dict[str, Any]) -> None:
        if not self._pending:
            self._load.book.violate(f"the stream answered what nobody sent: {reply}")
            return
        tx, began_s = self._pending.popleft()
        if self._load.settle(tx, reply, began_s):
            self._load.start(self._load.batch([tx]))
