"""Reasons of decisions: for what the score flags and for who asks, stored as they were given, the same from both engines."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from features.transaction import Transaction
from service.codec import MSGPACK
from service.decide import Decision
from service.decisions import encode_body
from service.ticket import DECISIONS, REASONS

CODES = ("SCORE_ABOVE_REVIEW_THRESHOLD", "SCORE_ABOVE_DECLINE_THRESHOLD")


@pytest.fixture(scope="session", params=["onnx", "go"])
def scorer_name(request: pytest.FixtureRequest) -> str:
    """Both engines."""
    return str(request.param)


async def explained(running: Any, txs: Sequence[Transaction], batch: int = 100) -> list[Decision]:
    """As ?explain=1 asks."""
    answers: list[Decision] = []
    for at in range(0, len(txs), batch):
        answers += await running.submit_many(txs[at : at + batch], DECISIONS | REASONS)
    return answers


async def test_flagged_decisions_have_words_behind_their_code(start: Any, stream: list[Transaction]) -> None:
    """Review and decline: code, then at most three sentences; an approved one has nothing unless asked."""
    running = await start()
    decisions = await running.send(stream)
    flagged = [d for d in decisions if d.outcome != "approve"]
    assert len(flagged) > 20
    for d in flagged:
        assert d.reasons is not None
        assert d.reasons[0] == CODES[d.outcome == "decline"]
        assert 1 <= len(d.reasons) <= 4
        assert all(" " in words for words in d.reasons[1:])
    assert sum(len(d.reasons or ()) > 1 for d in flagged) > 0.9 * len(flagged)
    assert {d.reasons for d in decisions if d.outcome == "approve"} == {()}


async def test_explain_gives_words_for_approved_ones_too(start: Any, stream: list[Transaction]) -> None:
    """Asked for, most approved transactions of a young stream have something that raises their risk, and no code."""
    running = await start()
    decisions = await explained(running, stream[:400], batch=32)
    approved = [d for d in decisions if d.outcome == "approve"]
    assert sum(bool(d.reasons) for d in approved) > len(approved) // 2
    assert all(reason not in CODES for d in approved for reason in d.reasons or ())


async def test_reasons_are_stored_and_given_again(start: Any, stream: list[Transaction]) -> None:
    """GET of the decision, the same event again, and both after a restart say what the first answer said."""
    running = await start(directory="a")
    decisions = await running.send(stream[:600])
    flagged = [d for d in decisions if d.outcome != "approve"]
    txs = {tx.event_id: tx for tx in stream[:600]}
    for restarted in (False, True):
        if restarted:
            await running.stop()
            running = await start(directory="a")
        for d in flagged:
            stored = await running.engine.decision(d.event_id)
            assert stored.reasons == d.reasons
            (again,) = await running.submit_many([txs[d.event_id]])
            assert (again.replayed, again.reasons) == (True, d.reasons)


async def test_reasons_of_both_engines_are_equal(start: Any, stream: list[Transaction], scorer_name: str) -> None:
    """Over the whole stream, in small batches and in large ones, word for word."""
    one, other = await start(directory="one"), await start(directory="other")
    await other.engine.scorers.use({"go": "onnx", "onnx": "go"}[scorer_name])
    for batch, part in ((1, stream[:100]), (32, stream[100:700]), (300, stream[700:])):
        ours = [d.reasons for d in await explained(one, part, batch)]
        theirs = [d.reasons for d in await explained(other, part, batch)]
        assert ours == theirs
    assert (one.engine.pipeline.scorer.name, other.engine.pipeline.scorer.name) in (("go", "onnx"), ("onnx", "go"))


async def test_dry_run_gives_the_reasons_of_the_commit(start: Any, stream: list[Transaction]) -> None:
    """?commit=false explains what ?explain=1 would, and nothing of what it would not."""
    running = await start()
    await running.send(stream[:300])
    for tx in stream[300:340]:
        for wanted in (DECISIONS, DECISIONS | REASONS):
            body = encode_body(tx)
            (tried,) = await running.engine.try_many([body], MSGPACK, wanted)
            if wanted & REASONS:
                (done,) = await running.engine.submit_many([body], MSGPACK, wanted)
                assert tried.reasons == done.reasons
            elif tried.outcome == "approve":
                assert tried.reasons == ()


async def test_list_reason_stays_alone(start: Any, stream: list[Transaction]) -> None:
    """What a list decides is not the model's doing, whoever asks, also in a dry run."""
    running = await start()
    await running.send(stream[:200])
    await running.engine.put_list("deny", "card", stream[200].card_id, "test", None)
    (declined,) = await running.send([stream[200]])
    assert declined.reasons == ("DENY_LIST_CARD",)
    asked = msgspec.structs.replace(stream[200], event_id="asked", amount=900_000)
    (declined,) = await explained(running, [asked])
    assert declined.reasons == ("DENY_LIST_CARD",)
    (tried,) = await running.engine.try_many(
        [encode_body(msgspec.structs.replace(asked, event_id="tried"))], MSGPACK, DECISIONS | REASONS
    )
    assert tried.reasons == ("DENY_LIST_CARD",)


async def test_rows_beyond_the_bound_keep_their_code(start: Any, stream: list[Transaction]) -> None:
    """Where everything is flagged, 8 rows of a batch are explained: those who ask first, then the highest scores."""
    running = await start("decide.review_threshold=0", "decide.reasons_rows_max=8")
    decisions = await running.send(stream[:100], batch=100)
    with_words = [d for d in decisions if len(d.reasons or ()) > 1]
    assert 0 < len(with_words) <= 8
    lowest = min(d.score for d in with_words)
    assert sum(d.score > lowest for d in decisions) <= 8
    assert running.engine.models.n_unexplained == 92
    assert all(d.reasons is not None and d.reasons[0] in CODES for d in decisions)


async def test_share_bounds_what_is_explained_unasked(start: Any, stream: list[Transaction]) -> None:
    """Where everything is flagged, a burst of 8 and then 5 % are explained; who asks always is."""
    running = await start("decide.review_threshold=0", "decide.reasons_rows_max=8", "decide.reasons_share=0.05")
    decisions = await running.send(stream[:800], batch=20)
    with_words = [place for place, d in enumerate(decisions) if len(d.reasons or ()) > 1]
    assert 40 < len(with_words) <= 8 + 40
    assert max(with_words) > 700
    for decision in await explained(running, stream[800:803]):
        assert len(decision.reasons or ()) > 1


async def test_largest_bound_fits_a_batch_of_any_size(start: Any, stream: list[Transaction]) -> None:
    """128 explained rows among 512 that are all flagged, each decision with its own words."""
    running = await start("decide.review_threshold=0", "decide.reasons_rows_max=128", "decide.reasons_share=1")
    decisions = await running.send(stream[:512], batch=512)
    assert sum(len(d.reasons or ()) > 1 for d in decisions) > 100
    assert {d.lsn for d in decisions} == set(range(decisions[0].lsn, decisions[0].lsn + 512))


async def test_reasons_off_leaves_codes(start: Any, stream: list[Transaction]) -> None:
    """decide.reasons_max=0: nothing but the codes, and no model call for them."""
    running = await start("decide.reasons_max=0")
    decisions = await running.send(stream[:600])
    assert {d.reasons for d in decisions} <= {(), CODES[:1], CODES[1:]}
    assert running.engine.models.explainer is None


async def test_failing_explanation_fails_the_batch_and_leaves_no_trace(start: Any, stream: list[Transaction]) -> None:
    """A model that breaks while it is asked why takes the batch with it: no profile, no decision; the next one works."""
    running = await start("decide.review_threshold=0", "decide.reasons_share=1")
    await running.send(stream[:50])
    explainer = running.engine.pipeline.explainer

    def broken(vectors: Any) -> Any:
        raise RuntimeError("no answer")

    good, explainer._infer = explainer._infer, broken
    answers = await running.submit_many(stream[50:60])
    assert {getattr(answer, "code", None) for answer in answers} == {"scoring-failed"}
    explainer._infer = good
    await running.send(stream[50:100])
    truth = await running.assert_true()
    assert len(truth.lsns) == 100
