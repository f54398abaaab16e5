"""The Go core as Python sees it: load, declare (weir.h, as it is), call. The only module that imports cffi.

One core per process, loaded once and never unloaded, after any fork: a child that forked later gets CoreForked from every call
instead of a hang, as a Go runtime's threads do not survive a fork. Buffers stay ours: whoever binds an arena keeps it alive.
Faulthandler, if wanted, is enabled before the library loads: Go then passes on faults of C code and what else is not its own. A
SIGSEGV, SIGBUS or SIGFPE that somebody sends while a thread is inside Go ends the process with Go's dump instead.

Cost: a call from Python into Go and back 0.6 µs.
"""

import functools
import json
import logging
import math
import os
import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import cffi
import numpy as np
import numpy.typing as npt

from gocore.errors import (
    BadArgument,
    BadHandle,
    BadModel,
    BadPlan,
    BadProfile,
    CoreBusy,
    CoreForked,
    CoreMissing,
    CorePanic,
    GoCoreError,
    NoRuntime,
)
from gocore.locate import HEADER, LIBRARY, missing_core, onnxruntime_library

ABI_VERSION: Final = 6
ADVANCE, DRY, VECTORS, RISK, UNDO = 1, 2, 4, 8, 16
DIMENSIONS_MAX: Final = 8

_ERRORS: Final[dict[int, type[GoCoreError]]] = {
    1: CorePanic, 2: BadArgument, 3: BadPlan, 4: BadProfile, 5: BadModel, 6: BadHandle, 7: CoreBusy, 8: NoRuntime,
}  # fmt: skip
_BUSY: Final = 7
_MESSAGE_BYTES: Final = 1024

Array = npt.NDArray[Any]


class SlabMemory(Protocol):
    """What the core needs of a slab: `rows` uint8 (capacity, bytes of a profile), `late_dropped` int64 (rings,)."""

    capacity: int

    @property
    def rows(self) -> npt.NDArray[np.uint8]: ...
    @property
    def late_dropped(self) -> npt.NDArray[np.int64]: ...


class ArenaMemory(Protocol):
    """What the core needs of an arena (models.arena.Arena); `handle` is the core's own."""

    rows_max: int
    handle: int

    @property
    def slabs(self) -> Sequence[SlabMemory]: ...
    @property
    def lsns(self) -> npt.NDArray[np.int64]: ...
    @property
    def slots(self) -> npt.NDArray[np.int64]: ...
    @property
    def columns(self) -> npt.NDArray[np.int64]: ...
    @property
    def vectors(self) -> npt.NDArray[np.float32]: ...
    @property
    def risk(self) -> npt.NDArray[np.float32]: ...


class Core:
    """The loaded library. Every method raises the GoCoreError that the status stands for. Made by `load_core`."""

    def __init__(self, library: Path) -> None:
        self._ffi = cffi.FFI()
        self._ffi.cdef(_declarations(HEADER.read_text(encoding="utf-8")))
        try:
            self._lib: Any = self._ffi.dlopen(str(library))
        except OSError as error:
            raise CoreMissing(f"{library} cannot be loaded: {error}") from None
        version = self._lib.weir_abi_version()
        if version != ABI_VERSION:
            raise CoreMissing(f"{library} has ABI version {version}, this program {ABI_VERSION}; make go builds it anew")
        # The hot call, without a frame of ours around it: (model, arena, first, n, flags) -> status, for `check`.
        self.call_score: Callable[[int, int, int, int, int], int] = self._lib.weir_score
        # In the same way: (plan, weir_intake_job) and (weir_encode_job).
        self.call_intake: Callable[[int, Any], int] = self._lib.weir_intake
        self.call_encode: Callable[[Any], int] = self._lib.weir_encode
        # Of the plan, model and arena by their handles, with a job for each half and its own.
        self.call_express: Callable[[int, int, int, Any, Any, Any], int] = self._lib.weir_express
        # And those of an index, as weir.h has them.
        self.call_index_find: Callable[[int, Any, int, Any, int], int] = self._lib.weir_index_find
        self.call_index_put: Callable[[int, Any, int, Any, int], int] = self._lib.weir_index_put
        self.call_index_remove: Callable[[int, Any, int, Any, int, Any], int] = self._lib.weir_index_remove
        self.call_index_ids: Callable[[int, Any, int, Any, int, Any], int] = self._lib.weir_index_ids
        self.call_filter_find: Callable[[Any, int, Any, int, Any, int, int], int] = self._lib.weir_filter_find
        typeof = self._ffi.typeof
        self._uint8s, self._int64s, self._uint64s, self._floats = map(
            typeof, ("uint8_t[]", "int64_t[]", "uint64_t[]", "float[]")
        )
        self._submitted: dict[int, ArenaMemory] = {}
        self._described: dict[int, dict[str, list[dict[str, Any]]]] = {}  # of models that were asked to infer, by handle
        self._finalizers: dict[tuple[str, int], weakref.finalize[..., object]] = {}  # by call and handle
        os.register_at_fork(after_in_child=self._forked)

    def check(self, status: int) -> None:
        """Raise what `status` stands for; the message is this thread's last one."""
        if status:
            buffer = self._ffi.new("char[]", _MESSAGE_BYTES)
            self._lib.weir_last_error(buffer, _MESSAGE_BYTES)
            raise _ERRORS.get(status, GoCoreError)(self._text(buffer))

    def open_runtime(self, library: Path) -> None:
        """Open libonnxruntime; the same file again does nothing. Raises NoRuntime."""
        self.check(self._lib.weir_open_runtime(str(library).encode()))

    def runtime_version(self) -> str:
        """The version of the open libonnxruntime."""
        buffer = self._ffi.new("char[]", 64)
        self.check(self._lib.weir_runtime_version(buffer, 64))
        return self._text(buffer)

    def load_plan(self, plan: bytes) -> int:
        """A handle for the plan. Raises BadPlan."""
        return self._load(self._lib.weir_plan_load, plan)

    def close_plan(self, plan: int) -> None:
        """Arenas that were bound with it stay usable."""
        self.check(self._lib.weir_plan_close(plan))

    def load_model(self, model: bytes, n_features: int = 0) -> int:
        """A handle for an ONNX model: one that scores vectors of `n_features`, or, with 0, any. Raises BadModel."""
        return self._load(self._lib.weir_model_load, model, n_features)

    def close_model(self, model: int) -> None:
        """Free the model; calls that still use it raise BadHandle."""
        self._described.pop(model, None)
        self.check(self._lib.weir_model_close(model))

    def describe_model(self, model: int) -> dict[str, list[dict[str, Any]]]:
        """Inputs and outputs: name, ONNX element type and shape (-1: free) of each."""
        size = 1 << 12
        while True:
            buffer, written = self._ffi.new("char[]", size), self._ffi.new("int64_t *")
            status = self._lib.weir_model_describe(model, buffer, size, written)
            if status and written[0] > size:
                size = int(written[0])
                continue
            self.check(status)
            described: dict[str, list[dict[str, Any]]] = json.loads(self._ffi.unpack(buffer, written[0]))
            return described

    def bind(self, plan: int, arena: ArenaMemory) -> int:
        """Tell the core where the arena's memory is; unbound when the arena is garbage. Returns and keeps its handle.

        Raises BadArgument for memory that is not as ArenaMemory and SlabMemory say.
        """
        new, address = self._ffi.new, self._address
        slabs = new("weir_slab[]", len(arena.slabs))
        for target, slab in zip(slabs, arena.slabs, strict=True):
            _check_array("rows of a slab", slab.rows, np.uint8, 2)
            _check_array("late_dropped", slab.late_dropped, np.int64, 1)
            if slab.capacity > len(slab.rows):
                raise BadArgument(f"a slab has {len(slab.rows)} rows, its capacity says {slab.capacity}")
            target.base, target.stride, target.capacity = address(slab.rows, "void *"), slab.rows.strides[0], slab.capacity
            target.late_dropped, target.n_late_dropped = address(slab.late_dropped, "int64_t *"), slab.late_dropped.size
        memory = new("weir_arena *")
        memory.rows, memory.n_slabs, memory.slabs = arena.rows_max, len(arena.slabs), slabs
        for name, n_dimensions in (("lsns", 1), ("slots", 2), ("columns", 2)):
            array = getattr(arena, name)
            _check_array(name, array, np.int64, n_dimensions, gaps=True)
            rows = getattr(memory, name)
            rows.start, rows.stride = address(array, "int64_t *"), array.strides[0]
            rows.size = (len(array) - 1) * array.strides[0] + array[0].nbytes if len(array) else 0
        for name, n_dimensions in (("vectors", 2), ("risk", 1)):
            array = getattr(arena, name)
            _check_array(name, array, np.float32, n_dimensions)
            setattr(memory, name, address(array, "float *"))
            setattr(memory, f"n_{name}", array.size)
        handle = new("uint64_t *")
        self.check(self._lib.weir_bind(plan, memory, handle))
        arena.handle = int(handle[0])
        self.release_with(arena, "weir_unbind", arena.handle)
        return arena.handle

    def unbind(self, arena: ArenaMemory) -> None:
        """Let go of the arena's memory at once. Raises CoreBusy while a call works on it."""
        self.check(self._lib.weir_unbind(arena.handle))
        self._submitted.pop(arena.handle, None)
        self._finalizers.pop(("weir_unbind", arena.handle)).detach()
        arena.handle = 0

    def score(self, model: int, arena: ArenaMemory, first: int, n: int, flags: int) -> None:
        """Run rows [first, first + n) in order, as `flags` say; results are in the arena."""
        self.check(self.call_score(model, arena.handle, first, n, flags))

    def submit(self, model: int, arena: ArenaMemory, first: int, n: int, flags: int, event_fd: int) -> None:
        """The same on a thread of the core, which adds 1 to the eventfd when it is done; then `collect`."""
        handle = arena.handle
        self._submitted.setdefault(handle, arena)  # its memory has to outlive the call, whoever forgets to collect
        status = self._lib.weir_submit(model, handle, first, n, flags, event_fd)
        if status and status != _BUSY:  # busy: an earlier call needs it
            self._submitted.pop(handle, None)
        self.check(status)

    def collect(self, arena: ArenaMemory) -> None:
        """End what was submitted: returns, or raises what it failed with. Raises CoreBusy if it still runs."""
        status = self._lib.weir_collect(arena.handle)
        if status != _BUSY:
            self._submitted.pop(arena.handle, None)
        self.check(status)

    def undo(self, arena: ArenaMemory, lsn: int) -> None:
        """Restore what the last run with UNDO has changed, if it began with this LSN. Raises CoreBusy while a call works on the
        arena.
        """
        self.check(self._lib.weir_undo(arena.handle, lsn))

    def new_job(self, struct: str, memory: Mapping[str, Array]) -> Any:
        """A struct of weir.h whose pointers are these arrays, uint8, int64 or uint64, by name; they have to outlive it."""
        job = self._ffi.new(f"{struct} *")
        self.point(job, memory)
        return job

    def point(self, job: Any, memory: Mapping[str, Array]) -> None:
        """Set pointers of a job, as new_job does."""
        for name, array in memory.items():
            setattr(job, name, self._address(array, _POINTERS[array.dtype]))

    def buffer_of(self, job: Any) -> Any:
        """The bytes of a job, to be read and written."""
        return self._ffi.buffer(job)

    def replay_job(self, memory: Mapping[str, Array]) -> Any:
        """A weir_replay_job, by new_job."""
        return self.new_job("weir_replay_job", memory)

    def bytes_in(self, data: bytes | npt.NDArray[np.uint8]) -> Any:
        """A pointer for an input of a job: valid as long as both are kept."""
        return self._ffi.from_buffer(self._uint8s, data)

    def words_in(self, data: npt.NDArray[np.int64]) -> Any:
        """The same for int64 words, without gaps."""
        return self._ffi.from_buffer(self._int64s, data)

    def handles_in(self, data: npt.NDArray[np.uint64]) -> Any:
        """The same for handles, without gaps."""
        return self._ffi.from_buffer(self._uint64s, data)

    def floats_in(self, data: npt.NDArray[np.float32]) -> Any:
        """The same for float32 numbers, without gaps."""
        return self._ffi.from_buffer(self._floats, data)

    def open_index(self) -> int:
        """A handle for an empty index, weir_index_close gives it back."""
        handle = self._ffi.new("uint64_t *")
        self.check(self._lib.weir_index_open(handle))
        return int(handle[0])

    def open_filter(self, keys: int, fpp: float) -> tuple[int, int]:
        """A handle for an empty filter, weir_filter_close gives it back, and the bytes of its memory. Raises BadArgument."""
        handle, n_bytes = self._ffi.new("uint64_t *"), self._ffi.new("int64_t *")
        self.check(self._lib.weir_filter_open(keys, fpp, handle, n_bytes))
        return int(handle[0]), int(n_bytes[0])

    def open_replay(self, plan: int, ids_max: int) -> int:
        """A handle for numbers of ids, weir_replay_close gives it back."""
        handle = self._ffi.new("uint64_t *")
        self.check(self._lib.weir_replay_open(plan, ids_max, handle))
        return int(handle[0])

    def replay(self, handle: int, arena: ArenaMemory, job: Any) -> None:
        """Take blocks apart as the job says; without the GIL."""
        self.check(self._lib.weir_replay(handle, arena.handle, job))

    def ledger_rows(self, job: Any) -> None:
        """Make rows of the ledger as the weir_ledger_job says; without the GIL."""
        self.check(self._lib.weir_ledger_rows(job))

    def label(self, arena: ArenaMemory, kind: int, slot: int, ts: int, delta: int, lsn: int) -> bool:
        """Add `delta` frauds to the tile of `ts` in a profile. False if it already has `lsn`, or is empty."""
        changed = self._ffi.new("int32_t *")
        self.check(self._lib.weir_label(arena.handle, kind, slot, ts, delta, lsn, changed))
        return bool(changed[0])

    def merge(self, plan: int, kind: int, left: bytes, right: bytes) -> bytes:
        """Join two profiles of one entity. Raises BadProfile, BadArgument."""
        if len(left) != len(right):
            raise BadArgument(f"profiles of {len(left)} and {len(right)} bytes cannot be of one kind")
        out = self._ffi.new("uint8_t[]", len(left))
        buffer = self._ffi.from_buffer
        self.check(self._lib.weir_merge(plan, kind, buffer("uint8_t[]", left), buffer("uint8_t[]", right), out, len(left)))
        return bytes(self._ffi.buffer(out))

    def infer(self, model: int, inputs: Sequence[Array], output_bytes_max: int = 1 << 24) -> list[Array]:
        """Run any model on C-contiguous arrays in the order of its inputs; returns its outputs.

        Raises BadArgument for a wrong number, type or shape, or an output of more than `output_bytes_max` bytes.
        """
        described = self._described.get(model)
        if described is None:
            described = self._described[model] = self.describe_model(model)
        keep: list[Any] = []
        in_tensors = self._ffi.new("weir_tensor[]", max(len(inputs), 1))
        for tensor, array in zip(in_tensors, inputs, strict=False):
            if not array.flags.c_contiguous or array.dtype not in _ELEMENT_TYPES:
                raise BadArgument(f"an input of type {array.dtype} or of this memory layout is not taken; make it C-contiguous")
            self._fill(tensor, array, array.shape, _ELEMENT_TYPES[array.dtype], keep)
        out_tensors = self._ffi.new("weir_tensor[]", len(described["outputs"]))
        outputs = []
        for tensor, output in zip(out_tensors, described["outputs"], strict=True):
            if output["element_type"] not in _DTYPES:
                raise BadArgument(f"output {output['name']!r} has element type {output['element_type']}, which is not taken")
            shape, dtype = output["shape"], _DTYPES[output["element_type"]]
            is_free = not shape or min(shape) < 1
            n_bytes = output_bytes_max if is_free else math.prod(shape) * dtype.itemsize
            if n_bytes > output_bytes_max:
                raise BadArgument(f"output {output['name']!r} needs {n_bytes} bytes, at most {output_bytes_max} are allowed")
            array = np.empty(-(-n_bytes // 8), dtype=np.int64).view(np.uint8)[:n_bytes]
            self._fill(tensor, array, (0,) * DIMENSIONS_MAX if is_free else shape, output["element_type"], keep)
            if is_free:  # only the run can tell
                tensor.n_dimensions = -1
            outputs.append((tensor, array, dtype))
        self.check(self._lib.weir_infer(model, in_tensors, len(inputs), out_tensors, len(outputs)))
        return [
            array[: tensor.size].view(dtype).reshape([tensor.shape[i] for i in range(tensor.n_dimensions)]).copy()
            for tensor, array, dtype in outputs
        ]

    def release_with(self, owner: object, call: str, handle: int) -> None:
        """Give `handle` back by `call` of weir.h when `owner` is garbage, but not in a forked child: it has no core."""
        finalizer = self._finalizers[call, handle] = weakref.finalize(owner, self._release, call, handle)
        finalizer.atexit = False

    def panic(self) -> None:
        """Raises CorePanic: proves that a panic inside the core does not end the process."""
        self.check(self._lib.weir_panic())

    def _release(self, call: str, handle: int) -> None:
        self._finalizers.pop((call, handle), None)
        if not isinstance(self._lib, _Forked):
            getattr(self._lib, call)(handle)

    def _fill(self, tensor: Any, array: Array, shape: Sequence[int], element_type: int, keep: list[Any]) -> None:
        dimensions = self._ffi.new("int64_t[]", list(shape) or [0])
        keep += [dimensions, array]
        tensor.element_type, tensor.n_dimensions, tensor.shape = element_type, len(shape), dimensions
        tensor.data, tensor.size = self._address(array, "void *"), array.nbytes

    def _text(self, buffer: Any) -> str:
        text: bytes = self._ffi.string(buffer)
        return text.decode(errors="replace")

    def _load(self, call: Callable[..., int], data: bytes, *more: int) -> int:
        handle = self._ffi.new("uint64_t *")
        self.check(call(self._ffi.from_buffer("uint8_t[]", data), len(data), *more, handle))
        return int(handle[0])

    def _address(self, array: Array, kind: str) -> Any:
        return self._ffi.cast(kind, array.ctypes.data)

    def _forked(self) -> None:
        """In the child of a fork."""
        self._lib = _Forked()
        for name in [name for name in vars(self) if name.startswith("call_")]:
            setattr(self, name, getattr(self._lib, name.replace("call_", "weir_", 1)))
        self._finalizers.clear()


class _Forked:
    """Stands for the library in a process that must not call it."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        def refuse(*_: object) -> int:
            raise CoreForked(
                f"this process forked after it had loaded the Go core, so {name} would hang; load it after the fork"
            )

        return refuse


_POINTERS: Final = {np.dtype(kind): f"{kind.__name__}_t *" for kind in (np.uint8, np.int64, np.uint64)}
_ELEMENT_TYPES: Final[dict[Any, int]] = {
    np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int8): 3, np.dtype(np.uint16): 4, np.dtype(np.int16): 5,
    np.dtype(np.int32): 6, np.dtype(np.int64): 7, np.dtype(np.bool_): 9, np.dtype(np.float16): 10, np.dtype(np.float64): 11,
    np.dtype(np.uint32): 12, np.dtype(np.uint64): 13,
}  # fmt: skip
_DTYPES: Final[dict[int, Any]] = {code: dtype for dtype, code in _ELEMENT_TYPES.items()}
_loading: Final = threading.Lock()


os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


def load_core() -> Core:
    """The process's core, with libonnxruntime open. Raises CoreMissing, NoRuntime."""
    with _loading:
        return _load_once()


@functools.cache
def usable_core() -> Core | None:
    """`load_core` for somebody who can do without; None where it is not built or cannot be loaded, which is logged once."""
    if missing_core() is not None:
        return None
    try:
        return load_core()
    except GoCoreError as error:
        logging.getLogger(__name__).warning("the Go core cannot be used: %s", error)
        return None


@functools.cache
def _load_once() -> Core:
    missing = missing_core()
    if missing is not None:
        raise CoreMissing(missing)
    core = Core(LIBRARY)
    core.open_runtime(onnxruntime_library())
    return core


def _check_array(name: str, array: Array, dtype: Any, n_dimensions: int, *, gaps: bool = False) -> None:
    """Of this type and these dimensions, aligned, may be written to, without gaps (between rows there may be some)."""
    if array.dtype != dtype or array.ndim != n_dimensions:
        raise BadArgument(f"{name} is {array.dtype} of {array.ndim} dimensions, expected {np.dtype(dtype)} of {n_dimensions}")
    whole = array.flags.c_contiguous or (gaps and array.strides[1:] == (array.itemsize,) * (n_dimensions - 1))
    if not (array.flags.writeable and array.flags.aligned and whole):
        raise BadArgument(f"{name} is read-only, not aligned or has gaps: strides {array.strides} of {array.dtype}")


def _declarations(header: str) -> str:
    """The header without what the preprocessor would take away: cffi reads plain constants, not includes and guards."""
    return re.sub(r"^#(ifndef|include|endif|define WEIR_H$).*$", "", header, flags=re.MULTILINE)
