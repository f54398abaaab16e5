"""Which scoring engines there are, and how to open one.

Each is imported when it is first opened: a service that scores with `go` alone never loads onnxruntime's Python side, and one
that scores with `onnx` alone no Go. Both together hold 30 MB more than one; one holds as much as the other
(docs/results/scorers.md).
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from features.plan import Plan
from gocore.errors import GoCoreError
from gocore.locate import missing_core
from models.scorer import CPU, ModelError, Scorer

NAMES: Final = ("go", "onnx")


class ScorerMissing(ModelError):
    """The engine cannot be used on this machine, whatever the model."""


def missing_scorer(name: str) -> str | None:
    """Why the engine cannot be used here, or None if it can. Looks at files only."""
    return missing_core() if name == "go" else None


def check_providers(providers: Sequence[str]) -> None:
    """Raise ModelError if onnxruntime lacks one of these. It always has the CPU's, so it is not loaded to be asked for that."""
    if tuple(providers) != CPU:
        importlib.import_module("models.onnx_session").check_providers(providers)


def open_scorer(name: str, plan: Plan, model_file: Path, providers: Sequence[str] = CPU) -> Scorer:
    """The engine `name` with the model in `model_file`; `go` runs it on the CPU, whatever `providers` are.

    Raises ScorerMissing, or ModelError if it is no model of this plan.
    """
    assert name in NAMES
    try:
        if name == "go":
            scorer: Scorer = importlib.import_module("models.go_scorer").GoScorer(plan, model_file)
        else:
            scorer = importlib.import_module("models.onnx_scorer").OnnxScorer(plan, model_file, providers)
    except GoCoreError as error:
        raise ScorerMissing(f"the {name} scorer cannot be used: {error}; use --scorer onnx") from None
    return scorer
