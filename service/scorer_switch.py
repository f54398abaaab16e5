"""Which engine scores, and changing it while the service runs; what was last asked for outlives a restart.

The engines leave the same bytes and give the same features and scores, so a switch needs no hand-over: the next batch goes to
the other one. Opening an engine takes up to a second and runs on another thread.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from features.plan import Plan
from models.scorer import ModelError, Scorer
from models.scorers import NAMES, missing_scorer, open_scorer
from service.dry_run import DryRun
from service.durable_file import replace_file
from service.errors import NotPossible, StartError
from service.pipeline import Pipeline
from service.settings import Settings

log = structlog.get_logger(__name__)


SCORER_FILE = "scorer.json"

_decode = msgspec.json.Decoder(dict[Literal["scorer"], Literal["go", "onnx"]]).decode


def with_last_scorer(settings: Settings) -> Settings:
    """The settings with the engine that was last asked for, if there was any and it can be here. Raises StartError."""
    path = settings.data_dir / SCORER_FILE
    try:
        name = _decode(path.read_bytes()).get("scorer") if path.exists() else None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StartError(f"{path}: not readable: {error}; remove it to go back to the settings") from None
    if name is None:
        return settings
    missing = missing_scorer(name)
    if missing is not None:
        log.warning("the scorer that was last asked for cannot be used", scorer=name, missing=missing)
        return settings
    return msgspec.structs.replace(settings, scorer=name)


class ScorerSwitch:
    """Owns the opened engines; `pipeline` and `dry_run` hold the one in use. What is asked for is kept in `directory`."""

    def __init__(
        self, directory: Path, plan: Plan, model_file: Path, providers: Sequence[str], pipeline: Pipeline, dry_run: DryRun
    ) -> None:
        self._path = directory / SCORER_FILE
        self._providers = providers
        self._plan = plan
        self._model_file = model_file
        self._pipeline = pipeline
        self._dry_run = dry_run
        self._opened: dict[str, Scorer] = {pipeline.scorer.name: pipeline.scorer}
        self.turn = asyncio.Lock()  # held by whoever changes engine or model

    def describe(self) -> dict[str, object]:
        """What GET /v1/scorer shows: the engine in use, and why another one cannot be, null if it can."""
        missing = {name: missing_scorer(name) for name in NAMES}
        return {"scorer": self._pipeline.scorer.name, "model": self._pipeline.model_name, "missing": missing}

    @property
    def model_directory(self) -> Path:
        """Where the model is that scores now."""
        return self._model_file.parent

    def take(self, scorer: Scorer, model_file: Path) -> None:
        """Another model, opened by the engine in use; the other engine opens it when it is asked for."""
        self._opened = {scorer.name: scorer}
        self._model_file = model_file

    async def use(self, name: str, note: Callable[[], None] = lambda: None) -> None:
        """Score with the engine `name` from the next batch on, durably. Raises NotPossible if it cannot be used here.

        `note` tells of a change before it happens, on another thread; if it fails nothing changes.
        """
        async with self.turn:
            scorer = self._opened.get(name)
            if scorer is None:
                missing = missing_scorer(name)
                if missing is not None:
                    raise NotPossible(f"the {name} scorer cannot be used: {missing}", "scorer")
                try:
                    scorer = await asyncio.to_thread(open_scorer, name, self._plan, self._model_file, self._providers)
                except ModelError as error:
                    raise NotPossible(str(error), "scorer") from None
                self._opened[name] = scorer
            before = self._pipeline.scorer.name
            if name == before and self._path.exists():
                return
            if name != before:
                await asyncio.to_thread(note)
            await asyncio.to_thread(replace_file, self._path, msgspec.json.encode({"scorer": name}))
            self._pipeline.scorer = self._dry_run.scorer = scorer
            log.info("scorer switched", scorer=name, before=before)
