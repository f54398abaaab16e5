"""The servers that `weir bench http` compares: which there are, what each is started with, why one cannot be here.

The rivals in the house answer the same requests from the same keys, journal and tiers: `weir serve` with each scorer, and
weir-go, the service in Go alone. Settings reach all of them; what weir-go does not know is named, so that unequal work never
looks equal. With --sync each of them takes part once per sync mode of the journal, as an arm of its own: "weir go, group".
"""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gocore.locate import SERVER
from loadgen.bench.children import STDERR_TAIL, BenchError, Child, script, start_weir
from models.scorers import missing_scorer

NULL, BARE, WEIR_GO = "null", "bare aiohttp", "weir-go"
SCORERS = {"weir onnx": "onnx", "weir go": "go"}  # arms that are `weir serve --scorer ...`
ARMS = (NULL, BARE, *SCORERS, WEIR_GO)
WEIR_ARMS = (*SCORERS, WEIR_GO)  # those that score and keep state
SYNCS = ("group", "interval", "os")  # journal.sync, the strictest first
SYNC_SETTING = "journal.sync"
FLUSH_SETTING = "l2.flush_interval_ms"
FLUSH_INTERVAL_MS = 5_000  # its default in the service
OWN_SETTINGS = ("data_dir", "scorer", "server.port")  # the benchmark gives them
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
    if kind == WEIR_GO:
        return None if SERVER.is_file() else f"{SERVER.name} is not built; make go builds it"
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
    given = {name: (*settings, *_sync_of(name)) if kind_of(name) in WEIR_ARMS else () for name in arms}
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
        return start_weir(data_dir, logs, (*settings, f"scorer={SCORERS[kind]}"), name)
    if kind == WEIR_GO:
        options = [part for setting in settings for part in ("--set", setting)]
        return Child(name, [str(SERVER), "--data-dir", str(data_dir), "--port", "0", *options], logs)
    return Child(name, script("null_server" if kind == NULL else "bare_aiohttp"), logs)
