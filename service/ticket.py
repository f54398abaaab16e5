"""A ticket: the transactions of one request on their way, and a row for each of them."""

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter

from features.plan import KindPlan
from features.transaction import Transaction
from service.decide import Decision
from service.errors import WeirError
from service.fetch import Miss

Answer = Decision | WeirError
Entities = tuple[str | None, ...]  # the id of each kind's entity, None where the transaction has none

ABSENT = "absent"  # the source of a profile that the transaction does not refer to


def entities_getter(kinds: Sequence[KindPlan]) -> Callable[[Transaction], Entities]:
    """A function that takes the entity ids out of a transaction, in the order of the kinds."""
    if len(kinds) == 1:  # attrgetter gives a bare value for one name
        field = attrgetter(kinds[0].id_field)
        return lambda tx: (field(tx),)
    return attrgetter(*[kind.id_field for kind in kinds])


class Row:
    """One transaction in flight. Its `entities`, `slots` and `sources` have one item per kind; `twins` share its event_id."""

    __slots__ = (
        "body", "columns", "degraded", "entities", "index", "seen", "slots", "sources", "ticket", "trace", "twins", "tx",
        "vector",
    )  # fmt: skip

    def __init__(
        self,
        ticket: "Ticket",
        index: int,
        tx: Transaction,
        entities: Entities,
        body: bytes,
        columns: tuple[int, ...],
        trace: bool,
    ) -> None:
        self.ticket = ticket
        self.index = index
        self.tx = tx
        self.entities = entities
        self.body = body
        self.columns = columns
        self.trace = trace
        self.slots: list[int] = []
        self.seen: list[int] = []  # for the trace: when each profile saw its last event
        self.vector: list[float] = []  # for the trace: what the model got
        self.sources: list[str] = []
        self.degraded: tuple[str, ...] = ()
        self.twins: tuple[tuple[Ticket, int], ...] = ()

    def found(self, miss: Miss) -> None:
        """A profile that this row waits for has its slot."""
        self.ticket.when_complete(self, miss)

    def degrade(self, levels: Iterable[str]) -> None:
        """These levels could not be asked for one of the row's profiles."""
        for level in levels:
            if level not in self.degraded:
                self.degraded += (level,)


def _never(row: Row, miss: Miss) -> None:
    raise AssertionError("a ticket that misses nothing hears of no arrival")


class Ticket:
    """The rows of one request (or of one step of a long one). `deliver` gets all answers, in order, once they are there."""

    __slots__ = (
        "_answers", "_deliver", "_n_open", "followers", "lookup_seconds", "n_ahead", "n_missing", "rows", "when_complete",
    )  # fmt: skip

    def __init__(self, n_rows: int, deliver: Callable[[list[Answer]], object]) -> None:
        self.rows: list[Row] = []
        self.n_missing = 0
        self.n_ahead = 0
        self.followers: list[Ticket] = []
        self.when_complete: Callable[[Row, Miss], None] = _never
        self.lookup_seconds = 0.0
        self._answers: list[Answer | None] = [None] * n_rows
        self._n_open = n_rows
        self._deliver = deliver

    def wait_behind(self, earlier: "Ticket | None") -> None:
        """Do not start before `earlier`, which shares a card with this one."""
        if earlier is not None and earlier is not self and self not in earlier.followers:
            earlier.followers.append(self)
            self.n_ahead += 1

    def answer(self, index: int, answer: Answer) -> None:
        """The answer of one row; the last one delivers them all."""
        self._answers[index] = answer
        self._n_open -= 1
        if self._n_open == 0:
            self.rows = []  # rows refer to their ticket: without this only the garbage collector would find them
            self._deliver([a for a in self._answers if a is not None])
