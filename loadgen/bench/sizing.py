"""How large L1 has to be for the entities of a benchmark, how many bytes their profiles are, how many events are flagged."""

from features.plan import compile_plan
from features.spec import load_spec
from loadgen.bench.payloads import N_MERCHANTS

SPEC = "cards"
ROOM = 1.1  # some slots are kept free

# Events whose fields are drawn at random look suspicious to a model that was trained on people: it would have a quarter of them
# reviewed, each with its sentences. From this score on it is 1 to 3 %, as in a stream of payments.
FLAGGED_SETTING = "decide.review_threshold=0.2"


def profile_bytes(cards: int, *, alone: bool = False) -> int:
    """Bytes of all profiles when each card has been seen: with its device and address, or `alone` with merchants only."""
    counts = {"card": cards, "merchant": N_MERCHANTS} | ({} if alone else {"device": cards, "ip": cards})
    return sum(kind.size * counts.get(kind.name, 0) for kind in compile_plan(load_spec(SPEC)).kinds)


def l1_setting(cards: int, *, alone: bool = False) -> str:
    """The setting that gives all of them a place in L1: never less than the service's default."""
    return f"l1.bytes_max={max(256 << 20, int(profile_bytes(cards, alone=alone) * ROOM))}"
