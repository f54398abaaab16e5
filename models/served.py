"""Models served beside the scorer: found in a directory, opened, described and run.

A directory holds `NAME.onnx`, which is version 1, or `NAME/VERSION/model.onnx`, VERSION a positive number; other files are
left alone (weights beside a model, a README). Tensors are described in the words of the Open Inference Protocol. A model whose
tensors it cannot carry (bfloat16, sequences, maps) is refused when it is opened, not when it is asked.

onnxruntime is imported when the first model is opened: a service that scores with `go` alone never loads its Python side.
"""

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.scorer import CPU, ModelError

Array = NDArray[Any]

MODEL_FILE: Final = "model.onnx"
NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
VERSION_PATTERN: Final = re.compile(r"[1-9][0-9]{0,17}")
_MESSAGE_MAX: Final = 300  # characters of onnxruntime's own message that a caller is shown

# onnxruntime's name of a tensor type -> the protocol's
_DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class RunRefused(Exception):
    """The model cannot run on these tensors."""


class RunFailed(Exception):
    """The run failed for a reason of ours: memory, or it was stopped."""


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output. `shape`: -1 for a variable dimension; empty where the model does not say."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelSource(msgspec.Struct, frozen=True):
    """Where a version of a model comes from: a file, or bytes that are at hand."""

    name: str
    version: str
    content: Path | bytes


class Run:
    """One run, which another thread may stop: it ends at the model's next node, or does not begin."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def stop(self) -> None:
        """May be called at any time, also before the run and after it."""
        self.options.terminate = True

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return bool(self.options.terminate)


class ServedModel:
    """An opened model. Several threads may run it at the same time."""

    def __init__(self, source: ModelSource, providers: Sequence[str] = CPU) -> None:
        """Takes as long as onnxruntime needs, 40 ms for 3.5 million parameters. Raises ModelError."""
        self._onnx = importlib.import_module("models.onnx_session")
        self.name = source.name
        self.version = source.version
        shown = source.name if isinstance(source.content, bytes) else str(source.content)
        self._session = self._onnx.open_session(source.content, shown, providers)
        self.inputs = [_spec(shown, "input", tensor) for tensor in self._session.get_inputs()]
        self.outputs = [_spec(shown, "output", tensor) for tensor in self._session.get_outputs()]

    def new_run(self) -> Run:
        """What `run` takes."""
        return Run(self._onnx.new_run_options())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], run: Run) -> list[Array]:
        """The named outputs for `feeds` (every input by name). Raises RunRefused, RunFailed."""
        try:
            return [np.asarray(output) for output in self._session.run(list(outputs), dict(feeds), run.options)]
        except Exception as error:  # onnxruntime's exceptions share no base class
            message = _shortened(str(error))
            if run.is_stopped:
                raise RunFailed("stopped") from None
            if isinstance(error, MemoryError) or "alloc" in message:
                raise RunFailed(message) from None
            # What is left depends on the input alone, mostly a size that a layer inside cannot take.
            raise RunRefused(message) from None


def find_models(directory: Path) -> list[ModelSource]:
    """Every version of every model in `directory`, by name, versions ascending. Raises ModelError, naming path and fix."""
    try:
        entries = sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ModelError(f"inference.models_dir {directory}: {error.strerror}") from None
    found: dict[str, list[ModelSource]] = {}
    for entry in entries:
        if entry.is_dir():
            versions = _find_versions(entry)
        elif entry.suffix == ".onnx":
            versions = [ModelSource(_checked_name(entry, entry.stem), "1", entry)]
        else:
            continue
        name = versions[0].name
        if name in found:
            raise ModelError(f"{directory}: both {name}.onnx and {name}/ are there; keep one of them")
        found[name] = versions
    return [version for versions in found.values() for version in versions]


def _find_versions(directory: Path) -> list[ModelSource]:
    name = _checked_name(directory, directory.name)
    numbers = sorted(
        int(entry.name) for entry in directory.iterdir() if entry.is_dir() and VERSION_PATTERN.fullmatch(entry.name)
    )
    if not numbers:
        raise ModelError(f"{directory}: holds no version; put the model into {directory / '1' / MODEL_FILE}")
    versions = [ModelSource(name, str(number), directory / str(number) / MODEL_FILE) for number in numbers]
    for number in numbers:
        if not (directory / str(number) / MODEL_FILE).is_file():
            raise ModelError(f"{directory / str(number)}: holds no {MODEL_FILE}; a version is a directory that does")
    return versions


def _checked_name(path: Path, name: str) -> str:
    if not NAME_PATTERN.fullmatch(name):
        raise ModelError(f"{path}: {name!r} is no name for a model: use 1 to 128 of A-Z a-z 0-9 _ . -, no dot or dash first")
    return name


def _spec(shown: str, role: str, tensor: Any) -> TensorSpec:
    datatype = _DATATYPES.get(tensor.type)
    if datatype is None:
        raise ModelError(
            f"{shown}: {role} {tensor.name!r} is {tensor.type}, which the Open Inference Protocol cannot carry here;"
            f" export the model with {', '.join(_DATATYPES.values())} tensors"
        )
    return TensorSpec(tensor.name, datatype, tuple(size if isinstance(size, int) else -1 for size in tensor.shape))


def _shortened(message: str) -> str:
    """Without the library's prefix of three parts, on one line."""
    parts = message.split(" : ", 3)
    return " ".join(parts[-1].split())[:_MESSAGE_MAX]
