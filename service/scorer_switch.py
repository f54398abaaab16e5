"""Which engine scores, and changing it while the service runs.

The engines leave the same bytes and give the same features and scores, so a switch needs no hand-over: the next batch goes to
the other one. Opening an engine takes up to a second and runs on another thread.
"""

import asyncio
from pathlib import Path

import structlog

from features.plan import Plan
from models.scorer import ModelError, Scorer
from models.scorers import NAMES, missing_scorer, open_scorer
from service.dry_run import DryRun
from service.errors import NotPossible
from service.pipeline import Pipeline

log = structlog.get_logger(__name__)


class ScorerSwitch:
    """Owns the opened engines; `pipeline` and `dry_run` hold the one in use."""

    def __init__(self, plan: Plan, model_file: Path, pipeline: Pipeline, dry_run: DryRun) -> None:
        self._plan = plan
        self._model_file = model_file
        self._pipeline = pipeline
        self._dry_run = dry_run
        self._opened: dict[str, Scorer] = {pipeline.scorer.name: pipeline.scorer}
        self._turn = asyncio.Lock()

    def describe(self) -> dict[str, object]:
        """What GET /v1/scorer shows: the engine in use, and why another one cannot be, null if it can."""
        missing = {name: missing_scorer(name) for name in NAMES}
        return {"scorer": self._pipeline.scorer.name, "model": self._pipeline.model_name, "missing": missing}

    async def use(self, name: str, reason: str | None) -> None:
        """Score with the engine `name` from the next batch on. Raises NotPossible if it cannot be used here."""
        async with self._turn:
            scorer = self._opened.get(name)
            if scorer is None:
                missing = missing_scorer(name)
                if missing is not None:
                    raise NotPossible(f"the {name} scorer cannot be used: {missing}", "scorer")
                try:
                    scorer = await asyncio.to_thread(open_scorer, name, self._plan, self._model_file)
                except ModelError as error:
                    raise NotPossible(str(error), "scorer") from None
                self._opened[name] = scorer
            before = self._pipeline.scorer.name
            self._pipeline.scorer = self._dry_run.scorer = scorer
            log.info("scorer switched", scorer=name, before=before, reason=reason)
