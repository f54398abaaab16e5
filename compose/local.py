"""The topology of compose.yaml without Docker: the same configuration files, real servers as child processes on loopback.

    python compose/local.py up [--dir data/local] [--port 8080] [--set key=value]   until Ctrl-C or SIGTERM
    python compose/local.py down [--dir data/local]                                  ends that, from elsewhere
    python compose/local.py secrets [--dir compose/secrets]                          passwords for compose.yaml, once

Valkey and Postgres come from the PyPI wheels of the extra `embedded`, Prometheus from PATH (Debian: apt-get install
prometheus); without one it is left out, and that is said. What differs from compose.yaml is given on the command lines: ports,
addresses, directories, and that Prometheus scrapes loopback. A server that ends is started again after a second, as by Docker.
`DIR/state.json` says where everything is; passwords stand in files of DIR/secrets, never on a command line.
"""

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from service.durable_file import replace_file
from service.embedded import ChildServer, postgres_programs, unprivileged_user, until, valkey_binary
from service.errors import StartError

HERE: Final = Path(__file__).resolve().parent
PASSWORDS: Final = ("valkey_password", "postgres_superuser_password", "postgres_password", "grafana_password")
ACL: Final = "valkey_acl"
# What service/tiers/redis.py calls, and the scripts that it sends; no other key, no channel, no way to change the server.
VALKEY_RIGHTS: Final = (
    "~weir:* resetchannels -@all +get +mget +set +del +getrange +eval +evalsha +script|load +ping +dbsize +info +config|get"
    " +select +client|setname +client|setinfo"
)
READY_S: Final = 60.0
LOOK_S: Final = 0.2  # between two looks at the children
RESTART_S: Final = 1.0


def main() -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="compose/local.py", description="Weir with its stores, without Docker.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start everything; ends at SIGINT or SIGTERM")
    up.add_argument("--dir", type=Path, default=Path("data/local"), help="data, logs and secrets")
    up.add_argument("--port", type=int, default=8080, help="of the service; 0 takes a free one")
    up.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the service; repeatable")
    down = commands.add_parser("down", help="end what `up` has started over this directory, and wait for it")
    down.add_argument("--dir", type=Path, default=Path("data/local"))
    making = commands.add_parser("secrets", help="make passwords for compose.yaml, unless they are there")
    making.add_argument("--dir", type=Path, default=HERE / "secrets")
    arguments = parser.parse_args()
    try:
        if arguments.command == "secrets":
            make_secrets(arguments.dir)
            sys.stdout.write(f"passwords are in {arguments.dir}; keep them out of version control\n")
            return 0
        if arguments.command == "down":
            return _down(arguments.dir.resolve())
        return asyncio.run(_up(arguments.dir.resolve(), arguments.port, arguments.set))
    except (StartError, OSError) as error:
        sys.stderr.write(f"local: {error}\n")
        return 1


def make_secrets(directory: Path) -> None:
    """A random password in each file of `directory`, and Valkey's ACL, which holds digests alone. What is there stays.

    The directory is its owner's alone; the files are readable, since containers mount them one by one under other users.
    """
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    directory.chmod(0o700)
    for name in PASSWORDS:
        if not (directory / name).exists():
            replace_file(directory / name, secrets.token_urlsafe(32).encode() + b"\n", 0o444)
    digest = hashlib.sha256((directory / "valkey_password").read_bytes().strip()).hexdigest()
    replace_file(directory / ACL, f"user default off\nuser weir on #{digest} {VALKEY_RIGHTS}\n".encode(), 0o444)


class Child(ChildServer):
    """A server of the topology: how it is started, and how one knows that it answers. `port` stays the same over restarts."""

    stop_signal = signal.SIGTERM
    kill_signal = signal.SIGKILL

    def __init__(self, name: str, directory: Path, port: int) -> None:
        super().__init__(directory)
        self.name = name
        self.port = port
        self.restarts = 0

    async def start(self) -> None:
        """Start and wait until it answers. Raises EmbeddedUnavailable."""
        await self.stop_orphan()
        self.rotate_log()
        await self.spawn(self.command(), self.user())
        if not await until(lambda: self.answers() or not self.running(), READY_S) or not self.running():
            raise self.failure("did not become ready")

    def command(self) -> Sequence[str | Path]:
        """The command line."""
        raise NotImplementedError

    def user(self) -> Any:
        """Who it runs as, None for ourselves."""
        return None

    def answers(self) -> bool:
        """Whether it takes connections."""
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Valkey(Child):
    """compose/redis/valkey.conf."""

    def __init__(self, directory: Path, passwords: Path) -> None:
        super().__init__("valkey", directory / "valkey", _free_port())
        self._acl = passwords / ACL

    def command(self) -> Sequence[str | Path]:
        """See Child."""
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.dir), "aclfile": str(self._acl)}
        return [valkey_binary(), HERE / "redis/valkey.conf", *(word for k, v in ours.items() for word in (f"--{k}", v))]


class Postgres(Child):
    """compose/postgres: initdb and init.sql once, then postgresql.conf and pg_hba.conf."""

    stop_signal = signal.SIGINT  # fast shutdown
    kill_signal = signal.SIGQUIT

    def __init__(self, directory: Path, passwords: Path) -> None:
        super().__init__("postgres", directory / "postgres", _free_port())
        self._passwords = passwords
        self._sockets = directory / "run"
        self._programs = postgres_programs()

    def user(self) -> Any:
        """Postgres refuses to run as root."""
        return unprivileged_user()

    def command(self) -> Sequence[str | Path]:
        """See Child."""
        return self._server(f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=")

    async def start(self) -> None:
        """See Child."""
        if not (self.dir / "PG_VERSION").exists():
            await self._create()
        await super().start()

    def answers(self) -> bool:
        """Its own word: it listens before it is ready."""
        with contextlib.suppress(OSError):
            lines = (self.dir / "postmaster.pid").read_text().splitlines()
            return len(lines) > 7 and lines[7].strip() == "ready"
        return False

    def _server(self, *options: str) -> list[str | Path]:
        files = (f"config_file={HERE / 'postgres/postgresql.conf'}", f"hba_file={HERE / 'postgres/pg_hba.conf'}")
        return [
            self._programs / "postgres",
            "-D",
            self.dir,
            *(word for option in (*files, *options) for word in ("-c", option)),
        ]

    async def _create(self) -> None:
        """A cluster beside the final place, with init.sql run over a socket, as the image's entry point does it."""
        final, user = self.dir, self.user()
        self.dir = final.with_suffix(".new")
        shutil.rmtree(self.dir, ignore_errors=True)
        for made in (self.dir, self._sockets):
            made.mkdir(mode=0o700, exist_ok=True)
            if user is not None:
                os.chown(made, user.pw_uid, user.pw_gid)
        superuser = self._passwords / "postgres_superuser_password"
        await self._run([
            self._programs / "initdb", "-D", self.dir, "-U", "postgres", "--pwfile", superuser, "--data-checksums",
            "--encoding=UTF8", "--locale=C", "--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--no-instructions",
        ])  # fmt: skip
        await self.spawn(self._server("listen_addresses=", f"unix_socket_directories={self._sockets}"), user)
        if not await until(lambda: self.answers() or not self.running(), READY_S) or not self.running():
            raise self.failure("did not become ready for init.sql")
        psql = await asyncio.create_subprocess_exec(
            self._programs / "psql", "-q", "-h", self._sockets, "-U", "postgres", "-f", HERE / "postgres/init.sql",
            env={"PGPASSWORD": superuser.read_text().strip(), "WEIR_PASSWORD_FILE": str(self._passwords / "postgres_password"),
                 "PATH": os.environ.get("PATH", os.defpath)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        told, _ = await psql.communicate()
        await self.stop()
        if psql.returncode:
            raise StartError(f"compose/postgres/init.sql failed: {told.decode(errors='replace')[-400:]}")
        self.dir.rename(final)
        self.dir = final

    async def _run(self, command: Sequence[str | Path]) -> None:
        await self.spawn(command, self.user())
        await until(lambda: not self.running(), READY_S)
        if self.process.returncode:
            raise self.failure(f"could not be set up, exit code {self.process.returncode}")


class Weir(Child):
    """compose/weir.toml, with places and ports of this machine."""

    def __init__(
        self, directory: Path, passwords: Path, port: int, stores: "tuple[Valkey, Postgres]", more: Sequence[str]
    ) -> None:
        super().__init__("weir", directory / "weir", port or _free_port())
        valkey, postgres = stores
        self._settings = [
            "server.host=127.0.0.1",
            f"server.port={self.port}",
            f"data_dir={directory / 'weir'}",
            f"redis.url=redis://weir@127.0.0.1:{valkey.port}/0",
            f"redis.password_file={passwords / 'valkey_password'}",
            f"postgres.url=postgresql://weir@127.0.0.1:{postgres.port}/weir",
            f"postgres.password_file={passwords / 'postgres_password'}",
            *more,
        ]

    def answers(self) -> bool:
        """Ready, not only listening: until recovery is done it answers 503."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def command(self) -> Sequence[str | Path]:
        """See Child."""
        sets = (word for setting in self._settings for word in ("--set", setting))
        return [sys.executable, "-m", "service", "serve", "--config", HERE / "weir.toml", *sets]


class Prometheus(Child):
    """compose/prometheus, scraping loopback."""

    def __init__(self, directory: Path, program: str, weir: Weir) -> None:
        super().__init__("prometheus", directory / "prometheus", _free_port())
        self._program = program
        self._weir_port = weir.port

    def command(self) -> Sequence[str | Path]:
        """See Child."""
        source, target = HERE / "prometheus", self.dir.with_name("prometheus-config")
        target.mkdir(mode=0o700, exist_ok=True)
        for file in source.glob("*.yml"):
            text = file.read_text(encoding="utf-8").replace("weir:8080", f"127.0.0.1:{self._weir_port}")
            (target / file.name).write_text(text.replace("localhost:9090", f"127.0.0.1:{self.port}"), encoding="utf-8")
        return [
            self._program, f"--config.file={target / 'prometheus.yml'}", f"--storage.tsdb.path={self.dir}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip


async def _up(directory: Path, port: int, settings: Sequence[str]) -> int:
    """Start in the order of compose.yaml's depends_on, watch, stop in reverse."""
    directory_lock = _lock(directory)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    make_secrets(directory / "secrets")
    valkey, postgres = Valkey(directory, directory / "secrets"), Postgres(directory, directory / "secrets")
    weir = Weir(directory, directory / "secrets", port, (valkey, postgres), settings)
    children: list[Child] = [valkey, postgres, weir]
    program = shutil.which("prometheus")
    if program is None or not (HERE / "prometheus/prometheus.yml").exists():
        sys.stdout.write(
            "local: no Prometheus: none on PATH (Debian: apt-get install prometheus), or no configuration for it\n"
        )
    else:
        children.append(Prometheus(directory, program, weir))
    started: list[Child] = []
    try:
        for child in children:
            started.append(child)
            await child.start()
            if stopping.is_set():
                return 0
        _tell(directory, children)
        while not stopping.is_set():
            await _look(directory, children)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), LOOK_S)
        return 0
    finally:
        for child in reversed(started):
            await child.stop()
        (directory / "state.json").unlink(missing_ok=True)
        os.close(directory_lock)


def _lock(directory: Path) -> int:
    """Alone over `directory` until the descriptor is closed; it holds our pid for `down`. Raises StartError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StartError(f"{directory} is in use; python compose/local.py down --dir {directory} ends it") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _down(directory: Path) -> int:
    """Signal who holds the lock, and wait until it lets go. A pid is trusted only while its lock is held."""
    try:
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        lock = -1
    if lock < 0 or _is_free(lock):
        sys.stdout.write(f"nothing runs over {directory}\n")
        return 0
    os.kill(int(os.pread(lock, 20, 0)), signal.SIGTERM)
    deadline = time.monotonic() + READY_S
    while not _is_free(lock):
        if time.monotonic() > deadline:
            raise StartError(f"what runs over {directory} did not end within {READY_S:.0f} s")
        time.sleep(LOOK_S)
    return 0


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


async def _look(directory: Path, children: Sequence[Child]) -> None:
    """Start what has ended again; what does not come up is tried again, and does not hold up the others."""
    for child in children:
        if not child.running():
            code = child.process.returncode
            sys.stdout.write(f"local: {child.name} ended with code {code}, starting it again in {RESTART_S:g} s\n")
            sys.stdout.flush()
            await asyncio.sleep(RESTART_S)
            child.restarts += 1
            try:
                await child.start()
            except (StartError, OSError) as error:
                sys.stdout.write(f"local: {error}\n")
            _tell(directory, children, first=False)


def _tell(directory: Path, children: Sequence[Child], first: bool = True) -> None:
    state = {child.name: {"pid": child.process.pid, "port": child.port, "restarts": child.restarts} for child in children}
    replace_file(directory / "state.json", json.dumps(state, indent=2).encode() + b"\n")
    if first:
        places = " ".join(f"{child.name}=127.0.0.1:{child.port}" for child in children)
        sys.stdout.write(f"local ready {places} state={directory / 'state.json'}\n")
        sys.stdout.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


if __name__ == "__main__":
    sys.exit(main())
