"""What a configuration changed: scores and outcomes against those of the reference, and for each change the features and tiers.

Both runs sent the same stream over one connection in the same requests, so whatever differs comes from the tiers.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from features.spec import Spec
from loadgen.bench.tiers.result import Changes, Example, FeatureChange
from loadgen.recorder import Recorder
from loadgen.source import Stream

SAME_SCORE = 1e-6  # what two engines may differ by
SAME_FEATURE = 1e-5  # relative: 2 float32 ulp of a log, with room
FEATURES_SHOWN = 6
COUNTED_MAX = 24  # features and tiers that are listed


def compare(stream: Stream, spec: Spec, reference: Recorder, here: Recorder, examples_max: int) -> Changes:
    """The decisions of `here` beside those of `reference`; examples with another outcome come first."""
    both = np.flatnonzero((reference.outcome >= 0) & (here.outcome >= 0))
    moved = np.abs(reference.score[both].astype(np.float64) - here.score[both])
    words = [words.outcomes.words for words in (reference, here)]
    pairs = [(words[0][a], words[1][b]) for a, b in zip(reference.outcome[both], here.outcome[both], strict=True)]
    is_turned = np.array([before != after for before, after in pairs], dtype=np.bool_)
    is_changed = is_turned | (moved > SAME_SCORE)
    kinds = kinds_of(spec)
    features: Counter[str] = Counter()
    tiers: Counter[str] = Counter()
    for row in both[is_changed].tolist():
        changed = differing(kinds, reference, here, row)
        features.update(change.name for change in changed)
        tiers.update({f"{c.kind}: {c.tier_here}" for c in changed if c.kind is not None and c.tier_here})
    order = np.lexsort((-moved, ~is_turned))
    shown = [place for place in order.tolist() if is_changed[place]][:examples_max]
    return Changes(
        compared=len(both),
        scores_changed=int(np.count_nonzero(moved > SAME_SCORE)),
        decisions_changed=int(np.count_nonzero(is_turned)),
        degraded=sum(here.degraded_counts().values()),
        largest_score_change=float(moved.max(initial=0.0)),
        outcomes=dict(Counter(f"{before} → {after}" for before, after in pairs if before != after).most_common()),
        features=dict(features.most_common(COUNTED_MAX)),
        tiers=dict(tiers.most_common(COUNTED_MAX)),
        examples=[_example(stream, kinds, reference, here, int(both[place]), pairs[place]) for place in shown],
    )


def kinds_of(spec: Spec) -> dict[str, str | None]:
    """Feature -> the kind of entity whose profile it is of; None for one of the transaction alone."""
    of_ring = {ring.name: kind.name for kind in spec.kind for ring in kind.ring}
    return {feature.name: feature.kind or of_ring.get(feature.ring or "") for feature in spec.feature}


def differing(kinds: Mapping[str, str | None], reference: Recorder, here: Recorder, row: int) -> list[FeatureChange]:
    """The features of a row that differ, the largest relative difference first."""
    before, after = reference.features.vector(row), here.features.vector(row)
    came_before, came_after = reference.features.sources(row), here.features.sources(row)
    found: list[tuple[float, FeatureChange]] = []
    for name, value in before.items():
        other = after.get(name, math.nan)
        if value == other or (math.isnan(value) and math.isnan(other)):
            continue
        size = abs(value - other) / max(abs(value), abs(other), 1.0)
        if size < SAME_FEATURE:
            continue
        kind = kinds.get(name)
        tier_before, tier_after = came_before.get(kind or ""), came_after.get(kind or "")
        change = FeatureChange(name, _number(value), _number(other), kind, tier_before, tier_after)
        found.append((math.inf if math.isnan(size) else size, change))
    return [change for _, change in sorted(found, key=lambda pair: (-pair[0], pair[1].name))]


def _example(
    stream: Stream, kinds: Mapping[str, str | None], reference: Recorder, here: Recorder, row: int, outcomes: Sequence[str]
) -> Example:
    before, after = reference.features.sources(row), here.features.sources(row)
    degraded = here.degradations.words[here.degraded[row]]
    return Example(
        event_id=stream.event_ids[row],
        ts=int(stream.dataset.ts[row]),
        amount=int(stream.dataset.amount[row]),
        score_all_on=round(float(reference.score[row]), 6),
        score_here=round(float(here.score[row]), 6),
        outcome_all_on=outcomes[0],
        outcome_here=outcomes[1],
        degraded=degraded.split("+") if degraded else [],
        features=differing(kinds, reference, here, row)[:FEATURES_SHOWN],
        profiles={kind: [before.get(kind, ""), after.get(kind, "")] for kind in after},
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
