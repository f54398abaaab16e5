"""The configurations that `weir bench tiers` compares: which tiers are off, which engine scores, how far L3 is away.

A configuration is written as words: `all`, or `no-TIER` for each tier that is off, or `none`; then `go` or `onnx` for an engine
of its own. "no-l1 no-l2 onnx".
"""

from collections.abc import Sequence

import msgspec

from loadgen.bench.children import BenchError
from models.scorers import NAMES, missing_scorer

TIERS = ("l1", "bloom", "l2", "redis", "postgres")
REMOTE = ("redis", "postgres")
DELAY_MS_MAX = 1_000.0
CONFIGS_MAX = 32
DEFAULT_CONFIGS = (
    "no-l1", "no-bloom", "no-l2", "no-redis no-postgres", "no-l1 no-l2", "no-l1 no-l2 no-redis no-postgres", "none",
)  # fmt: skip
QUICK_CONFIGS = ("no-l1", "none")


class Config(msgspec.Struct, frozen=True):
    """`off`: in the order of TIERS. `scorer` None: the one that every configuration has unless it says otherwise."""

    off: tuple[str, ...] = ()
    scorer: str | None = None

    @property
    def name(self) -> str:
        """As it is written, in one way: tiers in read order, then the engine."""
        tiers = "none" if self.off == TIERS else " ".join(f"no-{tier}" for tier in self.off)
        return " ".join(part for part in (tiers or ("" if self.scorer else "all"), self.scorer or "") if part)

    @property
    def is_remote(self) -> bool:
        """Whether it asks a store that can be far away."""
        return not set(REMOTE) <= set(self.off)


class Arm(msgspec.Struct, frozen=True):
    """A configuration with L3 at a distance: ms of round trip on top of loopback."""

    config: Config
    delay_ms: float

    @property
    def name(self) -> str:
        """For tables; a delay is named where there is one."""
        return f"{self.config.name}, {self.delay_ms:g} ms" if self.delay_ms else self.config.name


def parse_config(text: str) -> Config:
    """The configuration that `text` writes. Raises BenchError."""
    off: set[str] = set()
    scorers: list[str] = []
    for word in text.split():
        if word == "none":
            off.update(TIERS)
        elif word.removeprefix("no-") in TIERS and word.startswith("no-"):
            off.add(word.removeprefix("no-"))
        elif word in NAMES:
            scorers.append(word)
        elif word != "all":
            known = ", ".join(("all", "none", *(f"no-{tier}" for tier in TIERS), *NAMES))
            raise BenchError(f"--config {text!r}: {word[:40]!r} is none of {known}")
    if not text.split():
        raise BenchError("--config '': expected words such as all, no-l1 or onnx")
    if len(scorers) > 1:
        raise BenchError(f"--config {text!r}: names more than one engine")
    if "all" in text.split() and off:
        raise BenchError(f"--config {text!r}: all tiers are on, or some are off")
    return Config(tuple(tier for tier in TIERS if tier in off), scorers[0] if scorers else None)


def parse_delays(text: str) -> tuple[float, ...]:
    """The round trips in "0,0.5,2", ms, each once, ascending. Raises BenchError."""
    try:
        found = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        found = []
    if not found or not all(0 <= delay <= DELAY_MS_MAX for delay in found):
        raise BenchError(f"--delays {text}: expected ms from 0 to {DELAY_MS_MAX:g} with commas between them")
    return tuple(found)


def plan_arms(configs: Sequence[Config], delays: Sequence[float], scorer: str) -> list[Arm]:
    """The reference first: all on, L3 near; then every configuration at every distance, those without L3 once.

    `scorer`: what a configuration scores with that names none; the same twice is left out. Raises BenchError.
    """
    arms = [Arm(Config(), delay) for delay in delays]
    for config in configs:
        if config.scorer == scorer:
            config = msgspec.structs.replace(config, scorer=None)
        arms += [Arm(config, delay) for delay in (delays if config.is_remote else delays[:1])]
    arms = list(dict.fromkeys(arms))
    if len(arms) > CONFIGS_MAX:
        raise BenchError(f"{len(arms)} configurations and distances, at most {CONFIGS_MAX} in one run")
    for name in sorted({arm.config.scorer or scorer for arm in arms}):
        if (reason := missing_scorer(name)) is not None:
            raise BenchError(f"the {name} scorer cannot be used: {reason}")
    return arms
