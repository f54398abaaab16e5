"""What the clients of a soak know by themselves: what they sent, what was answered, what went wrong and when.

Nothing here is read from the service's files or stores: at the end both are laid side by side.
"""

import time
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from features.transaction import Transaction

VIOLATIONS_KEPT = 50
CALM_LEAD_S = 1.0  # a request that began so soon after a fault's end still belongs to it


class Ack(msgspec.Struct, frozen=True, gc=False):
    """The first answer that an event got."""

    lsn: int
    score: float
    outcome: str


class Incident(msgspec.Struct, frozen=True):
    """Something that a client would call an error, from `began_s` to `ended_s` of the run; `cause` is a fault's name."""

    kind: str
    began_s: float
    ended_s: float
    detail: str
    cause: str | None = None


class Fault(msgspec.Struct):
    """Something that was done on purpose. `explains`: kinds of incidents that may come of it, until `ended_s`."""

    name: str
    began_s: float
    explains: frozenset[str]
    ended_s: float = float("inf")
    note: str = ""


class Book:
    """All of it. `clock_s()` counts from the start of the load."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.sent: dict[str, Transaction] = {}
        self.acks: dict[str, Ack] = {}
        self.labels: dict[str, str] = {}  # acknowledged
        self.erasures: list[tuple[int, str, str]] = []  # LSN, kind, id
        self.incidents: list[Incident] = []
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.n_violations = 0
        self.order: list[str] = []  # event ids as they were acknowledged
        self.latency_s = array("d")  # of single requests, from when each was due
        self.latency_at_s = array("d")  # when each was due

    def start(self) -> None:
        """The load begins now: the clock's zero."""
        self._started = time.monotonic()

    def clock_s(self) -> float:
        return time.monotonic() - self._started

    def note(self, kind: str, began_s: float, detail: str) -> None:
        """An incident that ends now."""
        self.incidents.append(Incident(kind, began_s, self.clock_s(), detail[:300]))

    def violate(self, text: str) -> None:
        """Something that no fault excuses."""
        self.n_violations += 1
        if len(self.violations) < VIOLATIONS_KEPT:
            self.violations.append(text[:500])

    def begin(self, name: str, explains: Iterable[str]) -> Fault:
        fault = Fault(name, self.clock_s(), frozenset(explains))
        self.faults.append(fault)
        self.counts[f"fault {name}"] += 1
        return fault

    def end(self, fault: Fault) -> None:
        fault.ended_s = self.clock_s()

    def decided(self, tx: Transaction, reply: dict[str, Any], began_s: float) -> None:
        """A reply with a score. The first one of an event is kept, every later one has to be the same."""
        ack = Ack(reply["lsn"], reply["score"], reply["outcome"])
        first = self.acks.setdefault(tx.event_id, ack)
        if first is ack:
            self.sent[tx.event_id] = tx
            self.order.append(tx.event_id)
        elif first != ack or not reply["replayed"]:
            self.violate(f"{tx.event_id} was answered {first} and then {reply}")
        self.counts["replayed" if reply["replayed"] else "scored"] += 1
        if not reply["replayed"]:  # a stored decision names what was missing then
            for tier in reply["degraded"]:
                self.note(f"degraded {tier}", began_s, f"{tx.event_id}: {reply['degraded']}")

    def explained(self) -> list[Incident]:
        """Every incident with its cause: the fault during which it happened and of which it may come, or None."""
        return [msgspec.structs.replace(incident, cause=self._cause(incident)) for incident in self.incidents]

    def is_calm(self, began_s: float, ended_s: float) -> bool:
        """No fault overlaps."""
        return not any(f.began_s <= ended_s and began_s <= f.ended_s + CALM_LEAD_S for f in self.faults)

    def _cause(self, incident: Incident) -> str | None:
        for fault in reversed(self.faults):
            if incident.kind in fault.explains and fault.began_s <= incident.ended_s and incident.began_s <= fault.ended_s:
                return fault.name
        return None
