"""The servers that `weir bench http` compares: which there are, what each is started with, why one cannot be here.

Yardsticks: "null" reads nothing, "go json" is net/http that only decodes, "bare aiohttp" the same in Python, "fastapi" the
usual stack with the same model and no state. The rivals in the house answer the same requests from the same keys, journal and
tiers: `weir serve` with each scorer, with go also without its fast lane, and weir-go, the service in Go alone. Settings reach
all of them; what weir-go does not know is named, so that unequal work never looks equal. With --sync each of them takes part
once per sync mode of the journal, as an arm of its own: "weir go, group".
"""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gocore.locate import BENCH_JSON, SERVER
from loadgen.bench.children import STDERR_TAIL, BenchError, Child, script, start_weir
from loadgen.bench.sizing import FLAGGED_SETTING
from loadgen.bench.stores import missing_stores
from models.scorers import missing_scorer

NULL, GO_JSON, BARE, FASTAPI, AIOHTTP, WEIR_GO = "null", "go json", "bare aiohttp", "fastapi", "weir go aiohttp", "weir-go"
SCORERS = {"weir onnx": "onnx", AIOHTTP: "go", "weir go": "go"}  # arms that are `weir serve --scorer ...`
ARMS = (NULL, GO_JSON, BARE, FASTAPI, *SCORERS, WEIR_GO)
WEIR_ARMS = (*SCORERS, WEIR_GO)  # those that score and keep state
SYNCS = ("group", "interval", "os")  # journal.sync, the strictest first
SYNC_SETTING = "journal.sync"
LANE_SETTING = "server.fast_lane"
FLUSH_SETTING = "l2.flush_interval_ms"
FLUSH_INTERVAL_MS = 5_000  # its default in the service
OWN_SETTINGS = ("data_dir", "scorer", "server.port")  # the benchmark gives them
STORE_SETTINGS = ("embedded", "redis.url", "postgres.url")
HELP_DEADLINE_S = 10.0


def parse_arms(text: str) -> tuple[str, ...]:
    """The arms named in "weir go,weir-go", each once, in the order of ARMS. Raises BenchError."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise BenchError(f"--arms {text}: expected some of {', '.join(ARMS)}, with commas between them")
    return tuple(name for name in ARMS if name in names)


def parse_syncs(given: Sequence[str]) -> tuple[str, ...]:
    """The sync modes named by --sync, each once, in the order of SYNCS; "all" names them all. Raises BenchError."""
    names = SYNCS if "all" in given else given
    if unknown := [name for name in names if name not in SYNCS]:
        raise BenchError(f"--sync {unknown[0]}: expected {', '.join(SYNCS)} or all")
    return tuple(name for name in SYNCS if name in names)


def best_arm() -> str:
    """The arm of `weir serve` as it would start here: the go scorer where it is built, else onnx."""
    return next(name for name in reversed(SCORERS) if missing_arm(name) is None)


def by_sync(arms: Sequence[str], syncs: Sequence[str]) -> list[str]:
    """`arms`, those that keep a journal once per mode; without modes, as they are."""
    names: list[str] = []
    for name in arms:
        names += [f"{name}, {sync}" for sync in syncs] if syncs and name in WEIR_ARMS else [name]
    return names


def kind_of(name: str) -> str:
    """Which of ARMS it is, in whatever mode."""
    return name.partition(", ")[0]


def order_of(name: str) -> tuple[int, int]:
    """Where an arm stands in tables: by ARMS, then by SYNCS."""
    kind, _, sync = name.partition(", ")
    return ARMS.index(kind), SYNCS.index(sync) if sync else 0


def missing_arm(name: str) -> str | None:
    """Why the arm cannot be measured here, or None if it can. Looks at files only."""
    kind = kind_of(name)
    for arm, program in ((WEIR_GO, SERVER), (GO_JSON, BENCH_JSON)):
        if kind == arm:
            return None if program.is_file() else f"{program.name} is not built; make go builds it"
    if kind == FASTAPI:
        lacking = [package for package in ("fastapi", "uvicorn") if find_spec(package) is None]
        return f"{' and '.join(lacking)} not installed; pip install 'weir[bench]'" if lacking else None
    return missing_scorer(SCORERS[kind]) if kind in SCORERS else None


def settings_by_arm(arms: Sequence[str], settings: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The settings ("key=value") that each arm is started with, and those that weir-go does without. Raises BenchError.

    weir-go does without what it does not know if an arm of `weir serve` takes part; alone, it refuses the setting itself.
    """
    for setting in settings:
        if _key(setting) in OWN_SETTINGS:
            raise BenchError(f"--set {setting}: the benchmark sets {', '.join(OWN_SETTINGS)} itself; --arms chooses scorers")
        if _key(setting) == SYNC_SETTING and any(_sync_of(name) for name in arms):
            raise BenchError(f"--set {setting}: --sync gives each arm its own")
        if _key(setting) == LANE_SETTING and AIOHTTP in map(kind_of, arms):
            raise BenchError(f"--set {setting}: the arm {AIOHTTP} is the one without it; leave it out of --arms")
    given = {name: (*settings, *_own_of(name)) if kind_of(name) in WEIR_ARMS else () for name in arms}
    kinds = [kind_of(name) for name in arms]
    if WEIR_GO not in kinds:
        return given, []
    inherited = sorted(name for name in os.environ if name.startswith("WEIR_") and "__" in name)
    if inherited:
        raise BenchError(f"weir-go does not read {', '.join(inherited)}: unset it and give the setting with --set")
    if not settings or not any(kind in SCORERS for kind in kinds):
        return given, []
    known = _settings_of_weir_go()
    for name, kind in zip(arms, kinds, strict=True):
        if kind == WEIR_GO:
            given[name] = tuple(setting for setting in given[name] if _key(setting) in known)
    return given, [setting for setting in settings if _key(setting) not in known]


def _own_of(name: str) -> tuple[str, ...]:
    """The settings that make the arm what it is."""
    return (*_sync_of(name), *((f"{LANE_SETTING}=false",) if kind_of(name) == AIOHTTP else ()))


def _sync_of(name: str) -> tuple[str, ...]:
    """The setting that tells an arm's sync mode, if it has one."""
    sync = name.partition(", ")[2]
    return (f"{SYNC_SETTING}={sync}",) if sync else ()


def flush_interval_ms(settings: Sequence[str]) -> int:
    """How often a service that is started with these settings writes decisions to RocksDB. Raises BenchError."""
    given = [setting.partition("=")[2].strip() for setting in settings if _key(setting) == FLUSH_SETTING]
    if not given:
        return FLUSH_INTERVAL_MS
    if not given[-1].isdecimal():
        raise BenchError(f"--set {FLUSH_SETTING}={given[-1]}: expected a number of milliseconds")
    return int(given[-1])


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


def _settings_of_weir_go() -> set[str]:
    """The keys that its --help lists. Raises BenchError."""
    try:
        done = subprocess.run([SERVER, "--help"], capture_output=True, text=True, timeout=HELP_DEADLINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"weir-go --help failed: {error}") from None
    table = (done.stdout + done.stderr).partition("\nsettings")[2]
    found = set(re.findall(r"^  ([a-z][a-z0-9_.]*)", table, re.MULTILINE))
    if not found:
        raise BenchError(f"weir-go --help lists no settings: {done.stderr.strip()[-STDERR_TAIL:] or done.returncode}")
    return found


def start_arm(name: str, data_dir: Path, logs: Path, settings: Sequence[str]) -> Child:
    """Start a server on any free port and wait until it is ready; `data_dir` is that of a Weir arm. Raises BenchError."""
    kind = kind_of(name)
    if kind in SCORERS:
        return start_weir(data_dir, logs, (FLAGGED_SETTING, *settings, f"scorer={SCORERS[kind]}"), name)
    if kind == WEIR_GO:
        options = [part for setting in settings for part in ("--set", setting)]
        return Child(name, [str(SERVER), "--data-dir", str(data_dir), "--port", "0", *options], logs)
    if kind == GO_JSON:
        return Child(name, [str(BENCH_JSON)], logs)
    return Child(name, script({NULL: "null_server", BARE: "bare_aiohttp", FASTAPI: "fastapi_onnx"}[kind]), logs)


def start_stores(name: str, data_dir: Path, logs: Path) -> Child:
    """A `weir serve` that lends its stores to weir-go, which starts none of its own; it is asked nothing. Raises BenchError."""
    data_dir.mkdir()
    child = start_weir(data_dir, logs, ("embedded=true", "scorer=onnx"), f"stores of {name}")
    child.signal(signal.SIGSTOP)
    return child


def wants_stores(given: bool | None, settings: Sequence[str]) -> bool:
    """Whether arms get a Valkey and a Postgres each: as said, else where they are installed. Raises BenchError."""
    own = [setting for setting in settings if _key(setting) in STORE_SETTINGS]
    if own:
        if given:
            raise BenchError(f"--set {own[0]}: --stores gives each arm its own")
        return False
    reason = missing_stores()
    if given and reason is not None:
        raise BenchError(f"--stores: {reason}")
    return reason is None if given is None else given
