"""Inference requests and replies of the Open Inference Protocol: a JSON object, then the raw bytes of tensors, in its order.

Without the header Inference-Header-Content-Length the body is JSON alone. Decoding runs on a model's thread, but holds the
interpreter while it lasts (2 ms a MiB), which is why JSON has a limit of its own. What changes a request's meaning and is not
done here (sequences, shared memory, classification) is refused; hints (priority, timeout) and unknown parameters are ignored.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from models.served import TensorSpec
from service.errors import BodyTooLarge, InvalidTensor, MalformedBody
from service.tensors import DTYPES, RANK_MAX, Array, from_bytes, from_json, to_bytes, to_json

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
JSON_ELEMENT_BYTES: Final = 20  # of a number in JSON: sign, 17 digits, point, comma
_NOT_JSON: Final = (b"NaN", b"Infinity")

Dimension = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Parameters = dict[str, Any]

# Parameters that change what is asked for; the rest are hints. By the place where they may stand.
_REFUSED: Final = {
    "": ("sequence_id", "sequence_start", "sequence_end"),
    "inputs": ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"),
    "outputs": ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification"),
}


class InputTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input as it is sent: `data`, or `binary_data_size` among the parameters."""

    name: str
    shape: Annotated[list[Dimension], Meta(max_length=RANK_MAX)]
    datatype: str
    parameters: Parameters = {}
    data: Any = UNSET


class OutputChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One output that is asked for."""

    name: str
    parameters: Parameters = {}


class InferRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON part. `model_name` and `model_version` may stand there, the path is what counts."""

    inputs: list[InputTensor]
    id: str | UnsetType = UNSET
    parameters: Parameters = {}
    outputs: list[OutputChoice] | UnsetType = UNSET
    model_name: str = ""
    model_version: str = ""


_decode = msgspec.json.Decoder(InferRequest).decode


def read_header_length(header: str | None, body_bytes: int) -> int | None:
    """Bytes of the JSON part as the HTTP header gives them, None without one. Raises InvalidTensor."""
    if header is None:
        return None
    if not (header.isascii() and header.isdigit() and len(header) < 19 and 0 < int(header) <= body_bytes):
        raise InvalidTensor(
            f"{HEADER_LENGTH} is {header[:40]!r}: expected the bytes of the JSON part, 1 to {body_bytes}", HEADER_LENGTH
        )
    return int(header)


def decode_request(body: bytes | bytearray, json_bytes: int | None, json_bytes_max: int) -> InferRequest:
    """The JSON part, checked by itself. Raises BodyTooLarge, MalformedBody, InvalidTensor."""
    part = memoryview(body) if json_bytes is None else memoryview(body)[:json_bytes]
    if len(part) > json_bytes_max:
        raise BodyTooLarge(
            f"the JSON part has {len(part)} bytes, at most inference.json_bytes_max = {json_bytes_max} are read here;"
            " send the tensors as bytes (binary_data_size)",
            "body",
        )
    try:
        request = _decode(part)
    except msgspec.ValidationError as error:
        raise _wrong_member(error) from None
    except RecursionError:
        raise MalformedBody("the JSON part is nested too deeply", "body") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        request = _decode_with_nan(bytes(part), str(error))
    _refuse_parameters(request.parameters, "", "")
    for tensor in request.inputs:
        _refuse_parameters(tensor.parameters, "inputs", tensor.name)
    for choice in () if isinstance(request.outputs, UnsetType) else request.outputs:
        _refuse_parameters(choice.parameters, "outputs", choice.name)
    return request


def read_inputs(
    request: InferRequest, body: bytes | bytearray, json_bytes: int | None, specs: Sequence[TensorSpec]
) -> dict[str, Array]:
    """Every input by name, as the model declares it; arrays may share the body. Raises InvalidTensor."""
    known = {spec.name: spec for spec in specs}
    feeds: dict[str, Array] = {}
    raw = memoryview(body)[len(body) if json_bytes is None else json_bytes :]
    position = 0
    for tensor in request.inputs:
        _check_input(tensor, known, feeds)
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            feeds[tensor.name] = from_json(tensor.name, tensor.datatype, tensor.shape, _data_of(tensor))
            continue
        _check_size(tensor, size, len(raw) - position, json_bytes is not None)
        feeds[tensor.name] = from_bytes(tensor.name, tensor.datatype, tensor.shape, raw[position : position + size])
        position += size
    missing = [name for name in known if name not in feeds]
    if missing:
        raise InvalidTensor(f"input {missing[0]!r} is missing; the model takes {_named(known)}", missing[0])
    if position != len(raw):
        raise InvalidTensor(
            f"{len(raw) - position} bytes follow those of the last input; binary_data_size sums up to {position}"
        )
    return feeds


def wanted_outputs(request: InferRequest, specs: Sequence[TensorSpec]) -> dict[str, bool]:
    """Outputs in the order in which they are asked for: name -> whether as bytes. Raises InvalidTensor."""
    default = _flag(request.parameters, "binary_data_output", False, "")
    known = {spec.name: spec for spec in specs}
    if isinstance(request.outputs, UnsetType) or not request.outputs:
        return dict.fromkeys(known, default)
    wanted: dict[str, bool] = {}
    for choice in request.outputs:
        if choice.name not in known:
            raise InvalidTensor(f"there is no output {choice.name[:80]!r}; the model gives {_named(known)}", choice.name[:80])
        if choice.name in wanted:
            raise InvalidTensor(f"output {choice.name!r} is asked for twice", choice.name)
        wanted[choice.name] = _flag(choice.parameters, "binary_data", default, choice.name)
    return wanted


def encode_reply(
    model: tuple[str, str], request: InferRequest, outputs: Mapping[str, tuple[Array, bool]], json_bytes_max: int
) -> tuple[bytes, int | None]:
    """The body, and the bytes of its JSON part where raw bytes follow; `outputs`: name -> array, whether as bytes.

    Raises InvalidTensor.
    """
    n_elements = sum(array.size for array, is_raw in outputs.values() if not is_raw)
    if n_elements * JSON_ELEMENT_BYTES > json_bytes_max:
        raise InvalidTensor(
            f"the outputs have {n_elements} elements, at most {json_bytes_max // JSON_ELEMENT_BYTES} are sent as JSON;"
            " ask for them with binary_data"
        )
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, (array, is_raw) in outputs.items():
        shown: dict[str, Any] = {"name": name, "datatype": _datatype_of(array), "shape": list(array.shape)}
        if is_raw:
            parts.append(to_bytes(array))
            shown["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            shown["data"] = to_json(name, array)
        described.append(shown)
    reply: dict[str, Any] = {"model_name": model[0], "model_version": model[1]}
    if not isinstance(request.id, UnsetType):
        reply["id"] = request.id
    head = msgspec.json.encode(reply | {"outputs": described})
    return b"".join((head, *parts)), len(head) if parts else None


def _decode_with_nan(part: bytes, problem: str) -> InferRequest:
    """NaN and Infinity are no JSON, but what Python's and Triton's clients send for them; read by a slower decoder."""
    if not any(word in part for word in _NOT_JSON):
        raise MalformedBody(f"the JSON part: {problem}", "body")
    try:
        return msgspec.convert(json.loads(part), InferRequest)
    except msgspec.ValidationError as error:
        raise _wrong_member(error) from None
    except (ValueError, RecursionError):
        raise MalformedBody(f"the JSON part: {problem}", "body") from None


def _wrong_member(error: msgspec.ValidationError) -> InvalidTensor:
    limit, _, path = str(error).partition(" - at `$")
    where = path.rstrip("`").lstrip(".")
    return InvalidTensor(f"{where or 'the request'}: {limit[:1].lower()}{limit[1:]}".replace("`", "'"), where or None)


def _refuse_parameters(parameters: Parameters, place: str, name: str) -> None:
    for parameter in _REFUSED[place]:
        if parameters.get(parameter):
            of = f" of {place[:-1]} {name[:80]!r}" if place else ""
            raise InvalidTensor(f"the parameter {parameter}{of} is not supported here", name[:80] or "parameters")


def _check_input(tensor: InputTensor, known: Mapping[str, TensorSpec], seen: Mapping[str, Array]) -> None:
    name = tensor.name
    spec = known.get(name)
    if spec is None:
        raise InvalidTensor(f"there is no input {name[:80]!r}; the model takes {_named(known)}", name[:80])
    if name in seen:
        raise InvalidTensor(f"input {name!r} is given twice", name)
    if tensor.datatype not in DTYPES:
        raise InvalidTensor(f"input {name!r}: {tensor.datatype[:20]!r} is no datatype; there are {', '.join(DTYPES)}", name)
    if tensor.datatype != spec.datatype:
        raise InvalidTensor(f"input {name!r}: datatype is {tensor.datatype}, the model takes {spec.datatype}", name)
    if spec.shape and (
        len(tensor.shape) != len(spec.shape)
        or any(size not in (-1, given) for size, given in zip(spec.shape, tensor.shape, strict=True))
    ):
        raise InvalidTensor(f"input {name!r}: shape is {tensor.shape}, the model takes {list(spec.shape)} (-1: any size)", name)


def _check_size(tensor: InputTensor, size: object, left: int, has_header: bool) -> None:
    name = tensor.name
    if not has_header:
        raise InvalidTensor(f"input {name!r} has a binary_data_size, but the request no {HEADER_LENGTH}", HEADER_LENGTH)
    if not isinstance(tensor.data, UnsetType):
        raise InvalidTensor(f"input {name!r} has both data and a binary_data_size; send one of them", name)
    if type(size) is not int or not 0 <= size <= left:
        raise InvalidTensor(f"input {name!r}: binary_data_size is {str(size)[:40]}; {left} bytes are left in the body", name)


def _data_of(tensor: InputTensor) -> object:
    if isinstance(tensor.data, UnsetType):
        raise InvalidTensor(f"input {tensor.name!r} has neither data nor a binary_data_size", tensor.name)
    return tensor.data


def _flag(parameters: Parameters, parameter: str, default: bool, name: str) -> bool:
    value = parameters.get(parameter, default)
    if not isinstance(value, bool):
        raise InvalidTensor(f"{parameter} is {str(value)[:40]}: expected true or false", name or "parameters")
    return value


def _datatype_of(array: Array) -> str:
    return next(datatype for datatype, dtype in DTYPES.items() if dtype == array.dtype)


def _named(known: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in known.values()) or "none"
