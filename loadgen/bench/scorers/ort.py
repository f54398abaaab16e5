"""ONNX Runtime's C API straight from cffi, without its Python layer and without Go: the floor that both engines stand on.

The library that the onnxruntime wheel ships exports one function, which leads to a table of function pointers. The table only
ever grows at its end, so a place in it is good for every later version. Input and output are memory of ours, bound once per
number of rows; a run is then one call. One thread, no spinning, as models/onnx_scorer.py. It lives as long as the process.
"""

from pathlib import Path
from typing import Any

import cffi
import numpy as np
import numpy.typing as npt

from gocore.locate import onnxruntime_library
from loadgen.bench.children import BenchError
from models.onnx_scorer import INPUT, OUTPUT

API_VERSION = 26
LOG_ERRORS, ARENA_ALLOCATOR, DEFAULT_MEMORY, FLOAT32 = 3, 1, 0, 1

# Name -> place in the table of API version 26, and its signature.
FUNCTIONS = {
    "error_message": (2, "const char *(*)(const void *)"),
    "create_env": (3, "void *(*)(int, const char *, void **)"),
    "create_session": (7, "void *(*)(const void *, const char *, const void *, void **)"),
    "run": (
        9,
        "void *(*)(void *, const void *, const char *const *, void *const *, size_t, const char *const *, size_t, void **)",
    ),
    "create_options": (10, "void *(*)(void **)"),
    "set_intra_op_threads": (24, "void *(*)(void *, int)"),
    "set_inter_op_threads": (25, "void *(*)(void *, int)"),
    "create_tensor": (49, "void *(*)(const void *, void *, size_t, const int64_t *, size_t, int, void **)"),
    "create_cpu_memory": (69, "void *(*)(int, int, void **)"),
    "release_status": (93, "void (*)(void *)"),
    "add_config_entry": (130, "void *(*)(void *, const char *, const char *)"),
}


class RawSession:
    """One session over `vectors` float32 (rows_max, features) and `risk` float32 (rows_max,). Raises BenchError."""

    def __init__(self, model_file: Path, rows_max: int, n_features: int) -> None:
        self.vectors: npt.NDArray[np.float32] = np.zeros((rows_max, n_features), dtype=np.float32)
        self.risk: npt.NDArray[np.float32] = np.zeros(rows_max, dtype=np.float32)
        self._ffi = ffi = cffi.FFI()
        ffi.cdef("typedef struct { const void *(*api)(uint32_t); } base; const base *OrtGetApiBase(void);")
        self._lib: Any = ffi.dlopen(str(onnxruntime_library()))
        api = self._lib.OrtGetApiBase().api(API_VERSION)
        if not api:
            raise BenchError(f"{onnxruntime_library().name} does not know version {API_VERSION} of its C API")
        table = ffi.cast("void **", api)
        self._call = {name: ffi.cast(signature, table[place]) for name, (place, signature) in FUNCTIONS.items()}
        self._session = self._open(model_file)
        self._memory = self._new("create_cpu_memory", ARENA_ALLOCATOR, DEFAULT_MEMORY)
        self._names = [ffi.new("char[]", name.encode()) for name in (INPUT, OUTPUT)]
        self._in_names, self._out_names = (ffi.new("char *[]", [name]) for name in self._names)
        self._bound: dict[int, tuple[Any, Any]] = {}
        self._run = self._call["run"]

    def run(self, n_rows: int) -> None:
        """risk[:n_rows] from vectors[:n_rows]."""
        inputs, outputs = self._bound.get(n_rows) or self._bind(n_rows)
        status = self._run(self._session, self._ffi.NULL, self._in_names, inputs, 1, self._out_names, 1, outputs)
        if status:
            self._check(status)

    def _open(self, model_file: Path) -> Any:
        self._env = self._new("create_env", LOG_ERRORS, b"weir-bench")
        options = self._new("create_options")
        for name in ("set_intra_op_threads", "set_inter_op_threads"):
            self._check(self._call[name](options, 1))
        self._check(self._call["add_config_entry"](options, b"session.intra_op.allow_spinning", b"0"))
        return self._new("create_session", self._env, str(model_file).encode(), options)

    def _bind(self, n_rows: int) -> tuple[Any, Any]:
        new = self._ffi.new
        bound = self._bound[n_rows] = (
            new("void *[]", [self._tensor(self.vectors[:n_rows])]),
            new("void *[]", [self._tensor(self.risk[:n_rows])]),
        )
        return bound

    def _tensor(self, array: npt.NDArray[np.float32]) -> Any:
        data = self._ffi.cast("void *", array.ctypes.data)
        return self._new("create_tensor", self._memory, data, array.nbytes, list(array.shape), array.ndim, FLOAT32)

    def _new(self, name: str, *arguments: Any) -> Any:
        out = self._ffi.new("void **")
        self._check(self._call[name](*arguments, out))
        return out[0]

    def _check(self, status: Any) -> None:
        if status:
            message = self._ffi.string(self._call["error_message"](status)).decode(errors="replace")
            self._call["release_status"](status)
            raise BenchError(f"onnxruntime: {message}")
