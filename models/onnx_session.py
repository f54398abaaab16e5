"""Sessions of onnxruntime: the only module that imports it.

Execution providers are asked for by name, the preferred one first (ADR 0049). One that is not here, or does not start, is an
error: onnxruntime alone would go on with the CPU's, with a warning at best.

One intra-op thread and no spinning: the service owns its cores, and a 43,521-parameter model has nothing to share out; a
larger one runs on the thread that calls it, and the others stay free. Telemetry is off before the library loads
(models/__init__.py).
"""

from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from models.scorer import CPU, ModelError


def open_session(model: Path | bytes, shown: str = "", providers: Sequence[str] = CPU) -> onnxruntime.InferenceSession:
    """A session of a model file, or of its bytes, which messages call `shown`. Raises ModelError."""
    check_providers(providers)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    onnxruntime.disable_telemetry_events()
    source = model if isinstance(model, bytes) else str(model)
    name = shown or str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=list(providers))
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ModelError(f"{name}: is not a model that onnxruntime {onnxruntime.__version__} reads: {error}") from None
    used = session.get_providers()
    if idle := [provider for provider in providers if provider not in used]:
        raise ModelError(
            f"{name}: onnxruntime has {', '.join(idle)} and could not start it, its session runs on {', '.join(used)}: look for"
            " the device and its driver, or take the provider out of onnx.providers"
        )
    return session


def check_providers(providers: Sequence[str]) -> None:
    """Raise ModelError unless this build of onnxruntime has all of them, which says nothing of devices."""
    here = available_providers()
    if lacking := [provider for provider in providers if provider not in here]:
        raise ModelError(
            f"onnx.providers: onnxruntime {onnxruntime.__version__} has no {', '.join(lacking)} here; it has {', '.join(here)}"
        )


def available_providers() -> list[str]:
    """The execution providers that this build of onnxruntime has, the preferred one first."""
    found: list[str] = onnxruntime.get_available_providers()
    return found


def new_run_options() -> onnxruntime.RunOptions:
    """Of one run; `terminate = True`, set from any thread, ends it at the next node."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4  # an error reaches the caller; the library would write it to stderr as well
    return options
