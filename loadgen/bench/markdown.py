"""A result as a page of docs/results: what was measured, on what, with which command; tables; what they do not show."""

from collections.abc import Sequence

from loadgen.page import Cell, Table
from models.machine import Machine

DIGITS = 3  # significant ones; nothing here is exact to more


def markdown_page(
    title: str, lead: str, command: str, created: str, machine: Machine, tables: Sequence[Table], caveats: Sequence[str]
) -> str:
    """The page, lines of prose as they come."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    parts = [
        f"# {title}\n\n{lead}\n",
        f"Measured on {created} at commit `{machine.commit or 'unknown'}`, on {machine.cores} core(s) of {machine.cpu},"
        f" {machine.memory_gb:g} GiB, {machine.system}, load average {machine.load_1m:g} at the end. Python {machine.python},"
        f" {versions}.\n",
        f"    {command}\n",
        *(_table(*table) for table in tables),
        "## What this does not show\n",
        "\n".join(f"- {caveat}" for caveat in caveats) + "\n",
    ]
    return "\n".join(parts)


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [
        f"## {caption}\n",
        "| " + " | ".join(map(_escaped, columns)) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(_escaped(text(value)) for value in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def text(value: Cell) -> str:
    """A number with three significant digits, grouped; – for none."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{DIGITS}g}"


def _escaped(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
