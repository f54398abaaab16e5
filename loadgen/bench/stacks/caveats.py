"""What the numbers of a `weir bench stacks` run do not show, in words: from its options and from what was measured."""

from collections.abc import Mapping, Sequence

from loadgen.bench.load.result import BUSY_SHARE
from loadgen.bench.stacks.result import WEIR_ARMS, Cell, StacksOptions

SPREAD_MAX = 1.3  # times, fastest over slowest round
SHARE_MIN = 0.75  # of a core: below it neither server nor client was busy, so something else ran or the stores were the limit


def make_caveats(options: StacksOptions, cells: Sequence[Cell], skipped: Mapping[str, str], cores: Sequence[int]) -> list[str]:
    """In the order in which a reader should know them."""
    draw = f"Zipf with exponent {options.zipf:g}" if options.zipf else "evenly"
    found = [
        f"{options.users} users in a closed loop: latency × rate is the number of users; latencies add little to rates.",
        "A rival keeps no state: it reads 40 finished features. Weir's arms keep profiles, windows, a journal, a ledger, and"
        f" find all {options.cards:,} cards (drawn {draw}) in L1; with a cold L1 they read stores, too (weir bench claims, D).",
        "Rivals share one Postgres; each of Weir's has its own stores. Their CPU is in the database's column.",
        "Loopback, no TLS, no network between server and database: with one, every read of a rival costs more.",
        "Memory is PSS at the ends of a run: shared pages are shared out, short peaks inside a run are missed.",
        "Failures count with the deadline in all percentiles, which are of all rounds together; rates are medians.",
        "In the open loop the generator goes before the stores on its core, where that is permitted (real-time priority).",
        "Sizes leave out Python and the system's libraries; a build is compilers' or pip's time, from downloads on.",
    ]
    if len(cores) < 2:
        found.append("Only one core was usable: client, stores and servers took turns on it; compare nothing but ratios.")
    elif len(cores) < 3:
        found.append("With one core for the server, client and stores share the other; with two, all share both.")
    crowded = sorted({c.arm for c in cells if c.cores == 1 and max(c.server_cpu_share, c.client_cpu_share) < SHARE_MIN})
    if crowded:
        found.append(f"Neither server nor client filled a core ({', '.join(crowded)}): Postgres was the limit, or others ran.")
    busy = sorted({c.arm for c in cells if c.client_cpu_share >= BUSY_SHARE})
    if busy:
        found.append(f"The client filled its core ({', '.join(busy)}): these servers may have had more to give.")
    if any(cell.arm in WEIR_ARMS and cell.workload != "card" for cell in cells):
        found.append("Weir takes images through /v2 as tensors, one run after the other; it has no JPEG decoder.")
    spread, arm = max(((_spread(c), c.arm) for c in cells), default=(1.0, ""))
    if spread > SPREAD_MAX:
        found.append(
            f"Rounds of the same thing differ by up to {spread:.2g} times ({arm}): other programs ran; quote no rates."
        )
    found += [f"{name} was left out: {reason}" for name, reason in skipped.items()]
    return found


def _spread(cell: Cell) -> float:
    slowest = min(cell.rounds_per_s, default=0.0)
    return max(cell.rounds_per_s) / slowest if slowest else 1.0
