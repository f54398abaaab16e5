"""Batches that say more different things than a byte can name: lists and tiers that could not be asked, combined."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from features.transaction import Transaction
from gocore.locate import missing_core
from service import pipeline
from service.codec import MSGPACK
from service.decide import PLACES_OF_A_BYTE, Conclusion, Decision, Policy, decide_rows
from service.decisions import encode_body
from service.lists import Lists
from service.row_codec import ReferenceCodec, RowCodec
from service.row_codec_go import GoCodec
from service.ticket import DECISIONS, REASONS

Start = Callable[..., Any]
POLICY = Policy(0.5, 0.9, "review", 0)


def asked(n_rows: int, n_tiers: int) -> dict[int, tuple[str, ...]]:
    """By row, a tier that could not be asked; each of the tiers in turn."""
    return {row: (f"tier{row % n_tiers}",) for row in range(n_rows)}


@pytest.fixture(params=[ReferenceCodec, GoCodec])
def codec(request: pytest.FixtureRequest, model: Any) -> RowCodec:
    if request.param is GoCodec:
        missing = missing_core()
        if missing is not None:
            pytest.skip(missing)
        return GoCodec(model[0], 1_024)
    return ReferenceCodec(model[0])


@pytest.mark.parametrize("n_different", [252, 253, 254, 600])
def test_encode_names_every_conclusion(codec: RowCodec, stream: list[Transaction], model: Any, n_different: int) -> None:
    """Three conclusions by score and 253 others are named in a byte, one more in two: what is written is always the same."""
    rows, refused = codec.decode([encode_body(tx) for tx in stream[:900]], MSGPACK)
    assert not refused
    risks = np.full(900, 0.1, dtype=np.float32)
    classes, conclusions = decide_rows(rows, risks, asked(900, n_different), POLICY, Lists(model[0].kinds), 0)
    assert len(conclusions) == n_different + 3
    assert classes.itemsize == (1 if len(conclusions) <= PLACES_OF_A_BYTE else 2)
    assert [conclusions[place].degraded[0] for place in classes.tolist()] == [f"tier{n % n_different}" for n in range(900)]
    found = codec.encode(rows, 7, risks, classes, conclusions, "m@1", "go")
    expected = ReferenceCodec(model[0]).encode(rows, 7, risks, classes, conclusions, "m@1", "go")
    assert (found.entries, list(found.stored)) == (expected.entries, list(expected.stored))
    assert found.replies.lines == expected.replies.lines
    assert found.replies.as_list() == expected.replies.as_list()


@pytest.mark.parametrize("n_different", [253, 254, 300])
async def test_batch_of_many_conclusions_is_answered_and_counted(
    start: Start, stream: list[Transaction], monkeypatch: pytest.MonkeyPatch, n_different: int
) -> None:
    """Every answer says what it has to, outcomes are counted once, the journal holds the same, whoever asks for reasons."""
    running = await start("decide.unknown_amount_min=0")

    def with_gaps(rows: Any, risks: Any, degraded: Any, *rest: Any) -> tuple[Any, list[Conclusion]]:
        return decide_rows(rows, risks, asked(len(rows), n_different), *rest)

    monkeypatch.setattr(pipeline, "decide_rows", with_gaps)
    answers = await running.submit_many(stream[:400], DECISIONS | REASONS)
    assert all(isinstance(answer, Decision) for answer in answers), answers[:3]
    assert [answer.degraded for answer in answers] == [(f"tier{n % n_different}",) for n in range(400)]
    outcomes = {name: n for name, n in running.engine.pipeline.outcomes.items() if n}
    assert outcomes == Counter(answer.outcome for answer in answers)
    monkeypatch.undo()
    again = await running.send(stream[:400])
    assert [(d.lsn, d.outcome, d.degraded) for d in again] == [(d.lsn, d.outcome, d.degraded) for d in answers]
    await running.assert_true()
