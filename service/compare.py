"""Comparisons of tier configurations, started over HTTP: each is a `weir bench tiers` of its own process, one at a time.

The service and the load generator meet only over HTTP, so the job is the command itself: it starts services of its own on
fresh states, at the lowest priority, tells its progress as JSON lines, and ends when its standard input does, so that it never
outlives this process. It scores with the settings of this service. Finished ones are kept in `<data_dir>/compare`.
"""

import asyncio
import contextlib
import importlib.metadata
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog

from service.codec import CompareBody, CompareConfig
from service.durable_file import replace_file
from service.errors import Conflict, InvalidEvent, NotFound, NotPossible
from service.setting_sources import written
from service.settings import Section, Settings

log = structlog.get_logger("weir.compare")

DIRECTORY = "compare"
KEPT_MAX = 20  # finished comparisons; the oldest go first
STOP_DEADLINE_S = 20.0  # for the command to take its services down; then it is killed
LINE_BYTES_MAX = 1 << 16  # of the command's stderr
# Handed on where they are not the default: what is measured is this service, but for where it keeps its state.
SECTIONS = (
    "time",
    "l1",
    "bloom",
    "l2",
    "redis",
    "postgres",
    "journal",
    "write_behind",
    "queue",
    "decide",
    "idempotency",
    "onnx",
)
REMOTE = frozenset({"redis", "postgres"})
OWN = ("enabled", "url", "password_file", "namespace", "clock")

State = Literal["running", "done", "failed", "cancelled"]


class Progress(msgspec.Struct):
    """`done` of `total` events have been sent, in all runs together; `what` is going on now."""

    done: int = 0
    total: int = 0
    what: str = "starting"


class Comparison(msgspec.Struct):
    """One comparison. Times are ms UTC; `problem` says why it failed."""

    id: str
    state: State
    who: str
    started: int
    request: CompareBody
    progress: Progress = msgspec.field(default_factory=Progress)
    ended: int | None = None
    problem: str | None = None


class _File(msgspec.Struct):
    comparison: Comparison
    result: msgspec.Raw = msgspec.Raw(b"null")


class Comparisons:
    """Starts them, watches them, keeps what they found. `close` cancels the one that runs."""

    def __init__(self, settings: Settings) -> None:
        self._directory = settings.data_dir / DIRECTORY
        self._settings = settings
        self._known: dict[str, Comparison] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._running: Comparison | None = None
        self._task: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Find those of earlier runs. Waits for the disk. Raises OSError."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        found = []
        for path in self._directory.iterdir():
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=_File).comparison)
            except (OSError, msgspec.DecodeError, UnicodeDecodeError):
                path.unlink(missing_ok=True)  # half of one, or of another version: a comparison can be made again
        self._known = {each.id: each for each in sorted(found, key=lambda each: each.started)}

    def begin(self, asked: CompareBody, scorer: str, model: Path, tiers: Sequence[str], who: str) -> Comparison:
        """Start one with the engine and the model in use; `tiers`: those that there are.

        Raises Conflict while another one runs, InvalidEvent, NotPossible.
        """
        _check(asked, tiers)
        if self._running is not None:
            raise Conflict(f"comparison {self._running.id} is running, one at a time; wait for it or DELETE it", "id")
        if not any(entry.name == "tiers" for entry in importlib.metadata.entry_points(group="weir.bench")):
            raise NotPossible("the command weir bench tiers is not installed")
        comparison = Comparison(secrets.token_hex(6), "running", who, _now_ms(), asked)
        self._running = self._known[comparison.id] = comparison
        output = self._directory / f"{comparison.id}.new"
        command = _command(asked, self._settings, scorer, model, not REMOTE.isdisjoint(tiers), output)
        self._task = asyncio.get_running_loop().create_task(self._run(comparison, command))
        return comparison

    def all(self) -> list[Comparison]:
        """Those that are known, newest first."""
        return list(reversed(self._known.values()))

    def get(self, comparison_id: str) -> tuple[Comparison, msgspec.Raw]:
        """One of them, and what it found: null unless it is done. Waits for the disk. Raises NotFound."""
        comparison = self._find(comparison_id)
        try:
            result = msgspec.json.decode(self._path(comparison).read_bytes(), type=_File).result
        except (OSError, msgspec.DecodeError):  # it is not written yet
            result = msgspec.Raw(b"null")
        return comparison, result

    async def cancel(self, comparison_id: str) -> Comparison:
        """End the one that runs, or forget a finished one. Raises NotFound."""
        comparison = self._find(comparison_id)
        if comparison is self._running:
            comparison.state = "cancelled"
            await self._stop()
        else:
            del self._known[comparison.id]
            await asyncio.to_thread(self._path(comparison).unlink, missing_ok=True)
        return comparison

    async def close(self) -> None:
        """Cancel the one that runs."""
        if self._running is not None:
            self._running.state = "cancelled"
            await self._stop()

    def _find(self, comparison_id: str) -> Comparison:
        comparison = self._known.get(comparison_id)
        if comparison is None:
            raise NotFound("there is no comparison of this id", "id")
        return comparison

    def _path(self, comparison: Comparison) -> Path:
        return self._directory / f"{comparison.id}.json"

    async def _stop(self) -> None:
        """Ask the command to take everything down; kill it, and whatever it started, at the deadline."""
        task, process = self._task, self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if task is not None:
            _, left = await asyncio.wait([task], timeout=STOP_DEADLINE_S)
            if left and process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await asyncio.wait([task])

    async def _run(self, comparison: Comparison, command: Sequence[str]) -> None:
        output = self._directory / f"{comparison.id}.new"
        last_line = ""
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,  # its end is ours
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                limit=LINE_BYTES_MAX,
                env={name: value for name, value in os.environ.items() if not name.startswith("WEIR_")},
                start_new_session=True,
            )
            if comparison.state == "cancelled":  # before there was a process to end
                process.terminate()
            assert process.stderr is not None
            while line := await process.stderr.readline():
                last_line = _follow(comparison, line) or last_line
            code = await process.wait()
            await asyncio.to_thread(self._finish, comparison, code, output, last_line)
        except Exception as error:  # a task's top: whatever it was, the comparison ends
            comparison.state, comparison.problem = "failed", f"{type(error).__name__}: {error}"[:400]
            log.exception("comparison failed", id=comparison.id)
        finally:
            self._process = self._running = self._task = None
            for old in list(self._known.values())[:-KEPT_MAX]:
                del self._known[old.id]
        log.info("comparison ended", id=comparison.id, state=comparison.state, problem=comparison.problem)

    def _finish(self, comparison: Comparison, code: int, output: Path, last_line: str) -> None:
        """Keep what it found. Code 1: some requests failed, the result says which."""
        comparison.ended = _now_ms()
        result = msgspec.Raw(b"null")
        if comparison.state == "running" and code in (0, 1) and output.exists():
            comparison.state = "done"
            result = msgspec.Raw(output.read_bytes())
        elif comparison.state == "running":
            comparison.state, comparison.problem = "failed", last_line or f"weir bench tiers ended with code {code}"
        output.unlink(missing_ok=True)
        replace_file(self._path(comparison), msgspec.json.encode(_File(comparison, result)))
        for old in list(self._known.values())[:-KEPT_MAX]:
            self._path(old).unlink(missing_ok=True)


def _follow(comparison: Comparison, line: bytes) -> str:
    """Take a line of progress; any other is returned, as the reason should it be the last."""
    try:
        comparison.progress = msgspec.json.decode(line, type=Progress)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return line.decode("utf-8", "replace").strip()[-400:]
    return ""


def _check(asked: CompareBody, tiers: Sequence[str]) -> None:
    """Raise InvalidEvent for what this installation lacks."""
    for row, config in enumerate(asked.configs):
        for tier in config.off:
            if tier not in tiers:
                raise InvalidEvent(f"there is no tier {tier} here; there are {', '.join(tiers)}", f"configs[{row}].off")
    if REMOTE.isdisjoint(tiers) and any(asked.delays_ms):
        raise InvalidEvent("delays_ms: there is no L3 here to be far away", "delays_ms")


def _command(asked: CompareBody, settings: Settings, scorer: str, model: Path, has_stores: bool, output: Path) -> list[str]:
    nice = shutil.which("nice")
    words = [nice, "-n", "19"] if nice else []
    words += [sys.executable, "-m", "service", "bench", "tiers", "--progress", "json", "--json", str(output)]
    words += ["--spec", settings.spec, "--scorer", scorer, "--events", str(asked.events), "--seed", str(asked.seed)]
    words += ["--stores" if has_stores else "--no-stores"]
    words += ["--rounds", str(asked.rounds), "--clients", str(asked.clients)]
    words += ["--delays", ",".join(f"{delay:g}" for delay in asked.delays_ms)]
    for config in asked.configs:
        words += ["--config", config_text(config)]
    for setting in (f"model={model}", *handed_on(settings)):
        words += ["--set", setting]
    return words


def config_text(config: CompareConfig) -> str:
    """As `weir bench tiers --config` takes it."""
    return " ".join((*(f"no-{tier}" for tier in config.off), *([config.scorer] if config.scorer else ()))) or "all"


def handed_on(settings: Settings) -> list[str]:
    """The settings that are not the default and belong to what is measured, as --set takes them."""
    defaults = Settings()
    found: list[str] = []
    for name in SECTIONS:
        section: Section = getattr(settings, name)
        for field in section.__struct_fields__:
            value: Any = getattr(section, field)
            if field not in OWN and value != getattr(getattr(defaults, name), field):
                found.append(f"{name}.{field}={'' if value is None else written(value)}")
    return found


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
