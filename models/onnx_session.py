"""Sessions of onnxruntime: the only module that imports it.

One intra-op thread and no spinning: the service owns its cores, and a 43,521-parameter model has nothing to share out; a
larger one runs on the thread that calls it, and the others stay free. Telemetry is off before the library loads
(models/__init__.py).
"""

from pathlib import Path

import onnxruntime

from models.scorer import ModelError


def open_session(model: Path | bytes, shown: str = "") -> onnxruntime.InferenceSession:
    """A session of a model file, or of its bytes, which messages call `shown`. Raises ModelError."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    onnxruntime.disable_telemetry_events()
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        name = shown or str(model)
        raise ModelError(f"{name}: is not a model that onnxruntime {onnxruntime.__version__} reads: {error}") from None


def available_providers() -> list[str]:
    """The execution providers that this build of onnxruntime has, the preferred one first. Weir asks for the CPU's only."""
    found: list[str] = onnxruntime.get_available_providers()
    return found


def new_run_options() -> onnxruntime.RunOptions:
    """Of one run; `terminate = True`, set from any thread, ends it at the next node."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4  # an error reaches the caller; the library would write it to stderr as well
    return options
