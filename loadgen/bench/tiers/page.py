"""The tables of `weir bench tiers`, and the page that it writes with --html."""

import html
from collections.abc import Sequence

from loadgen.bench.tiers.result import ArmResult, Example, TiersResult
from loadgen.page import Cell, Figure, Table, latency_figure, machine_table, micros, page

READ_COLOURS = (("l1", "@a"), ("bloom", "@d"), ("l2", "@b"), ("redis", "@c"), ("postgres", "@ink"))
EXAMPLES_SHOWN = 5  # per configuration on the page


def speed_table(result: TiersResult) -> Table:
    """Latency, throughput and CPU of every configuration."""
    columns = ("arm", "p50 µs", "p99 µs", "p99.9 µs", "p99 / all", "requests/s", "CPU µs", "failed")
    base = result.arms[0].measured
    rows: list[Sequence[Cell]] = [
        (a.name, m.p50_us, m.p99_us, m.p99_9_us, round(m.p99_us / max(base.p99_us, 1), 2), m.requests_per_s,
         m.cpu_us_per_request, m.failed)
        for a in result.arms for m in (a.measured,)
    ]  # fmt: skip
    title = f"{result.n_events:,} events of {result.n_cards:,} cards, medians of {result.options.rounds} round(s)"
    return title, columns, rows


def reads_table(result: TiersResult) -> Table:
    """Profiles that each tier was asked for, per request, and its hit ratio."""
    tiers = [tier.name for tier in result.arms[0].tiers]
    rows: list[Sequence[Cell]] = []
    for arm in result.arms:
        cells: list[Cell] = [arm.name]
        for tier in arm.tiers:
            ratio = "" if tier.hit_ratio is None else f" ({tier.hit_ratio:.0%})"
            cells.append(f"{tier.lookups / result.n_events:.2f}{ratio}" if tier.enabled or tier.lookups else "off")
        rows.append(cells)
    return "Profiles asked of each tier per request (of these found there; of bloom: known to be new)", ("arm", *tiers), rows


def decisions_table(result: TiersResult) -> Table:
    """What changed against the first configuration."""
    columns = ("arm", "changed", "scores", "largest", "degraded", "what")
    rows: list[Sequence[Cell]] = []
    for arm in result.arms:
        c = arm.changes
        if c is None:
            rows.append((arm.name, "reference", None, None, None, ""))
            continue
        what = ", ".join(f"{name} {count:,}" for name, count in list(c.outcomes.items())[:2])
        rows.append((arm.name, c.decisions_changed, c.scores_changed, c.largest_score_change, c.degraded, what))
    return f"Decisions and scores changed, against {result.arms[0].name}; the largest change of a score", columns, rows


def example_lines(arm: ArmResult, n_max: int) -> list[str]:
    """One line for each example: which event, what became of it, which feature of which tier differed."""
    return [_example_line(example) for example in (arm.changes.examples if arm.changes else [])[:n_max]]


def _example_line(example: Example) -> str:
    turned = f"{example.outcome_all_on} {example.score_all_on:.4f} → {example.outcome_here} {example.score_here:.4f}"
    if not example.features:
        without = f"; without {', '.join(example.degraded)}" if example.degraded else ""
        return f"{example.event_id}: {turned}; no feature differs{without}"
    first = example.features[0]
    place = f" of the {first.kind}, from {first.tier_here} instead of {first.tier_all_on}" if first.kind else ""
    return f"{example.event_id}: {turned}; {first.name} {first.here} instead of {first.all_on}{place}"


def tiers_page(result: TiersResult) -> str:
    """The result as one HTML page."""
    base = result.arms[0].measured
    facts = [
        ("p50, all on", micros(base.p50_us)),
        ("p99, all on", micros(base.p99_us)),
        ("requests/s, all on", f"{base.requests_per_s:,.0f}"),
        ("configurations", str(len(result.arms))),
    ]
    source = result.options.source or f"{result.n_events:,} generated events, seed {result.options.seed}"
    lead = f"{source}, each time on a fresh state, {result.created}. {_distances(result)}"
    changed = [arm for arm in result.arms if arm.changes and arm.changes.scores_changed]
    figures = [
        ("Latency", "µs per request, logarithmic", _latency_bars(result)),
        ("Latency by percentile", "each step right is ten times rarer", latency_figure({a.name: a.curve for a in result.arms})),
        ("Reads", "profiles asked of each tier per request", _reads_figure(result)),
        ("CPU", "µs of the service per request", _cpu_figure(result)),
        ("Decisions changed", "share of events that were decided otherwise than with everything on", _changes_figure(result)),
    ]
    tables = [speed_table(result), reads_table(result), decisions_table(result)]
    tables += [_examples_table(arm) for arm in changed]
    tables += [_features_table(arm) for arm in changed if arm.changes and arm.changes.features]
    return page("Weir bench tiers", lead, facts, figures, [*tables, machine_table(result.machine)], result.caveats)


def _distances(result: TiersResult) -> str:
    told = [f"{d.delay_ms:g} ms asked, {d.measured_ms:g} ms measured" for d in result.distances if d.measured_ms is not None]
    return f"Round trips to Redis: {'; '.join(told)}." if told else ""


def _examples_table(arm: ArmResult) -> Table:
    rows: list[Sequence[Cell]] = []
    for e in (arm.changes.examples if arm.changes else [])[:EXAMPLES_SHOWN]:
        features = "; ".join(f"{f.name}: {f.all_on} → {f.here}" for f in e.features)
        profiles = "; ".join(f"{kind}: {before} → {after}" for kind, (before, after) in e.profiles.items() if before != after)
        rows.append((e.event_id, f"{e.outcome_all_on} → {e.outcome_here}", e.score_all_on, e.score_here, features, profiles))
    columns = ("event", "outcome", "score, all on", "score here", "features, all on → here", "profiles from, all on → here")
    return f"{arm.name}: examples", columns, rows


def _features_table(arm: ArmResult) -> Table:
    assert arm.changes is not None
    rows: list[Sequence[Cell]] = [("feature", name, count) for name, count in arm.changes.features.items()]
    rows += [("profile from", name, count) for name, count in arm.changes.tiers.items()]
    return f"{arm.name}: what differed where the score did", ("what", "name", "events"), rows


def _bars(name: str, x: Sequence[str], y: Sequence[float], colour: str) -> Figure:
    return {"type": "bar", "name": name, "x": x, "y": y, "marker": {"color": colour}}


def _names(result: TiersResult) -> list[str]:
    return [html.escape(arm.name) for arm in result.arms]


def _latency_bars(result: TiersResult) -> Figure:
    parts = (("p50", "p50_us", "@d"), ("p99", "p99_us", "@a"), ("p99.9", "p99_9_us", "@c"))
    data = [_bars(n, _names(result), [getattr(a.measured, field) for a in result.arms], c) for n, field, c in parts]
    return {"data": data, "layout": {"barmode": "group", "yaxis": {"type": "log", "title": {"text": "µs"}, "dtick": 1}}}


def _reads_figure(result: TiersResult) -> Figure:
    colours = dict(READ_COLOURS)
    data = []
    for tier in [tier.name for tier in result.arms[0].tiers]:
        counts = [next((t.lookups for t in arm.tiers if t.name == tier), 0) / result.n_events for arm in result.arms]
        data.append(_bars(tier, _names(result), counts, colours.get(tier, "@d")))
    return {"data": data, "layout": {"barmode": "group", "yaxis": {"title": {"text": "profiles per request"}}}}


def _cpu_figure(result: TiersResult) -> Figure:
    data = [_bars("CPU", _names(result), [arm.measured.cpu_us_per_request for arm in result.arms], "@a")]
    return {"data": data, "layout": {"yaxis": {"title": {"text": "µs"}}}}


def _changes_figure(result: TiersResult) -> Figure:
    arms = [arm for arm in result.arms if arm.changes is not None]
    names = [html.escape(arm.name) for arm in arms]
    shares = [100 * c.decisions_changed / max(c.compared, 1) for arm in arms if (c := arm.changes) is not None]
    return {
        "data": [_bars("changed", names, shares, "@c")],
        "layout": {"yaxis": {"title": {"text": "%"}, "rangemode": "tozero"}},
    }
