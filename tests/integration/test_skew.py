"""The skew check: what the live engine showed its model is what the journal gives, and a vector that is not is found."""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from features.transaction import Transaction
from service import __main__ as cli
from service.errors import StartError
from service.settings import load_settings
from service.skew import SkewReport, check_report, check_skew
from service.skew_note import SkewNotes
from service.vector_log import LOG_FILE, read_vectors

LOGGED = "watch.share=0.25"


@pytest.fixture(scope="session", params=["onnx", "go"])
def scorer_name(request: pytest.FixtureRequest) -> str:
    """Both engines."""
    return str(request.param)


async def test_skew_live_vectors_are_those_of_the_journal(start: Any, stream: list[Transaction]) -> None:
    """Over single and batched transactions, labels, small L1 and a restart, no value differs, and a quarter is compared."""
    running = await start(LOGGED, "l1.bytes_max=131072")
    await running.send(stream[:600])
    for tx in stream[600:700]:
        await running.submit(tx)
    for tx in stream[:300:10]:
        await running.label(tx.event_id)
    await running.stop()
    running = await start(LOGGED, "l1.bytes_max=131072")
    await running.send(stream[700:])
    await running.stop()
    report = check_skew(running.settings)
    assert (report.n_logged, report.n_compared, report.n_differing) == (500, 500, 0)
    assert sum(report.features.values()) == 0
    check_report(report)


async def test_skew_corrupted_vector_is_found(
    start: Any, stream: list[Transaction], capsys: pytest.CaptureFixture[str]
) -> None:
    """One value of one logged vector that is off by 3 ulp is one mismatch of that feature; the command names it and exits 1."""
    running = await start(LOGGED)
    await running.send(stream[:400])
    watch, plan = running.engine.models.watch, running.plan
    await watch.work_off()
    place = plan.feature_names.index("card_sum_24h")
    last, _ = read_vectors(running.settings.data_dir, plan)
    vector = last[-1].vector.copy()
    for _ in range(3):
        vector[place] = np.nextafter(vector[place], np.float32(math.inf))
    watch.vector_log.append(
        np.array([last[-1].lsn]), np.array([last[-1].first_lsns]), np.array([0.5], dtype=np.float32), vector[None]
    )
    await running.stop()
    report = check_skew(running.settings)
    assert {name: n for name, n in report.features.items() if n} == {"card_sum_24h": 1}
    assert (report.n_differing, report.examples[0].lsn) == (1, last[-1].lsn)
    assert cli.main(["doctor", "--skew", "--data-dir", str(running.settings.data_dir)]) == 1
    out, err = capsys.readouterr()
    assert "card_sum_24h" in out
    assert "1 of 100 vectors" in err
    note = SkewNotes(running.settings.data_dir).newest()
    assert note is not None
    assert (note.compared, note.differing) == (100, 1)


async def test_skew_corrupted_profile_is_found(start: Any, stream: list[Transaction]) -> None:
    """A profile that something has changed behind the journal's back shows in the features that read it."""
    running = await start("watch.share=1")
    await running.send(stream[:200])
    card = stream[199].card_id
    slot = running.engine.l1.slot_of(0, card)
    word = running.plan.kinds[0].rings[0].windows[0].word  # payments of the last minutes
    running.engine.l1.slabs[0].words[slot, word] += 7
    again = msgspec.structs.replace(stream[199], event_id="again")
    await running.send([again])
    await running.stop()
    report = check_skew(running.settings)
    assert report.n_differing >= 1
    assert sum(report.features.values()) >= 1


async def test_skew_erased_and_old_history_is_set_apart(start: Any, stream: list[Transaction]) -> None:
    """Whoever shared a transaction with an erased card cannot be recomputed, and is no mismatch."""
    running = await start("watch.share=1")
    await running.send(stream[:300])
    await running.engine.erase("card", stream[0].card_id, "test", 10)
    await running.send(stream[300:400])
    await running.stop()
    report = check_skew(running.settings)
    assert report.n_differing == 0
    assert report.n_incomplete > 0
    assert report.n_compared > 0
    assert report.n_compared + report.n_incomplete == 400


async def test_skew_log_off_writes_nothing(start: Any, stream: list[Transaction]) -> None:
    """With watch.share=0 there is no log, and the check says that it has nothing to go by."""
    running = await start("watch.share=0")
    await running.send(stream[:50])
    await running.stop()
    assert not (running.settings.data_dir / LOG_FILE).exists()
    with pytest.raises(StartError, match="no logged vector"):
        check_report(check_skew(running.settings))


def test_skew_without_a_journal_is_one_line(tmp_path: Path) -> None:
    """A directory that is nobody's is refused by name."""
    with pytest.raises(StartError, match="has no journal"):
        check_skew(load_settings(None, [f"data_dir={tmp_path}"]))


def test_check_report_of_compared_vectors_passes() -> None:
    """Nothing differs: nothing is raised."""
    check_report(SkewReport(n_logged=3, n_compared=1, n_older=2))
