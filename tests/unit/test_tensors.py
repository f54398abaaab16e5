"""Tensors of the Open Inference Protocol: every datatype survives, and what would have to be bent is refused."""

import json
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidTensor
from service.tensors import BYTES_ELEMENTS_MAX, DTYPES, from_bytes, from_json, to_bytes, to_json

EXTREMES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65_535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [-65_504.0, 0.5],
    "FP32": [float(np.finfo(np.float32).max), 2.0**-149],
    "FP64": [float(np.finfo(np.float64).max), 5e-324],
    "BYTES": ["", "naïve 水\x00end"],
}


def _refusal(datatype: str, shape: list[int], data: Any) -> str:
    with pytest.raises(InvalidTensor) as caught:
        from_json("x", datatype, shape, data)
    assert caught.value.field == "x"
    return caught.value.detail


def test_extremes_cover_every_datatype() -> None:
    """No datatype is left out of the tests below."""
    assert EXTREMES.keys() == DTYPES.keys()


@pytest.mark.parametrize("datatype", DTYPES)
def test_json_extremes_round_trip(datatype: str) -> None:
    """The least and the largest value of a datatype come back from JSON as they were sent."""
    sent = EXTREMES[datatype]
    array = from_json("x", datatype, [2], json.loads(json.dumps(sent)))
    assert array.dtype == DTYPES[datatype]
    assert msgspec.json.decode(msgspec.json.encode(to_json("x", array))) == sent


@pytest.mark.parametrize("datatype", DTYPES)
def test_bytes_extremes_round_trip(datatype: str) -> None:
    """The same through raw bytes, which begin at an odd address."""
    array = from_json("x", datatype, [2, 1], EXTREMES[datatype])
    raw = to_bytes(array)
    back = from_bytes("x", datatype, [2, 1], memoryview(b"{" + raw)[1:])
    assert back.shape == (2, 1)
    assert back.dtype == array.dtype
    assert back.flags.aligned
    assert back.tolist() == array.tolist()


@given(st.lists(st.floats(width=32, allow_infinity=False), min_size=1, max_size=50))
def test_fp32_json_round_trip_is_exact(values: list[float]) -> None:
    """Any float32, NaN included, comes back bit for bit (a NaN as a NaN)."""
    sent = np.array(values, np.float32)
    received = from_json("x", "FP32", [len(values)], msgspec.json.decode(msgspec.json.encode(to_json("x", sent))))
    np.testing.assert_array_equal(received, sent)


def test_bytes_layout_is_little_endian_and_prefixed() -> None:
    """Raw bytes are what the protocol says, whatever this machine's order is."""
    assert to_bytes(np.array([1, -2], np.int32)) == struct.pack("<ii", 1, -2)
    assert to_bytes(np.array(["é", ""], object)) == b"\x02\x00\x00\x00\xc3\xa9\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("shape", "data", "expected"),
    [
        ([2, 2], [1, 2, 3, 4], [[1, 2], [3, 4]]),
        ([2, 2], [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ([1, 2, 1], [[[1], [2]]], [[[1], [2]]]),
        ([], [7], 7),
        ([0], [], []),
        ([0, 3], [], []),
        ([2, 0], [[], []], [[], []]),
    ],
)
def test_json_flat_and_nested_lists_give_the_shape(shape: list[int], data: list[Any], expected: Any) -> None:
    """Flat and nested data mean the same; a scalar has one element, an empty tensor none."""
    array = from_json("x", "INT64", shape, data)
    assert array.shape == tuple(shape)
    assert array.tolist() == expected


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "words"),
    [
        ("INT32", [2], [1, 2.5], "data[1] is a float; INT32 takes integers"),
        ("INT32", [2], [1, 2.0], "data[1] is a float"),
        ("INT32", [1], [True], "data[0] is a boolean"),
        ("INT32", [1], [None], "data[0] is null"),
        ("INT32", [1], ["1"], "data[0] is a string"),
        ("BOOL", [2], [True, 1], "data[1] is an integer; BOOL takes true or false"),
        ("FP32", [2], [1, True], "data[1] is a boolean"),
        ("FP32", [1], ["NaN"], "data[0] is a string"),
        ("FP32", [1], [{}], "data[0] is an object"),
        ("BYTES", [1], [1], "data[0] is an integer; BYTES takes strings"),
        ("UINT8", [2], [0, 256], "data[1] is beyond the range of UINT8, 0 to 255"),
        ("UINT64", [1], [-1], "data[0] is beyond the range of UINT64"),
        ("INT64", [1], [2**63], "data[0] is beyond the range of INT64"),
        ("FP32", [2], [0, 1e39], "data[1] is 1e+39, beyond the range of FP32"),
        ("FP16", [1], [65_520], "beyond the range of FP16"),
        ("FP64", [1], [10**400], "beyond the range of FP64"),
        ("FP32", [3], [1, 2], "2 elements; shape [3] has 3"),
        ("FP32", [], [], "0 elements; shape [] has 1"),
        ("FP32", [2, 2], [[1, 2], [3]], "a list at depth 1 is of 1; shape [2, 2] has 2"),
        ("FP32", [2, 2], [[1, 2], 3], "a list at depth 1 is missing"),
        ("FP32", [1, 2], [[1, 2], [3, 4]], "a list at depth 0 is of 2"),
        ("FP32", [1, 1], [[[1]]], "data[0] is a list"),
        ("FP32", [2], {"0": 1}, "data must be a list"),
        ("FP32", [2], 1.0, "data must be a list"),
        ("BYTES", [BYTES_ELEMENTS_MAX + 1], [""] * (BYTES_ELEMENTS_MAX + 1), "at most 100000"),
    ],
)
def test_json_that_would_have_to_be_bent_is_refused(datatype: str, shape: list[int], data: Any, words: str) -> None:
    """Nothing is rounded, cut or guessed: the refusal names the tensor, the index and what is taken."""
    detail = _refusal(datatype, shape, data)
    assert detail.startswith("tensor 'x': ")
    assert words in detail


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "words"),
    [
        ("FP32", [2], b"\0" * 7, "7 bytes; shape [2] has 8"),
        ("FP32", [2], b"\0" * 9, "9 bytes; shape [2] has 8"),
        ("INT8", [0], b"\0", "1 bytes; shape [0] has 0"),
        ("BOOL", [2], b"\1\2", "neither 0 nor 1"),
        ("BYTES", [1], b"\5\0\0\0abc", "do not hold exactly 1 elements"),
        ("BYTES", [1], b"\1\0\0", "do not hold exactly 1 elements"),
        ("BYTES", [1], b"\1\0\0\0ab", "do not hold exactly 1 elements"),
        ("BYTES", [2], b"\1\0\0\0a", "do not hold exactly 2 elements"),
        ("BYTES", [1], b"\1\0\0\0\xff", "element 0 is not UTF-8"),
        ("BYTES", [2**31, 2**31], b"", "at most 100000"),
        ("FP32", [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], b"", "too large"),
    ],
)
def test_bytes_of_wrong_size_or_content_are_refused(datatype: str, shape: list[int], raw: bytes, words: str) -> None:
    """Raw bytes have to be exactly those of the shape, and mean something."""
    with pytest.raises(InvalidTensor) as caught:
        from_bytes("x", datatype, shape, memoryview(raw))
    assert words in caught.value.detail


def test_bytes_hold_nan_and_infinity() -> None:
    """Raw bytes carry every float there is."""
    sent = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    np.testing.assert_array_equal(from_bytes("x", "FP32", [4], memoryview(sent.tobytes())), sent)


def test_json_null_is_nan_both_ways() -> None:
    """JSON has no NaN: null stands for it."""
    array = from_json("x", "FP32", [2], [None, 1])
    assert np.isnan(array[0])
    assert msgspec.json.encode(to_json("x", array)) == b"[null,1.0]"


def test_to_json_refuses_infinity() -> None:
    """An infinity would become null, which is NaN: the caller is told to ask for bytes."""
    with pytest.raises(InvalidTensor, match="binary_data"):
        to_json("x", np.array([1, np.inf], np.float32))


def test_strings_at_the_limit_are_taken() -> None:
    """The largest BYTES tensor is read, one element more is not (see above)."""
    assert from_bytes("x", "BYTES", [BYTES_ELEMENTS_MAX], memoryview(bytes(4 * BYTES_ELEMENTS_MAX))).size == BYTES_ELEMENTS_MAX
