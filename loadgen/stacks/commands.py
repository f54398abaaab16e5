"""`python -m loadgen.stacks`: which stacks there are, building them, checking that they all do the same work."""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from loadgen.bench.children import BenchError
from loadgen.bench.terminal import one_line_errors, print_table, say
from loadgen.page import Cell
from loadgen.stacks.build import build_stack, make_venv
from loadgen.stacks.check import Finding, check_stack
from loadgen.stacks.database import database
from loadgen.stacks.launch import StackSettings, start_stack
from loadgen.stacks.manifest import DATA, Built, Stack, lacking, load_built, load_stack, load_stacks, missing, missing_to_build
from loadgen.stacks.own import OWN, load_own, measure_own
from loadgen.stacks.reference import Reference
from loadgen.stacks.seed import Population, seed_database
from loadgen.stacks.weights import export_models

MODELS = "models"  # folder of the exported models, beside the builds
CHECK_CARDS = 1_000
OWN_ENVIRONMENT = ("torch",)  # packages that stay out of this environment

Names = Annotated[list[str] | None, typer.Argument(help="Stacks; all of them if none is named.", show_default=False)]
Again = Annotated[bool, typer.Option("--again", help="Build from nothing, whatever is there: the time of a first build.")]
DataDir = Annotated[Path, typer.Option(help="Where builds, models and the stacks' environment are.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The rival stacks: list, build, check.")


def main() -> None:
    """The command line."""
    app()


@app.command("list")
def list_stacks(data_dir: DataDir = DATA) -> None:
    """Each stack: what it answers, whether it can run here, and if not, why."""
    with one_line_errors("stacks"):
        rows: list[list[Cell]] = []
        reasons: dict[str, str] = {}
        for stack in load_stacks():
            reason, built = missing(stack, data_dir), load_built(stack, data_dir)
            if reason:
                reasons[stack.name] = reason
            answers = ", ".join(workload.removeprefix("image-") for workload in stack.workloads)
            rows.append([stack.name, stack.title, answers, *_weight(built), "skipped" if reason else "ready"])
        for arm, program in OWN.items():
            own = load_own(arm, data_dir)
            rows.append([arm, f"{program.name} of make go", "", *_weight(own), "not timed" if own is None else "timed"])
        print_table(
            "Rival stacks, and the programs of Weir's own that are compiled",
            ("arm", "what", "answers", "MB", "built, s", "CPU, s", "state"),
            rows,
        )
        _say_reasons(reasons)


@app.command()
def build(names: Names = None, data_dir: DataDir = DATA, again: Again = False) -> None:
    """Install and build what is missing; a stack whose tools are not here is skipped with the reason.

    Weir's own programs (weir go, weir-go) are built beside, from an empty cache, for the time that it takes.
    """
    with one_line_errors("stacks"):
        own = [arm for arm in OWN if not names or arm in names]
        rivals = [name for name in names or () if name not in OWN]
        stacks = _named(rivals) if rivals or not names else []
        data_dir.mkdir(parents=True, exist_ok=True)
        failed = not _fill_environment(stacks, data_dir, again=again)
        for arm in own:
            failed = not _time_own(arm, data_dir, again=again) or failed
        for stack in stacks:
            if reason := missing_to_build(stack, data_dir):
                say(f"{stack.name} is skipped: {reason}")
                continue
            try:
                built = build_stack(stack, say, data_dir, again=again)
            except BenchError as error:
                say(f"failed: {error}")
                failed = True
                continue
            if built is None:
                say(f"{stack.name}: built from these sources already, skipped")
            else:
                took = built.seconds if built.rebuild_s is None else built.rebuild_s
                say(f"{stack.name}: {took:,.1f} s, {built.installed_bytes / 1e6:,.0f} MB")
    if failed:
        raise typer.Exit(1)


@app.command()
def check(
    names: Names = None,
    data_dir: DataDir = DATA,
    database_url: Annotated[str | None, typer.Option("--database", help="A Postgres; by default an embedded one.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="STACK_WORKERS.")] = 1,
) -> None:
    """Start each stack that is there and compare its answers and its errors with the reference's. Exit code 1: one differs."""
    with one_line_errors("stacks"):
        stacks = _named(names)
        models = export_models(data_dir / MODELS)
        population = Population.make(CHECK_CARDS)
        reference = Reference(population, models)
        rows: list[list[Cell]] = []
        reasons: dict[str, str] = {}
        failures: list[tuple[str, Finding]] = []
        with database(database_url) as url, tempfile.TemporaryDirectory(prefix="weir-stacks-") as logs:
            asyncio.run(seed_database(url, population))
            settings = StackSettings(secrets.token_urlsafe(24), url, models, workers)
            for stack in stacks:
                if reason := missing(stack, data_dir):
                    reasons[stack.name] = reason
                    rows.append([stack.name, None, None, None, "skipped"])
                    continue
                say(f"checking {stack.name}")
                row, found = _check_one(stack, settings, Path(logs), data_dir, reference)
                rows.append(row)
                failures += [(stack.name, finding) for finding in found]
        title = f"Checked against onnxruntime in this process, STACK_WORKERS={workers}"
        print_table(title, ("arm", "checks", "ready, s", "took, s", "state"), rows)
        _say_reasons(reasons)
        for name, finding in failures:
            say(f"{name}: {finding.what}: {finding.problem}")
    if failures:
        raise typer.Exit(1)


def _time_own(arm: str, data_dir: Path, *, again: bool) -> bool:
    """Time the build of one of Weir's own programs. False: it failed."""
    if reason := lacking("go", data_dir):
        say(f"{arm} is not timed: {reason}")
        return True
    try:
        built = measure_own(arm, say, data_dir, again=again)
    except BenchError as error:
        say(f"failed: {error}")
        return False
    say(
        f"{arm}: timed for these sources already, skipped"
        if built is None
        else f"{arm}: {built.seconds:,.1f} s, {built.cpu_s:,.1f} s of CPU"
    )
    return True


def _fill_environment(stacks: Sequence[Stack], data_dir: Path, *, again: bool) -> bool:
    """Install what stacks need and this environment must not have. False: that failed, and others can be built all the same."""
    own = [stack for stack in stacks if any(f"python:{package}" in stack.needs for package in OWN_ENVIRONMENT)]
    if not own or not (again or any(missing_to_build(stack, data_dir) for stack in own)):
        return True
    try:
        say(f"{make_venv(say, data_dir, again=again).seconds:,.0f} s for packages")
    except BenchError as error:
        say(f"failed: {error}")
        return False
    return True


def _check_one(
    stack: Stack, settings: StackSettings, logs: Path, data_dir: Path, reference: Reference
) -> tuple[list[Cell], list[Finding]]:
    """Its row, and what was wrong."""
    started = time.perf_counter()
    try:
        child = start_stack(stack, settings, logs, data_dir)
    except BenchError as error:
        return [stack.name, 0, None, None, "does not start"], [Finding("its start", str(error))]
    try:
        findings = check_stack(stack, child.url, settings.key, reference)
    finally:
        child.stop()
    wrong = [finding for finding in findings if finding.problem is not None]
    state = f"{len(wrong)} wrong" if wrong else "agrees"
    return [stack.name, len(findings), child.ready_s, time.perf_counter() - started, state], wrong


def _named(names: list[str] | None) -> list[Stack]:
    return [load_stack(name) for name in names] if names else load_stacks()


def _weight(built: Built | None) -> tuple[Cell, Cell, Cell]:
    """MB installed, seconds of the first build, and of its CPU."""
    return (None, None, None) if built is None else (built.installed_bytes / 1e6, built.seconds, built.cpu_s)


def _say_reasons(reasons: Mapping[str, str]) -> None:
    """Each skipped stack with its reason in full, below the table."""
    for name, reason in reasons.items():
        typer.echo(f"{name} is skipped: {reason}")
