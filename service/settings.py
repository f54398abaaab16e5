"""Every setting of the service: name, unit, default, range, and how file, environment and command line are merged.

`load_settings` merges, later wins: defaults < TOML file < environment (WEIR_L1__BYTES_MAX) < --set l1.bytes_max=...
A key that does not exist is refused with the nearest one that does, a value out of range with the key, the value, its
limit and where it came from. Settings are immutable; reading one is an attribute look-up.

The comment beside a setting, and lines of comment right above it, are its text in docs/reference/settings.md (ADR 0035):
`make reference` writes that page.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from models.scorer import CPU
from service.errors import SettingsError
from service.setting_sources import Catalogue, Sources

MIB = 1 << 20
DAY_MS = 86_400_000
SEGMENTS_MIN = 4  # that journal.bytes_max has room for

Outcome = Literal["approve", "review", "decline"]
DeadlineMs = Annotated[int, Meta(ge=1, le=60_000)]
EventsPerS = Annotated[float, Meta(ge=0, le=10_000_000)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Provider = Annotated[str, Meta(pattern=r"^[A-Za-z]+ExecutionProvider\Z")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every table of the settings."""


class ServerSettings(Section, frozen=True):
    """HTTP front."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"  # address to listen on; 0.0.0.0: every IPv4 one
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080  # 0: any free port; the ready line names it
    body_bytes_max: Annotated[int, Meta(ge=1024, le=64 * MIB)] = MIB  # bytes, every route but batches
    batch_body_bytes_max: Annotated[int, Meta(ge=1024, le=256 * MIB)] = 8 * MIB  # bytes
    # bytes of the bodies of all batches that are being read or scored; beyond it 429. At least batch_body_bytes_max
    bodies_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 40)] = 256 * MIB
    batch_rows_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000  # transactions in one batch request
    request_deadline_ms: Annotated[int, Meta(ge=0, le=600_000)] = 5_000  # ms; 0: none
    head_deadline_ms: Annotated[int, Meta(ge=0, le=600_000)] = 10_000  # ms for a whole head, from its first byte on; 0: none
    idle_deadline_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 75_000  # ms without a request, then it is closed; 0: none
    # ms that a reply may wait for a client that does not read; then the connection is reset (Linux, TCP). 0: never
    reply_deadline_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 60_000
    connections_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 4_096  # open at a time; one more gets a 503 and is closed
    # of one address (IPv6: its /64) at a time; 0: no limit. Not applied to the UNIX socket
    connections_per_address_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 1_024
    fast_lane: bool = True  # POST /v1/score by a protocol of our own in front of aiohttp; false: everything by aiohttp
    tls_cert: Path | None = None  # PEM file, chain included; with tls_key: TCP speaks TLS 1.2 or newer, and no plain HTTP
    tls_key: Path | None = None  # PEM file, not encrypted
    unix_socket: Path | None = None  # plain HTTP on a UNIX socket (mode 0660) beside TCP


class RateSettings(Section, frozen=True):
    """How much a key may send, by its role. A key's own rate goes before (weir keys add --rate). Beyond it 429."""

    ingest: EventsPerS = 0.0  # events a second; 0: no limit
    analyst: EventsPerS = 0.0  # events a second; 0: no limit
    admin: EventsPerS = 0.0  # events a second; 0: no limit


class TimeSettings(Section, frozen=True):
    """Which event times are refused; never what a window counts."""

    clock: Literal["wall", "stream"] = "wall"  # "stream": now is the newest accepted ts, for replaying history
    future_ms_max: Annotated[int, Meta(ge=0, le=365 * DAY_MS)] = 60_000  # ms; not applied with the stream clock
    past_ms_max: Annotated[int, Meta(ge=0, le=36_500 * DAY_MS)] = 0  # ms; 0: the longest ring of the spec


class L1Settings(Section, frozen=True):
    """Profiles in RAM."""

    enabled: bool = True  # false: profiles rest in the tier below alone; PUT /v1/tiers changes it while the service runs
    bytes_max: Annotated[int, Meta(ge=64 * 1024, le=1 << 40)] = 256 * MIB  # bytes at rest; one full batch comes on top
    huge_pages: bool = False  # faster with a million profiles; new entities now and then wait 5 to 25 ms for memory


class BloomSettings(Section, frozen=True):
    """The filters that say "exists nowhere below" and "this event is new"."""

    enabled: bool = True  # false: every new entity and event is asked of the tiers
    backend: Literal["rbloom", "pybloom"] = "rbloom"  # of entities; of event ids only without the Go core
    keys_max: Annotated[int, Meta(ge=1_000, le=2_000_000_000)] = 10_000_000  # keys that `fpp` is promised for
    fpp: Annotated[float, Meta(gt=0, le=0.5)] = 0.01  # probability of a false positive when full; 9.6 bits a key


class L2Settings(Section, frozen=True):
    """Profiles and decisions in RocksDB."""

    enabled: bool = True  # false: neither read nor written; what comes back catches up from the journal
    cache_bytes: Annotated[int, Meta(ge=MIB, le=1 << 40)] = 128 * MIB  # bytes of block cache
    flush_interval_ms: Annotated[int, Meta(ge=10, le=3_600_000)] = 5_000  # ms between memtable flushes (positions move)


class RedisSettings(Section, frozen=True):
    """Profiles in Redis or Valkey (L3). Without a url there is none, unless `embedded` starts one."""

    enabled: bool = True  # false: neither read nor written
    url: Annotated[str, Meta(pattern=r"^(redis|rediss|unix)://")] | None = None  # user and password in it; rediss is TLS
    password_file: Path | None = None  # its first line is the password of the url, which then has none itself
    deadline_ms: DeadlineMs = 50  # ms for one round trip
    concurrency_max: Annotated[int, Meta(ge=1, le=1024)] = 8  # round trips at a time
    namespace: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")] = "weir"  # prefix of every key


class PostgresSettings(Section, frozen=True):
    """Profiles and the ledger in Postgres (L3). Without a url there is none, unless `embedded` starts one."""

    enabled: bool = True  # false: neither read nor written as a tier; the ledger is fed all the same
    url: Annotated[str, Meta(pattern=r"^(postgres|postgresql)://")] | None = None  # as libpq has it
    password_file: Path | None = None  # its first line is the password of the url, which then has none itself
    deadline_ms: DeadlineMs = 100  # ms for one round trip
    pool_max: Annotated[int, Meta(ge=1, le=128)] = 4  # connections


class JournalSettings(Section, frozen=True):
    """The local durable log."""

    sync: Literal["group", "interval", "os"] = "interval"  # what a power failure may lose: docs, guide to durability
    interval_ms: Annotated[int, Meta(ge=1, le=60_000)] = 50  # ms between fsyncs with sync = "interval"
    segment_bytes: Annotated[int, Meta(ge=64 * 1024, le=4 << 30)] = 64 * MIB  # bytes of one segment file
    keep_hours: Annotated[int, Meta(ge=0, le=87_600)] = 48  # hours that a segment is kept although nobody needs it
    # bytes of all segments; 0: no limit. 64 GiB are the 48 hours above at 1,000 tx/s (350 bytes each), or a consumer's
    # outage of as long. Above it nothing is kept that nobody needs; if somebody does, nothing more is accepted.
    bytes_max: Annotated[int, Meta(ge=0, le=1 << 50)] = 64 << 30


class WriteBehindSettings(Section, frozen=True):
    """How dirty profiles travel to the tiers below the first one."""

    interval_ms: Annotated[int, Meta(ge=1, le=60_000)] = 200  # ms between two flushes to one tier
    batch_max: Annotated[int, Meta(ge=1, le=100_000)] = 500  # profiles in one write; their copies take 2 ms
    profiles_max: Annotated[int, Meta(ge=1, le=100_000_000)] = 200_000  # dirty profiles held in memory


class QueueSettings(Section, frozen=True):
    """Transactions that were read but not scored yet."""

    events_max: Annotated[int, Meta(ge=1, le=10_000_000)] = 8_192  # transactions; beyond it 429
    wait_ms_max: Annotated[float, Meta(ge=0, le=60_000)] = 100.0  # ms of work that single transactions wait for; beyond it 429
    # ms, in an overload, for clients that send on a connection without waiting for replies
    eager_wait_ms_max: Annotated[float, Meta(ge=0, le=60_000)] = 2.0
    batch_max: Annotated[int, Meta(ge=1, le=65_536)] = 1_024  # transactions scored in one call; at most events_max


class DecideSettings(Section, frozen=True):
    """How a risk score becomes an outcome. Thresholds that are not set come from the model card."""

    unknown_outcome: Outcome = "review"  # when a tier could not be asked for a profile
    unknown_amount_min: Annotated[int, Meta(ge=0, le=10**10)] = 0  # minor units of the base currency: from here on
    review_threshold: Probability | None = None  # risk score from which on it is review
    decline_threshold: Probability | None = None  # risk score from which on it is decline
    reasons_max: Annotated[int, Meta(ge=0, le=10)] = 3  # features that explain a score, in words; 0: codes alone
    reasons_rows_max: Annotated[int, Meta(ge=1, le=128)] = 32  # transactions of a micro-batch that are explained; 0.1 ms each
    reasons_share: Probability = 0.03  # of all transactions, explained without being asked about; twice what is usually flagged


class WatchSettings(Section, frozen=True):
    """Samples of what is scored, looked at beside scoring (docs/guides/models.md)."""

    share: Probability = 0.01  # of transactions: population stability, and the log of vectors for weir doctor --skew; 0: none
    challenger_share: Probability = 0.1  # of transactions that a challenger scores in the shadow
    # bytes of the log of vectors, two files of half of it; 0: none. 32 MiB are 150,000 vectors of 40 features
    log_bytes_max: Annotated[int, Meta(ge=0, le=1 << 40)] = 32 * MIB


class IdempotencySettings(Section, frozen=True):
    """How long a repeated event_id is recognised."""

    window_hours: Annotated[int, Meta(ge=1, le=87_600)] = 48  # hours of acceptance time


class ShadowSettings(Section, frozen=True):
    """Reads of the tier below, only to compare (docs/guides/toggles.md)."""

    share: Annotated[float, Meta(ge=0, le=1)] = 0.001  # of the hits of L1 and of each level; 0 turns it off


class OnnxSettings(Section, frozen=True):
    """onnxruntime, where the onnx scorer and /v2 run models; the go scorer runs its own on the CPU, always."""

    # execution providers, the preferred one first; `weir doctor` lists those that there are. What one cannot do, the CPU does
    providers: Annotated[tuple[Provider, ...], Meta(min_length=1, max_length=8)] = CPU


class InferenceSettings(Section, frozen=True):
    """Models beside the scorer, under /v2 (docs/guides/inference.md)."""

    models_dir: Path | None = None  # NAME.onnx or NAME/VERSION/model.onnx; None: the scorer's model alone
    body_bytes_max: Annotated[int, Meta(ge=1024, le=1024 * MIB)] = 64 * MIB  # bytes of one request, decompressed
    json_bytes_max: Annotated[int, Meta(ge=1024, le=64 * MIB)] = 4 * MIB  # bytes of its JSON; scoring waits 2 ms a MiB
    queue_max: Annotated[int, Meta(ge=1, le=4096)] = 16  # requests of one model, waiting or running; beyond it 429
    queue_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 40)] = 256 * MIB  # bytes of all requests that wait or run
    deadline_ms: Annotated[int, Meta(ge=1, le=3_600_000)] = 10_000  # ms for the body to arrive, and again for the reply


class ConsoleSettings(Section, frozen=True):
    """The page for analysts at /console, and its sessions (docs/guides/console.md)."""

    enabled: bool = True  # false: no page, no sessions; keys and /v1 stay as they are
    session_hours: Annotated[float, Meta(gt=0, le=720)] = 12.0  # hours after which somebody has to sign in again
    idle_minutes: Annotated[float, Meta(gt=0, le=43_200)] = 60.0  # minutes without a request that end a session
    login_failures_max: Annotated[int, Meta(ge=1, le=1000)] = 5  # per address and minute; then 429
    feed_clients_max: Annotated[int, Meta(ge=1, le=1000)] = 16  # who may follow GET /v1/events at a time; then 429
    feed_interval_ms: Annotated[int, Meta(ge=100, le=60_000)] = 1_000  # ms between two events of the feed


class OtelSettings(Section, frozen=True):
    """Traces by OpenTelemetry: needs `pip install 'weir[otel]'` (docs/guides/monitoring.md)."""

    endpoint: Annotated[str, Meta(pattern=r"^https?://")] | None = None  # OTLP/HTTP, such as http://127.0.0.1:4318/v1/traces
    share: Probability = 0.01  # of requests that are traced if they bring no traceparent, which decides otherwise
    traces_per_s_max: Annotated[int, Meta(ge=1, le=100_000)] = 50  # whatever the share and the callers want; 0.2 ms of CPU each
    queue_spans_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 8_192  # that wait to be sent; beyond it they are dropped
    service_name: Annotated[str, Meta(min_length=1)] = "weir"  # the resource attribute service.name


class Settings(Section, frozen=True):
    """The whole. Names of tables are names of stops."""

    spec: Annotated[str, Meta(min_length=1)] = "cards"  # a packaged spec, or the path of a TOML file
    model: Path | None = None  # directory of a model card; None: the packaged model of the spec
    scorer: Literal["auto", "go", "onnx"] = "auto"  # "auto": go if its library is there, else onnx
    data_dir: Path = Path("weir-data")  # journal, RocksDB, keys, toggles, models: everything that has to outlive a restart
    embedded: bool = False  # start a real Valkey and a real Postgres as children, in data_dir
    server: ServerSettings = ServerSettings()
    rate: RateSettings = RateSettings()
    time: TimeSettings = TimeSettings()
    l1: L1Settings = L1Settings()
    bloom: BloomSettings = BloomSettings()
    l2: L2Settings = L2Settings()
    redis: RedisSettings = RedisSettings()
    postgres: PostgresSettings = PostgresSettings()
    journal: JournalSettings = JournalSettings()
    write_behind: WriteBehindSettings = WriteBehindSettings()
    queue: QueueSettings = QueueSettings()
    decide: DecideSettings = DecideSettings()
    watch: WatchSettings = WatchSettings()
    idempotency: IdempotencySettings = IdempotencySettings()
    onnx: OnnxSettings = OnnxSettings()
    inference: InferenceSettings = InferenceSettings()
    shadow: ShadowSettings = ShadowSettings()
    console: ConsoleSettings = ConsoleSettings()
    otel: OtelSettings = OtelSettings()


CATALOGUE = Catalogue(Settings, Section)


def load_settings(config: Path | None = None, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Settings:
    """Merge defaults, the TOML file `config`, `env` and `overrides` ("a.b=value"). Raises SettingsError.

    The value of an override or variable is read as TOML and, where that fails or the setting is text, taken as it is;
    an empty one resets an optional setting. Relative paths are relative to the working directory.
    """
    settings, sources = read_settings(config, overrides, env)
    if sources.problems:
        (key, text), n_more = sources.problems[0], len(sources.problems) - 1
        more = f" (and {n_more} more: weir config check tells them all)" if n_more else ""
        raise SettingsError(text + more, key or None)
    return settings


def read_settings(
    config: Path | None = None, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> tuple[Settings, Sources]:
    """The same with everything that is wrong in `Sources.problems`; the settings then lack what is wrong."""
    sources = Sources(CATALOGUE, config, overrides, env or {})
    settings: Settings = sources.build()
    if "queue.batch_max" not in sources.values and settings.queue.batch_max > settings.queue.events_max:
        queue = msgspec.structs.replace(settings.queue, batch_max=settings.queue.events_max)
        settings = msgspec.structs.replace(settings, queue=queue)
    _check_together(settings, sources)
    return settings, sources


def _check_together(settings: Settings, sources: Sources) -> None:
    """Limits that involve two settings."""

    def refuse(key: str, other: str, limit: str) -> None:
        table, _, leaf = key.partition(".")
        value = getattr(getattr(settings, table), leaf)
        sources.refuse_together(key, other, f"{key} is {value}: expected {limit}")

    review, decline = settings.decide.review_threshold, settings.decide.decline_threshold
    if review is not None and decline is not None and review > decline:
        limit = f"at most decide.decline_threshold, {decline}"
        refuse("decide.review_threshold", "decide.decline_threshold", limit)
    if settings.queue.batch_max > settings.queue.events_max:
        refuse("queue.batch_max", "queue.events_max", f"at most queue.events_max, {settings.queue.events_max}")
    given, missing = ("tls_cert", "tls_key") if settings.server.tls_key is None else ("tls_key", "tls_cert")
    if getattr(settings.server, given) is not None and getattr(settings.server, missing) is None:
        text = f"server.{given} is set without server.{missing}: give both or none"
        sources.refuse_together(f"server.{missing}", f"server.{given}", text)
    server = settings.server
    if server.bodies_bytes_max < server.batch_body_bytes_max:
        limit = f"at least server.batch_body_bytes_max, {server.batch_body_bytes_max}"
        refuse("server.bodies_bytes_max", "server.batch_body_bytes_max", limit)
    journal = settings.journal
    if 0 < journal.bytes_max < SEGMENTS_MIN * journal.segment_bytes:  # whole segments are trimmed, the newest never
        limit = f"0 or at least {SEGMENTS_MIN} times journal.segment_bytes, {SEGMENTS_MIN * journal.segment_bytes}"
        refuse("journal.bytes_max", "journal.segment_bytes", limit)
    inference = settings.inference
    if inference.queue_bytes_max < inference.body_bytes_max:
        limit = f"at least inference.body_bytes_max, {inference.body_bytes_max}"
        refuse("inference.queue_bytes_max", "inference.body_bytes_max", limit)
