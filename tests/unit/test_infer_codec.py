"""Inference requests: what the JSON part and the bytes after it have to agree on."""

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.served import TensorSpec
from service.errors import BodyTooLarge, InvalidTensor, MalformedBody, WeirError
from service.infer_codec import decode_request, encode_reply, read_header_length, read_inputs, wanted_outputs
from service.tensors import Array

SPECS = [TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT64", ())]
OUTPUTS = [TensorSpec("y", "FP32", (-1,)), TensorSpec("z", "INT64", (-1,))]
MIB = 1 << 20
A = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2]}
B = {"name": "b", "shape": [1], "datatype": "INT64", "data": [3]}
RAW_A = {"name": "a", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
RAW_B = {"name": "b", "shape": [1], "datatype": "INT64", "parameters": {"binary_data_size": 8}}


def _body(members: Any, raw: bytes = b"") -> tuple[bytes, int]:
    head = json.dumps(members).encode()
    return head + raw, len(head)


def _read(members: Any, raw: bytes | None = None) -> dict[str, Array]:
    body, n_json = _body(members, raw or b"")
    length = None if raw is None else n_json
    return read_inputs(decode_request(body, length, MIB), body, length, SPECS)


def _refused(members: Any, raw: bytes | None = None) -> WeirError:
    with pytest.raises(InvalidTensor) as caught:
        _read(members, raw)
    return caught.value


def test_request_in_json_gives_inputs() -> None:
    """Inputs come by name, whatever their order, as the model declares them."""
    feeds = _read({"id": "1", "inputs": [B, A]})
    assert feeds["a"].tolist() == [[1.5, 2.0]]
    assert feeds["b"].tolist() == [3]


def test_request_with_bytes_gives_inputs_in_json_order() -> None:
    """Raw bytes stand in the order of the JSON; JSON data may stand between them."""
    feeds = _read({"inputs": [RAW_B, RAW_A]}, struct.pack("<qff", 7, 1.5, 2))
    assert (feeds["a"].tolist(), feeds["b"].tolist()) == ([[1.5, 2.0]], [7])
    feeds = _read({"inputs": [A, RAW_B]}, struct.pack("<q", 7))
    assert (feeds["a"].tolist(), feeds["b"].tolist()) == ([[1.5, 2.0]], [7])


def test_request_of_tokens_that_are_no_json_is_read() -> None:
    """NaN and Infinity are what existing clients send."""
    feeds = _read({"inputs": [A | {"data": [float("nan"), float("-inf")]}, B]})
    assert np.isnan(feeds["a"][0, 0])
    assert feeds["a"][0, 1] == -np.inf


def test_request_hints_and_unknown_parameters_are_ignored() -> None:
    """priority, timeout and a client's own parameters change nothing."""
    parameters = {"priority": 1, "timeout": 5, "mine": {"x": [1]}, "sequence_id": 0}
    assert _read({"inputs": [A, B], "parameters": parameters, "model_name": "m"}).keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("members", "words", "field"),
    [
        ({}, "object missing required field 'inputs'", None),
        ([], "expected 'object', got 'array'", None),
        ({"inputs": {}}, "inputs: expected 'array', got 'object'", "inputs"),
        ({"inputs": [A, B], "output": []}, "unknown field 'output'", None),
        ({"inputs": [A | {"dtype": "FP32"}, B]}, "unknown field 'dtype'", "inputs[0]"),
        ({"inputs": [A | {"shape": [-1, 2]}, B]}, "expected 'int' >= 0", "inputs[0].shape[0]"),
        ({"inputs": [A | {"shape": [1.5, 2]}, B]}, "expected 'int', got 'float'", "inputs[0].shape[0]"),
        ({"inputs": [A | {"shape": "1,2"}, B]}, "expected 'array', got 'str'", "inputs[0].shape"),
        ({"inputs": [A | {"shape": [1] * 33}, B]}, "length <= 32", "inputs[0].shape"),
        ({"inputs": [A, B], "id": 5}, "expected 'str', got 'int'", "id"),
        ({"inputs": [A]}, "input 'b' is missing; the model takes a FP32 [-1, 2], b INT64 []", "b"),
        ({"inputs": []}, "input 'a' is missing", "a"),
        ({"inputs": [A, B, A]}, "input 'a' is given twice", "a"),
        ({"inputs": [A, B, A | {"name": "c"}]}, "there is no input 'c'; the model takes a FP32", "c"),
        ({"inputs": [A | {"datatype": "FP64"}, B]}, "datatype is FP64, the model takes FP32", "a"),
        ({"inputs": [A | {"datatype": "float32"}, B]}, "'float32' is no datatype; there are BOOL", "a"),
        ({"inputs": [A | {"shape": [2]}, B]}, "shape is [2], the model takes [-1, 2]", "a"),
        ({"inputs": [A | {"shape": [1, 3]}, B]}, "shape is [1, 3], the model takes [-1, 2]", "a"),
        ({"inputs": [A | {"data": [1]}, B]}, "1 elements; shape [1, 2] has 2", "a"),
        ({"inputs": [RAW_A, B]}, "no Inference-Header-Content-Length", "Inference-Header-Content-Length"),
        ({"inputs": [A, {k: v for k, v in B.items() if k != "data"}]}, "neither data nor a binary_data_size", "b"),
        ({"inputs": [A, B], "parameters": {"sequence_id": 4}}, "sequence_id is not supported", "parameters"),
        ({"inputs": [A | {"parameters": {"shared_memory_region": "r"}}, B]}, "shared_memory_region of input 'a'", "a"),
        ({"inputs": [A, B], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification of output", "y"),
    ],
)
def test_request_that_does_not_fit_is_refused(members: Any, words: str, field: str | None) -> None:
    """Each mistake is named with the tensor and what the model takes."""
    error = _refused(members)
    assert words in error.detail
    assert error.field == field
    assert error.status == 400


@pytest.mark.parametrize(
    ("inputs", "raw", "words"),
    [
        ([RAW_A, B], bytes(7), "binary_data_size is 8; 7 bytes are left"),
        ([RAW_A, RAW_B], bytes(12), "input 'b': binary_data_size is 8; 4 bytes are left"),
        ([RAW_A, B], bytes(9), "1 bytes follow those of the last input"),
        ([A, B], bytes(1), "1 bytes follow those of the last input"),
        ([RAW_A | {"shape": [2, 2]}, B], bytes(8), "8 bytes; shape [2, 2] has 16"),
        ([RAW_A | {"parameters": {"binary_data_size": -1}}, B], bytes(8), "binary_data_size is -1"),
        ([RAW_A | {"parameters": {"binary_data_size": "8"}}, B], bytes(8), "binary_data_size is 8"),
        ([RAW_A | {"parameters": {"binary_data_size": True}}, B], bytes(8), "binary_data_size is True"),
        ([RAW_A | {"data": [1, 2]}, B], bytes(8), "both data and a binary_data_size"),
    ],
)
def test_request_whose_bytes_do_not_add_up_is_refused(inputs: list[Any], raw: bytes, words: str) -> None:
    """Sizes, shapes and what is there have to agree to the byte."""
    assert words in _refused({"inputs": inputs}, raw).detail


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(["a", "b", "FP32", "INT64", "é"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "binary_data_size", "x"]), inner),
    max_leaves=8,
)
_tensor = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b"]) | _json, "shape": st.lists(st.integers(0, 3), max_size=3) | _json},
    optional={"datatype": st.sampled_from(["FP32", "INT64"]) | _json, "data": _json, "parameters": _json},
)


@given(st.fixed_dictionaries({"inputs": st.lists(_tensor, max_size=3)}, optional={"outputs": _json, "id": _json}), st.binary())
def test_request_of_any_shape_is_read_or_refused(members: dict[str, Any], raw: bytes) -> None:
    """Nothing but the errors of the contract ever comes out of a body."""
    for sent in (None, raw):
        with contextlib.suppress(InvalidTensor, MalformedBody):
            assert _read(members, sent).keys() == {"a", "b"}


@pytest.mark.parametrize("header", ["", "0", "-1", "+5", "5.0", "0x5", "11", "five", "٥", "9" * 30])
def test_header_length_that_is_none_is_refused(header: str) -> None:
    """The header is a number of bytes within the body."""
    with pytest.raises(InvalidTensor, match="1 to 10"):
        read_header_length(header, 10)


def test_header_length_within_body_is_taken() -> None:
    """Up to the whole body; without the header the body is JSON alone."""
    assert read_header_length("10", 10) == 10
    assert read_header_length("1", 10) == 1
    assert read_header_length(None, 10) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b'{"inputs": [}',
        b"NaN",
        b"[" * 100_000 + b"NaN",
        b"[" * 100_000,
        b'{"inputs":[{"data":' + b"[" * 100_000,
        b'{"inputs":[]}x',
    ],
)
def test_body_that_is_no_json_is_refused(body: bytes) -> None:
    """Whatever the bytes are, the answer is a 400."""
    with pytest.raises((MalformedBody, InvalidTensor)) as caught:
        decode_request(body, None, MIB)
    assert caught.value.status == 400


def test_json_part_longer_than_its_limit_is_refused() -> None:
    """The limit is of the JSON part, not of the bytes after it."""
    body, n_json = _body({"inputs": [RAW_A, B]}, bytes(8))
    assert decode_request(body, n_json, n_json).inputs[0].name == "a"
    with pytest.raises(BodyTooLarge, match="binary_data_size"):
        decode_request(body, n_json, n_json - 1)


def test_outputs_without_choice_are_all() -> None:
    """All outputs, as JSON, or as bytes where the request says so."""
    request = decode_request(_body({"inputs": []})[0], None, MIB)
    assert wanted_outputs(request, OUTPUTS) == {"y": False, "z": False}
    request = decode_request(_body({"inputs": [], "parameters": {"binary_data_output": True}})[0], None, MIB)
    assert wanted_outputs(request, OUTPUTS) == {"y": True, "z": True}


def test_outputs_come_in_the_order_of_the_choice() -> None:
    """An output's own binary_data goes before the request's."""
    chosen = [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}]
    body = _body({"inputs": [], "outputs": chosen, "parameters": {"binary_data_output": True}})[0]
    assert list(wanted_outputs(decode_request(body, None, MIB), OUTPUTS).items()) == [("z", False), ("y", True)]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"outputs": [{"name": "w"}]}, "there is no output 'w'; the model gives y FP32 [-1], z INT64 [-1]"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "asked for twice"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "binary_data is 1: expected true or false"),
        ({"parameters": {"binary_data_output": "yes"}}, "binary_data_output is yes: expected true or false"),
    ],
)
def test_outputs_that_are_not_there_are_refused(members: dict[str, Any], words: str) -> None:
    """A wrong choice is named with what there is."""
    request = decode_request(_body({"inputs": []} | members)[0], None, MIB)
    with pytest.raises(InvalidTensor) as caught:
        wanted_outputs(request, OUTPUTS)
    assert words in caught.value.detail


def test_reply_holds_json_then_bytes() -> None:
    """JSON and raw outputs may be mixed; the id comes back, sizes add up."""
    request = decode_request(_body({"id": "r-1", "inputs": []})[0], None, MIB)
    arrays: dict[str, tuple[Array, bool]] = {"y": (np.array([1.5], np.float32), True), "z": (np.array([[2]], np.int64), False)}
    body, n_json = encode_reply(("m", "1"), request, arrays, MIB)
    assert json.loads(body[:n_json]) == {
        "model_name": "m",
        "model_version": "1",
        "id": "r-1",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
            {"name": "z", "datatype": "INT64", "shape": [1, 1], "data": [2]},
        ],
    }
    assert body[n_json:] == struct.pack("<f", 1.5)


def test_reply_in_json_alone_has_no_header_length() -> None:
    """Without raw bytes there is nothing to tell apart, and without an id there is none."""
    request = decode_request(_body({"inputs": []})[0], None, MIB)
    body, n_json = encode_reply(("m", "1"), request, {"y": (np.zeros(2, np.float32), False)}, MIB)
    assert n_json is None
    assert "id" not in json.loads(body)


def test_reply_of_too_many_numbers_is_refused_in_json_alone() -> None:
    """What would hold the interpreter for long is sent as bytes only."""
    request = decode_request(_body({"inputs": []})[0], None, MIB)
    large = np.zeros(101, np.float32)
    with pytest.raises(InvalidTensor, match="101 elements, at most 100"):
        encode_reply(("m", "1"), request, {"y": (large, False)}, 2_000)
    assert encode_reply(("m", "1"), request, {"y": (large, True)}, 2_000)[1] is not None
