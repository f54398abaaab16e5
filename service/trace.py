"""`?trace=1`: where each profile came from and how old it was, the features, and the µs of each stop."""

from collections.abc import Mapping, Sequence
from typing import Any

from features.plan import W_LAST_SEEN, Plan
from features.slab import Slab

ABSENT = "absent"  # the source of a profile that the transaction does not refer to


def last_seen(slabs: Sequence[Slab], slots: Sequence[int]) -> list[int]:
    """When each profile (one slot per kind, -1 = absent) saw its last event, in ms; 0 for a new one. Ask before scoring."""
    return [
        slab.flat_words[slot * (slab.kind.size >> 3) + W_LAST_SEEN] if slot >= 0 else 0
        for slab, slot in zip(slabs, slots, strict=True)
    ]


def trace(
    plan: Plan, sources: Sequence[str], seen: Sequence[int], now_ms: int, vector: Sequence[float], us: Mapping[str, float]
) -> dict[str, Any]:
    """The trace of one transaction. A profile's age is the time from its last event until now, null for a new one."""
    profiles = {}
    for kind, source, seen_ms in zip(plan.kinds, sources, seen, strict=True):
        profiles[kind.name] = {"tier": source, "age_ms": now_ms - seen_ms if seen_ms else None}
    return {
        "profiles": profiles,
        "features": dict(zip(plan.feature_names, vector, strict=True)),
        "us": {stop: round(value, 1) for stop, value in us.items()},
    }
