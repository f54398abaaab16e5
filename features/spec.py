"""The spec: a TOML file that declares entities, rings and features. Parsing and validation only; plan.py compiles it.

Every problem is a SpecError that names the file and the key. Durations are written "5m", "1h", "30d". A window lasts a whole
number of its ring's tiles; its worst error is one tile per end that is not aligned (a delayed window has two such ends):
an undelayed window ends with the event and starts at a tile's border, so it misses up to one tile of its oldest part;
a delayed window is made of complete tiles only, so it lies up to one tile earlier than its name says.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

SPECS = Path(__file__).parent / "specs"
RATE_MILLIONTHS_MAX = 10_000_000  # keeps a converted amount below 10^11, its square within a ring's two words

Field = Literal["count", "sum", "max", "squares", "frauds", "distinct", "spikes"]
Column = Literal["amount", "country", "mcc", "channel", "card_id", "merchant_id", "device_id", "ip"]
Remembered = Literal["country", "mcc", "channel", "card_id", "merchant_id", "device_id", "ip", "place"]
Op = Literal[
    "value", "hour", "weekday", "night", "weekend", "count", "sum", "mean", "max", "std", "ratio", "zscore",
    "distinct", "since_last", "age", "changed", "speed_kmh", "fraud_rate", "present",
    "frauds", "spikes", "spike_share", "since_first_fraud", "since_last_fraud", "last_known",
]  # fmt: skip

# op -> the ring fields it reads (in the order in which the plan lists its operands)
WINDOW_OPS: Mapping[str, tuple[Field, ...]] = {
    "count": ("count",),
    "sum": ("sum",),
    "mean": ("count", "sum"),
    "max": ("max",),
    "std": ("count", "sum", "squares"),
    "ratio": ("count", "sum"),
    "zscore": ("count", "sum", "squares"),
    "distinct": ("distinct",),
    "fraud_rate": ("count", "frauds"),
    "frauds": ("frauds",),
    "spikes": ("spikes",),
    "spike_share": ("count", "spikes"),
    "since_first_fraud": ("frauds",),
    "since_last_fraud": ("frauds",),
    "last_known": ("count", "frauds"),
}
KIND_OPS = ("since_last", "age", "present", "speed_kmh", "changed")
TILE_MS_MAX = 366 * 86_400_000
EVER = "ever"  # as a tile: the ring is one tile that never closes; as a window: that tile
EVER_MS = 1 << 62  # above every time that there is
SPIKE_OVER_MAX = 100.0  # times the mean; in thousandths, and times the largest amount, it still fits a word
RING_TILES_MAX = 16_384  # 128 KiB of 8-byte cells a field; a profile travels as a whole, so more is a mistake
UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class SpecError(ValueError):
    """A spec that cannot be used; the message names the file, the key and the way out."""


class Ring(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A ring of time tiles of one width; `keeps` says what each tile holds; `of` is what `distinct` counts.

    The tile "ever" is one that never closes: what such a ring keeps is of the entity's whole life.
    """

    name: str
    tile: str
    keeps: tuple[Field, ...]
    of: Column | None = None


class Kind(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An entity kind: `id` is the transaction's field that names the entity, `remember` what the last event said.

    An amount of more than `spike_over` times the entity's own mean before it, over its whole life, is a spike.
    """

    name: str
    id: Literal["card_id", "merchant_id", "device_id", "ip"]
    ring: tuple[Ring, ...]
    remember: tuple[Remembered, ...] = ()
    spike_over: float | None = None

    @property
    def life(self) -> Ring | None:
        """The ring that knows the mean of the whole life, if there is one."""
        return next((r for r in self.ring if r.tile == EVER and {"count", "sum"} <= set(r.keeps)), None)


class Feature(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One number of the feature vector. `scale` multiplies, then `log1p` takes log(1 + x) of what is not negative."""

    name: str
    op: Op
    of: Column | None = None
    kind: str | None = None
    ring: str | None = None
    window: str | None = None
    delay: str = "0s"
    scale: float = 1.0
    log1p: bool = False


class FieldSource(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where a transaction's field comes from in a Parquet file: a column (scaled, prefixed) or a constant value."""

    column: str | None = None
    value: str | int | float | None = None
    scale: int = 1
    prefix: str = ""


class LabelSource(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The label's column (1 fraud, 0 legit, null unknown) and when it becomes known: a column of times, or a delay."""

    column: str
    delay_ms: int = 7 * 86_400_000
    ts_column: str | None = None


class Source(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How a Parquet file of the user's becomes transactions and labels."""

    fields: dict[str, FieldSource]
    label: LabelSource | None = None


class Spec(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A validated spec. `currencies` are millionths of a base minor unit per minor unit."""

    name: str
    base_currency: str
    currencies: dict[str, int]
    kind: tuple[Kind, ...]
    feature: tuple[Feature, ...]
    source: Source

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The entity kinds, in the order of the spec; a kind's number is its place."""
        return self.kind

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features, in the order of the vector."""
        return self.feature


def duration_ms(text: str) -> int:
    """Milliseconds of "90s", "5m", "1h" or "30d"; EVER_MS of "ever". Raises ValueError for anything else."""
    if text == EVER:
        return EVER_MS
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS_MS or not number.isdecimal():
        raise ValueError(f"{text!r} is not a duration such as 90s, 5m, 1h or 30d")
    return int(number) * UNITS_MS[unit]


def load_spec(name_or_path: str | Path) -> Spec:
    """Read and validate a packaged spec ("cards", "handbook") or a TOML file. Raises SpecError."""
    path = SPECS / f"{name_or_path}.toml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in SPECS.glob("*.toml")))
        raise SpecError(f"spec {str(name_or_path)!r} is neither a packaged spec ({known}) nor a file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from None
    return parse_spec(text, str(path))


def parse_spec(text: str, origin: str) -> Spec:
    """Validate the TOML `text`; `origin` names it in errors. Raises SpecError."""
    try:
        spec = msgspec.convert(tomllib.loads(text), Spec)
    except tomllib.TOMLDecodeError as error:  # its message ends with line and column
        raise SpecError(f"{origin}: {error}") from None
    except msgspec.ValidationError as error:
        raise SpecError(f"{origin}{_line_of_path(text, str(error))}: {error}") from None
    try:
        _check_currencies(spec)
        _check_names(spec)
        for kind in spec.kinds:
            _check_kind(kind)
        for feature in spec.features:
            _check_feature(feature, spec)
    except ValueError as error:
        raise SpecError(f"{origin}{_line_of_name(text, str(error))}: {error}") from None
    return spec


def _line_of_name(text: str, problem: str) -> str:
    """ ":17" for a problem that starts with "feature.night:" if line 17 gives that name or key, else ""."""
    name = re.escape(problem.split(":", 1)[0].rsplit(".", 1)[-1])
    wanted = re.compile(rf"""(.*\bname\s*=\s*["']{name}["'].*|\s*{name}\s*=.*)""")
    return next((f":{i}" for i, row in enumerate(text.splitlines(), 1) if wanted.fullmatch(row)), "")


def _line_of_path(text: str, problem: str) -> str:
    """ ":17" for a problem with the path "$.feature[3]" if the fourth [[feature]] stands in line 17, else ""."""
    found = re.search(r"at `\$\.(\w+)\[(\d+)\]", problem)
    if found is None:
        return ""
    rows = [i for i, row in enumerate(text.splitlines(), 1) if row.split("#")[0].strip() == f"[[{found[1]}]]"]
    return f":{rows[int(found[2])]}" if int(found[2]) < len(rows) else ""


def _check_currencies(spec: Spec) -> None:
    for code, rate in spec.currencies.items():
        if not re.fullmatch("[A-Z]{3}", code):
            raise ValueError(f"currencies.{code}: a currency is three capital letters (ISO 4217)")
        if not 0 < rate <= RATE_MILLIONTHS_MAX:
            raise ValueError(f"currencies.{code}: rate {rate} is not within 1 to {RATE_MILLIONTHS_MAX} millionths")
    if spec.currencies.get(spec.base_currency) != 1_000_000:
        raise ValueError(f"base_currency: currencies.{spec.base_currency} must be 1000000")


def _check_names(spec: Spec) -> None:
    if not spec.kinds or not spec.features:
        raise ValueError("kind: a spec needs at least one kind and one feature")
    groups: dict[str, list[str]] = {"kind": [k.name for k in spec.kinds], "kind.id": [k.id for k in spec.kinds]}
    groups["feature"] = [f.name for f in spec.features]
    groups |= {f"kind.{k.name}.ring": [r.name for r in k.ring] for k in spec.kinds}
    for what, names in groups.items():
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{what}.{name}: the name is used twice")
            if not name.replace("_", "").isalnum() or len(name) > 64:
                raise ValueError(f"{what}.{name}: names are up to 64 letters, digits and _")


def _check_kind(kind: Kind) -> None:
    if len(set(kind.remember)) != len(kind.remember):
        raise ValueError(f"kind.{kind.name}: remember must name each field once")
    for ring in kind.ring:
        where = f"kind.{kind.name}.ring.{ring.name}"
        try:
            width = duration_ms(ring.tile)
        except ValueError as error:
            raise ValueError(f"{where}: tile: {error}") from None
        if not 1000 <= width <= TILE_MS_MAX and width != EVER_MS:
            raise ValueError(f"{where}: tile {ring.tile!r} is not within 1s to {TILE_MS_MAX // 86_400_000}d")
        if len(set(ring.keeps)) != len(ring.keeps) or not ring.keeps:
            raise ValueError(f"{where}: keeps must name each of its fields once")
        if ("distinct" in ring.keeps) != (ring.of is not None):
            raise ValueError(f"{where}: 'distinct' and 'of' belong together")
        if "spikes" in ring.keeps and kind.spike_over is None:
            raise ValueError(f"{where}: 'spikes' need the kind's spike_over: how many times the mean")
    if kind.spike_over is not None:
        if not 0 < kind.spike_over <= SPIKE_OVER_MAX:
            raise ValueError(f"kind.{kind.name}: spike_over {kind.spike_over} is not above 0 and at most {SPIKE_OVER_MAX}")
        if kind.life is None:
            raise ValueError(f"kind.{kind.name}: spike_over needs a ring with tile = 'ever' that keeps count and sum")


def _check_feature(feature: Feature, spec: Spec) -> None:
    where = f"feature.{feature.name}"
    kind = next((k for k in spec.kinds if k.name == feature.kind), None)
    if feature.kind is not None and kind is None:
        raise ValueError(f"{where}: unknown kind {feature.kind!r}")
    if not math.isfinite(feature.scale):
        raise ValueError(f"{where}: scale must be a finite number")
    if feature.op in WINDOW_OPS:
        if feature.of is not None:
            raise ValueError(f"{where}: op {feature.op!r} takes no 'of' (what 'distinct' counts is said by its ring)")
        if kind is None or feature.ring is None or feature.window is None:
            raise ValueError(f"{where}: op {feature.op!r} needs kind, ring and window")
        _check_window(feature, kind, where)
        return
    if feature.ring is not None or feature.window is not None or feature.delay != "0s":
        raise ValueError(f"{where}: op {feature.op!r} takes no ring, window or delay")
    if (feature.op in KIND_OPS) != (kind is not None):
        raise ValueError(f"{where}: op {feature.op!r} {'needs' if feature.op in KIND_OPS else 'takes no'} kind")
    if (feature.op in ("value", "changed")) != (feature.of is not None):
        raise ValueError(f"{where}: op {feature.op!r} {'takes no' if feature.of else 'needs'} 'of'")
    if kind is not None and feature.op == "changed" and feature.of not in kind.remember:
        raise ValueError(f"{where}: kind {kind.name!r} does not remember {feature.of!r}")
    if kind is not None and feature.op == "speed_kmh" and "place" not in kind.remember:
        raise ValueError(f"{where}: kind {kind.name!r} does not remember 'place'")


def _check_window(feature: Feature, kind: Kind, where: str) -> None:
    ring = next((r for r in kind.ring if r.name == feature.ring), None)
    if ring is None:
        raise ValueError(f"{where}: kind {kind.name!r} has no ring {feature.ring!r}")
    for need in WINDOW_OPS[feature.op]:
        if need not in ring.keeps:
            raise ValueError(f"{where}: ring {ring.name!r} does not keep {need!r}")
    width = duration_ms(ring.tile)
    try:
        window, delay = duration_ms(feature.window or ""), duration_ms(feature.delay)
    except ValueError as error:
        raise ValueError(f"{where}: window or delay: {error}") from None
    if (width == EVER_MS and (window != width or delay)) or (width != EVER_MS and EVER_MS in (window, delay)):
        raise ValueError(f"{where}: the window 'ever', without a delay, and the tile 'ever' belong together")
    if width == EVER_MS and feature.op.endswith(("_fraud", "_known")):
        raise ValueError(f"{where}: op {feature.op!r} needs tiles that close: their start is the time that it tells")
    if feature.op == "last_known" and not delay:
        raise ValueError(f"{where}: op 'last_known' needs a delay, after which labels are known")
    if window <= 0 or window % width or delay % width:
        raise ValueError(f"{where}: window and delay must be whole numbers of {ring.tile} tiles")
    if (window + delay) // width >= RING_TILES_MAX:
        raise ValueError(f"{where}: window and delay need {(window + delay) // width} tiles, at most {RING_TILES_MAX - 1}")
