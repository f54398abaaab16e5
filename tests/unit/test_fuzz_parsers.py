"""Whatever bytes come in, parsers answer with a value or with their documented error, and with nothing else.

Input is random bytes, JSON and MessagePack of any shape, and valid input with a few bytes changed, which gets deepest.
EXAMPLES=5000 looks for longer (`make fuzz`); SEED chooses others.
"""

import contextlib
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from features import profile
from features.memory import MemoryEngine
from features.plan import compile_plan
from features.spec import SPECS, SpecError, load_spec, parse_spec
from features.transaction import Transaction
from models.served import TensorSpec
from service import codec
from service.auth import KEY_FILE, KeyRing
from service.errors import KeyFileError, SettingsError, WeirError
from service.infer_codec import decode_request, read_header_length, read_inputs, wanted_outputs
from service.journal_format import (
    SEGMENT_HEADER_BYTES,
    BadBlock,
    BlockReader,
    JournalError,
    decode_mark,
    encode_block,
    encode_entries,
    encode_segment_header,
)
from service.records import decode_erasure, decode_label, decode_list_change, decode_outcome
from service.score_stream import _cut_packed
from service.settings import load_settings

EXAMPLES = int(os.environ.get("EXAMPLES", "25"))
SEED = int(os.environ.get("SEED", "4117"))
LSN: Final = 1 << 48 | 1
TX = {
    **{"event_id": "t-1", "ts": 1750000000000, "amount": 1299, "currency": "EUR", "card_id": "c1", "merchant_id": "m1"},
    **{"device_id": "d1", "ip": "203.0.113.7", "country": "DE", "mcc": 5411, "channel": "ecom", "lat": 52.5, "lon": 13.4},
}
SPECS_OF_TENSORS = [TensorSpec("x", "FP32", (-1, 3)), TensorSpec("s", "BYTES", (-1,)), TensorSpec("b", "BOOL", (2,))]

many = settings(
    max_examples=EXAMPLES, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck)
)  # fmt: skip
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20) | st.just("\ud800")
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)


@st.composite
def changed(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A sample with some bytes replaced, cut out, put in or repeated."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        piece = draw(
            st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"1e999", b'"', b"[[[[", b"\\u"])
        )
        how = draw(st.integers(0, 2))
        if how == 0:
            data[at : at + len(piece)] = piece
        elif how == 1:
            del data[at : at + len(piece)]
        else:
            data[at:at] = piece
    return bytes(data)


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def as_msgpack(tree: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(tree)
    except (OverflowError, UnicodeEncodeError):
        return b"\xc1"


def bodies(*samples: Any) -> st.SearchStrategy[bytes]:
    """Anything that may be sent in the place of one of the samples."""
    encoded = [as_json(sample) for sample in samples] + [as_msgpack(sample) for sample in samples]
    return st.binary(max_size=64) | trees.map(as_json) | trees.map(as_msgpack) | changed(encoded) | partly(*samples)


@st.composite
def partly(draw: st.DrawFn, *samples: Any) -> bytes:
    """A sample object, or the first of a list, with members replaced by other values, in either form."""
    sample = draw(st.sampled_from(samples))
    is_record = isinstance(sample, list) and not isinstance(sample[0], dict)
    members = dict(enumerate(sample)) if is_record else dict(sample[0] if isinstance(sample, list) else sample)
    for name in draw(st.lists(st.sampled_from([*members, "more"]), max_size=3)):
        members[name] = draw(trees)
    if isinstance(sample, list):
        tree: Any = list(members.values()) if is_record else [members]
    else:
        tree = members
    return as_json(tree) if draw(st.booleans()) else as_msgpack(tree)


def _check_words(error: WeirError) -> None:
    """It can be sent, and a person can read it."""
    assert 400 <= error.status < 500
    assert 0 < len(error.detail) < 1000
    assert "\n" not in error.detail
    msgspec.json.encode(error.detail)


LABELS = [{"event_id": "t-1", "label": "fraud", "ts": 1750000000001}]
INFER = {
    "id": "1", "parameters": {"binary_data_output": True}, "outputs": [{"name": "x"}],
    "inputs": [
        {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2, 3]},
        {"name": "s", "shape": [2], "datatype": "BYTES", "data": ["a", "ä"]},
        {"name": "b", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}},
    ],
}  # fmt: skip
DECODERS: dict[str, tuple[Callable[[bytes], object], tuple[Any, ...]]] = {
    "transaction": (codec.decode_transaction, (TX,)),
    "packed transaction": (codec.decode_packed, (TX,)),
    "batch": (lambda body: codec.split_batch(body, "", 100), ([TX, TX],)),
    "batch of lines": (lambda body: codec.split_batch(body, codec.NDJSON_TYPE, 100), ([TX],)),
    "packed batch": (lambda body: codec.split_batch(body, codec.MSGPACK_TYPE, 100), ([TX, TX],)),
    "labels": (lambda body: codec.decode_labels(body, 100), (LABELS,)),
    "list entry": (codec.decode_list_body, ({"reason": "stolen", "expires": 1750000000001},)),
    "scorer": (codec.decode_scorer_body, ({"scorer": "go", "reason": "x"},)),
    "tier": (codec.decode_tier_body, ({"enabled": True, "reason": "x"},)),
    "champion": (lambda body: codec.decode_model_body(body, "champion"), ({"model": "m", "reason": "x"},)),
    "challenger": (lambda body: codec.decode_model_body(body, "challenger"), ({"model": None, "reason": "x"},)),
    "comparison": (codec.decode_compare_body, ({"configs": [{"off": ["l1"]}], "events": 1000},)),
}


@pytest.mark.parametrize("name", DECODERS)
def test_bodies_are_decoded_or_refused_in_words(name: str) -> None:
    """Every decoder of a request body: a value, or a WeirError of status 4xx whose detail is one printable line."""
    decode, samples = DECODERS[name]

    @seed(SEED)
    @many
    @given(bodies(*samples))
    def look(body: bytes) -> None:
        try:
            decode(body)
        except WeirError as error:
            _check_words(error)

    look()


@pytest.mark.parametrize("has_header", [False, True])
def test_inference_requests_are_read_or_refused_in_words(has_header: bool) -> None:
    """The JSON part, the raw tensors behind it, the outputs that are asked for."""

    @seed(SEED)
    @many
    @given(bodies(INFER), st.binary(max_size=40), st.integers(0, 3))
    def look(part: bytes, raw: bytes, off: int) -> None:
        body = part + raw if has_header else part
        try:
            json_bytes = read_header_length(str(len(part) - off) if has_header else None, len(body))
            request = decode_request(body, json_bytes, 10_000)
            wanted_outputs(request, SPECS_OF_TENSORS)
            read_inputs(request, body, json_bytes, SPECS_OF_TENSORS)
        except WeirError as error:
            _check_words(error)

    look()


@seed(SEED)
@many
@given(st.binary(max_size=200) | changed([as_msgpack(TX) * 2]))
def test_stream_of_messagepack_is_cut_without_losing_a_byte(data: bytes) -> None:
    """Values, the rest, or why none can follow; what was cut off is what came in."""
    rows, rest, problem = _cut_packed(data)
    if problem is None:
        assert b"".join(rows) + rest == data
    else:
        assert data.startswith(b"".join(rows))


def _segment() -> bytes:
    blocks = b""
    for n in range(3):
        entries = encode_entries([(1, json.dumps(TX).encode(), b"decision"), (2, b"label", b"")])
        blocks += b"".join(encode_block(LSN + 2 * n, 2, entries))
    return encode_segment_header(LSN - 1) + blocks


@seed(SEED)
@many
@given(st.binary(max_size=300) | changed([_segment()]), st.booleans())
def test_journal_segments_give_blocks_or_say_where_they_are_bad(data: bytes, is_resealed: bool) -> None:
    """No damage, and no checksum made to fit it, gives anything but blocks in order, BadBlock or JournalError."""
    if is_resealed and len(data) > SEGMENT_HEADER_BYTES + 8:  # as somebody who can write to the disk would do it
        at = SEGMENT_HEADER_BYTES
        length = int.from_bytes(data[at : at + 4], "little")
        data = data[: at + 4] + struct.pack("<I", zlib.crc32(data[at + 8 : at + 8 + length])) + data[at + 8 :]
    last = 0
    bad_at = 0
    try:
        reader = BlockReader(io.BytesIO(data), len(data), LSN)
        for block in reader.blocks():
            assert block.first_lsn > last
            last = block.last_lsn
    except BadBlock as error:
        bad_at = error.offset
    except JournalError:
        pass
    assert 0 <= bad_at <= len(data)


@seed(SEED)
@many
@given(st.binary(max_size=40))
def test_marks_are_numbers_or_none(data: bytes) -> None:
    """The small files beside the journal."""
    assert decode_mark(data) is None or isinstance(decode_mark(data), int)


@seed(SEED)
@many
@given(bodies([1, 0.5, "approve", "m", "go", [], []], ["card", "c1"], ["e", "fraud", 1, 1, "b", 2]))
def test_records_of_the_journal_are_decoded_or_refused(data: bytes) -> None:
    """Behind a right checksum there may still be another version's record."""
    for decode in (lambda packed: decode_outcome(LSN, b"{}", packed), decode_label, decode_list_change, decode_erasure):
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            decode(data)


PLAN = compile_plan(load_spec("cards"))


def _profiles() -> dict[str, list[bytes]]:
    engine = MemoryEngine(PLAN)
    for n in range(5):
        tx = msgspec.convert(TX | {"event_id": f"t{n}", "ts": TX["ts"] + n * 70_000}, Transaction)  # type: ignore[operator]
        engine.vectors([tx], LSN + n)
    found = {}
    for kind, ids in zip(PLAN.kinds, ("c1", "m1", "d1", "203.0.113.7"), strict=True):
        stored = engine.profile(kind.name, ids)
        assert stored is not None
        found[kind.name] = [bytes(stored)]
    return found


PROFILES = _profiles()


@pytest.mark.parametrize("kind", PLAN.kinds, ids=lambda kind: kind.name)
def test_profiles_of_any_bytes_are_described_merged_or_refused(kind: Any) -> None:
    """A store may hold anything: what passes `check` can be described and merged, whatever its numbers say."""

    @seed(SEED)
    @many
    @given(changed(PROFILES[kind.name]), st.integers(0, kind.size - 8), st.binary(min_size=8, max_size=8))
    def look(data: bytes, at: int, word: bytes) -> None:
        in_place = bytearray(PROFILES[kind.name][0])
        in_place[at : at + 8] = word
        for candidate in (data, bytes(in_place)):
            try:
                profile.check(kind, candidate)
            except profile.UnknownProfileVersion:
                continue
            json.dumps(profile.describe(kind, candidate))
            assert len(profile.merge(kind, candidate, PROFILES[kind.name][0])) == kind.size

    look()


@seed(SEED)
@many
@given(changed([path.read_bytes() for path in sorted(SPECS.glob("*.toml"))]))
def test_specs_are_compiled_or_refused_in_words(text: bytes) -> None:
    """A spec with a typo is named; one that passes can be compiled."""
    try:
        spec = parse_spec(text.decode("utf-8", "replace"), "spec.toml")
    except SpecError:
        return
    compile_plan(spec)


@seed(SEED)
@many
@given(
    st.lists(st.sampled_from(["l1.bytes_max=", "server.port=", "redis.url=", "x=", "l2.enabled=", "server="]), max_size=3),
    st.text(max_size=20),
)
def test_settings_are_taken_or_refused_in_words(keys: list[str], value: str) -> None:
    """Any text as the value of any setting."""
    with contextlib.suppress(SettingsError):
        load_settings(None, [key + value for key in keys])


def test_key_files_are_read_or_refused_in_words(tmp_path: Path) -> None:
    """A key file with any content opens no door and breaks nothing."""
    key = {"name": "a", "role": "admin", "sha256": "0" * 64, "created": 1, "expires": None, "rate": 5.0}
    path = tmp_path / KEY_FILE

    @seed(SEED)
    @many
    @given(bodies({"version": 1, "keys": [key]}))
    def look(content: bytes) -> None:
        path.write_bytes(content)
        path.chmod(0o600)
        try:
            ring = KeyRing(path)
        except KeyFileError:
            return
        with pytest.raises(WeirError):
            ring.admit("Bearer anything")

    look()
