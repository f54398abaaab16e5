"""Labels through the engine: they meet the stored decision, under the model that made it, also over restarts and kills."""

from typing import Any

import pytest

from features.transaction import Transaction


async def test_labels_are_joined_with_decisions(start: Any, stream: list[Transaction]) -> None:
    """Counts by outcome are those of the decisions; a label again changes nothing, another one moves it."""
    running = await start()
    decisions = await running.send(stream[:1000])
    model = decisions[0].model
    chosen = [d for d in decisions if d.outcome != "approve"][:20] + decisions[:20]
    for number, d in enumerate(chosen):
        await running.label(d.event_id, "fraud" if number % 2 else "legit")
        await running.label(d.event_id, "fraud" if number % 2 else "legit")
    await running.label("nobody", "fraud")
    shown = running.engine.models.quality.describe()[model]
    unique = {d.event_id: d for d in chosen}
    assert sum(sum(counts.values()) for counts in shown["labelled"].values()) == len(unique)
    for outcome in ("approve", "review", "decline"):
        assert sum(shown["labelled"][outcome].values()) == sum(d.outcome == outcome for d in unique.values())
    assert sum(bin_["rows"] for bin_ in shown["calibration"]) == len(unique)
    first = chosen[0]
    before = dict(shown["labelled"][first.outcome])
    now = "fraud" if (await running.engine.decision(first.event_id)).label == "legit" else "legit"
    await running.label(first.event_id, now)
    after = running.engine.models.quality.describe()[model]["labelled"][first.outcome]
    assert after[now] == before[now] + 1
    assert sum(after.values()) == sum(before.values())


@pytest.mark.parametrize("killed", [False, True])
async def test_counts_are_there_after_a_restart(start: Any, stream: list[Transaction], killed: bool) -> None:
    """After a stop they are read from their file, after a kill recovery counts the labels that it applies again."""
    running = await start("l2.flush_interval_ms=3600000")
    await running.send(stream[:200])
    for tx in stream[:40]:
        await running.label(tx.event_id, "fraud")
    before = running.engine.models.quality.describe()
    assert before
    if killed:
        running.copy_as_killed("again")
    await running.stop()
    again = await start(directory="again" if killed else "data")
    assert again.engine.models.quality.describe() == before


async def test_failed_label_is_not_counted(start: Any, stream: list[Transaction], monkeypatch: pytest.MonkeyPatch) -> None:
    """A label that the journal refused did not happen."""
    running = await start()
    await running.send(stream[:10])

    def broken(entries: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running.engine.journal, "append", broken)
    with pytest.raises(Exception, match="not applied"):
        await running.label(stream[0].event_id, "fraud")
    assert running.engine.models.quality.describe() == {}
