"""The data directory: one process at a time, one plan for life, and nobody's but its owner's.

It holds transactions in the clear (journal, l2), so what is made in it is made for its owner alone (`private_files`), and a
directory that others may enter is warned of. Whoever reads the disk reads everything: docs/explanation/threat-model.md.
"""

import fcntl
import os
import stat
from pathlib import Path

import msgspec
import structlog

from features.plan import Plan
from service.durable_file import replace_file
from service.errors import StartError

PLAN_FILE = "plan.json"
LOCK_FILE = "lock"


_log = structlog.get_logger(__name__)


def private_files() -> None:
    """From here on whatever this process or its children create is their owner's alone, RocksDB's files among it."""
    os.umask(0o077)


def doubt_about(path: Path) -> str:
    """Why the directory, or what lies in it, is not its owner's alone, and the fix; "": it is. Raises OSError."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        return f"{path} belongs to uid {found.st_uid}, this process runs as {os.geteuid()}"
    if found.st_mode & 0o077:
        return f"{path} has mode {stat.S_IMODE(found.st_mode):o}: others may enter it; chmod 700 {path}"
    return ""


class PlanRecord(msgspec.Struct):
    """Which plan the profiles of a data directory belong to."""

    spec: str
    plan_hash: str


class DataDir:
    """Holds the lock from `DataDir(path, plan)` to `close`. Raises StartError: in use, not writable, another plan's."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"data directory {path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StartError(f"data directory {path} is used by another process; stop it or give --data-dir") from None
        doubt = doubt_about(path)
        if doubt:
            _log.warning("data directory is not private", problem=doubt)
        self._check_plan(plan)

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._lock)

    def _check_plan(self, plan: Plan) -> None:
        """Profiles are laid out by their plan: a directory of another one is refused before anything reads it."""
        file = self.path / PLAN_FILE
        if not file.exists():
            try:  # a crash or a full disk must not leave half a file, which refuses the next start
                replace_file(file, msgspec.json.encode(PlanRecord(plan.spec_name, plan.hash)))
            except OSError as error:
                self.close()
                raise StartError(f"cannot write {file}: {error.strerror}") from None
            return
        try:
            known = msgspec.json.decode(file.read_bytes(), type=PlanRecord)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.close()
            raise StartError(f"{file}: not readable: {error}") from None
        if known.plan_hash != plan.hash:
            self.close()
            raise StartError(
                f"data directory {self.path} belongs to spec {known.spec!r} (plan {known.plan_hash[:12]}), this is"
                f" {plan.spec_name!r} (plan {plan.hash[:12]}); give another --data-dir, or that spec"
            )
