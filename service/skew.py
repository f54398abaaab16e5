"""The skew check: what the model was shown, against what the journal says it should have been shown.

A fresh engine is fed the journal in order (features/memory.py, the code that builds training matrices), and at each logged
transaction its vector is compared with the logged one, feature by feature; 2 float32 ulp are allowed, as between engines. What
cannot be recomputed is counted apart: entities whose first event the journal no longer has, profiles that were not whole, and
entities of which anything was erased. Costs about 60 µs an entry and the memory of all profiles.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from features.memory import MemoryEngine
from features.plan import Plan, compile_plan
from features.spec import load_spec
from features.transaction import Transaction, is_blank
from service.decisions import decode_body
from service.errors import StartError
from service.journal import ERASURE, LABEL, TX, Block, Entry, read_directory
from service.records import decode_erasure, decode_label
from service.settings import Settings
from service.vector_log import LoggedVector, read_vectors
from service.watch import UNKNOWN_LSN

ULP_MAX: Final = 2
EXAMPLES_MAX: Final = 5
STEP_ROWS: Final = 1_024

Float32s = npt.NDArray[np.float32]


class Mismatch(msgspec.Struct, frozen=True):
    """One logged value that is not what the journal gives."""

    lsn: int
    feature: str
    logged: float
    recomputed: float


class SkewReport(msgspec.Struct):
    """Counts. features: mismatches by feature; examples: the first few. older: rows with history that the journal has no
    more; incomplete: rows with profiles that were not whole, or of which something was erased; missing: not in the journal."""

    n_logged: int = 0
    n_compared: int = 0
    n_differing: int = 0
    n_older: int = 0
    n_incomplete: int = 0
    n_missing: int = 0
    n_damaged: int = 0
    features: dict[str, int] = msgspec.field(default_factory=dict)
    examples: list[Mismatch] = msgspec.field(default_factory=list)


class SkewCheck:
    """Recomputes the vectors of `logged` from blocks of a journal. Used once."""

    def __init__(self, plan: Plan, logged: Sequence[LoggedVector]) -> None:
        self.report = SkewReport(n_logged=len(logged), features=dict.fromkeys(plan.feature_names, 0))
        self._plan = plan
        self._logged = {record.lsn: record for record in logged}
        self._engine = MemoryEngine(plan)
        self._first_lsn = 0  # of the journal
        self._tainted: list[set[str]] = [set() for _ in plan.kinds]

    def run(self, blocks: Iterable[Block]) -> SkewReport:
        """Raises JournalCorrupt, as `blocks` does."""
        for block in blocks:
            self._first_lsn = self._first_lsn or block.entries[0].lsn
            waiting: list[Entry] = []
            for entry in block.entries:
                is_next = not waiting or entry.lsn == waiting[-1].lsn + 1
                if waiting and (entry.kind != TX or not is_next or len(waiting) == STEP_ROWS):
                    self._transactions(waiting)
                    waiting = []
                if entry.kind == TX:
                    waiting.append(entry)
                else:
                    self._apply(entry)
            if waiting:
                self._transactions(waiting)
        self.report.n_missing = len(self._logged)
        return self.report

    def _transactions(self, entries: Sequence[Entry]) -> None:
        txs = [decode_body(entry.body) for entry in entries]
        for tx in txs:
            self._taint(tx)
        vectors = self._engine.vectors(txs, entries[0].lsn)
        for entry, tx, vector in zip(entries, txs, vectors, strict=True):
            record = self._logged.pop(entry.lsn, None)
            if record is not None:
                self._compare(record, tx, vector)

    def _apply(self, entry: Entry) -> None:
        if entry.kind == LABEL:
            label = decode_label(entry.body)
            if label.delta:
                self._engine.label(decode_body(label.body), label.delta, entry.lsn)
        elif entry.kind == ERASURE:
            erasure = decode_erasure(entry.body)
            if not is_blank(erasure.id):
                self._engine.erase(erasure.kind, erasure.id)

    def _taint(self, tx: Transaction) -> None:
        """Where one id was erased, whoever else took part has a history that cannot be had again."""
        ids = [getattr(tx, kind.id_field) for kind in self._plan.kinds]
        if any(entity is not None and is_blank(entity) for entity in ids):
            for tainted, entity in zip(self._tainted, ids, strict=True):
                if entity is not None:
                    tainted.add(entity)

    def _compare(self, record: LoggedVector, tx: Transaction, vector: Float32s) -> None:
        report = self.report
        ids = [getattr(tx, kind.id_field) for kind in self._plan.kinds]
        if UNKNOWN_LSN in record.first_lsns or any(
            entity in tainted for entity, tainted in zip(ids, self._tainted, strict=True)
        ):
            report.n_incomplete += 1
            return
        if any(0 < first < self._first_lsn for first in record.first_lsns):
            report.n_older += 1
            return
        report.n_compared += 1
        allowed = ULP_MAX * np.spacing(np.maximum(np.abs(vector), np.abs(record.vector)))
        wrong = np.flatnonzero(~(np.abs(vector - record.vector) <= allowed))  # what is no number is wrong too
        if wrong.size:
            report.n_differing += 1
        for place in wrong.tolist():
            name = self._plan.feature_names[place]
            report.features[name] += 1
            if len(report.examples) < EXAMPLES_MAX:
                report.examples.append(Mismatch(record.lsn, name, float(record.vector[place]), float(vector[place])))


def check_skew(settings: Settings) -> SkewReport:
    """Of a data directory, whether or not a service runs on it. Raises StartError, SpecError, VectorLogError, JournalError."""
    plan = compile_plan(load_spec(settings.spec))
    journal = settings.data_dir / "journal"
    if not journal.is_dir():
        raise StartError(f"{settings.data_dir} has no journal; --data-dir names the directory of a service")
    logged, n_damaged = read_vectors(settings.data_dir, plan)
    report = SkewCheck(plan, logged).run(read_directory(journal) if logged else ())
    report.n_damaged = n_damaged
    return report


def table(report: SkewReport) -> Iterator[str]:
    """The report in lines: counts, mismatches by feature, examples."""
    for count, text in (
        (report.n_logged, "vectors logged"),
        (report.n_compared, "recomputed from the journal and compared"),
        (report.n_differing, "of these differ"),
        (report.n_older, "have history that the journal no longer holds"),
        (report.n_incomplete, "have profiles that were not whole, or of which something was erased"),
        (report.n_missing, "are not in the journal"),
        (report.n_damaged, "records of the log are damaged"),
    ):
        yield f"{count:10,} {text}"
    yield ""
    yield f"{'feature':32}{'mismatches':>10}"
    for name, count in report.features.items():
        yield f"{name:32}{count:10,}"
    for example in report.examples:
        yield f"LSN {example.lsn}: {example.feature} was {example.logged:.9g}, the journal gives {example.recomputed:.9g}"


def check_report(report: SkewReport) -> None:
    """Raise StartError if a vector differs, or if there is nothing that could have shown it."""
    if report.n_differing:
        raise StartError(f"skew: {report.n_differing} of {report.n_compared} vectors are not what the journal gives")
    if not report.n_compared:
        raise StartError("skew: no logged vector could be compared; watch.share and watch.log_bytes_max above 0 log some")
