"""How good the answers were, by model: labels joined with the decisions that they are about.

Of labelled transactions: how many of each outcome were fraud (precision and recall of decline, and of review and decline
together), and how the scores of each bin compare with the share of fraud in it (calibration). A label that changes its mind is
moved, never counted twice. Kept in a small file, written now and then and at the end; what a kill cut off is taken from the
labels that recovery applies again.
"""

import asyncio
import contextlib
from bisect import bisect_right
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from service.challenger import SCORE_BOUNDS
from service.decide import APPROVE, DECLINE, REVIEW
from service.decisions import StoredDecision
from service.durable_file import replace_file

log = structlog.get_logger(__name__)

QUALITY_FILE: Final = "quality.json"
INTERVAL_S: Final = 5.0  # between two looks whether the file has to be written
MODELS_MAX: Final = 20  # the models whose labels came last; each has two gauges and thirty-nine counts
FRAUD: Final = "fraud"


class ModelQuality(msgspec.Struct):
    """Labelled transactions of one model. outcomes: by outcome, [legit, fraud]. bins: by SCORE_BOUNDS, [legit, fraud]; scores:
    the sum of the scores in each."""

    outcomes: dict[str, list[int]] = msgspec.field(default_factory=lambda: {o: [0, 0] for o in (APPROVE, REVIEW, DECLINE)})
    bins: list[list[int]] = msgspec.field(default_factory=lambda: [[0, 0] for _ in range(len(SCORE_BOUNDS) + 1)])
    scores: list[float] = msgspec.field(default_factory=lambda: [0.0] * (len(SCORE_BOUNDS) + 1))

    def add(self, outcome: str, score: float, is_fraud: bool, n: int) -> None:
        """Count `n` (1, or -1 to take it back)."""
        place = bisect_right(SCORE_BOUNDS, score)
        self.outcomes[outcome][is_fraud] += n
        self.bins[place][is_fraud] += n
        self.scores[place] += n * score

    def rates(self) -> dict[str, float | None]:
        """Precision and recall at both thresholds, None where nothing is known of them."""
        legit, frauds = ({o: counts[i] for o, counts in self.outcomes.items()} for i in (0, 1))
        declined, flagged = frauds[DECLINE], frauds[DECLINE] + frauds[REVIEW]
        all_frauds = sum(frauds.values())
        return {
            "precision_decline": _share(declined, declined + legit[DECLINE]),
            "recall_decline": _share(declined, all_frauds),
            "precision_review": _share(flagged, flagged + legit[DECLINE] + legit[REVIEW]),
            "recall_review": _share(flagged, all_frauds),
        }

    def calibration(self) -> list[dict[str, Any]]:
        """By bin of the score: labelled transactions, their mean score and their share of fraud."""
        edges = (0.0, *SCORE_BOUNDS, 1.0)
        return [
            {
                "from": edges[i],
                "to": edges[i + 1],
                "rows": sum(counts),
                "mean_score": None if not sum(counts) else round(self.scores[i] / sum(counts), 6),
                "fraud_share": _share(counts[1], sum(counts)),
            }
            for i, counts in enumerate(self.bins)
        ]


class _File(msgspec.Struct):
    lsn: int
    models: dict[str, ModelQuality]


class Quality:
    """One service's. `lsn`: of the last label that is counted."""

    def __init__(self, directory: Path) -> None:
        self.lsn = 0
        self.models: dict[str, ModelQuality] = {}
        self._path = directory / QUALITY_FILE
        self._written_lsn = 0
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._load()

    def label(self, before: StoredDecision, label: str, lsn: int) -> None:
        """The label of a decision, `before` it was changed by the entry `lsn`. One that is counted already changes nothing."""
        if lsn <= self.lsn:
            return
        self.lsn = lsn
        if before.label == label:
            return
        quality = self.models.pop(before.model, None) or ModelQuality()
        self.models[before.model] = quality  # the one whose label came last stands last
        if len(self.models) > MODELS_MAX:
            del self.models[next(iter(self.models))]
        if before.label is not None:
            quality.add(before.outcome, before.score, before.label == FRAUD, -1)
        quality.add(before.outcome, before.score, label == FRAUD, 1)

    def rates(self, name: str) -> dict[tuple[str, str], float]:
        """For a gauge: (model, outcome) -> precision or recall of that outcome or a stricter one."""
        found = {}
        for model, quality in self.models.items():
            rates = quality.rates()
            for outcome in (REVIEW, DECLINE):
                rate = rates[f"{name}_{outcome}"]
                if rate is not None:
                    found[model, outcome] = rate
        return found

    def describe(self) -> dict[str, Any]:
        """What GET /v1/models shows, by model."""
        return {
            model: {
                "labelled": {o: {"legit": n[0], FRAUD: n[1]} for o, n in quality.outcomes.items()},
                **quality.rates(),
                "calibration": quality.calibration(),
            }
            for model, quality in self.models.items()
        }

    def start(self) -> None:
        """Begin to write the file now and then."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Write it for the last time."""
        self._stopping.set()  # not cancelled: two may not write the file at once
        if self._task is not None:
            await self._task
        await self._write()

    async def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S):
                    await self._stopping.wait()
            await self._write()

    async def _write(self) -> None:
        if self.lsn == self._written_lsn:
            return
        lsn, packed = self.lsn, msgspec.json.encode(_File(self.lsn, self.models))
        try:
            await asyncio.to_thread(replace_file, self._path, packed)
        except OSError as error:
            log.warning("label counts could not be written", problem=error.strerror)
        else:
            self._written_lsn = lsn

    def _load(self) -> None:
        """A file that cannot be read costs the counts, not the start."""
        try:
            known = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("label counts begin anew", file=QUALITY_FILE, problem=str(error))
            return
        n_bins = len(SCORE_BOUNDS) + 1
        if any(len(q.bins) != n_bins or len(q.scores) != n_bins for q in known.models.values()):
            log.warning("label counts begin anew", file=QUALITY_FILE, problem="it has other bins")
            return
        self.lsn, self.models, self._written_lsn = known.lsn, known.models, known.lsn


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole > 0 else None
