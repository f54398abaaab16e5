"""Express: decoding, look-up, scoring, decision and encoding of a few requests in one call of the core.

Nearly always nothing about a transaction is out of the ordinary: it is new, its profiles are all in L1, its score is low. Then
the stops one by one only hand rows on, which for a handful of them is most of what they cost. Here the core goes on by itself
until the first stop that has something to find out; from there the pipeline goes its usual way.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

from gocore import express as core
from models.arena import Arena
from models.scorer import CoreScorer, Scorer
from service.clock import Clock
from service.decide import BY_SCORE, Policy
from service.row_codec import Encoded, Refused
from service.row_codec_go import GoCodec
from service.rows import Rows

ROWS_MAX = core.ROWS_MAX


class Passed(NamedTuple):
    """How far a chunk came: decoded, as by RowCodec.decode; scored, then nothing was refused; encoded, all approved.

    lookup_seconds: of looking ids up. times: perf_counter before scoring and after each
    stop that was passed.
    """

    rows: Rows
    refused: Refused
    is_scored: bool
    encoded: Encoded | None
    lookup_seconds: float
    times: list[float]


class Express:
    """Of one codec and arena."""

    def __init__(self, codec: GoCodec, arena: Arena) -> None:
        self._codec = codec
        self._arena = arena
        self._core = core.Express(codec.core, codec.intake, codec.encoder)

    def takes(self, scorer: Scorer, n_rows: int) -> bool:
        """Whether the engine is the core's, and so many rows are few."""
        return n_rows <= ROWS_MAX and hasattr(scorer, "handles")

    def run(
        self, scorer: CoreScorer, bodies: Sequence[bytes], form: int, first_lsn: int, clock: Clock, policy: Policy, model: str
    ) -> Passed:  # fmt: skip
        """Take the bodies as far as they go; only where no lists decide.

        Raises GoCoreError: then profiles may be half advanced until Scorer.undo.
        """
        codec, run = self._codec, self._core
        filters = codec.open_events(len(bodies))
        if filters is None:  # which events are new, only the store can tell
            return Passed(*codec.decode(bodies, form), False, None, 0.0, [])
        parts = codec.parts_of(BY_SCORE, model, scorer.name)
        handles = scorer.handles(self._arena)
        came = run.run(*handles, bodies, form, filters, parts, first_lsn, clock.bounds(), policy.approved_below)
        now = time.perf_counter()
        if came.stage == core.TAKEN:
            return Passed(*codec.taken(bodies, form), False, None, 0.0, [])
        lookup_s, score_s, encode_s = came.look_up_ns * 1e-9, came.score_ns * 1e-9, came.encode_ns * 1e-9
        if came.stage == core.SCORED:
            return Passed(*codec.taken(bodies, form), True, None, lookup_s, [now - score_s])
        times = [now - encode_s - score_s, now - encode_s, now]
        return Passed(codec.scored(came.last_ts), {}, True, codec.encoded(), lookup_s, times)
