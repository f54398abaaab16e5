"""Changing models while the service runs: champion, challenger, rollback.

A model is looked up in the registry, checked (digest, plan, feature names, golden inputs) and opened on another thread; what is
wrong with it is said and nothing has changed. Then the choice is written down, and the next batch is scored by the new model:
its own handle, thresholds and reference vector. No request waits for it or is lost. The challenger is a model that only `Watch`
ever asks.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from features.plan import Plan
from models.card import MODEL_FILE, ModelCard
from models.drift import Drift
from models.registry import Registry, check_golden
from models.scorer import ModelError, Scorer
from models.scorers import open_scorer
from models.words import Words
from service.challenger import Challenger
from service.decide import Policy
from service.dry_run import DryRun
from service.errors import ModelRefused, NotFound, NotPossible
from service.model_state import Chosen, ModelState, chosen, read_state, write_state
from service.pipeline import Pipeline
from service.quality import Quality
from service.reasons import Explainer
from service.scorer_switch import ScorerSwitch
from service.settings import Settings
from service.watch import Watch

Float32s = npt.NDArray[np.float32]

log = structlog.get_logger(__name__)


Note = Callable[[str | None, str | None], None]  # tells of a change, the model before and after it; may wait for the disk


def _untold(before: str | None, after: str | None) -> None:
    pass


class ModelSwitch:
    """Owns the choice of models. `card`: the champion's. policy_of: the thresholds that a card means here."""

    def __init__(
        self, settings: Settings, plan: Plan, registry: Registry, card: ModelCard, words: Words,
        pipeline: Pipeline, dry_run: DryRun, scorers: ScorerSwitch, watch: Watch, quality: Quality,
        policy_of: Callable[[ModelCard], Policy],
    ) -> None:  # fmt: skip
        self.card = card
        self.watch = watch
        self.quality = quality
        self._settings = settings
        self._plan = plan
        self._registry = registry
        self._words = words
        self._pipeline = pipeline
        self._dry_run = dry_run
        self._scorers = scorers
        self._policy_of = policy_of
        self._state = read_state(settings.data_dir)
        self._n_left = 0
        self._use(card, pipeline.scorer)
        pipeline.watch = watch

    @property
    def explainer(self) -> Explainer | None:
        """The champion's; None where its card has no reference vector, or no reasons are wanted."""
        return self._pipeline.explainer

    @property
    def n_unexplained(self) -> int:
        """Rows that kept only their code, of all champions."""
        return self._n_left + (self.explainer.n_left if self.explainer is not None else 0)

    async def start(self) -> None:
        """Begin to look at samples and to keep the counts of labels."""
        await self._open_challenger()
        self.watch.start()
        self.quality.start()

    async def stop(self) -> None:
        """Look at what is left, and write down what is counted."""
        await self.watch.stop()
        await self.quality.stop()

    async def _open_challenger(self) -> None:
        """The challenger of the last run, if it can still be had."""
        kept = self._state.challenger
        if kept is None:
            return
        try:
            directory, card = await asyncio.to_thread(self._find, kept.model)
            self._check_same(kept, card)
            self._set_challenger(card, await self._open(directory, card))
        except (NotFound, ModelRefused) as error:
            log.warning("the challenger could not be opened", model=kept.model, problem=str(error))

    async def set_champion(self, model: str, note: Note = _untold) -> None:
        """Score with `model` from the next batch on. Raises NotFound, ModelRefused, OSError: then nothing has changed.

        `note` tells of a change before it happens, on another thread; if it fails nothing changes.
        """
        async with self._scorers.turn:
            directory, card = await asyncio.to_thread(self._find, model)
            await self._change_champion(directory, card, note)

    async def roll_back(self, note: Note = _untold) -> None:
        """Back to the champion before this one; a second call goes forward again. Raises NotPossible, ModelRefused, OSError."""
        async with self._scorers.turn:
            previous = self._state.previous
            if previous is None:
                raise NotPossible("there is no earlier champion to go back to", "rollback")
            try:
                directory, card = await asyncio.to_thread(self._find, previous.model)
            except NotFound as error:
                raise ModelRefused(str(error), "rollback") from None
            self._check_same(previous, card)
            await self._change_champion(directory, card, note)

    async def set_challenger(self, model: str | None, note: Note = _untold) -> None:
        """Let `model` score in the shadow, or nobody. Raises NotFound, ModelRefused, NotPossible, OSError."""
        async with self._scorers.turn:
            before = self._state.challenger.model if self._state.challenger is not None else None
            if model is None:
                if before is not None:
                    await asyncio.to_thread(note, before, None)
                    await self._write(msgspec.structs.replace(self._state, challenger=None))
                self.watch.set_challenger(None)
                return
            if not self._settings.watch.challenger_share:
                raise NotPossible("watch.challenger_share is 0: a challenger would see nothing", "model")
            directory, card = await asyncio.to_thread(self._find, model)
            if card.sha256 == self.card.sha256:
                raise ModelRefused(f"{card.model} is the champion; a challenger is another model", "model")
            scorer = await self._open(directory, card)
            await asyncio.to_thread(note, before, card.model)
            await self._write(msgspec.structs.replace(self._state, challenger=chosen(card)))
            self._set_challenger(card, scorer)

    async def describe(self) -> dict[str, Any]:
        """What GET /v1/models shows."""
        artifacts = await asyncio.to_thread(self._registry.artifacts)
        policy, drift, challenger = self._pipeline.policy, self.watch.drift, self.watch.challenger
        return {
            "champion": {
                "model": self.card.model,
                "sha256": self.card.sha256,
                "scorer": self._pipeline.scorer.name,
                "review_threshold": policy.review_threshold,
                "decline_threshold": policy.decline_threshold,
                "explains": self.explainer is not None,
            },
            "previous": self._state.previous.model if self._state.previous is not None else None,
            "challenger": challenger.describe() if challenger is not None else None,
            "models": [listed.describe() for listed in artifacts],
            "quality": self.quality.describe(),
            "drift": drift.describe() if drift is not None else None,
        }

    async def _change_champion(self, directory: Path, card: ModelCard, note: Note) -> None:
        before = self.card.model
        if card.sha256 == self.card.sha256:
            return
        scorer = await self._open(directory, card)
        challenger = self._state.challenger
        if challenger is not None and challenger.sha256 == card.sha256:
            challenger = None
        await asyncio.to_thread(note, before, card.model)
        await self._write(ModelState(chosen(card), chosen(self.card), challenger))
        self._scorers.take(scorer, directory / MODEL_FILE)
        self._use(card, scorer)
        if challenger is None:
            self.watch.set_challenger(None)
        log.info("model switched", model=card.model, before=before)

    def _use(self, card: ModelCard, scorer: Scorer) -> None:
        """From the next batch on."""
        self._n_left = self.n_unexplained
        self.card = card
        explainer, decide = None, self._settings.decide
        if card.reference and decide.reasons_max:
            reference = np.array(card.reference, dtype=np.float32)
            explainer = Explainer(
                self._words, reference, self._infer, decide.reasons_max, decide.reasons_rows_max, decide.reasons_share
            )
        policy = self._policy_of(card)
        self._pipeline.use(scorer, card.model, policy, explainer)
        self._dry_run.use(scorer, card.model, policy, explainer)
        self.watch.use(Drift(card.feature_names, card.population) if card.population is not None else None)
        if self.watch.challenger is not None:
            self.watch.challenger.face(policy)

    def _infer(self, vectors: Float32s) -> Float32s:
        """By whichever engine is in use now: it may be switched while the model stays."""
        return self._pipeline.scorer.infer(vectors)

    def _set_challenger(self, card: ModelCard, scorer: Scorer) -> None:
        share = self._settings.watch.challenger_share
        self.watch.set_challenger(Challenger(card, scorer, self._pipeline.policy, self._policy_of(card), share))

    def _find(self, model: str) -> tuple[Path, ModelCard]:
        try:
            return self._registry.find(model)
        except KeyError as error:
            known = ", ".join(error.args[0])
            raise NotFound(f"there is no model {model[:80]!r} here; there are {known}", "model") from None
        except ModelError as error:
            raise ModelRefused(str(error), "model") from None

    async def _open(self, directory: Path, card: ModelCard) -> Scorer:
        """The model, opened and checked, on another thread. Raises ModelRefused."""

        def opened() -> Scorer:
            providers = self._settings.onnx.providers
            scorer = open_scorer(self._pipeline.scorer.name, self._plan, directory / MODEL_FILE, providers)
            check_golden(card, scorer)
            return scorer

        try:
            return await asyncio.to_thread(opened)
        except ModelError as error:
            raise ModelRefused(str(error), "model") from None

    def _check_same(self, kept: Chosen, card: ModelCard) -> None:
        if card.sha256 != kept.sha256:
            digests = f"sha256 {card.sha256[:12]}, not {kept.sha256[:12]}"
            raise ModelRefused(f"{kept.model} is another file than it was: {digests}", "model")

    async def _write(self, state: ModelState) -> None:
        await asyncio.to_thread(write_state, self._settings.data_dir, state)
        self._state = state
