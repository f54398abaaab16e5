"""The tables of `weir bench price` and the page that its --html writes."""

from collections.abc import Sequence

from loadgen.bench.price.result import NEITHER, SERVE, SHARE_MAX, Price, PriceResult
from loadgen.page import Cell, Figure, Table, machine_table, page

GOALS = ((NEITHER, "journal and idempotency", SHARE_MAX),)


def prices_table(result: PriceResult) -> Table:
    """Every arm that lacks something, beside the one that does not."""
    title = f"CPU µs per single request, by number of connections; {result.options.rounds} pairs; medians (quartiles)"
    columns = ("conn.", "arm", "whole", "without", "price", "share %", "loop", "RocksDB", "others")
    rows: list[Sequence[Cell]] = [
        (p.connections, p.arm, p.cpu_us, p.without_us, _with_quartiles(p.price_us, p.price_us_quartiles),
         _with_quartiles(100 * p.share, (100 * p.share_quartiles[0], 100 * p.share_quartiles[1])),
         p.loop_us, p.rocksdb_us, p.other_us)
        for p in sorted(result.prices, key=lambda p: p.connections)
    ]  # fmt: skip
    return title, columns, rows


def parts_table(result: PriceResult) -> Table:
    """What each part takes, by the thread's own clock."""
    title = "CPU µs per single request in each part, by the clock of its thread; medians"
    connections = sorted({part.connections for part in result.parts})
    of = {(part.part, part.connections): part.us for part in result.parts}
    names = list(dict.fromkeys(part.part for part in result.parts))
    columns = ("what", *(f"{n} conn." for n in connections))
    rows: list[Sequence[Cell]] = [(name, *(of.get((name, n)) for n in connections)) for name in names]
    if rows:
        rows.append(("sum", *(round(sum(us for (_, at), us in of.items() if at == n), 2) for n in connections)))
    return title, columns, rows


def goals(result: PriceResult) -> list[str]:
    """The goal, by number of connections, in words."""
    return [
        f"{price.connections} connections: {what} take {100 * price.share:.1f} % of a request's CPU,"
        f" goal at most {100 * share_max:.0f} %: {'met' if price.share <= share_max else 'NOT met'}"
        for arm, what, share_max in GOALS
        for price in _of(result, arm)
    ]


def price_page(result: PriceResult) -> str:
    """The result as one HTML page."""
    both = _of(result, NEITHER)
    facts = [(f"of a request's CPU, {p.connections} connections", f"{100 * p.share:.1f} %") for p in both]
    x = [str(p.connections) for p in both]
    data = [
        {"type": "bar", "name": name, "x": x, "y": y, "marker": {"color": colour}}
        for name, y, colour in (
            (SERVE, [p.cpu_us for p in both], "@a"),
            (NEITHER, [p.without_us for p in both], "@b"),
        )
    ]
    figure: Figure = {
        "data": data,
        "layout": {
            "barmode": "group",
            "xaxis": {"type": "category", "title": {"text": "connections"}},
            "yaxis": {"title": {"text": "µs"}},
        },
    }
    figures = [("CPU of the server", "µs per single request, by connections", figure)] if both else []
    lead = (
        f"{result.options.rounds} rounds of {result.options.measure_s:g} s and {result.options.settle_s:g} s of rest on"
        f" {result.created}. Servers on core {result.server_core}, client on core {result.client_core}; data on"
        f" {result.file_system}."
    )
    tables = [prices_table(result), parts_table(result), machine_table(result.machine)]
    return page("Weir bench price", lead, facts, figures, [table for table in tables if table[2]], result.caveats)


def _of(result: PriceResult, arm: str) -> list[Price]:
    return [price for price in result.prices if price.arm == arm]


def _with_quartiles(middle: float, ends: tuple[float, float]) -> str:
    return f"{middle:.1f} ({ends[0]:.1f} to {ends[1]:.1f})"
