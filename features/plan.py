"""The plan: a spec compiled once into offsets and opcodes, with canonical bytes and a hash. Every engine reads the same plan.

A profile is a block of little-endian 8-byte words: first the header (fixed words, remembered values, then the open tile of
every ring and the running value of every window), then the closed tiles. Header words that one event changes in the same way
stand side by side ("blocks"), so that an engine updates them in one go. Sizes are multiples of a cache line.
"""

import hashlib
import struct
from typing import Final, NamedTuple

import msgspec

from features.spec import EVER_MS, WINDOW_OPS, Feature, Kind, Op, Ring, Spec, duration_ms

# A plan that needs nothing of version 2 is written as version 1: its bytes, hash and layouts stay what they were.
PLAN_MAGIC: Final = b"WEIRPLN1"
PLAN_MAGIC_2: Final = b"WEIRPLN2"
LINE_WORDS: Final = 8  # a cache line of 64 bytes

# Event columns: one int64 each, -1 = absent (features/columns.py fills them).
COLUMNS: Final = (
    "ts", "amount", "country", "mcc", "channel", "card_id", "merchant_id", "device_id", "ip", "lat", "lon",
)  # fmt: skip
TS, AMOUNT, LAT, LON = (COLUMNS.index(name) for name in ("ts", "amount", "lat", "lon"))

# Header words of every profile.
W_VERSION, W_LAYOUT, W_LSN, W_FIRST_LSN, W_FIRST_SEEN, W_LAST_SEEN, W_LATE_DROPPED = range(7)
FIXED_WORDS: Final = 8

# Ring fields as they are stored. Counts are 4 bytes wide in closed tiles, everything else 8.
COUNT, FRAUDS, SUM, MAX, SQUARES_HIGH, SQUARES_LOW, DISTINCT, SPIKES = range(8)
# Windows that say where a field's values are instead of joining them: 1 + the start (ms) of the oldest or newest tile that is
# not 0; 0 for none.
OLDEST, NEWEST = 8, 9
EDGES: Final = (OLDEST, NEWEST)
NARROW: Final = (COUNT, FRAUDS, SPIKES)
FIELD_CODES: Final = {
    "count": (COUNT,), "sum": (SUM,), "max": (MAX,), "squares": (SQUARES_HIGH, SQUARES_LOW),
    "frauds": (FRAUDS,), "distinct": (DISTINCT,), "spikes": (SPIKES,),
}  # fmt: skip
# op -> the (window, field) that it reads where it does not read the fields' values
EDGE_OPS: Final = {
    "since_first_fraud": ((OLDEST, FRAUDS),), "since_last_fraud": ((NEWEST, FRAUDS),),
    "last_known": ((NEWEST, COUNT), (NEWEST, FRAUDS)),
}  # fmt: skip

# What precedes the header's state words in an entity's observation (the raw input of the features).
OBS_PRESENT, OBS_NEW, OBS_FIRST_SEEN, OBS_PREVIOUS_SEEN = range(4)
OBS_FIXED: Final = 4
OPS_1: Final = 19  # operators that version 1 knows
OPS: Final[tuple[Op, ...]] = Op.__args__  # type: ignore[attr-defined]  # a Literal lists its values; the code is the place


class RememberedPlan(NamedTuple):
    """What the latest event that gave `columns` said: its ts in header word `ts_word`, each value + 1 in the words after it."""

    ts_word: int
    columns: tuple[int, ...]


class FieldPlan(msgspec.Struct, frozen=True):
    """One stored field of a ring: the header word of its open tile, and where its closed tiles start (in its own widths)."""

    code: int
    open_word: int
    cells: int
    narrow: bool  # cells of 4 bytes


class WindowPlan(msgspec.Struct, frozen=True):
    """The running value of one field over tiles of age `skip` to `skip + tiles - 1` (0 = the open tile).

    `code` is the field's, or OLDEST or NEWEST.
    """

    code: int
    skip: int
    tiles: int
    word: int
    name: str
    field: FieldPlan


class RingPlan(msgspec.Struct, frozen=True):
    """A ring of `tiles` tiles of `tile_ms`; `of` is the event column whose values `distinct` counts, or -1."""

    name: str
    tile_ms: int
    tiles: int
    of: int
    fields: tuple[FieldPlan, ...]
    windows: tuple[WindowPlan, ...]


class BlockPlan(NamedTuple):
    """Header words [start, stop) that an event in the open tile changes alike; `of` as in RingPlan."""

    code: int
    of: int
    start: int
    stop: int


class SpikePlan(NamedTuple):
    """An amount is a spike if amount * 1000 > thousandths * (sum div count), of words before the event; none if count is 0."""

    thousandths: int
    count_word: int
    sum_word: int


class KindPlan(msgspec.Struct, frozen=True):
    """One entity kind: its layout."""

    name: str
    number: int
    id_field: str
    size: int
    header_words: int
    state_word: int
    remembered: tuple[RememberedPlan, ...]
    rings: tuple[RingPlan, ...]
    blocks: tuple[BlockPlan, ...]
    layout: int
    raw_start: int
    spike: SpikePlan | None = None

    @property
    def n_observed(self) -> int:
        """Length of an observation: fixed part, remembered words and state words of the header."""
        return OBS_FIXED + self.header_words - FIXED_WORDS

    @property
    def keeps_frauds(self) -> bool:
        """True if a label changes profiles of this kind."""
        return any(field.code == FRAUDS for ring in self.rings for field in ring.fields)


class FeaturePlan(msgspec.Struct, frozen=True):
    """One feature: its op's code, the raw columns that it reads, then scale and log1p."""

    name: str
    op: int
    operands: tuple[int, ...]
    scale: float
    log1p: bool


class Plan(msgspec.Struct, frozen=True):
    """A compiled spec. `hash` is the sha256 of to_bytes(), in hex."""

    spec_name: str
    currencies: dict[str, int]
    kinds: tuple[KindPlan, ...]
    features: tuple[FeaturePlan, ...]
    n_raw: int
    longest_ms: int
    packed: bytes
    hash: str

    @property
    def n_features(self) -> int:
        """Width of the feature vector."""
        return len(self.features)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names in the order of the vector."""
        return tuple(f.name for f in self.features)

    def to_bytes(self) -> bytes:
        """The canonical bytes that other engines read; layout in docs/reference/plan-format.md."""
        return self.packed


def compile_plan(spec: Spec) -> Plan:
    """Lay out the profiles and resolve every feature's operands. The spec is valid (load_spec), so nothing is raised."""
    kinds: list[KindPlan] = []
    raw = len(COLUMNS)
    for number, kind in enumerate(spec.kinds):
        compiled = _Layout(kind, [f for f in spec.features if f.kind == kind.name]).compile(number, raw)
        kinds.append(compiled)
        raw += compiled.n_observed
    features = tuple(_feature(f, kinds) for f in spec.features)
    longest = max((r.tile_ms * r.tiles for k in kinds for r in k.rings if r.tile_ms != EVER_MS), default=86_400_000)
    packed = _pack(kinds, features, spec.currencies)
    digest = hashlib.sha256(packed).hexdigest()
    return Plan(spec.name, dict(spec.currencies), tuple(kinds), features, raw, longest, packed, digest)


class _Layout:
    """Hands out header words and cells of one kind while it is compiled."""

    def __init__(self, kind: Kind, features: list[Feature]) -> None:
        self.kind = kind
        self.spans = {r.name: _spans(r, features) for r in kind.ring}
        self.edges = {r.name: _edges(r, features) for r in kind.ring}
        self.next_word = FIXED_WORDS
        self.open_words: dict[tuple[str, int], int] = {}
        self.window_words: dict[tuple[str, int, int, int], int] = {}
        self.edge_words: dict[tuple[str, int, int, int, int], int] = {}  # ring, OLDEST or NEWEST, field, skip, tiles

    def compile(self, number: int, raw_start: int) -> KindPlan:
        remembered = self._remember()
        state_word = self.next_word
        blocks = self._blocks()
        header_words = -(-self.next_word // LINE_WORDS) * LINE_WORDS
        rings, end = self._rings(header_words * 8)
        size = -(-end // (LINE_WORDS * 8)) * LINE_WORDS * 8
        spike = self._spike()
        compiled = KindPlan(
            self.kind.name, number, self.kind.id, size, header_words, state_word, remembered, rings, blocks, 0, 0, spike,
        )  # fmt: skip
        # Profiles outlive plans: the layout is of this kind alone, wherever it stands among the others.
        extension = _pack_extension(compiled) if _is_extended(compiled) else b""
        layout = int.from_bytes(hashlib.sha256(_pack_kind(compiled) + extension).digest()[:8], "little") >> 1
        return msgspec.structs.replace(compiled, layout=layout, raw_start=raw_start)

    def _remember(self) -> tuple[RememberedPlan, ...]:
        remembered: list[RememberedPlan] = []
        for name in self.kind.remember:
            columns = (LAT, LON) if name == "place" else (COLUMNS.index(name),)
            remembered.append(RememberedPlan(self._take(), columns))
            self.next_word += len(columns)
        return tuple(remembered)

    def _blocks(self) -> tuple[BlockPlan, ...]:
        """Words that an event changes first, side by side per rule; then frauds and delayed windows, which it does not."""
        blocks: list[BlockPlan] = []
        columns = sorted({COLUMNS.index(r.of) for r in self.kind.ring if r.of is not None})
        for code in (COUNT, SUM, MAX, SQUARES_HIGH, SQUARES_LOW, SPIKES):
            blocks += self._block(code, -1)
        for column in columns:
            blocks += self._block(DISTINCT, column)
        for ring in self.kind.ring:
            for code in _codes(ring):
                if code == FRAUDS:
                    self.open_words[ring.name, code] = self._take()
                for skip, tiles in self.spans[ring.name]:
                    if skip or code == FRAUDS:
                        self.window_words[ring.name, code, skip, tiles] = self._take()
            for code, field, skip, tiles in self.edges[ring.name]:
                self.edge_words[ring.name, code, field, skip, tiles] = self._take()
        return tuple(blocks)

    def _block(self, code: int, of: int) -> list[BlockPlan]:
        start = self.next_word
        for ring in self.kind.ring:
            if code in _codes(ring) and (code != DISTINCT or COLUMNS.index(ring.of or "") == of):
                self.open_words[ring.name, code] = self._take()
                for skip, tiles in self.spans[ring.name]:
                    if skip == 0:
                        self.window_words[ring.name, code, skip, tiles] = self._take()
        return [BlockPlan(code, of, start, self.next_word)] if self.next_word > start else []

    def _rings(self, offset: int) -> tuple[tuple[RingPlan, ...], int]:
        rings: list[RingPlan] = []
        for ring in self.kind.ring:
            spans = [*self.spans[ring.name], *(edge[2:] for edge in self.edges[ring.name])]
            n_tiles = max((skip + tiles for skip, tiles in spans), default=1)
            fields: list[FieldPlan] = []
            for code in _codes(ring):
                width = 4 if code in NARROW else 8
                fields.append(FieldPlan(code, self.open_words[ring.name, code], offset // width, width == 4))
                offset += -(-n_tiles * width // 8) * 8
            tile_ms = duration_ms(ring.tile)
            by_code = {field.code: field for field in fields}
            windows = tuple(
                WindowPlan(code, skip, tiles, word, f"{ring.name}:{_span_name(skip, tiles, tile_ms)}", by_code[code])
                for (name, code, skip, tiles), word in self.window_words.items()
                if name == ring.name
            )
            windows += tuple(
                WindowPlan(code, skip, tiles, word, f"{ring.name}:{_span_name(skip, tiles, tile_ms)}", by_code[field_code])
                for (name, code, field_code, skip, tiles), word in self.edge_words.items()
                if name == ring.name
            )
            of = COLUMNS.index(ring.of) if ring.of else -1
            rings.append(RingPlan(ring.name, tile_ms, n_tiles, of, tuple(fields), windows))
        return tuple(rings), offset

    def _spike(self) -> SpikePlan | None:
        life, over = self.kind.life, self.kind.spike_over
        if life is None or over is None:
            return None
        return SpikePlan(round(over * 1000), self.open_words[life.name, COUNT], self.open_words[life.name, SUM])

    def _take(self) -> int:
        self.next_word += 1
        return self.next_word - 1


def _codes(ring: Ring) -> list[int]:
    return sorted(code for field in ring.keeps for code in FIELD_CODES[field])


def _spans(ring: Ring, features: list[Feature]) -> list[tuple[int, int]]:
    """The distinct (skip, tiles) of the windows whose values features read from `ring`."""
    return sorted({_span(ring, f) for f in features if f.ring == ring.name and f.op not in EDGE_OPS})


def _edges(ring: Ring, features: list[Feature]) -> list[tuple[int, int, int, int]]:
    """The distinct (OLDEST or NEWEST, field, skip, tiles) that features read from `ring`."""
    reading = [f for f in features if f.ring == ring.name]
    return sorted({(*edge, *_span(ring, f)) for f in reading for edge in EDGE_OPS.get(f.op, ())})


def _span(ring: Ring, feature: Feature) -> tuple[int, int]:
    """(skip, tiles) of a feature's window; a delayed one skips the incomplete tile too."""
    width = duration_ms(ring.tile)
    delay = duration_ms(feature.delay) // width
    return delay + 1 if delay else 0, duration_ms(feature.window or "") // width


def _span_name(skip: int, tiles: int, tile_ms: int) -> str:
    def text(ms: int) -> str:
        if ms == EVER_MS:
            return "ever"
        for unit, width in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)):
            if ms % width == 0:
                return f"{ms // width}{unit}"
        return f"{ms // 1000}s"

    return text(tiles * tile_ms) + (f"-{text((skip - 1) * tile_ms)}" if skip else "")


def _feature(feature: Feature, kinds: list[KindPlan]) -> FeaturePlan:
    kind = next((k for k in kinds if k.name == feature.kind), None)
    operands: list[int] = []
    if feature.op in EDGE_OPS:
        assert kind is not None
        operands = [_raw_window(kind, feature, *edge) for edge in EDGE_OPS[feature.op]]
    elif feature.op in WINDOW_OPS:
        assert kind is not None
        operands = [_raw_window(kind, feature, code) for f in WINDOW_OPS[feature.op] for code in FIELD_CODES[f]]
    elif kind is not None:
        operands = [kind.raw_start + OBS_PRESENT, kind.raw_start + OBS_FIRST_SEEN, kind.raw_start + OBS_PREVIOUS_SEEN]
        if feature.op == "changed":
            column = COLUMNS.index(feature.of or "")
            operands = [column, _raw_word(kind, _remembered(kind, column).ts_word + 1)]
        elif feature.op == "speed_kmh":
            ts_word = _remembered(kind, LAT).ts_word
            operands = [_raw_word(kind, w) for w in (ts_word + 1, ts_word + 2, ts_word)]
    elif feature.of is not None:
        operands = [COLUMNS.index(feature.of)]
    return FeaturePlan(feature.name, OPS.index(feature.op), tuple(operands), feature.scale, feature.log1p)


def _raw_window(kind: KindPlan, feature: Feature, code: int, field: int | None = None) -> int:
    ring = next(r for r in kind.rings if r.name == feature.ring)
    delay = duration_ms(feature.delay) // ring.tile_ms
    span = (delay + 1 if delay else 0, duration_ms(feature.window or "") // ring.tile_ms)
    wanted = (code, code if field is None else field, *span)
    return _raw_word(kind, next(w.word for w in ring.windows if (w.code, w.field.code, w.skip, w.tiles) == wanted))


def _remembered(kind: KindPlan, column: int) -> RememberedPlan:
    return next(r for r in kind.remembered if r.columns[0] == column)


def _raw_word(kind: KindPlan, word: int) -> int:
    return kind.raw_start + OBS_FIXED + word - FIXED_WORDS


def _pack(kinds: list[KindPlan], features: tuple[FeaturePlan, ...], currencies: dict[str, int]) -> bytes:
    is_second = any(map(_is_extended, kinds)) or any(f.op >= OPS_1 for f in features)
    out = [PLAN_MAGIC_2 if is_second else PLAN_MAGIC]
    out += [struct.pack("<4I", len(COLUMNS), len(kinds), len(features), len(currencies))]
    out += [_pack_kind(kind) + (_pack_extension(kind) if is_second else b"") for kind in kinds]
    for f in features:
        out += [_text(f.name), struct.pack("<2id", f.op, int(f.log1p), f.scale), struct.pack("<i", len(f.operands))]
        out += [struct.pack(f"<{len(f.operands)}i", *f.operands)]
    out += [code.encode() + struct.pack("<q", rate) for code, rate in sorted(currencies.items())]
    return b"".join(out)


def _pack_kind(k: KindPlan) -> bytes:
    head = (k.size, k.header_words, k.state_word, k.raw_start, len(k.remembered), len(k.blocks))
    out = [_text(k.name), _text(k.id_field), struct.pack("<6iqi", *head, k.layout, len(k.rings))]
    out += [struct.pack(f"<{2 + len(r.columns)}i", r.ts_word, len(r.columns), *r.columns) for r in k.remembered]
    out += [struct.pack("<4i", b.code, b.of, b.start, b.stop) for b in k.blocks]
    for r in k.rings:
        windows = [w for w in r.windows if w.code not in EDGES]
        out += [_text(r.name), struct.pack("<q4i", r.tile_ms, r.tiles, r.of, len(r.fields), len(windows))]
        out += [struct.pack("<3i", f.code, f.open_word, f.cells) for f in r.fields]
        out += [struct.pack("<4i", w.code, w.skip, w.tiles, w.word) for w in windows]
    return b"".join(out)


def _is_extended(k: KindPlan) -> bool:
    """Whether version 1 cannot say what this kind is; a kind that it can has the same layout in a plan of version 2."""
    return k.spike is not None or any(r.tile_ms == EVER_MS or any(w.code in EDGES for w in r.windows) for r in k.rings)


def _pack_extension(k: KindPlan) -> bytes:
    """What version 2 adds after a kind."""
    edges = [(ring, w) for ring, r in enumerate(k.rings) for w in r.windows if w.code in EDGES]
    out = [struct.pack("<q3i", *(k.spike or (0, 0, 0)), len(edges))]
    out += [struct.pack("<6i", ring, w.code, w.field.code, w.skip, w.tiles, w.word) for ring, w in edges]
    return b"".join(out)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<H", len(raw)) + raw
