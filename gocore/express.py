"""A few transactions from bodies to replies in one call of the core, as far as nothing about them is out of the ordinary.

What the calls one by one do (intake.Intake, an arena's run, encode.Encoder), over their memory, without what lies between
them in Python.
"""

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from gocore.binding import Core
from gocore.encode import Encoder, Parts
from gocore.filter import GoFilter
from gocore.intake import BODY_GROWTH_MAX, Intake

TAKEN, SCORED, ENCODED = 0, 1, 2
ROWS_MAX: Final = 256

_SEPARATOR: Final = ord("\n")
# weir_express_job as bytes: a field at a time costs 0.1 µs each.
_INPUTS, _OUTPUTS = struct.Struct("<qqqdq"), struct.Struct("<qq4q")
_OUTPUTS_AT: Final = 32


class Outcome(NamedTuple):
    """How far a call came. TAKEN: nothing is scored, Intake.taken has the rows. SCORED: profiles are advanced, risks are in the
    arena. ENCODED: all rows are approved, of the first class, Encoder.encoded has the bytes.

    last_ts: the latest time of a row, ms, from SCORED on. The others: ns of each stop, 0 for one that was not reached.
    """

    stage: int
    last_ts: int
    decode_ns: int
    look_up_ns: int
    score_ns: int
    encode_ns: int


class Express:
    """Over an intake that looks ids up in indexes, and an encoder. One call at a time, and none of theirs meanwhile."""

    def __init__(self, core: Core, intake: Intake, encoder: Encoder) -> None:
        self._core, self._intake, self._encoder = core, intake, encoder
        self._job: Any = core.new_job("weir_express_job", {})
        self._bytes = core.buffer_of(self._job)

    def run(
        self, model: int, arena: int, bodies: Sequence[bytes], fmt: int, filters: Sequence[GoFilter], parts: Parts,
        first_lsn: int, times: tuple[int, int], below: float,
    ) -> Outcome:  # fmt: skip
        """Take 1 to ROWS_MAX bodies as far as they go; the rest as in Intake.take and Encoder.encode.

        model, arena: handles. times: ms, both included, those that are surely not refused. below: lower scores are approved.
        Raises GoCoreError: then profiles may be half advanced until Core.undo.
        """
        encoder, intake = self._encoder, self._intake
        n_rows, n_bytes = len(bodies), intake.prepare(bodies, fmt, filters)
        encoder.prepare(n_rows, n_bytes + BODY_GROWTH_MAX * n_rows, n_bytes + n_rows, parts)
        encoder.job.separator = _SEPARATOR
        _INPUTS.pack_into(self._bytes, 0, first_lsn, *times, below, TAKEN)
        status = self._core.call_express(intake.plan, model, arena, intake.job, encoder.job, self._job)
        if status:
            self._core.check(status)
        return Outcome(*_OUTPUTS.unpack_from(self._bytes, _OUTPUTS_AT))
