"""The Go core as the codec of rows: a chunk to columns and back to bytes in two calls. See RowCodec.

Bodies that the core leaves (anything it does not take, right or wrong) go to the reference, which also finds the words for
what is wrong. Cost, a row of 13 fields in a batch of 256: decoding 0.8 µs, encoding 0.3.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from features.plan import Plan
from gocore.binding import load_core, usable_core
from gocore.encode import CLASSES_MAX, Encoder, Parts
from gocore.encode import Encoded as Made
from gocore.errors import GoCoreError
from gocore.filter import GoFilter
from gocore.index import GoIndex
from gocore.intake import Intake, Taken
from service.decide import APPROVE, Conclusion, Places
from service.pieces import Pieces, Replies
from service.row_codec import Encoded, ReferenceCodec, Refused, RowCodec
from service.rows import Rows, concat
from service.tiers.bloom import RotatingMaybeSet
from service.tiers.index import Index

log = structlog.get_logger(__name__)

_pack = msgspec.msgpack.Encoder().encode
_PARTS_MAX = 1_024  # remembered sets of conclusions


class GoCodec:
    """See RowCodec. `rows_max`: of one call. `indexes`: of L1; if they are the core's, rows come with slots. `events`: what
    remembers event ids; if that is the core's too, rows come with suspects. Raises GoCoreError.
    """

    def __init__(
        self, plan: Plan, rows_max: int, indexes: Sequence[Index] = (), events: RotatingMaybeSet | None = None
    ) -> None:
        core = load_core()
        handle = core.load_plan(plan.to_bytes())
        core.release_with(self, "weir_plan_close", handle)
        self.core = core
        self._reference = ReferenceCodec(plan)
        own = [index for index in indexes if isinstance(index, GoIndex)]
        self.intake = Intake(core, handle, rows_max, len(plan.kinds), own)
        self.encoder = Encoder(core, rows_max)
        self._events = events
        self._has_all_indexes = len(own) == len(plan.kinds)
        self._parts: dict[tuple[tuple[Conclusion, ...], str, str], Parts] = {}

    def decode(self, bodies: Sequence[bytes], form: int) -> tuple[Rows, Refused]:
        """See RowCodec."""
        taken = self.intake.take(bodies, form, self._events.open(len(bodies)) if self._events is not None else ())
        return self._rows_of(taken, bodies, form)

    def open_events(self, n_rows: int) -> list[GoFilter] | None:
        """The filters of event ids for a call that looks `n_rows` up and ends with `taken` or `scored`.

        None where their answer is not enough, or where L1's indexes are not the core's.
        """
        if self._events is None or not self._has_all_indexes:
            return None
        filters = self._events.open(n_rows)
        return filters if filters and self._events.is_sure else None

    def taken(self, bodies: Sequence[bytes], form: int) -> tuple[Rows, Refused]:
        """What the intake's last call, with these bodies, has made of them."""
        return self._rows_of(self.intake.taken(), bodies, form)

    def scored(self, last_ts: int) -> Rows:
        """What the intake's last call has made of its bodies, for rows that are scored: nobody has to look at them any more."""
        event_id_lines, bodies, ends, slots = self.intake.scored()
        if self._events is not None:
            self._events.noted(len(ends), [])
        return Rows.scored(event_id_lines, bodies, ends, slots, last_ts)

    def _rows_of(self, taken: Taken, bodies: Sequence[bytes], form: int) -> tuple[Rows, Refused]:
        events = self._events
        suspects = taken.suspects
        if events is not None and suspects is not None:
            suspects = events.noted(len(bodies), suspects)
        rows = Rows(
            taken.event_ids, taken.ids, taken.columns, taken.bodies, taken.body_ends, taken.slots, taken.n_missing, suspects
        )  # fmt: skip
        return (rows, {}) if not taken.left else self._with_left(rows, taken.left, bodies, form)

    def _with_left(self, rows: Rows, left: Sequence[int], bodies: Sequence[bytes], form: int) -> tuple[Rows, Refused]:
        """The rows of the core and those of the reference, in their order."""
        others, refused = self._reference.decode([bodies[number] for number in left], form)
        found = iter([number for place, number in enumerate(left) if place not in refused])
        numbers = [number for number in range(len(bodies)) if number not in set(left)]
        order = np.argsort([*numbers, *found], kind="stable").tolist()
        joined = concat([rows.only(numbers), others]) if len(others) else rows.only(numbers)
        joined.suspects = None  # their numbers are others now
        return joined.only(order) if len(others) else joined, {left[place]: error for place, error in refused.items()}

    def encode(
        self, rows: Rows, first_lsn: int, risks: npt.NDArray[np.float32], classes: Places,
        conclusions: Sequence[Conclusion], model: str, scorer: str,
    ) -> Encoded:  # fmt: skip
        """See RowCodec."""
        assert len(rows)
        if len(conclusions) > CLASSES_MAX:
            return self._encode_piecewise(rows, first_lsn, risks, classes, conclusions, model, scorer)
        parts = self.parts_of(tuple(conclusions), model, scorer)
        return _encoded_of(self.encoder.encode(first_lsn, risks, rows.bodies, rows.ends, rows.event_id_lines, classes, parts))

    def _encode_piecewise(
        self, rows: Rows, first_lsn: int, risks: npt.NDArray[np.float32], classes: Places,
        conclusions: Sequence[Conclusion], model: str, scorer: str,
    ) -> Encoded:  # fmt: skip
        """The core names a class in a byte: so many rows at a time that they cannot have more classes than that."""
        made = []
        for start in range(0, len(rows), CLASSES_MAX):
            numbers = range(start, min(start + CLASSES_MAX, len(rows)))
            there = slice(start, numbers.stop)
            places, own = np.unique(classes[there], return_inverse=True)
            said = [conclusions[place] for place in places.tolist()]
            few = own.astype(np.uint8)
            made.append(self.encode(rows.only(numbers), first_lsn + start, risks[there], few, said, model, scorer))
        return Encoded(
            b"".join([encoded.entries for encoded in made]),
            Pieces.of([record for encoded in made for record in encoded.stored]),
            Replies.of([reply for encoded in made for reply in encoded.replies]),
        )

    def encoded(self) -> Encoded:
        """What the encoder's last call has made of its rows."""
        return _encoded_of(self.encoder.encoded())

    def parts_of(self, conclusions: tuple[Conclusion, ...], model: str, scorer: str) -> Parts:
        """The constant bytes of these conclusions, the very same each time."""
        key = conclusions, model, scorer
        parts = self._parts.get(key)
        if parts is None:
            if len(self._parts) >= _PARTS_MAX:
                self._parts.clear()
            parts = tuple(_parts(conclusion, model, scorer) for conclusion in conclusions)
            if not conclusions[-1].is_own:
                self._parts[key] = parts
        return parts


def _encoded_of(made: Made) -> Encoded:
    return Encoded(made.entries, Pieces(made.stored, made.stored_bounds), Replies(made.replies, made.reply_bounds))


def _parts(c: Conclusion, model: str, scorer: str) -> tuple[bytes, bytes, bytes]:
    """What stands after the score of a record; between score and LSN of a reply; after that."""
    tail = b"".join(map(_pack, (c.outcome, model, scorer, c.degraded, c.reasons)))
    json = msgspec.json.encode
    middle = b',"outcome":%b,"model":%b,"scorer":%b,"lsn":' % (json(c.outcome), json(model), json(scorer))
    reasons = b"" if c.outcome == APPROVE else b',"reasons":%b' % json(c.reasons)
    return tail, middle, b',"replayed":false,"degraded":%b%b}' % (json(c.degraded), reasons)


def open_codec(plan: Plan, rows_max: int, indexes: Sequence[Index] = (), events: RotatingMaybeSet | None = None) -> RowCodec:
    """The core's codec where the core is there and works, whichever engine scores; else the reference."""
    if usable_core() is not None:
        try:
            return GoCodec(plan, rows_max, indexes, events)
        except GoCoreError as error:
            log.warning("rows are decoded by the reference", problem=str(error))
    return ReferenceCodec(plan)
