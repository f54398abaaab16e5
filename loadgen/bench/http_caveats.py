"""What the numbers of a `weir bench http` run do not show, in words: from its options and from what was measured."""

from loadgen.bench.arms import (
    AIOHTTP,
    BARE,
    FASTAPI,
    FLUSH_SETTING,
    GO_JSON,
    NULL,
    SCORERS,
    WEIR_ARMS,
    WEIR_GO,
    flush_interval_ms,
    kind_of,
    order_of,
)
from loadgen.bench.http_result import Cell, HttpOptions, busiest_single
from loadgen.bench.wrk import missing_wrk

STOLEN_MAX = 0.02  # of the processors' time; below, nobody needs to be told
SHARE_MIN = 0.8  # of a core; at most connections a closed loop fills the server's or the client's, if nobody else is on it
IN_MEMORY = "The data directories were in memory, where fsync does nothing: sync modes differ in nothing here."


def make_caveats(
    options: HttpOptions, cells: list[Cell], skipped: dict[str, str], unknown: list[str], *, pinned_apart: bool
) -> list[str]:
    """What the numbers of this run do not show."""
    draw = f"Zipf with exponent {options.zipf:g}" if options.zipf else "uniform"
    measured = {cell.arm for cell in cells}
    kinds = {kind_of(name) for name in measured}
    caveats = [
        "All threads of a server share one core; on more cores the service's background work would run beside it.",
        f"{options.cards:,} cards, drawn {draw}; every profile is in L1, no fraud labels, loopback, no TLS.",
        "A closed loop: it shows capacity, and latency at full load, not latency at a given arrival rate.",
        "Every server answered as much as it could: memory after the run is after as many events as its row says.",
        "Resident memory counts shared pages of libraries and mapped files too.",
    ]
    caveats += _of_host(cells) + _of_client(options) + _of_stores(options, kinds)
    if BARE in measured:
        caveats.append("The bare handler checks no key, keeps no state, writes no journal: it is a ceiling, not a rival.")
    if GO_JSON in measured:
        caveats.append(
            "go json decodes by reflection, as encoding/json does; it checks no key and no limits and keeps nothing."
        )
    if FASTAPI in measured:
        caveats.append("fastapi keeps no state and writes nothing down; its vector costs less than Weir's 40 features would.")
    if AIOHTTP in kinds:
        caveats.append(f"{AIOHTTP} is the same service without its fast lane: every request goes through aiohttp.")
    if WEIR_GO in kinds:
        caveats.append("weir-go has no traces, lists, switches of tiers or console; these requests ask for none of them.")
    flush_ms = flush_interval_ms(options.settings)
    if kinds & {*SCORERS} and options.measure_s * 1e3 < flush_ms:
        caveats.append(
            f"Measurements are shorter than {FLUSH_SETTING} ({flush_ms:,}): the service writes decisions to RocksDB mostly"
            " between them. A longer --seconds has that in."
        )
    if options.syncs:
        caveats.append(
            "A virtual disk may say that it has written before it has; fsync is then cheaper than on a disk of your own."
        )
    if unknown:
        caveats.append(f"weir-go ran without {', '.join(unknown)}: it does not know the setting.")
    caveats += [f"{name} was left out: {reason}." for name, reason in skipped.items()]
    if not pinned_apart:
        caveats.append("Only one core was usable: client and server took turns on it; compare nothing but ratios.")
    crowded = [name for name in measured if name != NULL and _is_crowded(busiest_single(cells, name))]
    if crowded:
        names = ", ".join(sorted(crowded, key=order_of))
        caveats.append(
            f"Neither server nor client had its core to itself ({names}): other processes ran; do not compare rates."
        )
    if any(cell.arm != NULL and cell.client_cpu_share > 0.9 for cell in cells):
        caveats.append("In some rows the client used over 90 % of its core: the server may have had more to give.")
    return caveats


def _is_crowded(cell: Cell) -> bool:
    return max(cell.server_cpu_share, cell.client_cpu_share) < SHARE_MIN


def _of_host(cells: list[Cell]) -> list[str]:
    shares = [sample.stolen_share for cell in cells for sample in cell.samples]
    if max(shares, default=0.0) <= STOLEN_MAX:
        return []
    n_many = sum(share > STOLEN_MAX for share in shares)
    return [
        f"The host gave up to {max(shares):.0%} of this machine's processor time to others while it was wanted, more than"
        f" {STOLEN_MAX:.0%} in {n_many} of {len(shares)} measurements: those are too slow, and rounds differ by it."
    ]


def _of_client(options: HttpOptions) -> list[str]:
    if options.client == "wrk":
        return [
            "wrk counts what is not a 2xx or 3xx and reads no reply; the service's own count of scored transactions is compared"
            " with it instead. Its percentiles are corrected for coordinated omission, our own client's are not.",
        ]
    return [f"wrk was not the client{f' ({reason})' if (reason := missing_wrk()) else ''}: our own took its place."]


def _of_stores(options: HttpOptions, kinds: set[str]) -> list[str]:
    if not kinds & {*WEIR_ARMS}:
        return []
    if not options.stores:
        return ["No Valkey and no Postgres: write-behind ends in RocksDB, and there is no ledger."]
    return [
        "A server that is not measured is paused together with its stores, once write-behind and ledger are level: what they"
        " were behind at the end of a measurement is on nobody's account."
    ]
