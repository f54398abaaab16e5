"""Changing models while transactions flow: nobody is dropped, a decision is wholly of one model, what is wrong is refused."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from features.memory import MemoryEngine
from features.transaction import Transaction
from models.card import CARD_FILE, MODEL_FILE, ModelCard, Population, Thresholds
from models.onnx_scorer import OnnxScorer
from models.registry import GOLDEN_TOLERANCE
from service.codec import ModelBody
from service.decide import Decision
from service.errors import ModelRefused, NotFound, NotPossible, WeirError
from service.journal import read_directory
from service.model_state import MODELS_FILE, read_state
from service.settings import Settings

MakeModel = Callable[..., ModelCard]


@pytest.fixture(scope="session", params=["onnx", "go"])
def scorer_name(request: pytest.FixtureRequest) -> str:
    """Both engines."""
    return str(request.param)


def registry_of(settings: Settings, name: str) -> Path:
    return settings.data_dir / "models" / name


async def choose(running: Any, role: str, model: str | None = None, rollback: bool = False) -> None:
    body = ModelBody("test", msgspec.UNSET if rollback else model, rollback)
    await running.engine.choose_model(body, role, "tester")


async def test_swap_under_load_every_decision_is_of_one_model(
    start: Any, stream: list[Transaction], make_model: MakeModel
) -> None:
    """While batches of all sizes flow, champions change ten times: all are answered, each with score and name of one model."""
    running = await start()
    rival = make_model(registry_of(running.settings, "rival"), thresholds=Thresholds(0.02, 0.2))
    packaged = running.engine.models.card
    answers: list[Decision] = []

    async def flow() -> None:
        at = 0
        while at < len(stream):
            size = (1, 300, 17, 64)[at % 4]
            answers.extend(await running.send(stream[at : at + size], batch=300))
            at += size

    async def swap() -> None:
        for number in range(10):
            await choose(running, "champion", (rival if number % 2 == 0 else packaged).model)
            await asyncio.sleep(0.01)

    await asyncio.gather(flow(), swap())
    assert [d.event_id for d in answers] == [tx.event_id for tx in stream]
    used = {d.model for d in answers}
    assert used == {rival.model, packaged.model}
    vectors = np.concatenate(_vectors(running, stream))
    directories = {rival.model: registry_of(running.settings, "rival"), packaged.model: None}
    for model, directory in directories.items():
        scorer = running.reference if directory is None else OnnxScorer(running.plan, directory / MODEL_FILE)
        risks = scorer.infer(vectors)
        card = packaged if directory is None else rival
        own = [(d, float(risk)) for d, risk in zip(answers, risks, strict=True) if d.model == model]
        assert max(abs(d.score - risk) for d, risk in own) < 1e-6
        for d, _ in own:
            t = card.thresholds
            assert d.outcome == ("decline" if d.score >= t.decline else "review" if d.score >= t.review else "approve")


async def test_rollback_goes_back_and_forward(start: Any, make_model: MakeModel) -> None:
    """One call brings the last champion back, with its thresholds; the next one undoes that. Every change is audited."""
    running = await start()
    models, first = running.engine.models, running.engine.models.card
    with pytest.raises(NotPossible, match="no earlier champion"):
        await choose(running, "champion", rollback=True)
    rival = make_model(registry_of(running.settings, "rival"), thresholds=Thresholds(0.02, 0.2))
    await choose(running, "champion", rival.model)
    assert (running.engine.pipeline.model_name, running.engine.pipeline.policy.review_threshold) == (rival.model, 0.02)
    await choose(running, "champion", rollback=True)
    assert running.engine.pipeline.model_name == models.card.model == first.model
    assert running.engine.pipeline.policy.review_threshold == first.thresholds.review
    await choose(running, "champion", rollback=True)
    assert models.card.model == rival.model
    await choose(running, "champion", rival.model)  # it is so already
    entries = [e for e in running.engine.audit.newest(10) if e["action"] == "model"]
    assert [(e["before"], e["model"]) for e in entries] == [
        (first.model, rival.model), (rival.model, first.model), (first.model, rival.model),
    ]  # fmt: skip
    assert {(e["who"], e["role"], e["reason"]) for e in entries} == {("tester", "champion", "test")}


async def test_rollback_to_a_model_that_is_gone_is_refused(start: Any, make_model: MakeModel) -> None:
    """What was removed or replaced since cannot be gone back to, and the champion stays."""
    running = await start()
    first, path = running.engine.models.card, registry_of(running.settings, "rival")
    rival = make_model(path)
    await choose(running, "champion", rival.model)
    await choose(running, "champion", first.model)
    for name in (CARD_FILE, MODEL_FILE):
        (path / name).unlink()
    with pytest.raises(ModelRefused, match="there is no model"):
        await choose(running, "champion", rollback=True)
    assert running.engine.models.card.model == first.model


def _damage_model(directory: Path) -> None:
    data = bytearray((directory / MODEL_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (directory / MODEL_FILE).write_bytes(data)


REFUSED: dict[str, tuple[dict[str, Any], Callable[[Path], None] | None, str]] = {
    "file": ({}, _damage_model, "sha256"),
    "no file": ({}, lambda d: (d / MODEL_FILE).unlink(), MODEL_FILE),
    "plan": ({"plan_hash": "0" * 64}, None, "was trained for spec"),
    "spec's features": ({"feature_names": ["x"] * 40}, None, "was trained for spec"),
    "too few features": (
        {"feature_names": ["x"], "golden": None, "reference": [], "population": None},
        None,
        "trained for spec",
    ),
    "no golden": ({"golden": None}, None, "no golden inputs"),
    "thresholds": ({"thresholds": Thresholds(0.9, 0.1)}, None, "review <= decline"),
    "reference": ({"reference": [1.0]}, None, "reference"),
    "population": ({"population": Population([], [], [], [])}, None, "population"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("role", ["champion", "challenger"])
async def test_wrong_model_is_refused_and_nothing_changes(start: Any, make_model: MakeModel, case: str, role: str) -> None:
    """Digest, plan, features, golden scores, card: the reason is given; models, files and audit stay as they are."""
    fields, damage, reason = REFUSED[case]
    running = await start()
    directory = registry_of(running.settings, "rival")
    card = make_model(directory, **fields)
    if damage is not None:
        damage(directory)
    before = running.engine.pipeline.scorer, running.engine.pipeline.policy
    with pytest.raises(ModelRefused, match=reason) as refused:
        await choose(running, role, card.model)
    assert refused.value.field == "model"
    assert (running.engine.pipeline.scorer, running.engine.pipeline.policy) == before
    assert running.engine.models.watch.challenger is None
    assert not (running.settings.data_dir / MODELS_FILE).exists()
    assert running.engine.audit.newest(10) == []
    listed = (await running.engine.models.describe())["models"]
    (problem,) = [m["problem"] for m in listed if m["model"] == card.model]
    assert (problem is None) == (case == "no golden")


async def test_golden_score_beyond_the_tolerance_is_refused(start: Any, make_model: MakeModel) -> None:
    """A card of another model gives itself away by its scores; within the tolerance it passes."""
    running = await start()
    for name, off, is_good in (("near", 0.2, True), ("far", 10.0, False), ("nan", float("nan"), False)):
        card = make_model(registry_of(running.settings, name), seed=len(name) + ord(name[0]))
        assert card.golden is not None
        scores = [*card.golden.scores[:-1], card.golden.scores[-1] + off * GOLDEN_TOLERANCE]
        golden = msgspec.structs.replace(card.golden, scores=scores)
        path = registry_of(running.settings, name) / CARD_FILE
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(card, golden=golden)))
        if is_good:
            await choose(running, "champion", card.model)
        else:
            with pytest.raises(WeirError):
                await choose(running, "champion", card.model)
    assert running.engine.models.card.model.startswith("rival@")


async def test_unknown_model_names_those_that_there_are(start: Any) -> None:
    """A typo is a 404 with the names."""
    running = await start()
    with pytest.raises(NotFound, match="cards-mlp@"):
        await choose(running, "champion", "cards-mlp@nothing")
    with pytest.raises(NotFound):
        await choose(running, "challenger", "../../etc/passwd")


async def test_choice_that_cannot_be_written_changes_nothing(start: Any, make_model: MakeModel) -> None:
    """A full or broken disk refuses the change before the model is used."""
    running = await start()
    first = running.engine.models.card
    rival = make_model(registry_of(running.settings, "rival"))
    (running.settings.data_dir / f"{MODELS_FILE}.new").mkdir()  # where the new file would be begun
    with pytest.raises(OSError, match=MODELS_FILE):
        await choose(running, "champion", rival.model)
    assert running.engine.pipeline.model_name == running.engine.models.card.model == first.model
    (running.settings.data_dir / f"{MODELS_FILE}.new").rmdir()
    await choose(running, "champion", rival.model)
    assert read_state(running.settings.data_dir).champion.model == rival.model  # type: ignore[union-attr]  # just written


async def test_engine_switch_and_model_switch_go_together(
    start: Any, stream: list[Transaction], make_model: MakeModel, scorer_name: str
) -> None:
    """After a model switch the other engine opens the new model, not the one of the start."""
    running = await start()
    rival = make_model(registry_of(running.settings, "rival"))
    other = {"go": "onnx", "onnx": "go"}[scorer_name]
    await choose(running, "champion", rival.model)
    await running.engine.scorers.use(other)
    (decision,) = await running.send(stream[:1])
    vector = MemoryEngine(running.plan).vectors(stream[:1])
    expected = OnnxScorer(running.plan, registry_of(running.settings, "rival") / MODEL_FILE).infer(vector)
    assert (decision.model, decision.scorer) == (rival.model, other)
    assert abs(decision.score - float(expected[0])) < 1e-6


async def test_challenger_changes_no_byte(start: Any, stream: list[Transaction], make_model: MakeModel) -> None:
    """Journal and profiles are the same with and without; every transaction was scored twice, and counted."""
    alone = await start(directory="alone")
    await alone.send(stream)
    beside = await start("watch.challenger_share=1", directory="beside")
    rival = make_model(registry_of(beside.settings, "rival"), thresholds=Thresholds(0.05, 0.5))
    await choose(beside, "challenger", rival.model)
    await beside.send(stream)
    watch = beside.engine.models.watch
    await watch.work_off()

    def entries(running: Any) -> list[tuple[int, bytes, bytes]]:
        blocks = read_directory(running.settings.data_dir / "journal")
        return [(entry.kind, entry.body, entry.decision) for block in blocks for entry in block.entries]

    assert entries(alone) == entries(beside)
    await beside.assert_true()
    shown = watch.challenger.describe()
    assert (shown["rows"], watch.n_dropped["challenger"]) == (len(stream), 0)
    assert sum(n for row in shown["outcomes"].values() for n in row.values()) == len(stream)
    assert sum(shown["scores"]["challenger"]) == sum(shown["scores"]["champion"]) == len(stream)
    vectors = np.concatenate(_vectors(beside, stream))
    risks = OnnxScorer(beside.plan, registry_of(beside.settings, "rival") / MODEL_FILE).infer(vectors)
    assert sum(row["decline"] for row in shown["outcomes"].values()) == int((risks >= 0.5).sum())


def _vectors(running: Any, stream: list[Transaction]) -> list[Any]:
    engine = MemoryEngine(running.plan)
    return [engine.vectors(stream[i : i + 100]) for i in range(0, len(stream), 100)]


async def test_challenger_sample_is_the_share(start: Any, stream: list[Transaction], make_model: MakeModel) -> None:
    """With a share of a quarter, each fourth transaction, however they come."""
    running = await start("watch.challenger_share=0.25")
    rival = make_model(registry_of(running.settings, "rival"))
    await choose(running, "challenger", rival.model)
    await running.send(stream[:401], batch=37)
    for tx in stream[401:440]:
        await running.submit(tx)
    await running.engine.models.watch.work_off()
    assert running.engine.models.watch.challenger.n_rows == 110


async def test_challenger_that_becomes_champion_is_challenger_no_more(start: Any, make_model: MakeModel) -> None:
    """Promotion ends the shadow; the champion is refused as its own challenger; null stops one."""
    running = await start()
    models, first = running.engine.models, running.engine.models.card
    with pytest.raises(ModelRefused, match="is the champion"):
        await choose(running, "challenger", first.model)
    rival = make_model(registry_of(running.settings, "rival"))
    await choose(running, "challenger", rival.model)
    await choose(running, "champion", rival.model)
    assert (models.watch.challenger, read_state(running.settings.data_dir).challenger) == (None, None)
    await choose(running, "challenger", first.model)
    assert models.watch.challenger is not None
    await choose(running, "challenger", None)
    assert (models.watch.challenger, read_state(running.settings.data_dir).challenger) == (None, None)
    await choose(running, "challenger", None)  # none is none


async def test_challenger_without_a_share_is_refused(start: Any, make_model: MakeModel) -> None:
    """One that would see nothing is not started."""
    running = await start("watch.challenger_share=0")
    rival = make_model(registry_of(running.settings, "rival"))
    with pytest.raises(NotPossible, match=r"watch\.challenger_share"):
        await choose(running, "challenger", rival.model)


async def test_drift_belongs_to_the_champion(start: Any, stream: list[Transaction], make_model: MakeModel) -> None:
    """Sampled rows are counted against the champion's population; another champion begins anew, one without has none."""
    running = await start("watch.share=1")
    await running.send(stream[:1500])
    models = running.engine.models
    await models.watch.work_off()
    shown = (await models.describe())["drift"]
    assert shown["rows"] == 1500
    assert set(shown["features"]) == set(running.plan.feature_names)
    assert all(feature["psi"] >= 0 for feature in shown["features"].values())
    rival = make_model(registry_of(running.settings, "rival"), population=None)
    await choose(running, "champion", rival.model)
    assert (await models.describe())["drift"] is None
    await running.send(stream[1500:1600])
    await models.watch.work_off()
    await choose(running, "champion", rollback=True)
    assert models.watch.drift.n_rows == 0


async def test_card_without_reference_scores_without_words(
    start: Any, stream: list[Transaction], make_model: MakeModel
) -> None:
    """A model of an older card works; its decisions have their codes alone, and GET says so."""
    running = await start("decide.review_threshold=0")
    rival = make_model(registry_of(running.settings, "rival"), reference=[], thresholds=Thresholds(0.0, 1.0))
    await choose(running, "champion", rival.model)
    assert (await running.engine.models.describe())["champion"]["explains"] is False
    (decision,) = await running.send(stream[:1])
    assert decision.reasons == ("SCORE_ABOVE_REVIEW_THRESHOLD",)
