"""The page of a replay: a pure function of its Result."""

import html
from collections.abc import Sequence

from loadgen.page import Cell, Figure, Table, latency_figure, machine_table, micros, page
from loadgen.recorder import LatencySummary
from loadgen.result import SCORE_BINS, Result, Series, TierUse


def replay_page(result: Result) -> str:
    """The HTML of `result`."""
    rows, latency = result.rows, result.latency_us
    how = f"open loop at {result.options.rate:g}/s" if result.options.rate else "closed loop"
    rows_max = result.options.batch_rows
    what = {"http": "requests of one", "batch": f"batches of up to {rows_max}", "stream": f"streamed, {rows_max} a write"}[
        result.options.mode
    ]
    lead = (
        f"{result.source} through the spec {result.spec}, sent to {result.url} on {result.created}: "
        f"{rows.scored:,} of {rows.total:,} transactions scored, {how}, {what}, {result.options.clients} connection(s)."
    )
    facts: list[tuple[str, str]] = [
        ("transactions per second", f"{result.rows_per_s:,.0f}"),
        ("median latency", micros(latency.p50)),
        ("99 % within", micros(latency.p99)),
        ("failed", f"{rows.failed:,}"),
    ]
    if result.quality:
        facts.append(("AUC", f"{result.quality.auc:.4f}"))
    series = result.series
    figures = [
        (
            "Latency by percentile",
            "µs per request; each step right is ten times rarer",
            latency_figure({"latency": series.latency_curve}),
        ),
        ("Throughput", "decisions in each second of sending", _throughput_figure(series.rows_per_second)),
        ("Scores by label", "rows per score bin, logarithmic", _score_figure(series.scores)),
        ("Outcomes over event time", "share of transactions that were not approved", _outcome_figure(series)),
    ]
    if result.tiers:
        figures.append(("Tiers", "what each tier was asked, and how it answered", _tier_figure(result.tiers)))
    notes = [result.problem] if result.problem else []
    notes += ["The run was interrupted; the figures cover what had been answered by then."] if result.interrupted else []
    return page("Weir replay", lead, facts, figures, _replay_tables(result), notes + _replay_caveats(result))


def _replay_tables(result: Result) -> list[Table]:
    rows, options = result.rows, result.options
    run: list[Sequence[Cell]] = [
        ("transactions", rows.total),
        ("scored", rows.scored),
        ("of these known before", rows.replayed),
        ("failed", rows.failed),
        ("not sent", rows.not_sent),
        ("labels sent", result.labels_sent),
        ("retries", result.retries),
        ("connections made", result.connects),
        ("wall time, s", result.wall_s),
        ("time sending, s", result.active_s),
        ("load generator CPU, s", result.client_cpu_s),
        ("mode", options.mode),
        ("connections", options.clients),
        ("rate, per s", options.rate),
    ]
    latency: list[Sequence[Cell]] = [("request", *_latency_cells(result.latency_us))]
    if result.send_lag_us:
        latency.append(("sent late by", *_latency_cells(result.send_lag_us)))
    tables: list[Table] = [
        ("Run", ("what", "value"), run),
        ("Latency, µs", ("", "n", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"), latency),
        ("Outcomes", ("outcome", "rows"), list(result.outcomes.items())),
    ]
    if result.quality:
        q = result.quality
        tables.append(
            (
                "Quality on scored rows with a label",
                ("measure", "value"),
                [
                    ("rows", q.n_rows),
                    ("frauds", q.n_frauds),
                    ("AUC", round(q.auc, 5)),
                    ("average precision", round(q.average_precision, 5)),
                    ("card precision at 100", round(q.card_precision_at_100, 5)),
                ],
            )
        )
    if result.tiers:
        tables.append(
            (
                "Tiers",
                ("tier", "state", "look-ups", "hits", "misses", "unavailable", "hit ratio"),
                [(t.name, t.state, t.lookups, t.hits, t.misses, t.unavailable, t.hit_ratio) for t in result.tiers],
            )
        )
    if result.degraded:
        tables.append(("Degraded decisions", ("without", "rows"), list(result.degraded.items())))
    if result.errors:
        tables.append(("Errors", ("kind", "count", "first example"), [(e.kind, e.count, e.example) for e in result.errors]))
    tables.append(machine_table(result.machine))
    return tables


def _latency_cells(s: LatencySummary) -> tuple[Cell, ...]:
    return (s.n, s.mean, s.p50, s.p90, s.p95, s.p99, s.p99_9, s.max)


def _replay_caveats(result: Result) -> list[str]:
    caveats = [
        "Load generator and service may share this machine's cores; each then takes time from the other.",
        "Loopback or a short network path: no TLS, no load balancer, no distance.",
        "Time in which the load generator encodes the next rows is left out of the throughput; wall time includes it.",
    ]
    if result.options.rate is None:
        caveats.append(
            "A closed loop waits for each reply, so a stall delays requests instead of being charged for "
            "them: the tail is kinder than under a fixed arrival rate (--rate)."
        )
    if result.options.mode == "batch":
        caveats.append("A request is a whole batch; each row's latency is that of its batch.")
    if result.options.mode == "stream":
        caveats.append("A row's latency counts from the write that it was part of; in a closed loop thousands are under way.")
    if result.quality:
        caveats.append(
            "Quality counts all scored rows with a label, the start of the stream included, where profiles "
            "are still empty. Card precision takes a part of a day at either end for a day."
        )
    return caveats


def _throughput_figure(per_second: list[int]) -> Figure:
    return {
        "data": [
            {"type": "scatter", "mode": "lines", "y": per_second, "fill": "tozeroy", "line": {"width": 1.5, "color": "@a"}}
        ],
        "layout": {
            "xaxis": {"title": {"text": "s"}},
            "yaxis": {"rangemode": "tozero", "title": {"text": "per s"}},
            "showlegend": False,
        },
    }


def _score_figure(scores: dict[str, list[int]]) -> Figure:
    colours = {"legit": "@a", "fraud": "@c", "unknown": "@d"}
    centres = [round((n + 0.5) / SCORE_BINS, 4) for n in range(SCORE_BINS)]
    data = [
        {"type": "bar", "name": name, "x": centres, "y": counts, "opacity": 0.65, "marker": {"color": colours[name]}}
        for name, counts in scores.items()
    ]
    return {
        "data": data,
        "layout": {
            "barmode": "overlay",
            "bargap": 0.05,
            "xaxis": {"title": {"text": "score"}, "range": [0, 1]},
            "yaxis": {"type": "log", "title": {"text": "rows"}, "dtick": 1},
        },
    }


def _outcome_figure(series: Series) -> Figure:
    """Shares of what was not approved: approvals are nearly everything and would hide the rest."""
    colours = {"review": "@b", "decline": "@c"}
    totals = [max(sum(counts), 1) for counts in zip(*series.outcomes.values(), strict=True)]
    data = [
        {
            "type": "bar",
            "name": html.escape(word),
            "x": series.outcome_ts,
            "y": [100 * count / total for count, total in zip(counts, totals, strict=True)],
            "marker": {"color": colours.get(word, "@d")},
        }
        for word, counts in series.outcomes.items()
        if word != "approve"
    ]
    return {
        "data": data,
        "layout": {
            "barmode": "stack",
            "bargap": 0.02,
            "xaxis": {"type": "date"},
            "yaxis": {"title": {"text": "%"}},
        },
    }


def _tier_figure(tiers: list[TierUse]) -> Figure:
    names = [html.escape(tier.name) for tier in reversed(tiers)]
    parts = (("hits", "@a"), ("misses", "@d"), ("unavailable", "@c"))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": part,
            "y": names,
            "marker": {"color": colour},
            "x": [getattr(tier, part) for tier in reversed(tiers)],
        }
        for part, colour in parts
    ]
    return {"data": data, "layout": {"barmode": "stack", "xaxis": {"title": {"text": "look-ups"}}}}
