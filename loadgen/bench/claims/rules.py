"""How verdicts follow from figures: rules that are written down before anything is measured. Nothing else decides.

A ratio claim ("X is r times Y") holds from 80 % of the published ratio on, holds partly while X is ahead by at least 20 %, else
it does not hold. A limit of our own holds when it is reached, partly when half of the way is. A cap ("no more than") likewise.
"""

from loadgen.bench.claims.result import Line, Verdict

HOLDS_SHARE = 0.8  # of the published ratio
AHEAD = 1.2  # times: less is noise on a shared machine
HALF_WAY = 0.5  # of a limit of our own
UNTESTED: Verdict = "cannot be tested here"


def published(ratio: float | None, claimed: float) -> tuple[Verdict, str]:
    """Of "X is `claimed` times Y", measured as `ratio`; the verdict and the rule in words."""
    rule = f"holds from {HOLDS_SHARE * claimed:.3g}x on, partly from {AHEAD:g}x on"
    if ratio is None:
        return UNTESTED, rule
    enough = round(HOLDS_SHARE * claimed, 9)  # 0.8 × 7 is a hair above 5.6
    if ratio >= enough:
        return "holds", rule
    return ("holds partly" if ratio >= min(AHEAD, enough) else "does not hold"), rule


def at_least(value: float | None, limit: float, partly: float | None = None) -> tuple[Verdict, str]:
    """A figure that has to reach `limit`; half of it (or `partly`) is part of the way."""
    least = HALF_WAY * limit if partly is None else partly
    rule = f"holds from {limit:.3g} on, partly from {least:.3g} on"
    if value is None:
        return UNTESTED, rule
    if value >= limit:
        return "holds", rule
    return ("holds partly" if value >= least else "does not hold"), rule


def at_most(value: float | None, limit: float, partly: float | None = None) -> tuple[Verdict, str]:
    """A figure that must not pass `limit`; up to twice that (or `partly`) is part of the way."""
    most = limit / HALF_WAY if partly is None else partly
    rule = f"holds up to {limit:.3g}, partly up to {most:.3g}"
    if value is None:
        return UNTESTED, rule
    if value <= limit:
        return "holds", rule
    return ("holds partly" if value <= most else "does not hold"), rule


def line(
    group: str,
    claim: str,
    measured: str,
    figure: str,
    value: float | None,
    judged: tuple[Verdict, str],
    needed: str = "",
) -> Line:
    """A line of the report; without a value the figure is a dash, and `needed` says what a test would take."""
    verdict, rule = judged
    rounded = None if value is None else float(f"{value:.4g}")
    return Line(
        group, claim, measured, figure if value is not None else "–", rounded, rule, verdict, needed if value is None else ""
    )
