"""`weir bench soak`: the command line, its tables on the terminal and its page."""

import signal
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer
import uvloop

from loadgen.bench.markdown import markdown_page
from loadgen.bench.outputs import check_outputs
from loadgen.bench.terminal import (
    HtmlOut,
    JsonOut,
    MarkdownOut,
    SettingsIn,
    WorkDir,
    one_line_errors,
    print_caveats,
    print_table,
    say,
    write,
)
from loadgen.page import Cell, Figure, Table, machine_table, page
from loadgen.soak.result import SoakOptions, SoakResult
from loadgen.soak.run import run_soak
from loadgen.soak.slope import Slope

SHOWN = 20  # of what went wrong


def register(app: typer.Typer) -> None:
    """Add `soak` to `weir bench` (entry point group weir.bench)."""
    app.command("soak")(soak)


def soak(
    minutes: Annotated[float, typer.Option(min=0.2, help="Length of the load.")] = 30.0,
    rate: Annotated[float, typer.Option(min=1, help="Transactions per second, on a schedule.")] = 150.0,
    seed: Annotated[int, typer.Option(help="Of the stream and of the order of faults.")] = 1,
    cards: Annotated[int, typer.Option(min=10, help="Cards of the stream.")] = 1_000,
    rest: Annotated[float, typer.Option(min=0, help="Seconds between two faults.")] = 4.0,
    life: Annotated[
        float, typer.Option(min=3, help="Seconds between two restarts of the service; longer than the run: none.")
    ] = 600.0,
    slope_max: Annotated[float, typer.Option(min=0, help="MiB an hour above which resident memory is said to grow.")] = 20.0,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run of half a minute; its slopes mean nothing.")] = False,
    work_dir: WorkDir = None,
    settings: SettingsIn = None,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
    markdown_out: MarkdownOut = None,
) -> None:
    """A long run under load with outages, toggles, swaps, kills: no unexplained error, exact counts, flat memory."""
    with one_line_errors("soak"):
        check_outputs(json=json_out, html=html_out, markdown=markdown_out)
        options = SoakOptions(
            minutes=0.5 if quick else minutes,
            rate=min(rate, 60.0) if quick else rate,
            seed=seed,
            cards=min(cards, 100) if quick else cards,
            rest_s=0.2 if quick else rest,
            life_s=10.0 if quick else life,
            slope_max=slope_max,
            settings=tuple(settings or ()),
        )
        # As Ctrl-C: whatever was started, sleeping owners of stores among them, ends with this.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        result = uvloop.run(run_soak(options, work_dir, say))
        for table in tables(result):
            print_table(*table)
            typer.echo()
        for line in _wrong(result):
            typer.echo(line)
        print_caveats(result.caveats)
        write(result, json_out, html_out, _page(result))
        if markdown_out is not None:
            markdown_out.write_text(soak_markdown(result), encoding="utf-8")
    if not result.ok:
        raise typer.Exit(1)


def _wrong(result: SoakResult) -> list[str]:
    """Everything that makes the run a failure, one line each."""
    lines = [f"unexplained: {i.kind} at {i.began_s:.2f} to {i.ended_s:.2f} s: {i.detail}" for i in result.unexplained[:SHOWN]]
    lines += [f"wrong: {text}" for text in result.violations[:SHOWN]]
    lines += [f"wrong: {check.name}: {problem}" for check in result.checks for problem in check.problems[:SHOWN]]
    if result.verdict == "grows":
        lines.append(f"memory grows: {_interval(result.pooled)} MiB an hour")
    return lines


def tables(result: SoakResult) -> list[Table]:
    """What was compared, memory by life, what was done, which incidents it explains, latency."""
    checks: list[Sequence[Cell]] = [(c.name, c.n, len(c.problems)) for c in result.checks]
    checks.append(
        ("incidents without a cause", sum(result.incidents.values()) + len(result.unexplained), len(result.unexplained))
    )
    checks.append(("answers that no fault excuses", result.counts["acknowledged"], result.n_violations))
    lives: list[Sequence[Cell]] = [
        (
            number + 1, round(m.life.ended_s - m.life.began_s, 1), m.life.ending, m.life.ready_s,
            m.life.samples[-1].rss_mib if m.life.samples else None, m.rss.n, m.rss.n_effective, _interval(m.rss), m.verdict,
        )
        for number, m in enumerate(result.memory)
    ]  # fmt: skip
    others: list[Sequence[Cell]] = [
        (number + 1, m.life.samples[-1].files, _interval(m.files), m.life.samples[-1].threads, _interval(m.threads))
        for number, m in enumerate(result.memory)
        if m.life.samples
    ]
    lives.append(("all", round(result.seconds, 1), None, None, None, result.pooled.n, result.pooled.n_effective,
                  _interval(result.pooled), result.verdict))  # fmt: skip
    times: dict[str, list[float]] = {}
    for fault in result.faults:
        times.setdefault(fault.name, []).append(fault.seconds)
    causes: Counter[str] = Counter()
    for name, n in result.incidents.items():
        causes[name.partition(", during ")[2]] += n
    done: list[Sequence[Cell]] = [(name, len(s), max(s), causes[name]) for name, s in sorted(times.items())]
    latency: list[Sequence[Cell]] = [
        (name, one.n, one.p50, one.p99, one.max) for name, one in (("calm", result.calm), ("during faults", result.faulty))
    ]
    columns = ("life", "s", "ended by", "ready, s", "MiB at end", "samples", "worth", "MiB/h (95 %)", "verdict")
    found: list[Table] = [
        ("Compared", ("what", "n", "wrong"), checks),
        ("Memory, by life of the process", columns, lives),
        ("Open files and threads", ("life", "files at end", "files/h (95 %)", "threads at end", "threads/h (95 %)"), others),
        ("Done to it, and the incidents that this explains", ("what", "times", "longest, s", "incidents"), done),
        ("Single requests, µs from when each was due", ("what", "n", "p50", "p99", "max"), latency),
        ("Sent and received", ("what", "n"), list(result.counts.items())),
        ("Errors in the service's log, not judged", ("what", "n"), list(result.logged.items())),
    ]
    return [table for table in found if table[2]]


def _interval(slope: Slope) -> str:
    if slope.per_hour is None:
        return "–"
    if slope.low is None or slope.high is None:
        return f"{slope.per_hour:.1f} (too short)"
    return f"{slope.per_hour:.1f} ({slope.low:.1f} to {slope.high:.1f})"


def soak_markdown(result: SoakResult) -> str:
    """The result as a page for docs/results, what did not hold first."""
    options = result.options
    wrong: list[Table] = [("What did not hold", ("what",), [(line,) for line in _wrong(result)])]
    memory = f"{result.verdict}, {_interval(result.pooled)} MiB an hour"
    lead = (
        f"{_lead(result)} A restart each {options.life_s:g} s, a fault each {options.rest_s:g} s after the last has healed."
        f" It {'held' if result.ok else 'did not hold'}: {len(result.unexplained)} errors without a cause, memory {memory}"
        f" (95 %, goal at most {options.slope_max:g})."
    )
    command = f"weir bench soak --minutes {options.minutes:g} --rate {options.rate:g} --seed {options.seed}"
    command += "".join(f" --set {setting}" for setting in options.settings)
    found = [*(wrong if wrong[0][2] else []), *tables(result)]
    return markdown_page("Soak", lead, command, result.created, result.machine, found, result.caveats)


def _lead(result: SoakResult) -> str:
    return f"{result.options.rate:g} transactions a second for {result.options.minutes:g} minutes, {result.created}."


def _page(result: SoakResult) -> str:
    facts = [
        ("result", "held" if result.ok else "did not hold"),
        ("acknowledged", f"{result.counts['acknowledged']:,}"),
        ("without a cause", f"{len(result.unexplained)}"),
        ("memory", result.verdict),
    ]
    x = [round(s.at_s, 1) for m in result.memory for s in m.life.samples]
    y = [round(s.rss_mib, 2) for m in result.memory for s in m.life.samples]
    shapes = [
        {"type": "rect", "xref": "x", "yref": "paper", "x0": f.began_s, "x1": f.began_s + f.seconds, "y0": 0, "y1": 1,
         "fillcolor": "@c" if f.name.startswith("restart") else "@d", "opacity": 0.15, "line": {"width": 0}}
        for f in result.faults
    ]  # fmt: skip
    figure: Figure = {
        "data": [{"type": "scatter", "mode": "lines", "x": x, "y": y, "line": {"width": 1.5, "color": "@a"}}],
        "layout": {
            "shapes": shapes,
            "yaxis": {"title": {"text": "MiB"}},
            "xaxis": {"title": {"text": "s"}},
            "showlegend": False,
        },
    }
    wrong: list[Sequence[Cell]] = [(line,) for line in _wrong(result)]
    extra: list[Table] = [("What did not hold", ("what",), wrong)] if wrong else []
    return page("Weir bench soak", _lead(result), facts, [("Resident memory", "faults are shaded, restarts darker", figure)],
                [*extra, *tables(result), machine_table(result.machine)], result.caveats)  # fmt: skip
