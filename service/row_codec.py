"""Bytes to rows and decided rows to bytes: the protocol, and its reference in Python over `codec`, `decisions` and `records`.

The Go core does the same (service/row_codec_go.py): what comes out is equal byte by byte, and what it does not take, the
reference takes or refuses. Cost of the reference: decoding 6 µs a row, encoding 3.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from features.columns import encode
from features.plan import COLUMNS, Plan
from features.transaction import InvalidTransaction, Transaction
from service.codec import MSGPACK, decode_packed, decode_transaction, encode_decision
from service.decide import Conclusion, Decision, Places
from service.decisions import StoredDecision, encode_body, encode_stored
from service.errors import InvalidEvent, WeirError
from service.journal import TX
from service.journal_format import encode_entries
from service.pieces import Pieces, Replies
from service.records import encode_outcome
from service.rows import Rows, ends_of, to_lines

Refused = dict[int, WeirError]  # by the number of the body


class Encoded(msgspec.Struct, gc=False):
    """The bytes of decided rows. entries: of their journal block. stored: of the column of decisions. replies: JSON."""

    entries: bytes
    stored: Pieces
    replies: Replies


class RowCodec(Protocol):
    """Decodes bodies to Rows, and encodes what was decided of them."""

    def decode(self, bodies: Sequence[bytes], form: int) -> tuple[Rows, Refused]:
        """The valid ones, in order, and why the others are refused. `form`: JSON or MSGPACK."""

    def encode(
        self, rows: Rows, first_lsn: int, risks: npt.NDArray[np.float32], classes: Places,
        conclusions: Sequence[Conclusion], model: str, scorer: str,
    ) -> Encoded:  # fmt: skip
        """Row i has LSN first_lsn + i, the score risks[i] and conclusions[classes[i]].

        Raises if a score is no number: FloatingPointError, GoCoreError.
        """


class ReferenceCodec:
    """See RowCodec."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def decode(self, bodies: Sequence[bytes], form: int) -> tuple[Rows, Refused]:
        """See RowCodec."""
        decode = decode_packed if form == MSGPACK else decode_transaction
        refused: Refused = {}
        txs: list[Transaction] = []
        columns: list[tuple[int, ...]] = []
        for number, body in enumerate(bodies):
            try:
                tx = decode(body)
                columns.append(encode(tx, self._plan.currencies))
            except WeirError as error:
                refused[number] = error
            except InvalidTransaction as error:
                refused[number] = InvalidEvent(str(error), error.field)
            else:
                txs.append(tx)
        return self.rows_of(txs, columns), refused

    def rows_of(self, txs: Sequence[Transaction], columns: Sequence[tuple[int, ...]]) -> Rows:
        """Checked transactions and their columns as Rows."""
        packed = [encode_body(tx) for tx in txs]
        return Rows(
            to_lines([tx.event_id for tx in txs]),
            [to_lines([getattr(tx, kind.id_field) or "" for tx in txs]) for kind in self._plan.kinds],
            np.array(columns, dtype=np.int64).reshape(len(txs), len(COLUMNS)),
            b"".join(packed),
            ends_of(packed),
        )

    def encode(
        self, rows: Rows, first_lsn: int, risks: npt.NDArray[np.float32], classes: Places,
        conclusions: Sequence[Conclusion], model: str, scorer: str,
    ) -> Encoded:  # fmt: skip
        """See RowCodec."""
        if not np.isfinite(risks).all():
            raise FloatingPointError("the model gave a risk score that is no number")
        records = []
        for number, (score, place) in enumerate(zip(risks.tolist(), classes.tolist(), strict=True)):
            c = conclusions[place]
            body = rows.body(number)
            records.append(StoredDecision(first_lsn + number, body, score, c.outcome, model, scorer, c.degraded, c.reasons))
        return Encoded(
            encode_entries([(TX, record.body, encode_outcome(record)) for record in records]),
            Pieces.of([encode_stored(record) for record in records]),
            Replies.of(
                [
                    encode_decision(
                        Decision(event_id, r.score, r.outcome, r.model, r.scorer, r.lsn, False, r.degraded, r.reasons)
                    )
                    for event_id, r in zip(rows.event_ids, records, strict=True)
                ]
            ),
        )
