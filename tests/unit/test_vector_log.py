"""The log of vectors: what was written is read, in bounded files, and what is damaged is counted, not believed."""

from pathlib import Path

import numpy as np
import pytest

from features.plan import Plan, compile_plan
from features.spec import load_spec
from service.vector_log import LOG_FILE, VectorLog, VectorLogError, read_vectors

PLAN = compile_plan(load_spec("cards"))
KINDS = len(PLAN.kinds)
RECORD_BYTES = 8 + 8 * KINDS + 4 + 4 * PLAN.n_features + 4


def write(log: VectorLog, lsns: range, plan: Plan = PLAN) -> None:
    n = len(lsns)
    vectors = np.repeat(np.array(lsns, dtype=np.float32)[:, None], plan.n_features, axis=1)
    firsts = np.tile(np.arange(len(plan.kinds), dtype=np.int64), (n, 1))
    log.append(np.array(lsns, dtype=np.int64), firsts, np.full(n, 0.25, dtype=np.float32), vectors)


def test_vector_log_gives_back_what_was_written(tmp_path: Path) -> None:
    """LSN, risk, first LSNs and vector, in order, also across a restart."""
    for lsns in (range(1, 4), range(7, 9)):
        log = VectorLog(tmp_path, PLAN, 1 << 20)
        write(log, lsns)
        log.close()
    found, n_damaged = read_vectors(tmp_path, PLAN)
    assert ([v.lsn for v in found], n_damaged) == ([1, 2, 3, 7, 8], 0)
    assert found[3].first_lsns == tuple(range(KINDS))
    assert found[3].risk == 0.25
    assert found[3].vector.tolist() == [7.0] * PLAN.n_features


def test_vector_log_stays_within_its_bound_and_keeps_the_newest(tmp_path: Path) -> None:
    """Two files of half the bound: the oldest vectors go, the newest are there."""
    bytes_max = 20 * RECORD_BYTES
    log = VectorLog(tmp_path, PLAN, bytes_max)
    for at in range(1, 100):
        write(log, range(at, at + 1))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= bytes_max
    log.close()
    found, _ = read_vectors(tmp_path, PLAN)
    assert [v.lsn for v in found] == list(range(100 - len(found), 100))
    assert 9 <= len(found) <= 20


def test_vector_log_more_than_a_file_at_once_keeps_the_newest(tmp_path: Path) -> None:
    """One append that is larger than a file does not grow it."""
    log = VectorLog(tmp_path, PLAN, 20 * RECORD_BYTES)
    write(log, range(1, 1000))
    log.close()
    assert (tmp_path / LOG_FILE).stat().st_size <= 10 * RECORD_BYTES
    assert read_vectors(tmp_path, PLAN)[0][-1].lsn == 999


def test_vector_log_damaged_record_is_counted_and_left_out(tmp_path: Path) -> None:
    """A flipped bit costs its record alone; half a record at the end is cut at the next start."""
    log = VectorLog(tmp_path, PLAN, 1 << 20)
    write(log, range(1, 6))
    log.close()
    data = bytearray((tmp_path / LOG_FILE).read_bytes())
    data[-RECORD_BYTES - 20] ^= 1  # in the fourth
    (tmp_path / LOG_FILE).write_bytes(data[:-3])
    found, n_damaged = read_vectors(tmp_path, PLAN)
    assert ([v.lsn for v in found], n_damaged) == ([1, 2, 3], 1)
    log = VectorLog(tmp_path, PLAN, 1 << 20)
    write(log, range(9, 10))
    log.close()
    found, n_damaged = read_vectors(tmp_path, PLAN)
    assert ([v.lsn for v in found], n_damaged) == ([1, 2, 3, 9], 1)


def test_vector_log_of_another_plan_is_refused_and_begun_anew(tmp_path: Path) -> None:
    """A reader names the file; a service with another plan starts its own log."""
    other = compile_plan(load_spec("handbook"))
    log = VectorLog(tmp_path, other, 1 << 20)
    write(log, range(1, 3), other)
    log.close()
    with pytest.raises(VectorLogError, match=LOG_FILE):
        read_vectors(tmp_path, PLAN)
    VectorLog(tmp_path, PLAN, 1 << 20).close()
    assert read_vectors(tmp_path, PLAN) == ([], 0)


def test_read_vectors_without_a_log_is_empty(tmp_path: Path) -> None:
    """No file is no vector."""
    assert read_vectors(tmp_path, PLAN) == ([], 0)
