"""The tables of `weir bench price --flip`, and the pages that its --html and --markdown write."""

from collections.abc import Sequence

from loadgen.bench.markdown import markdown_page
from loadgen.bench.price.flip_result import METRICS_SHARE_MAX, FlipPrice, FlipResult, verdict
from loadgen.page import Cell, Figure, Table, machine_table, page


def flips_table(result: FlipResult) -> Table:
    """What each part costs, by number of connections."""
    columns = ("what", "conn.", "pairs", "request, µs", "price, µs (95 %)", "share, % (95 %)", "each traced request, µs (95 %)")
    rows: list[Sequence[Cell]] = [
        (
            price.flip, price.connections, price.pairs, round(price.on_us, 2),
            _interval(price.price_us, price.price_us_interval, 2),
            _interval(100 * price.share, _scaled(price.share_interval, 100), 2),
            _interval(price.per_unit_us, price.per_unit_us_interval, 0) if price.flip == "traces" else None,
        )
        for price in result.prices
    ]  # fmt: skip
    return "CPU of the service per single request, with a part switched on and off; medians of pairs", columns, rows


def flip_goals(result: FlipResult) -> list[str]:
    """The goal of the metrics, by number of connections, in words."""
    return [
        f"{price.connections} connections: metrics take {_interval(100 * price.share, _scaled(price.share_interval, 100), 2)} %"
        f" of a request's CPU, goal at most {100 * METRICS_SHARE_MAX:.0f} %: {verdict(price, METRICS_SHARE_MAX)}"
        for price in result.prices
        if price.flip == "metrics"
    ]


def flip_page(result: FlipResult) -> str:
    """The result as one HTML page."""
    facts = [(f"{p.flip}, {p.connections} connections", f"{100 * p.share:.2f} %") for p in result.prices]
    figure: Figure = {
        "data": [
            {"type": "box", "name": f"{p.flip}, {p.connections}", "y": _shares(result, p), "boxpoints": "all"}
            for p in result.prices
        ],
        "layout": {"yaxis": {"title": {"text": "% of a request"}}, "showlegend": False},
    }
    return page("Weir bench price: flips", _lead(result), facts, [("Pairs", "share of each pair, %", figure)],
                [flips_table(result), machine_table(result.machine)], result.caveats)  # fmt: skip


def flip_markdown(result: FlipResult) -> str:
    """The result as a page for docs/results."""
    command = f'weir bench price --flip "{"; ".join(result.options.flips)}" --rounds {result.options.rounds}'
    goals: Table = ("Goal", ("what",), [(line,) for line in flip_goals(result)])
    tables = [flips_table(result), *([goals] if goals[2] else [])]
    return markdown_page("What metrics and traces cost", _lead(result), command, result.created, result.machine, tables,
                         result.caveats)  # fmt: skip


def _lead(result: FlipResult) -> str:
    options = result.options
    return (
        f"One running service whose part is switched on and off, {options.rounds} rounds of {options.pairs} pairs of slices of"
        f" {options.slice_s:g} s (traces: half as many, of 2 s) under one load; the share of each pair, the median of all"
        " and its 95 % interval by bootstrap."
    )


def _shares(result: FlipResult, price: FlipPrice) -> list[float]:
    mine = [p for p in result.pairs if (p.flip, p.connections) == (price.flip, price.connections)]
    return [round(100 * (p.on_us - p.off_us) / p.on_us, 3) for p in mine]


def _scaled(interval: tuple[float, float] | None, by: float) -> tuple[float, float] | None:
    return None if interval is None else (interval[0] * by, interval[1] * by)


def _interval(value: float, interval: tuple[float, float] | None, digits: int) -> str:
    ends = "too few pairs" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"
    return f"{value:.{digits}f} ({ends})"
