"""How large L1 has to be for the entities of a benchmark, and how many bytes their profiles are: from the plan of the spec."""

from features.plan import compile_plan
from features.spec import load_spec
from loadgen.bench.payloads import N_MERCHANTS

SPEC = "cards"
ROOM = 1.1  # some slots are kept free


def profile_bytes(cards: int, *, alone: bool = False) -> int:
    """Bytes of all profiles when each card has been seen: with its device and address, or `alone` with merchants only."""
    counts = {"card": cards, "merchant": N_MERCHANTS} | ({} if alone else {"device": cards, "ip": cards})
    return sum(kind.size * counts.get(kind.name, 0) for kind in compile_plan(load_spec(SPEC)).kinds)


def l1_setting(cards: int, *, alone: bool = False) -> str:
    """The setting that gives all of them a place in L1: never less than the service's default."""
    return f"l1.bytes_max={max(256 << 20, int(profile_bytes(cards, alone=alone) * ROOM))}"
