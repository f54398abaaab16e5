"""The end of a soak: four tellings of what happened laid side by side, event by event and byte by byte.

The clients' book, the journal's files, the ledger, and the profiles of both stores. Profiles are held against a fresh engine
that is fed the journal's order with the clients' own transactions (the journal's bodies lose erased ids, theirs do not),
and their counts against a recount of the book that knows nothing of rings: events whose tile a window names.
"""

import bisect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from features.memory import MemoryEngine
from features.plan import Plan, WindowPlan
from features.transaction import Transaction, is_blank
from loadgen.soak.book import Book
from loadgen.soak.holdings import LedgerRow
from loadgen.soak.journal_file import ERASURE, LABEL, TX, read_blocks

TOMBSTONE = 2  # bit of a profile's flags (docs/reference/profile-format.md)
FLAGS_AT = 2
COUNT_CODE = 0  # of a window that counts events (docs/reference/plan-format.md)
SHOWN = 3  # examples in a message

_decode_tx = msgspec.msgpack.Decoder(Transaction).decode


class LabelBody(msgspec.Struct, array_like=True, gc=False):
    """A label's entry of the journal: `delta` frauds were added to the profiles of the transaction in `body`."""

    event_id: str
    label: str
    ts: int
    delta: int
    body: bytes
    tx_lsn: int


class ErasureBody(msgspec.Struct, array_like=True, gc=False):
    """An erasure's entry; a blank id is one that is done."""

    kind: str
    id: str


class DecisionPart(msgspec.Struct, array_like=True, gc=False):
    """The decision beside a transaction's body."""

    score: float
    outcome: str


_decode_label = msgspec.msgpack.Decoder(LabelBody).decode
_decode_erasure = msgspec.msgpack.Decoder(ErasureBody).decode
_decode_decision = msgspec.msgpack.Decoder(DecisionPart).decode


class Told:
    """What the journal tells: decisions and labels by event, and the profiles of a fresh engine fed with it."""

    def __init__(self, plan: Plan, directory: Path, book: Book) -> None:
        """Raises JournalFileError."""
        self.plan = plan
        self.decisions: dict[str, tuple[int, float, str]] = {}
        self.labels: dict[str, str] = {}
        self.problems: list[str] = []
        self.n_entries = 0
        self._erased = {lsn: (kind, entity) for lsn, kind, entity in book.erasures}
        self._book = book
        self._engine = MemoryEngine(plan)
        for entries in read_blocks(directory):
            self.n_entries += len(entries)
            txs = [self._transaction(entry.body) for entry in entries if entry.kind == TX]
            if txs:
                self._engine.vectors(txs, next(entry.lsn for entry in entries if entry.kind == TX))
            for entry in entries:
                if entry.kind == TX:
                    made = _decode_decision(entry.decision)
                    self._decide(_decode_tx(entry.body).event_id, (entry.lsn, made.score, made.outcome))
                elif entry.kind == LABEL:
                    self._label(entry.lsn, _decode_label(entry.body))
                elif entry.kind == ERASURE:
                    self._erase(entry.lsn, _decode_erasure(entry.body))

    def profiles(self) -> dict[bytes, bytes]:
        """By entity key."""
        found = {}
        for kind, index in zip(self.plan.kinds, self._engine.index, strict=True):
            for entity in index:
                profile = self._engine.profile(kind.name, entity)
                if profile is not None:
                    found[f"{kind.name}:{entity}".encode()] = profile
        return found

    def _transaction(self, body: bytes) -> Transaction:
        """The clients' own: what the journal has must be the same but for erased ids."""
        journaled = _decode_tx(body)
        sent = self._book.sent.get(journaled.event_id)
        if sent is None:
            self.problems.append(f"the journal has {journaled.event_id}, which no client knows")
            return journaled
        for field in Transaction.__struct_fields__:
            was, now = getattr(sent, field), getattr(journaled, field)
            if was != now and not (isinstance(now, str) and is_blank(now)):
                self.problems.append(f"{journaled.event_id}: the journal has {field} {now!r}, sent was {was!r}")
        return sent

    def _decide(self, event_id: str, made: tuple[int, float, str]) -> None:
        if event_id in self.decisions:
            self.problems.append(f"{event_id} was journaled twice, at {self.decisions[event_id][0]} and {made[0]}")
        self.decisions[event_id] = made

    def _label(self, lsn: int, record: LabelBody) -> None:
        self.labels[record.event_id] = record.label
        if record.delta:
            self._engine.label(_decode_tx(record.body), record.delta, lsn)

    def _erase(self, lsn: int, record: ErasureBody) -> None:
        kind, entity = self._erased.get(lsn, (record.kind, record.id))
        if is_blank(entity):
            self.problems.append(f"the journal has an erasure at {lsn} that no client asked for")
        else:
            self._engine.erase(kind, entity)


def check_events(book: Book, told: Told) -> list[str]:
    """Acknowledged = journaled, with the same LSN, score and outcome; labels too."""
    problems = told.problems[:]
    problems += _differences("acknowledged", book.acks.keys(), "journaled", told.decisions.keys())
    for event_id, ack in book.acks.items():
        made = told.decisions.get(event_id)
        if made is not None and made != (ack.lsn, ack.score, ack.outcome):
            problems.append(f"{event_id}: answered {ack}, journaled {made}")
    problems += _differences("labels acknowledged", book.labels.keys(), "labels journaled", told.labels.keys())
    problems += [
        f"{event_id}: labelled {label}, journaled {told.labels[event_id]}"
        for event_id, label in book.labels.items()
        if event_id in told.labels and told.labels[event_id] != label
    ]
    return problems


def check_ledger(book: Book, told: Told, rows: Sequence[LedgerRow]) -> list[str]:
    """The ledger has each event once, as it was answered, with its label."""
    problems = []
    by_event = {row.event_id: row for row in rows}
    if len(by_event) != len(rows):
        problems.append(f"the ledger has {len(rows)} rows of {len(by_event)} events")
    problems += _differences("journaled", told.decisions.keys(), "in the ledger", by_event.keys())
    for event_id, row in by_event.items():
        made = told.decisions.get(event_id)
        if made is not None and made != (row.lsn, row.score, row.outcome):
            problems.append(f"{event_id}: journaled {made}, in the ledger {row}")
        label = {None: None, "fraud": 1, "legit": 0}[told.labels.get(event_id)]
        if row.label != label:
            problems.append(f"{event_id}: label {label} in the journal, {row.label} in the ledger")
        sent = book.sent.get(event_id)
        if sent is not None and sent.amount != row.amount:
            problems.append(f"{event_id}: amount {sent.amount} sent, {row.amount} in the ledger")
    return problems


def check_profiles(name: str, expected: Mapping[bytes, bytes], held: Mapping[bytes, bytes]) -> list[str]:
    """A store has every profile byte by byte, and no other but tombstones."""
    alive = {key: profile for key, profile in held.items() if not profile[FLAGS_AT] & TOMBSTONE}
    problems = _differences("profiles by the journal", expected.keys(), f"in {name}", alive.keys())
    wrong = [key for key, profile in expected.items() if key in alive and alive[key] != profile]
    if wrong:
        lsns = [(key, _lsn(expected[key]), _lsn(alive[key])) for key in wrong[:SHOWN]]
        problems.append(
            f"{name}: {len(wrong)} of {len(expected)} profiles differ; (key, LSN by the journal, LSN there): {lsns}"
        )
    return problems


class Recount:
    """Counts by window, from the book alone: an event is in a window whose tiles hold its ts, seen from the newest event."""

    def __init__(self, plan: Plan, book: Book) -> None:
        self._plan = plan
        erased: dict[tuple[str, str], int] = {}
        for lsn, kind_name, entity in book.erasures:
            erased[kind_name, entity] = max(lsn, erased.get((kind_name, entity), 0))
        self._times: dict[tuple[str, str], list[int]] = defaultdict(list)
        for event_id, tx in book.sent.items():
            for kind in plan.kinds:
                entity = getattr(tx, kind.id_field)
                if entity is not None and book.acks[event_id].lsn > erased.get((kind.name, entity), 0):
                    self._times[kind.name, entity].append(tx.ts)
        for times in self._times.values():
            times.sort()

    @property
    def entities(self) -> list[tuple[str, str]]:
        """(kind, id) of everything that has events."""
        return sorted(self._times)

    def differs(self, kind_name: str, entity: str, shown: dict[str, Any]) -> str:
        """What is wrong with the counts that GET /v1/entities shows; "" if nothing is."""
        times = self._times[kind_name, entity]
        kind = next(kind for kind in self._plan.kinds if kind.name == kind_name)
        expected = {w.name: _count(times, ring.tile_ms, w) for ring in kind.rings for w in ring.windows if w.code == COUNT_CODE}
        counted = {name: values["count"] for name, values in shown["windows"].items() if "count" in values}
        return "" if counted == expected else f"{kind_name} {entity}: shown {counted}, acknowledged {expected}"


def _count(times: Sequence[int], tile_ms: int, window: WindowPlan) -> int:
    newest = times[-1] // tile_ms - window.skip
    first, after = (newest - window.tiles + 1) * tile_ms, (newest + 1) * tile_ms
    return bisect.bisect_left(times, after) - bisect.bisect_left(times, first)


def _differences(name: str, some: Any, other_name: str, others: Any) -> list[str]:
    missing, extra = some - others, others - some
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(some)} {name} are not {other_name}, as {sorted(missing)[:SHOWN]}")
    if extra:
        problems.append(f"{len(extra)} {other_name} were not {name}, as {sorted(extra)[:SHOWN]}")
    return problems


def _lsn(profile: bytes) -> int:
    return int.from_bytes(profile[16:24], "little")
