"""Plans: stable bytes that another reader understands, and layouts that keep their promises."""

import hashlib
import itertools
import struct
from typing import Any

import msgspec
import pytest

from features.plan import COLUMNS, EDGES, FIELD_CODES, FIXED_WORDS, OPS, Plan, compile_plan
from features.spec import Op, load_spec, parse_spec

# A change here makes every stored profile and trained model of the spec unreadable. If it is meant: raise PROFILE_VERSION or
# PLAN_MAGIC if the format changed, retrain the packaged models, and paste the hash that the failing test prints.
PLAN_HASHES = {
    "cards": "0b7967e98c6d51d5ea0d94c009e8be149328cf796b592f5a9b282f9b0f3f8bbe",
    "handbook": "598bf52ac4673704226b9b22e89c1e32e39da689bb5d5c17f173eac79e3b493e",
    "handbook40": "620d638fe6d1457953db59e30a594112117e5645c41b3ec87e7eff4abad093ef",
}
OP_CODES: list[Op] = [
    "value", "hour", "weekday", "night", "weekend", "count", "sum", "mean", "max", "std", "ratio", "zscore", "distinct",
    "since_last", "age", "changed", "speed_kmh", "fraud_rate", "present",
    "frauds", "spikes", "spike_share", "since_first_fraud", "since_last_fraud", "last_known",
]  # fmt: skip


class Reader:
    """Reads a plan as docs/reference/plan-format.md says, sharing no code with the writer."""

    def __init__(self, packed: bytes) -> None:
        self.packed, self.at = packed, 0

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.packed, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def text(self) -> str:
        (length,) = self.take("H")
        return bytes(self.take(f"{length}s")[0]).decode()

    def kind(self) -> dict[str, Any]:
        name, id_field = self.text(), self.text()
        size, header_words, state_word, raw_start, n_remembered, n_blocks = self.take("6i")
        layout, n_rings = self.take("qi")
        remembered = []
        for _ in range(n_remembered):
            ts_word, n = self.take("2i")
            remembered.append((ts_word, self.take(f"{n}i")))
        return {
            "name": name, "id_field": id_field, "size": size, "header_words": header_words, "state_word": state_word,
            "raw_start": raw_start, "layout": layout, "remembered": remembered,
            "blocks": [self.take("4i") for _ in range(n_blocks)], "rings": [self.ring() for _ in range(n_rings)],
        }  # fmt: skip

    def ring(self) -> dict[str, Any]:
        name = self.text()
        tile_ms, tiles, of, n_fields, n_windows = self.take("q4i")
        fields = [self.take("3i") for _ in range(n_fields)]
        windows = [self.take("4i") for _ in range(n_windows)]
        return {"name": name, "tile_ms": tile_ms, "tiles": tiles, "of": of, "fields": fields, "windows": windows}

    def extension(self) -> tuple[tuple[int, int, int], list[tuple[Any, ...]]]:
        *spike, n_edges = self.take("q3i")
        return (spike[0], spike[1], spike[2]), [self.take("6i") for _ in range(n_edges)]

    def feature(self) -> dict[str, Any]:
        name = self.text()
        op, log1p, scale, n = self.take("2idi")
        return {"name": name, "op": op, "log1p": bool(log1p), "scale": scale, "operands": self.take(f"{n}i")}


@pytest.fixture(params=["cards", "handbook", "handbook40"])
def plan(request: pytest.FixtureRequest) -> Plan:
    """Each packaged spec, compiled."""
    return compile_plan(load_spec(request.param))


def test_compile_plan_bytes_are_those_of_the_last_release(plan: Plan) -> None:
    """The plan hash is pinned: a refactoring must not move a byte."""
    assert plan.hash == hashlib.sha256(plan.to_bytes()).hexdigest()
    assert plan.hash == PLAN_HASHES[plan.spec_name], f"{plan.spec_name} = {plan.hash}: see the note at PLAN_HASHES"


def test_compile_plan_twice_gives_equal_plans(plan: Plan) -> None:
    """Compiling has no hidden state."""
    assert compile_plan(load_spec(plan.spec_name)) == plan


def test_to_bytes_reads_back_by_the_documented_format(plan: Plan) -> None:
    """A reader written from the docs finds every number of the plan, and the end where the bytes end."""
    reader = Reader(plan.to_bytes())
    is_second = plan.spec_name == "handbook40"
    assert reader.take("8s") == (b"WEIRPLN2" if is_second else b"WEIRPLN1",)
    n_columns, n_kinds, n_features, n_currencies = reader.take("4I")
    assert (n_columns, n_kinds, n_features) == (11, len(plan.kinds), plan.n_features)
    for kind in plan.kinds:
        read = reader.kind()
        assert [r["name"] for r in read["rings"]] == [r.name for r in kind.rings]
        for name in ("name", "id_field", "size", "header_words", "state_word", "raw_start", "layout"):
            assert read[name] == getattr(kind, name)
        assert read["remembered"] == [tuple(r) for r in kind.remembered]
        assert read["blocks"] == [tuple(b) for b in kind.blocks]
        for ring, got in zip(kind.rings, read["rings"], strict=True):
            assert (got["tile_ms"], got["tiles"], got["of"]) == (ring.tile_ms, ring.tiles, ring.of)
            assert got["fields"] == [(f.code, f.open_word, f.cells) for f in ring.fields]
            assert got["windows"] == [(w.code, w.skip, w.tiles, w.word) for w in ring.windows if w.code not in EDGES]
        if is_second:
            edges = [(n, w) for n, ring in enumerate(kind.rings) for w in ring.windows if w.code in EDGES]
            spike, read_edges = reader.extension()
            assert spike == (tuple(kind.spike) if kind.spike else (0, 0, 0))
            assert read_edges == [(n, w.code, w.field.code, w.skip, w.tiles, w.word) for n, w in edges]
    assert [reader.feature() for _ in range(n_features)] == [msgspec.to_builtins(f) for f in plan.features]
    currencies = [(reader.take("3s")[0].decode(), reader.take("q")[0]) for _ in range(n_currencies)]
    assert currencies == sorted(plan.currencies.items())
    assert reader.at == len(plan.to_bytes())


def test_layout_is_the_hash_of_the_kind_alone(plan: Plan) -> None:
    """A reader can check word 1 of a profile: sha256 of the kind's bytes with raw_start and layout blanked."""
    packed = plan.to_bytes()
    reader = Reader(packed)
    reader.take("8s4I")
    for kind in plan.kinds:
        start = reader.at
        names = 4 + len(kind.name) + len(kind.id_field)
        reader.kind()
        if plan.spec_name == "handbook40":  # both of its kinds say something that version 1 cannot
            reader.extension()
        own = bytearray(packed[start : reader.at])
        own[names + 12 : names + 16] = bytes(4)
        own[names + 24 : names + 32] = bytes(8)
        assert int.from_bytes(hashlib.sha256(own).digest()[:8], "little") >> 1 == kind.layout


def test_codes_are_the_documented_ones() -> None:
    """The places of operators and columns are numbers in other engines."""
    assert list(OPS) == OP_CODES
    assert COLUMNS[:5] == ("ts", "amount", "country", "mcc", "channel")
    assert COLUMNS[5:] == ("card_id", "merchant_id", "device_id", "ip", "lat", "lon")
    assert FIELD_CODES == {
        "count": (0,),
        "frauds": (1,),
        "sum": (2,),
        "max": (3,),
        "squares": (4, 5),
        "distinct": (6,),
        "spikes": (7,),
    }


def test_layout_words_and_cells_never_overlap(plan: Plan) -> None:
    """Each header word and each byte of closed tiles has one owner, all within the profile."""
    for kind in plan.kinds:
        words = [w for r in kind.remembered for w in range(r.ts_word, r.ts_word + 1 + len(r.columns))]
        assert words == list(range(FIXED_WORDS, kind.state_word))
        words = [f.open_word for r in kind.rings for f in r.fields] + [w.word for r in kind.rings for w in r.windows]
        assert sorted(words) == list(range(kind.state_word, kind.state_word + len(words)))
        assert kind.state_word + len(words) <= kind.header_words
        spans = []
        for ring in kind.rings:
            assert ring.tiles == max((w.skip + w.tiles for w in ring.windows), default=1)
            spans += [
                (f.cells * w, (f.cells + ring.tiles) * w) for f in ring.fields for w in (4 if f.code in (0, 1, 7) else 8,)
            ]
        assert spans == sorted(spans)
        assert spans[0][0] == kind.header_words * 8
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert spans[-1][1] <= kind.size
        assert kind.size % 64 == kind.header_words % 8 == 0


def test_layout_blocks_are_open_tiles_and_undelayed_windows(plan: Plan) -> None:
    """What an in-order event changes is covered by blocks of its rule, nothing else is."""
    for kind in plan.kinds:
        covered = {word: (b.code, b.of) for b in kind.blocks for word in range(b.start, b.stop)}
        expected: dict[int, tuple[int, int]] = {}
        for ring in kind.rings:
            for field in ring.fields:
                if field.code != 1:
                    own = [w.word for w in ring.windows if w.code == field.code and w.skip == 0]
                    of = ring.of if field.code == 6 else -1
                    expected |= dict.fromkeys([field.open_word, *own], (field.code, of))
        assert covered == expected


def test_cards_profiles_stay_within_their_budget() -> None:
    """Forty features from profiles of at most 1.5 KiB each, and a label horizon of 37 days and today's."""
    plan = compile_plan(load_spec("cards"))
    assert plan.n_features == len(set(plan.feature_names)) == 40
    assert {k.name: k.size for k in plan.kinds} == {"card": 1408, "merchant": 1024, "device": 832, "ip": 320}
    assert max(k.size for k in plan.kinds) <= 1536
    assert plan.longest_ms == 38 * 86_400_000


def test_raw_input_has_room_for_every_kind(plan: Plan) -> None:
    """Observations stand one after the other behind the event's columns, and no operand points outside."""
    start = len(COLUMNS)
    for kind in plan.kinds:
        assert kind.raw_start == start
        start += kind.n_observed
    assert start == plan.n_raw
    assert all(0 <= operand < plan.n_raw for f in plan.features for operand in f.operands)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('name = "f"', 'name = "g"', True), ("scale = 2.0", "scale = 3.0", True), ("USD = 5", "USD = 6", True),
        ('name = "spec"', 'name = "other"', True), ('window = "2h"', 'window = "3h"', False), ('"1h"', '"2h"', False),
        ('name = "r"', 'name = "s"', False), ('["sum"]', '["sum", "max"]', False),
        ("remember = []", 'remember = ["mcc"]', False),
    ],
)  # fmt: skip
def test_layout_changes_with_what_is_stored_and_only_then(old: str, new: str, same: bool) -> None:
    """Renaming a feature keeps old profiles readable; another window, tile or field does not."""
    text = """
name = "spec"
base_currency = "EUR"
currencies = { EUR = 1_000_000, USD = 5 }
kind = [{ name = "card", id = "card_id", remember = [], ring = [{ name = "r", tile = "1h", keeps = ["sum"] }] }]
feature = [{ name = "f", op = "sum", kind = "card", ring = "r", window = "2h", scale = 2.0 }]
source = { fields = {} }
"""
    changed = text.replace(old, new).replace('ring = "r"', f'ring = "{"s" if new.endswith(chr(34) + "s" + chr(34)) else "r"}"')
    before, after = (compile_plan(parse_spec(t, "spec.toml")) for t in (text, changed))
    assert (before.kinds[0].layout == after.kinds[0].layout) is same
    assert (before.hash == after.hash) is (old == 'name = "spec"')
