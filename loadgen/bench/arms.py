"""The servers that `weir bench http` compares: which there are, what each is started with, why one cannot be here.

The rivals in the house answer the same requests from the same keys, journal and tiers: `weir serve` with each scorer, and
weir-go, the service in Go alone. Settings reach all of them; what weir-go does not know is named, so that unequal work never
looks equal.
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
OWN_SETTINGS = ("data_dir", "scorer", "server.port")  # the benchmark gives them
HELP_DEADLINE_S = 10.0


def parse_arms(text: str) -> tuple[str, ...]:
    """The arms named in "weir go,weir-go", each once, in the order of ARMS. Raises BenchError."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise BenchError(f"--arms {text}: expected some of {', '.join(ARMS)}, with commas between them")
    return tuple(name for name in ARMS if name in names)


def missing_arm(name: str) -> str | None:
    """Why the arm cannot be measured here, or None if it can. Looks at files only."""
    if name == WEIR_GO:
        return None if SERVER.is_file() else f"{SERVER.name} is not built; make go builds it"
    return missing_scorer(SCORERS[name]) if name in SCORERS else None


def settings_by_arm(arms: Sequence[str], settings: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The settings ("key=value") that each arm is started with, and those that weir-go does without. Raises BenchError.

    weir-go does without what it does not know if an arm of `weir serve` takes part; alone, it refuses the setting itself.
    """
    for setting in settings:
        if _key(setting) in OWN_SETTINGS:
            raise BenchError(f"--set {setting}: the benchmark sets {', '.join(OWN_SETTINGS)} itself; --arms chooses scorers")
    given: dict[str, tuple[str, ...]] = {name: tuple(settings) if name in WEIR_ARMS else () for name in arms}
    if WEIR_GO not in arms:
        return given, []
    inherited = sorted(name for name in os.environ if name.startswith("WEIR_") and "__" in name)
    if inherited:
        raise BenchError(f"weir-go does not read {', '.join(inherited)}: unset it and give the setting with --set")
    if not settings or not any(name in SCORERS for name in arms):
        return given, []
    known = _settings_of_weir_go()
    given[WEIR_GO] = tuple(setting for setting in settings if _key(setting) in known)
    return given, [setting for setting in settings if _key(setting) not in known]


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
    if name in SCORERS:
        return start_weir(data_dir, logs, (*settings, f"scorer={SCORERS[name]}"), name)
    if name == WEIR_GO:
        options = [part for setting in settings for part in ("--set", setting)]
        return Child(name, [str(SERVER), "--data-dir", str(data_dir), "--port", "0", *options], logs)
    return Child(name, script("null_server" if name == NULL else "bare_aiohttp"), logs)
