"""Tensors of the Open Inference Protocol: JSON lists or raw bytes to numpy arrays and back.

| datatype | in JSON | as bytes, little-endian, row-major |
|---|---|---|
| BOOL | true, false | one byte, 0 or 1 |
| UINT8 to UINT64, INT8 to INT64 | integers within range | two's complement |
| FP16, FP32, FP64 | numbers; null is NaN | IEEE 754 |
| BYTES | strings | per element u32 length, then UTF-8 |

JSON lists are flat or nested as the shape says. Nothing is rounded to fit: a float for an integer, a number out of range, a
boolean for a number are refused, with the tensor's name and the index. JSON has no infinity, so an output that holds one is
refused unless it is asked for as bytes.
"""

import itertools
import math
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidTensor

Array = NDArray[Any]

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
RANK_MAX: Final = 32
BYTES_ELEMENTS_MAX: Final = 100_000  # strings of one tensor: each is read by Python itself, 0.3 µs
_LENGTH: Final = struct.Struct("<I")  # before each element of a BYTES tensor
_WORDS: Final = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", type(None): "null", list: "a list"}
_TAKEN: Final[dict[str, tuple[set[type], str]]] = {  # kind of the dtype -> Python types, the words for them
    "b": ({bool}, "true or false"),
    "i": ({int}, "integers"),
    "u": ({int}, "integers from 0 on"),
    "f": ({int, float, type(None)}, "numbers, null for NaN"),
    "O": ({str}, "strings"),
}


def from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> Array:
    """The array of an input's `data`. Raises InvalidTensor."""
    dtype = DTYPES[datatype]
    flat = _flatten(name, shape, data)
    _check_count(name, shape, len(flat), "elements")
    taken, words = _TAKEN[dtype.kind]
    if not set(map(type, flat)) <= taken:  # the types of 150,000 elements: 3 ms
        at = next(i for i, value in enumerate(flat) if type(value) not in taken)
        found = _WORDS.get(type(flat[at]), "an object")
        raise _invalid(name, f"data[{at}] is {found}; {datatype} takes {words}")
    if dtype.kind == "O":
        _check_strings(name, len(flat))
        return _shaped(name, shape, np.array(flat, dtype))
    try:
        array = np.array(flat, np.float64 if dtype.kind == "f" else dtype)
    except OverflowError:
        raise _out_of_range(name, datatype, flat) from None
    if dtype.kind == "f":
        array = _narrowed(name, datatype, array)
    return _shaped(name, shape, array)


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: memoryview) -> Array:
    """The array of an input's raw bytes, which it may share. Raises InvalidTensor."""
    dtype = DTYPES[datatype]
    if dtype.kind == "O":
        return _shaped(name, shape, _strings(name, math.prod(shape), data))
    _check_count(name, shape, len(data), "bytes", dtype.itemsize)
    array: Array = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False)
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise _invalid(name, "a byte of a BOOL tensor is neither 0 nor 1")
    if not array.flags.aligned:  # the bytes before it were JSON
        array = array.copy()
    return _shaped(name, shape, array)


def to_json(name: str, array: Array) -> list[Any]:
    """Flat list of an output, NaN included (it is encoded as null). Raises InvalidTensor for an infinity."""
    if array.dtype.kind == "f" and np.isinf(array).any():
        raise _invalid(name, "this output holds an infinity, for which JSON has no number; ask for it with binary_data")
    flat: list[Any] = array.reshape(-1).tolist()
    return flat


def to_bytes(array: Array) -> bytes:
    """Raw bytes of an output."""
    if array.dtype.kind != "O":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    encoded = [element.encode() for element in array.reshape(-1).tolist()]
    return b"".join(part for element in encoded for part in (_LENGTH.pack(len(element)), element))


def _flatten(name: str, shape: Sequence[int], data: object) -> list[Any]:
    """Elements in row-major order of a list that is flat, or nested exactly as `shape` says."""
    if not isinstance(data, list):
        raise _invalid(name, "data must be a list")
    if len(shape) < 2 or not data or not isinstance(data[0], list):
        return data
    level: list[Any] = [data]
    for depth, size in enumerate(shape):
        for row in level:
            if not isinstance(row, list) or len(row) != size:
                found = f"of {len(row)}" if isinstance(row, list) else "missing"
                raise _invalid(name, f"data is nested, and a list at depth {depth} is {found}; shape {list(shape)} has {size}")
        level = list(itertools.chain.from_iterable(level))
    return level


def _narrowed(name: str, datatype: str, values: NDArray[np.float64]) -> Array:
    """As the datatype's width; a finite number that would become an infinity is refused."""
    with np.errstate(over="ignore", under="ignore"):
        array: Array = values.astype(DTYPES[datatype])
    lost = np.isinf(array) & ~np.isinf(values)
    if lost.any():
        at = int(np.argmax(lost))
        raise _invalid(name, f"data[{at}] is {values[at]:g}, beyond the range of {datatype}")
    return array


def _out_of_range(name: str, datatype: str, flat: list[Any]) -> InvalidTensor:
    dtype = DTYPES[datatype]
    if dtype.kind == "f":
        return _invalid(name, f"an integer in data is beyond the range of {datatype}")
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    at = next(i for i, value in enumerate(flat) if not low <= value <= high)
    return _invalid(name, f"data[{at}] is beyond the range of {datatype}, {low} to {high}")


def _strings(name: str, count: int, data: memoryview) -> Array:
    """An object array of str from length-prefixed elements."""
    _check_strings(name, count)
    strings: list[str] = []
    position = 0
    while len(strings) < count and position + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        end = position + _LENGTH.size + length
        if end > len(data):
            break
        try:
            strings.append(str(data[position + _LENGTH.size : end], "utf-8"))
        except UnicodeDecodeError:
            raise _invalid(name, f"element {len(strings)} is not UTF-8, as which onnxruntime holds strings") from None
        position = end
    if len(strings) != count or position != len(data):
        raise _invalid(name, f"its {len(data)} bytes do not hold exactly {count} elements of u32 length and bytes")
    array = np.empty(count, np.object_)
    array[:] = strings
    return array


def _check_strings(name: str, count: int) -> None:
    if count > BYTES_ELEMENTS_MAX:
        raise _invalid(name, f"{count} strings; a BYTES tensor takes at most {BYTES_ELEMENTS_MAX}")


def _check_count(name: str, shape: Sequence[int], found: int, unit: str, item_bytes: int = 1) -> None:
    expected = math.prod(shape) * item_bytes
    if found != expected:
        raise _invalid(name, f"{found} {unit}; shape {list(shape)} has {expected}")


def _shaped(name: str, shape: Sequence[int], array: Array) -> Array:
    try:
        return array.reshape(tuple(shape))
    except ValueError:  # no elements, and dimensions whose product no array can have
        raise _invalid(name, f"shape {list(shape)} is too large") from None


def _invalid(name: str, detail: str) -> InvalidTensor:
    return InvalidTensor(f"tensor {name[:80]!r}: {detail}", name[:80])
