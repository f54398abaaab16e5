"""Bodies to columns in the core: what it takes, the reference takes too, with the same result; the rest it leaves, unharmed."""

import json
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from features.columns import encode
from features.plan import compile_plan
from features.spec import load_spec
from features.transaction import AMOUNT_MAX, TS_MAX, TS_SECONDS_MAX, InvalidTransaction, Transaction
from gocore.binding import Core, load_core
from gocore.errors import BadArgument, BadHandle
from gocore.index import GoIndex
from gocore.intake import JSON, MSGPACK, Intake, Taken
from gocore.locate import missing_core
from service.codec import decode_packed, decode_transaction
from service.decisions import encode_body
from service.errors import WeirError

MISSING = missing_core()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

SEED = os.environ.get("SEED")
EXAMPLES = settings(
    max_examples=int(os.environ.get("EXAMPLES", "100")),
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
PLAN = compile_plan(load_spec("cards"))
HANDBOOK = compile_plan(load_spec("handbook"))
ROWS_MAX = 1024
TX: dict[str, Any] = {
    "event_id": "t-1", "ts": 1_750_000_000_000, "amount": 1299, "currency": "USD", "card_id": "c1", "merchant_id": "m1",
    "device_id": "d1", "ip": "203.0.113.7", "country": "DE", "mcc": 5411, "channel": "ecom", "lat": 52.5, "lon": 13.4,
}  # fmt: skip
REQUIRED = dict(list(TX.items())[:6])
IDS = ("event_id", "card_id", "merchant_id", "device_id", "ip")

pack = msgspec.msgpack.encode


@pytest.fixture(scope="module")
def core() -> Core:
    return load_core()


@pytest.fixture(scope="module")
def plan(core: Core) -> int:
    return core.load_plan(PLAN.to_bytes())


@pytest.fixture(scope="module")
def intake(core: Core, plan: int) -> Intake:
    return Intake(core, plan, ROWS_MAX, len(PLAN.kinds))


def seeded(test: Callable[[], None]) -> None:
    """Run a hypothesis test, drawn from SEED if it is set."""
    (seed(int(SEED))(test) if SEED else test)()


def reference(body: bytes, fmt: int) -> tuple[Transaction, tuple[int, ...]] | None:
    """What Python makes of a body; None if it refuses it."""
    try:
        tx = (decode_transaction if fmt == JSON else decode_packed)(body)
        return tx, encode(tx, PLAN.currencies)
    except (WeirError, InvalidTransaction):
        return None


def bodies_of(taken: Taken) -> list[bytes]:
    starts = [0, *taken.body_ends.tolist()]
    return [taken.bodies[start:end] for start, end in pairwise(starts)]


def lines_of(lines: bytes) -> list[str]:
    """Ids with a line feed after each."""
    assert not lines or lines.endswith(b"\n")
    return lines.decode().split("\n")[:-1]


def agreed(intake: Intake, bodies: Sequence[bytes], fmt: int) -> list[bool]:
    """Which of `bodies` the core takes, after a comparison with the reference."""
    taken = intake.take(bodies, fmt)
    left = set(taken.left)
    assert sorted(left) == taken.left
    assert taken.columns.shape == (len(bodies), 11)
    lists = [lines_of(lines) for lines in (taken.event_ids, *taken.ids)]
    assert [len(ids) for ids in lists] == [len(bodies)] * (1 + len(PLAN.kinds))
    fields = ["event_id", *(kind.id_field for kind in PLAN.kinds)]
    for row, (body, canonical) in enumerate(zip(bodies, bodies_of(taken), strict=True)):
        found = [ids[row] for ids in lists]
        if row in left:
            assert (canonical, found, taken.columns[row].any()) == (b"", [""] * len(fields), False)
            continue
        expected = reference(body, fmt)
        assert expected is not None, f"{body!r} is taken, Python refuses it"
        tx, columns = expected
        assert tuple(taken.columns[row].tolist()) == columns, body
        assert canonical == encode_body(tx), body
        assert found == [getattr(tx, field) or "" for field in fields], body
    return [row not in left for row in range(len(bodies))]


def as_body(fmt: int, **changes: Any) -> bytes:
    """TX as bytes; `...` leaves a field out."""
    fields = {name: value for name, value in (TX | changes).items() if value is not ...}
    return json.dumps(fields).encode() if fmt == JSON else pack(fields)


@pytest.mark.parametrize("fmt", [JSON, MSGPACK])
def test_take_usual_bodies_leaves_none(intake: Intake, fmt: int) -> None:
    """Every currency, channel and absence, in any order of the fields, is taken."""
    bodies = [as_body(fmt, currency=currency) for currency in PLAN.currencies]
    bodies += [as_body(fmt, channel=channel) for channel in ("ecom", "pos", "atm", "moto", "other", None, ...)]
    bodies += [as_body(fmt, **{name: absent}) for name in ("device_id", "ip", "country", "mcc") for absent in (None, ...)]
    bodies += [as_body(fmt, lat=absent, lon=absent) for absent in (None, ...)]
    bodies += [as_body(fmt, lat=lat, lon=lon) for lat in (-90, 90.0, 0, -0.0, 1e-7) for lon in (-180, 180.0, 5, -1e-300)]
    bodies += [
        as_body(fmt, **{name: value}) for name in IDS for value in ("x" * 128, "é" * 128, "東京", "Zoë \"q\" \\ 'x'", " ")
    ]
    bodies += [as_body(fmt, ts=ts) for ts in (TS_SECONDS_MAX, TS_MAX)] + [as_body(fmt, amount=a) for a in (0, AMOUNT_MAX)]
    bodies += [as_body(fmt, mcc=mcc) for mcc in (0, 127, 128, 255, 256, 9999)]
    for order in range(50):
        items = list(TX.items())
        random.Random(order).shuffle(items)
        bodies.append(pack(dict(items)) if fmt == MSGPACK else json.dumps(dict(items), indent=order % 3 or None).encode())
    assert all(agreed(intake, bodies, fmt))


@pytest.mark.parametrize("fmt", [JSON, MSGPACK])
def test_take_one_past_each_limit_is_left(intake: Intake, fmt: int) -> None:
    """Ids of 0 and 129 characters, amounts, times, codes and places out of bounds, a currency without a rate, half a place."""
    bodies = [
        as_body(fmt, **{name: value}) for name in IDS for value in ("", "x" * 129, "é" * 129, "a\nb", "a\x7f", "\xa0", "\u200b")
    ]
    bodies += [as_body(fmt, amount=value) for value in (-1, AMOUNT_MAX + 1, 2**63, 2**64 - 1, 1.0, "1", True, None)]
    bodies += [as_body(fmt, ts=value) for value in (0, -1, TS_SECONDS_MAX - 1, TS_MAX + 1, 1e12, "1750000000000", None)]
    bodies += [as_body(fmt, mcc=value) for value in (-1, 10_000, 5411.0, "5411", False)]
    bodies += [as_body(fmt, country=value) for value in ("", "D", "DEU", "de", "DE\n", "ÄÖ", 5, ["DE"])]
    bodies += [as_body(fmt, channel=value) for value in ("", "ECOM", "ecom ", "pos\0", 0)]
    bodies += [as_body(fmt, currency=value) for value in ("", "eur", "XXX", "EUR ", None, 978)]
    bodies += [as_body(fmt, lat=value) for value in (90.000001, -90.000001, 91, -91, "52", True, None, ...)]
    bodies += [as_body(fmt, lon=value) for value in (180.0000001, -181, 10**30 if fmt == JSON else 2**64 - 1, None, ...)]
    bodies += [as_body(fmt, **{name: absent}) for name in REQUIRED for absent in (None, ...)]
    bodies += [
        as_body(fmt, extra=1),
        as_body(fmt, **{"": 1}),
        as_body(fmt, Event_id="x"),
        b"",
        b" ",
        b"\xc0",
        b"\x80",
        b"null",
        b"[]",
        b"{}",
    ]
    assert not any(agreed(intake, bodies, fmt))


@pytest.mark.parametrize("fmt", [JSON, MSGPACK])
def test_take_damage_anywhere_agrees(intake: Intake, fmt: int) -> None:
    """Cut at every byte, and with every byte replaced, repeated or removed."""
    body = as_body(fmt, card_id="Zoë😀")
    damaged = [body[:cut] for cut in range(len(body))] + [body + more for more in (b" ", b"\0", b"\n", b"x", b"}", body)]
    for place in range(len(body)):
        head, tail = body[:place], body[place + 1 :]
        other = b'"\\{}[]:,0-e.n\x00\x7f\x80\xff\xc0\xc1\xc4\xca\xcb\xcc\xd3\xd9\xde' if fmt == JSON else bytes(range(256))
        damaged += [head + tail, head + body[place : place + 1] * 2 + tail, *(head + bytes([byte]) + tail for byte in other)]
    for start in range(0, len(damaged), ROWS_MAX):
        agreed(intake, damaged[start : start + ROWS_MAX], fmt)


JSON_VALUES = st.one_of(
    st.sampled_from([
        "null", "true", "false", "0", "-0", "1", "-1", "01", "1.", ".5", "+1", "1e3", "1E+2", "12.0", "-0.0", "0.0", "1e400",
        "-1e-400", "9999", "10000", "10000000000", "10000000001", "100000000000", "99999999999", "4611686018427387904",
        "4611686018427387905", "9223372036854775808", "18446744073709551616", "9" * 400, "1" + "0" * 4400, "NaN", "Infinity",
        "[]", "{}", '{"a":1}', '["x"]', '""', '"x"', '"EUR"', '"USD"', '"DE"', '"D\\u0045"', '"ecom"', '"\\u0065com"',
        '"\\ud83d\\ude00"', '"\\ud83d"', '"\\ude00\\ud83d"', '"a\\u0000b"', '"\\b"', '"\\n"', '"\\/"', '"\\x"', '"\\u00zz"',
        '"tab\there"', f'"{"x" * 128}"', f'"{"x" * 129}"', '"' + "\\u00e9" * 128 + '"', '"' + "\\ud83d\\ude00" * 129 + '"',
        "90", "90.0", "-90.00000000000001", "89.99999999999999999999", "180.0", "180.00000000000003", "52.5",
        "13.404953999999999123456789", "4.9e-324", "2.4703282292062327e-324", "",
    ]),
    st.text(max_size=20).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.text(max_size=20).map(json.dumps),
    st.floats().map(json.dumps),
    st.floats(-180, 180).map(lambda x: f"{x:.{random.Random(x).randrange(1, 25)}f}"),
    st.integers(-(2**70), 2**70).map(str),
)  # fmt: skip
GOOD: dict[str, list[str]] = {
    "event_id": ['"e"', '"\\u0065\\"\\\\\\/"', '"é\\u00e9"', '"東京"'], "ts": ["100000000000", "4611686018427387904"],
    "amount": ["0", "-0", "10000000000"], "currency": ['"EUR"', '"\\u0055SD"'],
    "card_id": ['"c\\u00e9"', '"%s"' % ("x" * 128)],
    "merchant_id": ['"m m"'], "device_id": ["null", '"d"'], "ip": ["null", '"::1"'], "country": ["null", '"\\u0044E"'],
    "mcc": ["null", "0", "9999"], "channel": ["null", '"\\u0070os"', '"other"'],
    "lat": ["90", "-9E1", "0.1e-1", "-0", "-0.0", "89.99999999999999999999"],
    "lon": ["-180", "1.8e+2", "13.404953999999999123456789"],
}  # fmt: skip
NAMES = st.sampled_from([*TX, *TX, "extra", "", "Ts", "event\\u005fid", "l\\u0061t", "ev\\ud800", "event_id\\u0000"])
SPACE = st.sampled_from(["", "", "", " ", "\n\t ", "\r"])


@st.composite
def json_bodies(draw: st.DrawFn) -> bytes:
    """TX as text, other values in the place of its own, names that come twice or are unknown, white space."""
    fields = [(name, json.dumps(value)) for name, value in TX.items()]
    for place in draw(st.lists(st.integers(0, len(fields) - 1), max_size=4)):
        name = fields[place][0]
        better = (name, draw(st.sampled_from(GOOD[name])))
        fields = [better if draw(st.booleans()) and field[0] == name else field for field in fields]
        if draw(st.booleans()):
            fields.append(better)
    for name, value in draw(st.one_of(st.just([]), st.lists(st.tuples(NAMES, JSON_VALUES), max_size=2))):
        fields.insert(draw(st.integers(0, len(fields))), (name, value))
    text = ",".join(f'{draw(SPACE)}"{name}":{draw(SPACE)}{value}' for name, value in fields)
    end = draw(st.sampled_from([""] * 12 + ["\x0b", "\ufeff", "\0", "x"]))
    return f"{draw(SPACE)}{{{text}{draw(SPACE)}}}{end}".encode("utf-8", "surrogatepass")


def test_take_odd_json_agrees(intake: Intake) -> None:
    """Escapes, surrogates, duplicates, unknown names, numbers in every notation, white space; a good share of it is taken."""
    took: list[bool] = []

    @EXAMPLES
    @given(st.lists(json_bodies(), min_size=1, max_size=20))
    def agrees(bodies: list[bytes]) -> None:
        took.extend(agreed(intake, bodies, JSON))

    seeded(agrees)
    assert sum(took) > len(took) // 10


NUMBERS = [0, 1, 31, 32, 90, 127, 128, 180, 255, 256, 5411, 9999, 10_000, 65_535, 65_536, 2**32 - 1, 2**32, 10**10, 10**10 + 1,
           TS_SECONDS_MAX - 1, TS_SECONDS_MAX, TX["ts"], TS_MAX, TS_MAX + 1, 2**63 - 1, 2**63, 2**64 - 1]  # fmt: skip
FLOATS = [0.0, -0.0, 0.1, 52.5, 89.99999999, 90.0, 90.00000000000001, -90.0, 180.0, 180.1, 1e30, float("inf"), float("nan")]
TEXTS = ["", "x", "EUR", "DE", "ecom", "é", "\x00", "\n", "\u2028", "x" * 31, *(c * n for c in "xé😀" for n in (128, 129))]
INTEGERS = {0xCC: (">B", 8, False), 0xCD: (">H", 16, False), 0xCE: (">I", 32, False), 0xCF: (">Q", 64, False),
            0xD0: (">b", 8, True), 0xD1: (">h", 16, True), 0xD2: (">i", 32, True), 0xD3: (">q", 64, True)}  # fmt: skip


def packed_integers() -> Iterator[bytes]:
    """Numbers on either side of each limit, in every width that holds them."""
    for tag, (form, bits, signed) in INTEGERS.items():
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        for number in sorted({low, high, *NUMBERS, *(-number for number in NUMBERS)}):
            if low <= number <= high:
                yield bytes([tag]) + struct.pack(form, number)


def packed_values() -> Iterator[bytes]:
    """A value of each type of MessagePack, in each width, at each limit; and some that end early."""
    yield from packed_integers()
    yield from (bytes([byte]) for byte in range(256))
    for x in FLOATS:
        yield b"\xcb" + struct.pack(">d", x)
        yield b"\xca" + struct.pack(">f", x)
    for data in map(str.encode, TEXTS):
        yield b"\xd9" + struct.pack(">B", len(data) & 255) + data
        yield b"\xda" + struct.pack(">H", len(data)) + data
        yield b"\xdb" + struct.pack(">I", len(data)) + data
        yield pack(data.decode())
        yield pack(data)
    yield from (
        bytes([0xA0 | len(data)]) + data for data in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80")
    )
    yield from (
        b"\xd9\xff",
        b"\xda\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xffx",
        b"\xa5abc",
        b"\xcb\0",
        b"\xcf\0",
    )
    yield from (pack([]), pack(["x"]), pack({}), pack({"a": 1}), b"\xdc\0\0", b"\xde\0\0")
    yield from (b"\xd6\xff\0\0\0\0", b"\xc7\x00\x05", b"\xd4\x05\x00")


@pytest.mark.parametrize("name", [*TX, "extra"])
def test_take_msgpack_of_every_type_in_every_field_agrees(intake: Intake, name: str) -> None:
    """In the place of the field, before it and after it, all of one map."""
    values = list(packed_values())
    key, rest = pack(name), {other: value for other, value in TX.items() if other != name}
    items = b"".join(pack(other) + pack(value) for other, value in rest.items())
    own = key + pack(TX.get(name))
    bodies = [bytes([0x80 | len(rest) + 1]) + items + key + value for value in values]
    bodies += [bytes([0x80 | len(rest) + 2]) + own + items + key + value for value in values]
    bodies += [bytes([0x80 | len(rest) + 2]) + key + value + items + own for value in values]
    for start in range(0, len(bodies), ROWS_MAX):
        agreed(intake, bodies[start : start + ROWS_MAX], MSGPACK)


def test_take_msgpack_map_and_key_in_other_forms_agrees(intake: Intake) -> None:
    """Long heads of the map, keys in every width and of every type, more or fewer pairs than were said."""
    items = [pack(name) + pack(value) for name, value in TX.items()]
    whole, n = b"".join(items), len(items)
    bodies = [b"\xde" + struct.pack(">H", n) + whole, b"\xdf" + struct.pack(">I", n) + whole, b"\xdf\xff\xff\xff\xff" + whole]
    bodies += [bytes([0x80 | said]) + whole for said in range(16)] + [bytes([0x90 | said]) + whole for said in range(16)]
    for key in packed_values():
        bodies.append(bytes([0x80 | n]) + b"".join(items[:-1]) + key + pack(13.4))
    for head in (b"\xd9\x02", b"\xda\0\x02", b"\xdb\0\0\0\x02", b"\xc4\x02", b"\xa2"):
        bodies.append(bytes([0x80 | n]) + head + b"ts" + pack(TX["ts"]) + b"".join(items[:1] + items[2:]))
    took = agreed(intake, bodies, MSGPACK)
    assert took[:2] == [True, True]
    assert took[-5:] == [True, True, True, False, True]


def test_take_each_character_of_unicode_only_what_python_prints(intake: Intake) -> None:
    """No character is taken that this Python would refuse; those of the ranges that are known are."""
    n_taken = 0
    body = json.dumps(REQUIRED | {"card_id": "@"})
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000 and chr(code) not in '"\\']
    for start in range(0, len(characters), ROWS_MAX):
        chunk = characters[start : start + ROWS_MAX]
        taken = intake.take([body.replace("@", character).encode() for character in chunk], JSON)
        left = set(taken.left)
        accepted = [character for row, character in enumerate(chunk) if row not in left]
        assert all(map(str.isprintable, accepted)), [character for character in accepted if not character.isprintable()]
        assert [entity for row, entity in enumerate(lines_of(taken.ids[0])) if row not in left] == accepted
        n_taken += len(accepted)
    assert n_taken > 30_000


@pytest.mark.parametrize("n_rows", [0, 1, 2, ROWS_MAX])
def test_take_chunk_of_any_size_fits(intake: Intake, n_rows: int) -> None:
    """None, one, as many as there is room for; one more is refused before the core is asked."""
    bodies = [as_body(JSON, event_id=f"e{row}") for row in range(n_rows)]
    assert agreed(intake, bodies, JSON) == [True] * n_rows
    with pytest.raises(BadArgument, match=f"{ROWS_MAX + 1} bodies"):
        intake.take([b""] * (ROWS_MAX + 1), JSON)


def test_take_results_outlive_the_next_call(intake: Intake) -> None:
    """Buffers are used again, results are copies."""
    first = intake.take([as_body(JSON)], JSON)
    kept = (first.columns.copy(), first.bodies, first.body_ends.copy(), first.ids[0])
    intake.take([as_body(MSGPACK, card_id="other", amount=7, event_id="a-much-longer-one")] * 3, MSGPACK)
    assert (first.columns == kept[0]).all()
    assert (first.body_ends == kept[2]).all()
    assert (first.bodies, first.ids[0]) == (kept[1], kept[3])
    assert first.event_ids == b"t-1\n"


def test_take_text_larger_than_the_buffers_grows_them(core: Core, plan: int) -> None:
    """Bodies of 64 KiB of white space, many long ids, places that grow: all fit, and short ones do after them."""
    own = Intake(core, plan, 256, len(PLAN.kinds))
    assert all(agreed(own, [b" " * (64 << 10) + as_body(JSON)] * 8, JSON))
    long = dict.fromkeys(IDS, "鵬" * 128)
    assert all(agreed(own, [as_body(MSGPACK, **long)] * 256, MSGPACK))
    tight = Intake(core, plan, 256, len(PLAN.kinds))
    assert all(agreed(tight, [as_body(MSGPACK, **long, lat=1, lon=2)] * 256, MSGPACK))
    assert agreed(own, [as_body(JSON)], JSON) == [True]


def test_take_rows_as_msgspec_splits_them(intake: Intake) -> None:
    """Rows of a JSON array are views of it."""
    rows = msgspec.json.decode(b"[" + b",".join([as_body(JSON)] * 3) + b"]", type=list[msgspec.Raw])
    assert intake.take(rows, JSON).event_ids == b"t-1\n" * 3


def test_take_on_many_threads_gives_each_its_own(core: Core, plan: int) -> None:
    """One plan serves any number of intakes at a time."""

    def work(number: int) -> None:
        own = Intake(core, plan, 64, len(PLAN.kinds))
        bodies = [as_body(JSON, card_id=f"c{number}-{row}") for row in range(64)]
        for _ in range(50):
            assert lines_of(own.take(bodies, JSON).ids[0]) == [f"c{number}-{row}" for row in range(64)]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


def test_intake_of_a_plan_with_fewer_kinds_has_their_ids(core: Core) -> None:
    """The lists follow the plan."""
    handle = core.load_plan(HANDBOOK.to_bytes())
    taken = Intake(core, handle, 4, len(HANDBOOK.kinds)).take([as_body(JSON, currency=next(iter(HANDBOOK.currencies)))], JSON)
    assert taken.ids == [f"{TX[kind.id_field]}\n".encode() for kind in HANDBOOK.kinds]
    core.close_plan(handle)
    with pytest.raises(BadHandle):
        Intake(core, handle, 4, len(HANDBOOK.kinds)).take([as_body(JSON)], JSON)


@pytest.mark.parametrize("n_rows", [1, 31, 32, 33, 128, 129, ROWS_MAX])
def test_take_with_indexes_gives_the_slots(core: Core, plan: int, n_rows: int) -> None:
    """Slots of what is there, -1 for what is not, for no id, and for a row that is left; what is not there is counted."""
    indexes = [GoIndex(core) for _ in PLAN.kinds]
    own = Intake(core, plan, ROWS_MAX, len(PLAN.kinds), indexes)
    fields = [kind.id_field for kind in PLAN.kinds]
    without = next(field for field in fields if field not in ("card_id", "merchant_id"))
    bodies = []
    for row in range(n_rows):
        given = {field: f"{field}-{row}" for field in fields if field != without or row % 2}
        bodies.append(
            b"{" if row % 7 == 3 else as_body(JSON, **{without: None}, **given) if row % 2 == 0 else as_body(JSON, **given)
        )
    expected = np.full((n_rows, len(fields)), -1, dtype=np.int64)
    n_missing = 0
    for kind, field in enumerate(fields):
        for row in range(n_rows):
            if row % 7 == 3 or (field == without and row % 2 == 0):
                continue
            if row % 3:
                indexes[kind].put([f"{field}-{row}"], np.array([2000 - row]))
                expected[row, kind] = 2000 - row
            else:
                n_missing += 1
    taken = own.take(bodies, JSON)
    assert taken.slots is not None
    assert (taken.slots == expected).all()
    assert taken.n_missing == n_missing
    assert own.take([], JSON).n_missing == 0
    core.check(core._lib.weir_index_close(indexes[0].handle))
    with pytest.raises(BadHandle):
        own.take(bodies, JSON)
