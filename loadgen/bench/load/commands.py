"""`weir bench load`: the load generator against any server that answers Weir's requests, or those of the rival stacks."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, cast

import msgspec
import typer
import uvloop

from loadgen.bench.children import BenchError
from loadgen.bench.load.job import PAYLOADS, LoadJob, Payload
from loadgen.bench.load.page import load_page, notes, percentiles_table, runs_table
from loadgen.bench.load.progress import Step, steps
from loadgen.bench.load.result import BUSY_SHARE, LoadOptions, LoadResult, Run, Scenario, WrkCheck, find_knee
from loadgen.bench.load.run import Watched, run_load
from loadgen.bench.load.scenarios import check_wrk, run_ceiling, search_rate
from loadgen.bench.outputs import check_outputs
from loadgen.bench.processes import tree
from loadgen.bench.terminal import HtmlOut, JsonOut, Quick, end_by_signal, one_line_errors, print_caveats, print_table, write
from loadgen.bench.wrk import missing_wrk
from loadgen.sender import SendError, Target
from models.machine import machine

OFFLINE_ROWS, OFFLINE_CONNECTIONS = 256, 4
SEARCH_STEPS = 7  # the rate is within 1 % of the capacity then
PERCENTILE_COLUMNS_MAX = 5  # runs that the terminal's table of percentiles has room for


class ScenarioName(StrEnum):
    closed = "closed"
    open = "open"
    single = "single-stream"
    server = "server"
    offline = "offline"


class Arrivals(StrEnum):
    poisson = "poisson"
    constant = "constant"


def register(app: typer.Typer) -> None:
    """Add `load` to `weir bench` (entry point group weir.bench)."""
    app.command("load")(load)


def load(
    url: Annotated[str, typer.Option(help="Where the server listens (plain http).")],
    key: Annotated[str, typer.Option(help="Its key.", envvar="WEIR_KEY")] = "",
    payload: Annotated[str, typer.Option(help="weir (/v1/score), stack (/score) or null (replies are not read).")] = "weir",
    scenario: Annotated[ScenarioName, typer.Option(help="How requests arrive.")] = ScenarioName.closed,
    rate: Annotated[
        str | None, typer.Option(help='Requests per second of "open"; several make a sweep: 1000,2000,4000.')
    ] = None,
    arrivals: Annotated[Arrivals, typer.Option(help="Gaps of the open loop.")] = Arrivals.poisson,
    connections: Annotated[
        int | None, typer.Option(min=1, max=20_000, help="Users of a closed loop; most connections of an open one.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that send.")] = 1,
    rows: Annotated[int | None, typer.Option(min=1, max=10_000, help="Events per request.")] = None,
    seconds: Annotated[float, typer.Option(min=0.2, max=3_600, help="Measured time of a run.")] = 10.0,
    warm_seconds: Annotated[float, typer.Option(min=0, max=600, help="Warm-up before it, which counts for nothing.")] = 1.0,
    deadline: Annotated[float, typer.Option(min=0.01, max=300, help="Seconds; failures count as long as this.")] = 5.0,
    cards: Annotated[int, typer.Option(min=1, max=10_000_000, help="Cards that events are drawn from.")] = 10_000,
    merchants: Annotated[int, typer.Option(min=1, max=99_999, help="Merchants that events are drawn from.")] = 1_000,
    zipf: Annotated[float, typer.Option(min=0, max=10, help="Exponent of the draw of cards; 0 is uniform.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of draws and arrivals.")] = 1,
    p99_ms: Annotated[float, typer.Option(min=0.01, help='The bound of scenario "server", and of the knee of a sweep.')] = 10.0,
    ceiling: Annotated[bool, typer.Option("--ceiling/--no-ceiling", help="Measure the generator's own limit, too.")] = True,
    wrk: Annotated[bool, typer.Option("--wrk", help="Compare with wrk (closed loop).")] = False,
    realtime: Annotated[
        bool, typer.Option("--realtime/--no-realtime", help="An open loop's workers go before all others, where permitted.")
    ] = True,
    server_pid: Annotated[
        int | None, typer.Option(min=1, help="The server's process: its CPU and memory are reported.")
    ] = None,
    quick: Quick = False,
    json_out: JsonOut = None,
    html_out: HtmlOut = None,
) -> None:
    """Load a server: closed or open loop, one stream, the highest rate under a p99 bound, or offline."""
    with one_line_errors("load"):
        check_outputs(json=json_out, html=html_out)
        name: Scenario = scenario.value
        options = LoadOptions(
            url=url,
            payload=_payload(payload),
            scenario=name,
            rates=_rates(name, rate),
            arrivals=arrivals.value,
            connections=connections or {"single-stream": 1, "offline": OFFLINE_CONNECTIONS, "closed": 10}.get(name, 256),
            workers=workers,
            rows=rows or (OFFLINE_ROWS if name == "offline" else 1),
            warm_s=0.2 if quick else warm_seconds,
            seconds=min(seconds, 1.0) if quick else seconds,
            deadline_s=deadline,
            cards=cards,
            merchants=merchants,
            zipf=zipf,
            seed=seed,
            p99_bound_ms=p99_ms,
        )
        _check(options, wrk, server_pid)
        try:
            target = Target.parse(url, key)
        except SendError as error:
            raise BenchError(str(error)) from None
        end_by_signal()
        result = uvloop.run(_measure(options, target, ceiling, wrk, server_pid, 3 if quick else SEARCH_STEPS, realtime))
        _print(result)
        write(result, json_out, html_out, load_page(result))
    if any(run.void or (run.failures and name != "server") for run in result.runs):
        raise typer.Exit(1)


async def _measure(
    options: LoadOptions, target: Target, ceiling: bool, wrk: bool, server_pid: int | None, search_steps: int, realtime: bool
) -> LoadResult:
    job = LoadJob(
        host=target.host,
        port=target.port,
        base_path=target.base_path,
        key=target.key,
        payload=cast(Payload, options.payload),
        rows=options.rows,
        connections=options.connections,
        arrivals=cast(Literal["constant", "poisson"], options.arrivals),
        seed=options.seed,
        warm_s=options.warm_s,
        seconds=options.seconds,
        deadline_s=options.deadline_s,
        cards=options.cards,
        merchants=options.merchants,
        zipf=options.zipf,
        workers=min(options.workers, options.connections),
        realtime=realtime,
    )
    watched = None if server_pid is None else Watched(lambda: tree(server_pid))
    n_runs = search_steps + 1 if options.scenario == "server" else max(1, len(options.rates))
    best: Run | None = None
    with steps(n_runs + ceiling + wrk) as step:
        if options.scenario == "server":
            best, runs = await _search(job, options, watched, step, search_steps)
        else:
            runs = []
            for rate in options.rates or (None,):
                step(options.scenario if rate is None else f"{options.scenario}, {rate:g}/s")
                runs.append(await run_load(options.scenario, msgspec.structs.replace(job, rate=rate), watched))
        alone = compared = None
        if ceiling:
            step("the generator's ceiling")
            alone = await run_ceiling(
                msgspec.structs.replace(job, connections=min(job.connections, 64), seconds=min(job.seconds, 3.0))
            )
        if wrk:
            step("wrk")
            compared = await check_wrk(msgspec.structs.replace(job, rate=None))
    return _result(options, runs, best, alone, compared)


async def _search(
    job: LoadJob, options: LoadOptions, watched: Watched | None, step: Step, search_steps: int
) -> tuple[Run | None, list[Run]]:
    """The capacity by a closed loop first; then rates below it."""
    step("capacity")
    users = msgspec.structs.replace(job, connections=min(job.connections, 64), rate=None)
    capacity = await run_load("closed", users, watched)
    if not capacity.requests:
        example = capacity.errors[0].example if capacity.errors else "no reply"
        raise BenchError(f"the server answered nothing: {example}")

    async def measure(rate: float) -> Run:
        step(f"{rate:,.0f}/s")
        return await run_load("server", msgspec.structs.replace(job, rate=rate), watched)

    best, runs = await search_rate(measure, capacity.requests_per_s, options.p99_bound_ms * 1_000, search_steps)
    return best, [capacity, *runs]


def _result(
    options: LoadOptions, runs: list[Run], best: Run | None, alone: Run | None, compared: WrkCheck | None
) -> LoadResult:
    draw = f"Zipf with exponent {options.zipf:g}" if options.zipf else "drawn evenly"
    people = f"{options.cards:,} cards {draw}, {options.merchants:,} merchants"
    mix = f"{options.payload} requests of {options.rows} event(s), {people}"
    swept = options.scenario == "open" and len(options.rates) > 1
    return LoadResult(
        kind="bench load",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        options=options,
        machine=machine(),
        payload_mix=mix,
        runs=runs,
        best_per_s=None if best is None else best.offered_per_s,
        knee_per_s=find_knee(runs, options.p99_bound_ms * 1_000) if swept else None,
        ceiling=alone,
        wrk=compared,
        caveats=_caveats(options, runs, alone),
    )


def _caveats(options: LoadOptions, runs: list[Run], alone: Run | None) -> list[str]:
    found = ["The generator runs on this machine; what it and a local server take from each other is in the figures."]
    if any(run.offered_per_s is None for run in runs):
        found.append(
            "A closed loop waits for the server: latency × rate is the number of users, and pauses are seen once per user."
        )
    if any(run.offered_per_s is not None for run in runs):
        found.append("Of the open loop, latency counts from the time that a request was due, whoever made it wait.")
    if any(run.realtime for run in runs):
        found.append("Workers of the open loop had real-time priority: what else runs on their cores waits while they work.")
    if any(run.client_cpu_share >= BUSY_SHARE for run in runs):
        found.append("In some runs a worker used over 90 % of a core: the server may have had more to give (--workers).")
    top = max(run.requests_per_s for run in runs)
    if alone is not None and top > 0.8 * alone.requests_per_s:
        found.append(
            f"The generator itself reaches {alone.requests_per_s:,.0f} requests/s: the measured rate is near its ceiling."
        )
    if options.payload == "null":
        found.append("Replies were not read.")
    return found


def _print(result: LoadResult) -> None:
    print_table(*runs_table(result.runs))
    typer.echo()
    print_table(*percentiles_table(result.runs[-PERCENTILE_COLUMNS_MAX:]))
    if result.options.scenario == "server":
        best = "none" if result.best_per_s is None else f"{result.best_per_s:,.0f} requests/s"
        typer.echo(f"\nhighest rate with p99 ≤ {result.options.p99_bound_ms:g} ms: {best}")
    if result.knee_per_s is not None:
        typer.echo(f"\nknee: keeps up with p99 ≤ {result.options.p99_bound_ms:g} ms up to {result.knee_per_s:,.0f} requests/s")
    for run in result.runs:
        if run.server is not None:
            s = run.server
            typer.echo(
                f"server: {s.cpu_ms_per_request:.4f} ms CPU per request, {s.cpu_share:.0%} of a core, {s.pss_mb:,.0f} MiB"
            )
    if result.ceiling is not None:
        typer.echo(f"the generator's own ceiling: {result.ceiling.requests_per_s:,.0f} requests/s")
    if result.wrk is not None:
        w = result.wrk
        typer.echo(
            f"beside wrk: {w.own_per_s:,.0f} requests/s ours, {w.wrk_per_s:,.0f} wrk's, ratio {w.ratio:.3g}"
            f" ({w.ratios[0]:.2f} to {w.ratios[-1]:.2f} in {len(w.ratios)} rounds): {w.verdict}"
        )
    print_caveats(notes(result))


def _payload(text: str) -> str:
    if text not in PAYLOADS[:2] and text != "null":
        raise BenchError(f"--payload {text[:40]}: expected weir, stack or null")
    return text


def _rates(scenario: Scenario, text: str | None) -> tuple[float, ...]:
    """The rates of "1000,2000". Raises BenchError."""
    if scenario != "open":
        if text is not None:
            raise BenchError(f"--rate {text}: the scenario {scenario} finds its own; --scenario open takes rates")
        return ()
    if text is None:
        raise BenchError("--scenario open needs --rate, requests per second: --rate 1000 or --rate 1000,2000,4000")
    try:
        rates = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        rates = ()
    if not rates or not all(0 < value <= 1e6 for value in rates):
        raise BenchError(f"--rate {text}: expected requests per second above 0, at most 1000000, with commas between them")
    return rates


def _check(options: LoadOptions, wrk: bool, server_pid: int | None) -> None:
    """Raises BenchError on what does not go together."""
    if options.cards > 99_999_999:
        raise BenchError(f"--cards {options.cards}: ids have room for 99,999,999")
    if wrk:
        if (reason := missing_wrk()) is not None:
            raise BenchError(f"--wrk: {reason}")
        if options.scenario != "closed":
            raise BenchError("--wrk compares closed loops; --scenario closed")
    if server_pid is not None and not Path(f"/proc/{server_pid}").is_dir():
        raise BenchError(f"--server-pid {server_pid}: there is no such process")
