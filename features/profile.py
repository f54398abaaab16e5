"""A profile as bytes: what is checked when it comes from elsewhere, how two merge, and how it is shown to people.

Only advance and merge change a profile. Merging is commutative and associative: counts and sums add, a maximum is the larger,
bitmaps unite, rings align by tile number, a remembered value is the one of the later event (of two at one time, the larger).
"""

import struct
from collections.abc import Mapping

from features.advance_one import ERASED_FLAG, PROFILE_VERSION, cells_of, combine, sum_window, version_word
from features.plan import (
    COUNT,
    DISTINCT,
    FRAUDS,
    MAX,
    SPIKES,
    SUM,
    W_FIRST_LSN,
    W_FIRST_SEEN,
    W_LAST_SEEN,
    W_LATE_DROPPED,
    W_LAYOUT,
    W_LSN,
    W_VERSION,
    KindPlan,
    RingPlan,
    WindowPlan,
)
from features.slab import Slab

LSN_OFFSET = W_LSN * 8
SHOWN_FIELDS: Mapping[int, str] = {
    COUNT: "count", SUM: "sum", MAX: "max", FRAUDS: "frauds", DISTINCT: "distinct_bits", SPIKES: "spikes",
}  # fmt: skip


class UnknownProfileVersion(ValueError):
    """Bytes that are no profile of this kind and layout: another version, another spec, or damage."""


def check(kind: KindPlan, profile: bytes) -> None:
    """Raise UnknownProfileVersion unless `profile` has this kind's version, number, size and layout."""
    if len(profile) != kind.size:
        raise UnknownProfileVersion(f"a {kind.name} profile has {kind.size} bytes, not {len(profile)}")
    version, number = profile[0], profile[1]
    if version != PROFILE_VERSION or number != kind.number:
        raise UnknownProfileVersion(f"version {version}, kind {number}; this plan reads {PROFILE_VERSION}, {kind.number}")
    (layout,) = struct.unpack_from("<q", profile, 8)
    if layout != kind.layout:
        raise UnknownProfileVersion(f"{kind.name} profile of layout {layout:016x}, this plan's is {kind.layout:016x}")


def is_partial(profile: bytes) -> bool:
    """True if the profile was begun while the stored one could not be asked for; it is merged with that one later."""
    return bool(profile[2] & 1)


def tombstone(kind: KindPlan, lsn: int) -> bytes:
    """What the erasure `lsn` leaves of a profile in the tiers: header only. To whoever finds it the entity is a new one.

    Its LSN keeps older bytes from coming back: a tier takes no profile of a lower one.
    """
    words = [0] * kind.header_words
    words[W_VERSION] = version_word(kind.number) | ERASED_FLAG
    words[W_LAYOUT], words[W_LSN] = kind.layout, lsn
    return struct.pack(f"<{kind.header_words}q", *words).ljust(kind.size, b"\0")


def is_tombstone(profile: bytes) -> bool:
    """True if the entity was erased and nothing has come of it since."""
    return bool(profile[2] & 2)


def lsn_of(profile: bytes) -> int:
    """The LSN of the last event applied."""
    return int.from_bytes(profile[LSN_OFFSET : LSN_OFFSET + 8], "little")


def merge(kind: KindPlan, left: bytes, right: bytes) -> bytes:
    """Join two profiles of one entity that saw different events. Raises UnknownProfileVersion as check does."""
    check(kind, left)
    check(kind, right)
    slab = Slab(kind, 3)
    slab.put(0, left)
    slab.put(1, right)
    headers = [slab.header(0), slab.header(1)]
    out = _merge_header(kind, *headers)
    for ring in kind.rings:
        _merge_ring(slab, ring, [h[W_LAST_SEEN] // ring.tile_ms for h in headers], headers, out)
    slab.put_header(2, out)
    return slab.get(2)


def _merge_header(kind: KindPlan, first: list[int], second: list[int]) -> list[int]:
    """Everything of the header but the rings. The result is partial only if both are."""
    out = [0] * kind.header_words
    out[W_VERSION] = first[W_VERSION] & second[W_VERSION]
    out[W_LAYOUT] = first[W_LAYOUT]
    for word in (W_LSN, W_LAST_SEEN):
        out[word] = max(first[word], second[word])
    for word in (W_FIRST_LSN, W_FIRST_SEEN):
        out[word] = min(first[word], second[word])
    out[W_LATE_DROPPED] = first[W_LATE_DROPPED] + second[W_LATE_DROPPED]
    for ts_word, columns in kind.remembered:
        words = slice(ts_word, ts_word + 1 + len(columns))
        out[words] = max(first[words], second[words])
    return out


def _merge_ring(slab: Slab, ring: RingPlan, newest: list[int], headers: list[list[int]], out: list[int]) -> None:
    """Fill the ring of slot 2 and its words in `out` from slots 0 and 1, tile by tile, then its windows."""
    top = max(newest)
    for field in ring.fields:
        merged, merged_start = cells_of(slab, 2, field)
        for tile in range(top - ring.tiles + 1, top + 1):
            value = 0
            for slot in (0, 1):
                if tile == newest[slot]:
                    value = combine(field.code, value, headers[slot][field.open_word])
                elif newest[slot] - ring.tiles < tile < newest[slot]:
                    cells, start = cells_of(slab, slot, field)
                    value = combine(field.code, value, cells[start + tile % ring.tiles])
            if tile == top:
                out[field.open_word] = value
            else:
                merged[merged_start + tile % ring.tiles] = value
    for window in ring.windows:
        out[window.word] = sum_window(slab, 2, ring, window, top, top, out[window.field.open_word])


def describe(kind: KindPlan, profile: bytes) -> dict[str, object]:
    """What a person wants to see of a profile: LSN, times (ms), and the running value of each window by its name.

    Windows stand as of the entity's last event. Raises UnknownProfileVersion.
    """
    check(kind, profile)
    words = struct.unpack_from(f"<{kind.header_words}q", profile)
    windows: dict[str, dict[str, int]] = {}
    for ring in kind.rings:
        for window in ring.windows:
            if window.code in SHOWN_FIELDS:
                windows.setdefault(window.name, {})[SHOWN_FIELDS[window.code]] = _shown(window, words[window.word])
    return {
        "lsn": words[W_LSN],
        "first_seen": words[W_FIRST_SEEN],
        "last_seen": words[W_LAST_SEEN],
        "late_dropped": words[W_LATE_DROPPED],
        "windows": windows,
    }


def _shown(window: WindowPlan, value: int) -> int:
    return (value & (1 << 64) - 1).bit_count() if window.code == DISTINCT else value
