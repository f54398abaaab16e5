"""Where the built parts of the Go core are, and the libonnxruntime that they use."""

import importlib.util
from pathlib import Path

from gocore.errors import CoreMissing

BUILD = Path(__file__).parent / "build"
HEADER = Path(__file__).parent / "capi" / "weir.h"
LIBRARY = BUILD / "libweir.so"
SERVER = BUILD / "weir-go"
BENCH_JSON = BUILD / "bench-json"


def onnxruntime_library() -> Path:
    """The libonnxruntime that the onnxruntime wheel ships, found without importing it. Raises CoreMissing."""
    spec = importlib.util.find_spec("onnxruntime")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        found = sorted((Path(folder) / "capi").glob("libonnxruntime.so.*"))
        if found:
            return found[-1]
    raise CoreMissing("the onnxruntime package is not installed, or ships no libonnxruntime.so")


def missing_core() -> str | None:
    """Why the go scorer cannot be used here, or None if its library is there."""
    if not LIBRARY.is_file():
        return f"{LIBRARY.name} is not built; make go builds it (it needs a C compiler)"
    try:
        onnxruntime_library()
    except CoreMissing as error:
        return str(error)
    return None
