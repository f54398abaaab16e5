"""A soak from the first process to the last comparison. Everything it starts ends with it."""

import asyncio
import contextlib
import importlib
import importlib.util
import json
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.plan import Plan, compile_plan
from features.spec import load_spec
from features.transaction import Transaction
from loadgen.bench.children import BenchError, add_key
from loadgen.bench.stores import missing_stores
from loadgen.soak.book import Book, Fault
from loadgen.soak.check import Recount, Told, check_events, check_ledger, check_profiles
from loadgen.soak.faults import Faults
from loadgen.soak.holdings import ledger_rows, postgres_profiles, redis_profiles
from loadgen.soak.journal_file import JournalFileError
from loadgen.soak.load import Load
from loadgen.soak.places import Life, RunDelay, Service, Store
from loadgen.soak.result import Check, Done, Latency, Memory, SoakOptions, SoakResult
from loadgen.soak.slope import fit, pooled
from models.generator import EVENTS_MIN, generate
from models.machine import machine

SPEC = "cards"
SETTINGS = (
    "time.clock=stream", "time.past_ms_max=315360000000", "l1.bytes_max=2097152", "l2.cache_bytes=8388608",
    "l2.flush_interval_ms=1000", "redis.deadline_ms=2000", "postgres.deadline_ms=2000", "journal.segment_bytes=4194304",
    "decide.review_threshold=0.2", "shadow.share=0.02", "console.feed_interval_ms=500",
)  # fmt: skip
SAMPLE_S = 1.0
SAY_S = 30.0
REPEAT_ROWS = 250
LEFT_OUT_S, LEFT_OUT_SHARE = 120.0, 0.5  # of a life: the smaller of both; caches fill
SPAN_S_MIN = 90.0  # of the samples that are left; of less nothing is said
ENTITIES_MAX = 5_000  # whose counts are compared over HTTP: cards and merchants first, then others by chance
STARVED = "no core to run on"
STARVED_SHARE = 0.25  # of a second that the service or a store waited for a core
STARVED_AFTER_S = 5.0  # a deadline of 2 s, a probe each second, and what was missed
STARVED_EXPLAINS = ("degraded redis", "degraded postgres", "degraded l2", "not settled", "held back", "deadline")
AT_ONCE = 8  # requests of the comparison
ROWS_AT_ONCE = 256  # rows made into objects between two turns of the loop: 2 ms
MAY_NOT = ("mismatch", "lost", "ahead")  # results of shadow reads


async def run_soak(options: SoakOptions, work_dir: Path | None, say: Callable[[str], None]) -> SoakResult:
    """Raises BenchError."""
    if (reason := missing_stores()) is not None:
        raise BenchError(f"a soak needs both stores: {reason}")
    with contextlib.ExitStack() as stack:
        work = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-soak-", dir=work_dir, ignore_cleanup_errors=True))
        )
        book, rng = Book(), random.Random(options.seed)
        stores = []
        for name in ("redis", "postgres"):
            stores.append(Store(name, work / name, work))
            stack.callback(stores[-1].end)
        data_dir = work / "data"
        key = add_key(data_dir)
        rivals = _rivals(data_dir)
        settings = [*SETTINGS, *(store.setting for store in stores), *options.settings]
        service = Service(data_dir, work, settings, book.clock_s)
        stack.callback(service.end)
        table = await asyncio.to_thread(_generate, options)
        await asyncio.to_thread(service.start)
        book.start()
        service.lives[0].began_s = -service.lives[0].ready_s
        load = Load(service.url, key, _transactions(table), options.rate, book, rng)
        faults = Faults(load, service, stores, rivals, rng, say)
        plan = compile_plan(load_spec(SPEC))
        checks = await _run(options, load, faults, service, plan, say)
        checks += await _compare(plan, data_dir, book, stores, say)
        return _result(options, book, service, checks, bool(rivals))


def _rivals(data_dir: Path) -> list[str]:
    """Models to swap in, where they can be made."""
    if importlib.util.find_spec("onnx") is None:
        return []
    names: list[str] = importlib.import_module("loadgen.soak.rival").make_rivals(data_dir / "models", SPEC, 2)
    return names


def _generate(options: SoakOptions) -> pa.Table:
    n_rows = max(int(options.minutes * 60 * options.rate * 1.2) + 100, EVENTS_MIN)
    return generate(n_rows, seed=options.seed, n_cards=options.cards)


def _transactions(table: pa.Table) -> Iterator[Transaction]:
    """Its rows as objects, made little by little."""
    fields = Transaction.__struct_fields__
    for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
        for row in batch.to_pylist():
            yield Transaction(**{field: row[field] for field in fields if row[field] is not None})


async def _run(
    options: SoakOptions, load: Load, faults: Faults, service: Service, plan: Plan, say: Callable[[str], None]
) -> list[Check]:
    """Load and faults side by side, then the checks that need the service; it is stopped at the end."""
    book = load.book
    seconds = options.minutes * 60
    n_restarts = round(seconds / options.life_s)
    restarts = [seconds * (number + 1) / (n_restarts + 1) for number in range(n_restarts)]
    watching = asyncio.create_task(_watch(service, faults.stores, book, say))
    loading = asyncio.create_task(load.run())
    try:
        faulting = asyncio.create_task(faults.run(seconds, options.rest_s, restarts))
        await asyncio.wait((loading, faulting), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            faulting.cancel()
            await loading
            raise BenchError("the load ended before its time")
        await faulting  # raises what it raised
        load.stopping.set()
        await loading
        watching.cancel()  # what follows is another load
        say(f"{book.clock_s():6.0f} s  comparing")
        checks = await _ask_again(load, faults, plan)
        code = await asyncio.to_thread(service.stop, signal.SIGTERM)
        checks.append(Check("exit code of the last stop", 1, [] if code == 0 else [f"{code}"]))
        return checks
    finally:
        load.give_up()
        for task in (watching, loading, faulting):
            task.cancel()
        await asyncio.gather(watching, loading, faulting, return_exceptions=True)


async def _watch(service: Service, stores: Sequence[Store], book: Book, say: Callable[[str], None]) -> None:
    said, delay = 0.0, RunDelay()
    starved: Fault | None = None
    while True:
        service.sample()
        share = delay.share([*service.pids(), *(pid for store in stores for pid in store.pids())])
        if share > STARVED_SHARE:
            if starved is None or book.clock_s() > starved.ended_s:
                starved = book.begin(STARVED, STARVED_EXPLAINS)
                starved.began_s -= SAMPLE_S
            starved.ended_s = book.clock_s() + STARVED_AFTER_S
            starved.note = f"waited for a core for {share:.0%} of a second"
        if book.clock_s() - said > SAY_S:
            said = book.clock_s()
            samples = service.lives[-1].samples
            memory = f"{samples[-1].rss_mib:.0f} MiB" if samples else "starting"
            n_open = sum(incident.cause is None for incident in book.explained())
            say(f"{said:6.0f} s  {len(book.acks):,} acknowledged, {memory}, {n_open} unexplained, {book.n_violations} wrong")
        await asyncio.sleep(SAMPLE_S)


async def _ask_again(load: Load, faults: Faults, plan: Plan) -> list[Check]:
    """Every decision again, every count, what shadow reads found."""
    book = load.book
    before = book.n_violations
    async with load.opened():
        await faults.settle()
        txs = list(book.sent.values())
        parts = [txs[start : start + REPEAT_ROWS] for start in range(0, len(txs), REPEAT_ROWS)]
        for start in range(0, len(parts), AT_ONCE):
            await asyncio.gather(*map(load.batch, parts[start : start + AT_ONCE]))
        wrong = book.n_violations - before
        checks = [Check("decisions asked again", len(txs), [f"{wrong} differ, see the violations"] if wrong else [])]
        checks.append(await _recount(load, plan))
        _, tiers = await load.ask("GET", "/v1/tiers")
        bad = [f"{t['name']}: {t['shadow']}" for t in tiers["tiers"] if any(t.get("shadow", {}).get(what) for what in MAY_NOT)]
        checks.append(Check("shadow reads", sum(t.get("shadow", {}).get("reads", 0) for t in tiers["tiers"]), bad))
    return checks


async def _recount(load: Load, plan: Plan) -> Check:
    """What GET /v1/entities counts, against what the clients count."""
    recount = Recount(plan, load.book)
    problems: list[str] = []
    first = [pair for pair in recount.entities if pair[0] in ("card", "merchant")]
    others = [pair for pair in recount.entities if pair[0] not in ("card", "merchant")]
    random.Random(load.book.counts["scored"]).shuffle(others)
    chosen = (first + others)[:ENTITIES_MAX]

    async def look(kind: str, entity: str) -> str:
        status, shown = await load.ask("GET", f"/v1/entities/{kind}/{entity}")
        return recount.differs(kind, entity, shown) if status == 200 else f"{kind} {entity}: {status} {shown}"

    for start in range(0, len(chosen), AT_ONCE):
        problems += filter(None, await asyncio.gather(*(look(*pair) for pair in chosen[start : start + AT_ONCE])))
    return Check("counts of entities against a recount", len(chosen), problems)


async def _compare(plan: Plan, data_dir: Path, book: Book, stores: Sequence[Store], say: Callable[[str], None]) -> list[Check]:
    """The journal, the ledger and both stores, when nobody writes any more."""
    urls = {store.name: store.url for store in stores}
    try:
        told = await asyncio.to_thread(Told, plan, data_dir / "journal", book)
    except JournalFileError as error:
        return [Check("the journal's files", 0, [str(error)])]
    say(f"{book.clock_s():6.0f} s  {told.n_entries:,} entries of the journal read")
    rows = await ledger_rows(urls["postgres"])
    profiles = told.profiles()
    return [
        Check("acknowledged = journaled", len(told.decisions), check_events(book, told)),
        Check("journaled = in the ledger", len(rows), check_ledger(book, told, rows)),
        Check("profiles in redis", len(profiles), check_profiles("redis", profiles, await redis_profiles(urls["redis"]))),
        Check(
            "profiles in postgres",
            len(profiles),
            check_profiles("postgres", profiles, await postgres_profiles(urls["postgres"])),
        ),
    ]


def _result(options: SoakOptions, book: Book, service: Service, checks: list[Check], has_rivals: bool) -> SoakResult:
    incidents = book.explained()
    explained = Counter(f"{i.kind}, during {i.cause}" for i in incidents if i.cause is not None)
    unexplained = [incident for incident in incidents if incident.cause is None]
    memory = [memory_of(life, options.slope_max) for life in service.lives if life.ending]
    together = pooled([m.rss for m in memory if m.verdict != "too short"])
    verdict = together.verdict(options.slope_max)
    is_good = not unexplained and not book.n_violations and not any(check.problems for check in checks) and verdict != "grows"
    logged: Counter[str] = Counter()
    for line in service.errors_logged():
        with contextlib.suppress(ValueError):
            logged[str(json.loads(line).get("event"))] += 1
    return SoakResult(
        kind="bench soak",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        options=options,
        machine=machine(),
        seconds=round(book.clock_s(), 1),
        counts={"acknowledged": len(book.acks), "labelled": len(book.labels), **dict(sorted(book.counts.items()))},
        faults=[Done(f.name, round(f.began_s, 2), round(f.ended_s - f.began_s, 2), f.note) for f in book.faults],
        incidents=dict(explained),
        unexplained=unexplained[:200],
        violations=book.violations,
        n_violations=book.n_violations,
        logged=dict(logged),
        checks=[Check(c.name, c.n, c.problems[:20]) for c in checks],
        memory=memory,
        pooled=together,
        verdict=verdict,
        calm=_latency(book, calm=True),
        faulty=_latency(book, calm=False),
        ok=is_good,
        caveats=[
            "Service, stores, load and faults share one machine: latencies compare faults with calm, and say no more.",
            "A slope is one of resident memory: what the allocator keeps counts, what was swapped out does not.",
            "No network, no power failure, no full disk; one spec and a generated stream.",
            *([] if has_rivals else ["No models were swapped: onnx is not installed."]),
        ],
    )


def memory_of(life: Life, slope_max: float) -> Memory:
    """Slopes of one life, its beginning left out."""
    watched_s = life.samples[-1].at_s - life.began_s if life.samples else 0.0  # the last life is not, while things are compared
    left_out = min(LEFT_OUT_S, LEFT_OUT_SHARE * watched_s)
    kept = [sample for sample in life.samples if sample.at_s >= life.began_s + left_out]
    at = [sample.at_s for sample in kept]
    rss = fit(at, [sample.rss_mib for sample in kept])
    files, threads = fit(at, [float(s.files) for s in kept]), fit(at, [float(s.threads) for s in kept])
    is_long = bool(kept) and at[-1] - at[0] >= SPAN_S_MIN
    return Memory(life, round(left_out, 1), rss, files, threads, rss.verdict(slope_max) if is_long else "too short")


def _latency(book: Book, *, calm: bool) -> Latency:
    chosen = [
        seconds
        for due, seconds in zip(book.latency_at_s, book.latency_s, strict=True)
        if book.is_calm(due, due + seconds) == calm
    ]
    if not chosen:
        return Latency(0, 0, 0, 0)
    values: Any = np.array(chosen) * 1e6
    return Latency(len(chosen), int(np.percentile(values, 50)), int(np.percentile(values, 99)), int(values.max()))
