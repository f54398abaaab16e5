"""Composition root: opens everything in order, ties it together, serves, and closes it in reverse order.

data directory → embedded servers → stores → journal → engine → HTTP (health only) → write-behind → recovery → everything
"""

import asyncio
import gc
import importlib
import importlib.metadata
import random
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import structlog
import uvloop

from features.plan import Plan, compile_plan
from features.spec import load_spec
from gocore.binding import usable_core
from models.card import MODEL_FILE, ModelCard, read_model
from models.registry import Registry
from models.scorer import Scorer
from service.allocator import keep_few_holes
from service.applied import Applied
from service.audit import Audit
from service.auth import KEY_FILE, KeyRing, Role, add_key
from service.bloom_cover import cover_events, cover_profiles
from service.clock import Clock
from service.compare import Comparisons
from service.connections import Connections, raise_open_files
from service.data_dir import DataDir, private_files
from service.decisions import Decisions
from service.dry_run import DryRun
from service.embedded import EmbeddedServers
from service.engine import Engine
from service.erasure import Erasures
from service.errors import StartError
from service.fastlane import FastLane
from service.fetch import Fetcher
from service.gauges import watch_engine, watch_settings
from service.handlers.protocol import HttpRunner
from service.handlers.router import build_web_app
from service.inference import open_inference
from service.journal import EPOCH_MAX, EPOCH_SHIFT, Journal, JournalError
from service.keeper import Keeper
from service.labels import Labels
from service.ledger_chunks import open_maker
from service.ledger_feed import LedgerFeed
from service.list_store import ListStore
from service.listeners import Listeners
from service.lists import Lists
from service.loop_lag import watch_loop
from service.metrics import Metrics
from service.model_setup import open_engine_of, open_models, policy_of
from service.model_state import find_champion
from service.partials import Partials
from service.pipeline import Pipeline
from service.quality import Quality
from service.recovery import Recovery
from service.recovery_progress import RecoveryProgress
from service.row_codec_go import open_codec
from service.score_calls import ScoreCalls
from service.scorer_switch import ScorerSwitch, with_last_scorer
from service.settings import DAY_MS, OtelSettings, Settings
from service.shadow import Shadow
from service.sizes import Sizes
from service.stores import Stores, check_against_journal, mark_behind, open_stores
from service.tier_switch import TierSwitch, read_enabled
from service.tiers.bloom import MaybeSet, RotatingMaybeSet
from service.tiers.l1 import L1
from service.touched import Touched
from service.tracing import Tracing
from service.write_behind import WriteBehind

log = structlog.get_logger(__name__)

FIRST_KEY = "first-admin"  # name of the key that the first start with --embedded makes
HTTP_STOP_DEADLINE_S = 3.0  # for requests under way, such as one whose body never ends
STOP_DEADLINE_S = 20.0  # for each of write-behind and the ledger; what is left is in the journal and replayed at the next start
HOUR_MS = 3_600_000
EPOCH_DAY_0 = 20_089  # days from 1970 to 2025: LSN epochs, 15 bits, last for 80 years and 40 starts a day
GC_THRESHOLD = 20_000  # containers allocated and not freed before the youngest generation is searched; Python's is 700
# s for which a busy event loop keeps the GIL from a thread that waits for it; Python's own is 5 ms, and a read of RocksDB
# waits twice. With L1 at a tenth of the cards that was 3,500 requests/s, with this 6,600, with 0.1 ms 5,600.
SWITCH_INTERVAL_S = 0.0005
PINNED_BESIDE_MAX = 4_096  # slots of a kind that labels and recovery pin beside the queue; address space until used


def run(settings: Settings, accept_loss: bool = False) -> None:
    """Serve until SIGINT or SIGTERM. Raises StartError, and other one-line errors, if the service cannot start."""
    private_files()
    keep_few_holes()
    uvloop.run(_serve(settings, accept_loss))


async def _serve(settings: Settings, accept_loss: bool) -> None:
    stopping = asyncio.Event()
    starting = asyncio.current_task()

    def stop() -> None:
        nonlocal starting
        stopping.set()
        if starting is not None:  # a recovery may take minutes: a stop does not wait for it
            starting.cancel()
            starting = None

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        async with AsyncExitStack() as stack:
            url, engine = await _start(settings, accept_loss, stack)
            starting = None
            sys.stdout.write(f"weir ready url={url} console={url}/console\n")
            if settings.embedded and not (settings.data_dir / KEY_FILE).exists():
                key = await asyncio.to_thread(add_key, settings.data_dir, Role.ADMIN, FIRST_KEY)
                sys.stdout.write(f"weir key role=admin name={FIRST_KEY} (shown this once) {key}\n")
            sys.stdout.flush()
            log.info("scoring", **engine.scorers.describe())
            await stopping.wait()
            log.info("stopping")
            engine.reason = "stopping"
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise
        log.info("stopped before it was ready")


async def _start(settings: Settings, accept_loss: bool, stack: AsyncExitStack) -> tuple[str, Engine]:
    """Open everything, and at last the port; `stack` closes it again. Returns the service's URL and its engine."""
    listeners = Listeners.open(settings.server)
    stack.callback(listeners.close)
    settings = with_last_scorer(settings)
    plan, card, scorer = load_model(settings)
    directory = DataDir(settings.data_dir, plan)
    stack.callback(directory.close)
    rates = {role: getattr(settings.rate, role.word) for role in Role}
    keys = KeyRing(settings.data_dir / KEY_FILE, rates=rates)
    if settings.embedded:
        settings = await _embed(settings, stack)
    # What a request allocates is freed by reference counts; cycles are rare, so look for them rarely.
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    engine, stores = await _open_engine(settings, plan, card, scorer, accept_loss, stack)
    runner, lane = await _open_port(listeners, engine, keys, settings, stack)
    model, providers = read_model(model_directory(settings, plan)), settings.onnx.providers
    engine.inference = await open_inference(settings.inference, providers, card, model, stack)
    engine.comparisons = Comparisons(settings)
    await asyncio.to_thread(engine.comparisons.load)
    stack.push_async_callback(engine.comparisons.close)
    await _run_engine(engine, stores, settings, stack)
    # Again: no request may be under way when the stops are closed.
    stack.push_async_callback(_stop_http, listeners, runner, lane)
    gc.collect()
    gc.freeze()
    return listeners.url, engine


async def _open_port(
    listeners: Listeners, engine: Engine, keys: KeyRing, settings: Settings, stack: AsyncExitStack
) -> tuple[HttpRunner, FastLane | None]:
    """Answer requests from here on; until recovery is done all but the health routes say that the service is not ready."""
    metrics = Metrics()
    watch_engine(metrics, engine)
    watch_settings(metrics, settings)
    lag = asyncio.create_task(watch_loop(metrics.loop_lag[()]))
    stack.push_async_callback(_cancel, [lag])
    tracing = await open_tracing(settings.otel, metrics, stack)
    app = build_web_app(engine, keys, metrics, settings, tracing)
    raise_open_files(settings.server.connections_max)
    connections = Connections(settings.server, metrics)
    runner = HttpRunner(
        app, settings.server, connections, access_log=None, handle_signals=False, shutdown_timeout=HTTP_STOP_DEADLINE_S
    )
    await runner.setup()
    stack.push_async_callback(_stop_http, listeners, runner, None)
    server = runner.server
    assert server is not None
    if not settings.server.fast_lane:
        metrics.watch("connections", lambda: {"aiohttp": len(server.connections)})
        await listeners.start(server)
        return runner, None
    calls = ScoreCalls(engine, metrics, settings.server)
    lane = FastLane(calls, keys, metrics, settings, engine.check_started, server, connections, tracing)
    metrics.watch("connections", lambda: {"fast": len(lane.connections), "aiohttp": len(server.connections)})
    lane.start()
    stack.push_async_callback(_stop_http, listeners, runner, lane)
    await listeners.start(lane)
    return runner, lane


async def open_tracing(settings: OtelSettings, metrics: Metrics, stack: AsyncExitStack) -> Tracing | None:
    """None where no endpoint is set. Raises StartError without the extra."""
    if settings.endpoint is None:
        return None
    try:
        exporter = importlib.import_module("service.otel").OtelExporter(settings, importlib.metadata.version("weir"))
    except ModuleNotFoundError as error:
        raise StartError(f"otel.endpoint is set, and {error.name} is not installed: pip install 'weir[otel]'") from None
    stack.push_async_callback(asyncio.to_thread, exporter.close)
    return Tracing(exporter, settings.share, settings.traces_per_s_max, metrics.traces)


async def _stop_http(listeners: Listeners, runner: HttpRunner, lane: FastLane | None) -> None:
    """Accept no more, answer what is under way, close every connection. The second time there is nothing left to do."""
    listeners.close()
    if lane is not None:
        await lane.stop(HTTP_STOP_DEADLINE_S)
    await runner.cleanup()


def load_model(settings: Settings) -> tuple[Plan, ModelCard, Scorer]:
    """The plan, the model card that fits it, and the scorer. Raises SpecError, ModelError, StartError."""
    plan = compile_plan(load_spec(settings.spec))
    directory, card = find_champion(settings, Registry(plan, settings.data_dir, settings.model), plan.spec_name)
    card.check(plan)
    return plan, card, open_engine_of(settings.scorer, plan, directory / MODEL_FILE, settings.onnx.providers)


def model_directory(settings: Settings, plan: Plan) -> Path:
    """Where the model is: what was chosen last, else the one that is set, else the packaged one. Raises as load_model."""
    return find_champion(settings, Registry(plan, settings.data_dir, settings.model), plan.spec_name)[0]


async def _embed(settings: Settings, stack: AsyncExitStack) -> Settings:
    """Start the embedded servers and let the settings point at them, except where they name servers themselves."""
    servers = await EmbeddedServers.start(settings.data_dir)
    stack.push_async_callback(servers.stop)
    redis, postgres = settings.redis, settings.postgres
    return msgspec.structs.replace(
        settings,
        redis=redis if redis.url else msgspec.structs.replace(redis, url=servers.redis_url),
        postgres=postgres if postgres.url else msgspec.structs.replace(postgres, url=servers.postgres_url),
    )


async def start_engine(
    settings: Settings, plan: Plan, card: ModelCard, scorer: Scorer, accept_loss: bool, stack: AsyncExitStack
) -> Engine:
    """An engine that takes requests, without HTTP; `stack` closes it again. Raises StartError, JournalError."""
    engine, stores = await _open_engine(settings, plan, card, scorer, accept_loss, stack)
    await _run_engine(engine, stores, settings, stack)
    return engine


async def _open_engine(
    settings: Settings, plan: Plan, card: ModelCard, scorer: Scorer, accept_loss: bool, stack: AsyncExitStack
) -> tuple[Engine, Stores]:
    """Open the stores and the journal. Raises StartError, JournalError."""
    enabled = read_enabled(settings)
    audit = Audit(settings.data_dir)
    stack.callback(audit.close)
    stores = await open_stores(settings, settings.data_dir, enabled, stack)
    journal = Journal.open(
        settings.data_dir / "journal",
        sync=settings.journal.sync,
        interval_ms=settings.journal.interval_ms,
        segment_bytes=settings.journal.segment_bytes,
        bytes_max=settings.journal.bytes_max,
        epoch_floor=max(stores.highest_lsn >> EPOCH_SHIFT, _epoch_of_today()),
        accept_loss=accept_loss,
    )
    stack.callback(journal.abandon)
    if journal.cut_reason:
        log.warning("journal was cut", bytes=journal.cut_bytes, reason=journal.cut_reason)
    check_against_journal(stores, journal.last_lsn, journal.trimmed_lsn, accept_loss)
    return _build(settings, plan, card, scorer, stores, journal, enabled, audit), stores


async def _run_engine(engine: Engine, stores: Stores, settings: Settings, stack: AsyncExitStack) -> None:
    """Recover, with what writes to the stores at work, then start the other tasks and take requests.

    Their end is in reverse order: no new requests, the other tasks, write-behind, the local store, the journal.
    """

    async def low_positions() -> dict[str, int]:
        positions = await engine.write_behind.trim_positions()
        return positions if engine.ledger_feed is None else positions | {"ledger": engine.ledger_feed.position}

    keeper = Keeper(
        stores.decisions, stores.l2, engine.decisions, engine.journal, engine.applied,
        settings.l2.flush_interval_ms, settings.journal.keep_hours, low_positions,
    )  # fmt: skip
    recovery = await _prepare_recovery(engine, stores)
    engine.journal.start()
    stack.push_async_callback(_close_journal, engine.journal)
    keeper.start()
    stack.push_async_callback(keeper.stop)
    engine.write_behind.start()
    stack.push_async_callback(engine.write_behind.stop, STOP_DEADLINE_S)
    stack.push_async_callback(engine.fetcher.close)
    cover = asyncio.create_task(cover_profiles(engine.bloom, stores, engine.write_behind))
    stack.push_async_callback(_cancel, [cover])
    await recovery.run()
    await engine.models.start()
    stack.push_async_callback(engine.models.stop)
    _start_tasks(engine, stores, settings, keeper, stack)
    engine.pipeline.is_open = engine.is_started = True
    engine.reason = ""


def _build(
    settings: Settings, plan: Plan, card: ModelCard, scorer: Scorer, stores: Stores, journal: Journal,
    enabled: Mapping[str, bool], audit: Audit,
) -> Engine:  # fmt: skip
    """Every stop, given what it needs."""
    clock = Clock(settings.time.clock, settings.time.future_ms_max, settings.time.past_ms_max or plan.longest_ms, _wall_ms)
    touched = Touched(len(plan.kinds))
    w = settings.write_behind
    applied = Applied(journal)
    write_behind = WriteBehind(plan, touched, journal, applied, w.interval_ms, w.batch_max, w.profiles_max)
    pinned_max = settings.queue.events_max + PINNED_BESIDE_MAX
    l1 = L1(plan, settings.l1.bytes_max, pinned_max, write_behind.on_evict, settings.l1.huge_pages)
    if not enabled["l1"]:
        l1.bytes_max = 0
    b = settings.bloom
    bloom = MaybeSet(b.keys_max, b.fpp, b.backend)
    bloom.is_on = enabled["bloom"]
    window_ms = settings.idempotency.window_hours * HOUR_MS
    maybe = RotatingMaybeSet(window_ms, b.keys_max, b.fpp, _wall_ms, b.backend, core=usable_core()) if b.enabled else None
    fetcher = Fetcher(plan, l1, stores.levels, bloom, write_behind)
    write_behind.attach(l1, fetcher, stores.levels, stores.positions)
    lists = Lists(plan.kinds)
    decisions = Decisions(stores.decisions, maybe)
    policy = policy_of(settings, card)
    q = settings.queue
    pipeline = Pipeline(
        plan, l1, fetcher, scorer, card.model, policy, lists, decisions, journal, touched, clock,
        open_codec(plan, q.batch_max, l1.indexes, maybe), q.events_max, q.batch_max,
    )  # fmt: skip
    feed = None
    if stores.ledger is not None:
        feed = LedgerFeed(
            stores.ledger,
            journal,
            stores.ledger_position,
            w.interval_ms,
            open_maker(),
            lambda: pipeline.n_waiting >= q.batch_max,
        )
    dry_run = DryRun(plan, fetcher, scorer, card.model, policy, lists, clock)
    erasures = Erasures(plan, journal, fetcher, write_behind, decisions, stores.decisions, stores.rocks)
    quality = Quality(settings.data_dir)
    labels = Labels(plan, l1, fetcher, decisions, journal, touched, erasures.blanked, quality.label)
    tier_switch = TierSwitch(
        settings.data_dir,
        enabled,
        l1,
        settings.l1.bytes_max,
        bloom,
        write_behind,
        lambda: cover_profiles(bloom, stores, write_behind),
    )
    model_file = model_directory(settings, plan) / MODEL_FILE
    scorers = ScorerSwitch(settings.data_dir, plan, model_file, settings.onnx.providers, pipeline, dry_run)
    shadow = Shadow(plan, settings.shadow.share, l1, stores.levels, decisions, write_behind, journal, random.Random())
    models = open_models(settings, plan, card, pipeline, dry_run, scorers, quality)
    return Engine(
        plan, clock, l1, bloom, stores.levels, fetcher, pipeline, dry_run, scorers, lists, ListStore(stores.lists), decisions,
        labels, journal, applied, write_behind, feed, erasures, tier_switch, audit, models, shadow,
        Sizes(stores.levels), RecoveryProgress(),
    )  # fmt: skip


async def _prepare_recovery(engine: Engine, stores: Stores) -> Recovery:
    """What the journal does not bring, and who has to catch up by itself. Positions claim nothing new from here on."""
    position = stores.replay_position(engine.journal.trimmed_lsn, engine.journal.last_lsn)
    recovery = Recovery(engine, stores.decisions, position, stores.decisions_position)
    for number, from_complete in mark_behind(stores, position, engine.journal.last_lsn):
        consumer = engine.write_behind.consumers[number]
        engine.write_behind.meet(consumer, consumer.position, from_complete)
    await engine.list_store.load(engine.lists)
    await engine.erasures.load()
    return recovery


def _start_tasks(engine: Engine, stores: Stores, settings: Settings, keeper: Keeper, stack: AsyncExitStack) -> None:
    """Everything else that runs in the background."""
    if engine.ledger_feed is not None:
        engine.ledger_feed.start()
        stack.push_async_callback(engine.ledger_feed.stop, STOP_DEADLINE_S)
    partials = Partials(
        engine.plan, engine.l1, engine.fetcher, engine.journal, settings.write_behind.interval_ms, engine.write_behind
    )
    partials.start()
    stack.push_async_callback(partials.stop)
    engine.erasures.start(keeper, engine.labels, engine.ledger_feed, stores.ledger)
    stack.push_async_callback(engine.erasures.stop)
    stack.push_async_callback(engine.tier_switch.close)
    engine.shadow.start()
    stack.push_async_callback(engine.shadow.stop)
    stack.push_async_callback(_drain, engine)
    # Not earlier: recovery puts decisions into the column and leaves it to this to tell the filter.
    cover = asyncio.create_task(cover_events(engine.decisions.maybe, stores))
    stack.push_async_callback(_cancel, [cover])


async def _drain(engine: Engine) -> None:
    engine.pipeline.is_open = False
    await engine.pipeline.drain(STOP_DEADLINE_S)
    await engine.fetcher.close()


async def _close_journal(journal: Journal) -> None:
    try:
        await journal.close()
    except JournalError as error:
        log.error("the journal could not be closed", problem=str(error))


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _epoch_of_today() -> int:
    """No data directory begins below what another one may have reached: a store that is met later then knows lower LSNs."""
    return min(max(_wall_ms() // DAY_MS - EPOCH_DAY_0, 0), EPOCH_MAX // 2)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
