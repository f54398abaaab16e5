"""What is replayed, and the file of what came back: a Parquet file through a spec's column mapping, scores to Parquet."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.spec import load_spec
from features.transaction import Transaction
from loadgen.recorder import Recorder
from models.dataset import Dataset, read_dataset

ENCODE_ROWS = 8_192  # rows turned into objects at a time: bounds the memory beside the encoded bytes

_encoder = msgspec.json.Encoder()


def open_dataset(
    path: Path, spec: str, ts_from: int | None = None, ts_to: int | None = None, limit: int | None = None
) -> Dataset:
    """Rows of `path` with ts_from <= ts < ts_to (ms), the first `limit`. Raises SpecError or DatasetError."""
    return read_dataset(path, load_spec(spec).source, ts_from=ts_from, ts_to=ts_to, limit=limit)


class Label(msgspec.Struct, frozen=True, gc=False):
    """One entry of POST /v1/labels: `ts` (ms) is when the label became known."""

    event_id: str
    label: str
    ts: int


class Stream:
    """A dataset as request bodies. `event_ids` grows with `encode`: rows are encoded once, in order."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.event_ids: list[str] = []

    def encode(self, start: int, stop: int) -> list[bytes]:
        """The JSON body of each transaction in start..stop; `start` is where the last call stopped."""
        assert start == len(self.event_ids), (start, len(self.event_ids))
        bodies: list[bytes] = []
        for at in range(start, stop, ENCODE_ROWS):
            txs: list[Transaction] = self.dataset.transactions(at, min(at + ENCODE_ROWS, stop))
            self.event_ids.extend(tx.event_id for tx in txs)
            bodies.extend(map(_encoder.encode, txs))
        return bodies

    def encode_labels(self, rows: Sequence[int]) -> bytes:
        """The body of POST /v1/labels for these rows (already encoded), in this order."""
        labels, known_at = self.dataset.labels, self.dataset.label_ts
        return _encoder.encode(
            [Label(self.event_ids[row], "fraud" if labels[row] == 1 else "legit", int(known_at[row])) for row in rows]
        )


def write_scores(path: Path, stream: Stream, recorder: Recorder) -> None:
    """One row per scored transaction, in the order of the stream. Raises OSError."""
    dataset, event_ids = stream.dataset, stream.event_ids
    rows = np.flatnonzero(recorder.outcome >= 0)
    cards = dataset.card_ids
    labels = dataset.labels[rows]
    table = pa.table(
        {
            "event_id": pa.array([event_ids[row] for row in rows], pa.string()),
            "ts": pa.array(dataset.ts[rows], pa.int64()),
            "card_id": pa.array([cards[row] for row in rows], pa.string()),
            "score": pa.array(recorder.score[rows], pa.float32()),
            "outcome": _words(recorder.outcome[rows], recorder.outcomes.words),
            "lsn": pa.array(recorder.lsn[rows], pa.int64()),
            "label": pa.array(labels, pa.int8(), mask=labels < 0),
            "replayed": pa.array(recorder.replayed[rows], pa.bool_()),
            "latency_us": pa.array(recorder.latency_us[rows], pa.int64()),
            "degraded": _words(recorder.degraded[rows], recorder.degradations.words),
        }
    )
    pq.write_table(table, path, compression="zstd")


def _words(codes: npt.NDArray[np.int16], words: list[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int16()), pa.array(words, pa.string())).cast(pa.string())
