"""The sockets of the HTTP front: what can be bound is, what cannot is refused by name, and nothing is left behind."""

import asyncio
import datetime
import errno
import fcntl
import os
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from service import __main__ as cli
from service.errors import SettingsError, StartError
from service.listeners import UNIX_PATH_BYTES_MAX, Listeners, tls_context
from service.settings import ServerSettings, load_settings

DAY = datetime.timedelta(days=1)
ANY_PORT = ServerSettings(port=0)


class Pair:
    """A self-signed certificate for localhost and its key, as PEM files."""

    def __init__(
        self, directory: Path, name: str, days: tuple[int, int], passphrase: bytes, usage: x509.ObjectIdentifier
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        cert = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now + days[0] * DAY)
            .not_valid_after(now + days[1] * DAY)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(key, hashes.SHA256())
        )
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            encryption = serialization.BestAvailableEncryption(passphrase)
        self.cert = directory / f"{name}.pem"
        self.key = directory / f"{name}-key.pem"
        self.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        form = serialization.PrivateFormat.PKCS8
        self.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))


MakePair = Callable[..., Pair]


@pytest.fixture
def make_pair(tmp_path: Path) -> MakePair:
    """`make_pair(name="a", days=(-1, 1), passphrase=b"", usage=...)`: a certificate valid for those days from now."""

    def make(
        name: str = "a",
        days: tuple[int, int] = (-1, 1),
        passphrase: bytes = b"",
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    ) -> Pair:
        return Pair(tmp_path, name, days, passphrase, usage)

    return make


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short path for a socket: pytest's own directory may be too deep."""
    monkeypatch.chdir(tmp_path)
    return Path("w.sock")


def _refused(settings: ServerSettings) -> StartError:
    with pytest.raises(StartError) as caught:
        Listeners.open(settings)
    return caught.value


def _unix(path: Path) -> ServerSettings:
    return ServerSettings(port=0, unix_socket=path)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Send a line, return what comes back until the end."""
    writer.write(b"hello\n")
    reply = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    return reply


class Echo(asyncio.Protocol):
    """Sends back the first bytes, then closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert isinstance(self.transport, asyncio.Transport)
        self.transport.write(data)
        self.transport.close()


async def test_start_serves_tcp_and_unix_socket(path: Path) -> None:
    """Both sockets give their connections to the one factory; the URL names the port that was bound."""
    listeners = Listeners.open(_unix(path))
    await listeners.start(Echo)
    port = int(listeners.url.rpartition(":")[2])
    assert listeners.url == f"http://127.0.0.1:{port}"
    assert await _ask(*await asyncio.open_connection("127.0.0.1", port)) == b"hello\n"
    assert await _ask(*await asyncio.open_unix_connection(path)) == b"hello\n"
    listeners.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(FileNotFoundError):
        await asyncio.open_unix_connection(path)
    listeners.close()


async def test_start_with_certificate_speaks_tls_only(make_pair: MakePair) -> None:
    """A client that trusts the certificate is served over TLS 1.2 and 1.3; TLS 1.1 and plain text are not."""
    pair = make_pair()
    listeners = Listeners.open(ServerSettings(port=0, tls_cert=pair.cert, tls_key=pair.key))
    await listeners.start(Echo)
    assert listeners.url.startswith("https://127.0.0.1:")
    port = int(listeners.url.rpartition(":")[2])
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=str(pair.cert))
        context.minimum_version = context.maximum_version = version
        assert await _ask(*await asyncio.open_connection("localhost", port, ssl=context, family=socket.AF_INET)) == b"hello\n"
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", port, ssl=old)
    assert b"hello" not in await _ask(*await asyncio.open_connection("127.0.0.1", port))
    listeners.close()


async def test_tls_client_that_says_nothing_is_given_up(make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a handshake does not stay open for ever."""
    monkeypatch.setattr("service.listeners.HANDSHAKE_DEADLINE_S", 0.2)
    pair = make_pair()
    listeners = Listeners.open(ServerSettings(port=0, tls_cert=pair.cert, tls_key=pair.key))
    await listeners.start(Echo)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(listeners.url.rpartition(":")[2]))
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    listeners.close()


def test_open_ipv6_host_is_bracketed_in_url() -> None:
    """An IPv6 address stands in brackets in the URL."""
    try:
        listeners = Listeners.open(ServerSettings(host="::1", port=0))
    except StartError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert listeners.url.startswith("http://[::1]:")
    listeners.close()


def test_open_port_in_use_is_refused(path: Path) -> None:
    """Another listener on the port is named with the option that changes it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert str(_refused(ServerSettings(port=port, unix_socket=path))) == (
            f"cannot listen on 127.0.0.1:{port}: {os.strerror(errno.EADDRINUSE)}; give another --port"
        )
    assert not path.exists()


def test_open_host_unknown_is_refused() -> None:
    """A host that is no address of this machine is named with --host."""
    assert "give another --host" in str(_refused(ServerSettings(host="192.0.2.1", port=0)))


async def test_start_second_of_two_bound_to_a_port_is_refused() -> None:
    """Two that start at the same moment can both bind a port; the second that listens is told."""
    first = Listeners.open(ANY_PORT)
    second = Listeners.open(ServerSettings(port=int(first.url.rpartition(":")[2])))
    await first.start(Echo)
    with pytest.raises(StartError, match="give another --port"):
        await second.start(Echo)
    first.close()
    second.close()


# --- UNIX sockets ---


def test_unix_socket_is_for_owner_and_group(path: Path) -> None:
    """Its mode is 0660, whatever the umask says."""
    before = os.umask(0)
    try:
        listeners = Listeners.open(_unix(path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    listeners.close()


async def test_unix_socket_of_dead_process_is_replaced(path: Path) -> None:
    """A file that nobody listens on, as SIGKILL leaves it, does not stop the next start."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listeners = Listeners.open(_unix(path))
    await listeners.start(Echo)
    assert await _ask(*await asyncio.open_unix_connection(path)) == b"hello\n"
    listeners.close()


async def test_unix_socket_in_use_is_refused(path: Path) -> None:
    """Whoever listens keeps the socket, even if it has not begun to accept."""
    first = Listeners.open(_unix(path))
    error = _refused(_unix(path))
    assert str(error) == "server.unix_socket: w.sock is in use by another process; stop it or give another path"
    assert error.field == "server.unix_socket"
    await first.start(Echo)
    assert await _ask(*await asyncio.open_unix_connection(path)) == b"hello\n"
    first.close()


def test_unix_socket_with_full_backlog_is_in_use(path: Path) -> None:
    """A process too busy to accept is alive."""
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as waiting:
        other.bind(str(path))
        other.listen(0)
        waiting.connect(str(path))
        assert "is in use by another process" in str(_refused(_unix(path)))
    assert path.is_socket()


def test_unix_socket_of_datagrams_is_left_alone(path: Path) -> None:
    """A socket that is not a stream belongs to something else."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        assert "is in use by another process" in str(_refused(_unix(path)))
    assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_unix_socket_never_replaces_what_is_no_socket(path: Path, kind: str) -> None:
    """Anything but a socket stays where it is; so does what a symlink points to."""
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("elsewhere")
    before = path.lstat()
    assert "w.sock exists and is no socket" in str(_refused(_unix(path)))
    assert path.lstat().st_ino == before.st_ino
    assert not Path("elsewhere").exists()


def test_unix_socket_path_at_the_limit_and_one_past_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """107 bytes are bound, 108 are refused with the limit; bytes count, not characters."""
    monkeypatch.chdir(tmp_path)
    Listeners.open(_unix(Path("x" * UNIX_PATH_BYTES_MAX))).close()
    for name in ("x" * (UNIX_PATH_BYTES_MAX + 1), "ü" * 54):
        assert "has 108 bytes, a UNIX socket's path at most 107" in str(_refused(_unix(Path(name))))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "part"), [("no/w.sock", "No such file"), ("f/w.sock", "Not a directory"), ("a\0b", "null")])
def test_unix_socket_where_none_can_be_is_refused(path: Path, name: str, part: str) -> None:
    """A directory that does not exist, one that is a file, a path with a NUL."""
    Path("f").write_text("")
    error = str(_refused(_unix(Path(name))))
    assert error.startswith("server.unix_socket: ")
    assert part in error


def test_unix_socket_close_leaves_the_file_of_another(path: Path) -> None:
    """If somebody put another socket in its place, that one stays."""
    listeners = Listeners.open(_unix(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listeners.close()
        assert path.is_socket()


def test_unix_socket_in_locked_directory_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two never look for stale sockets at once; one that holds the directory for ever is told of."""
    monkeypatch.setattr("service.listeners._CLAIM_DEADLINE_S", 0.05)
    directory = os.open(".", os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    try:
        assert "another process has locked" in str(_refused(_unix(path)))
    finally:
        os.close(directory)
    assert not path.exists()


# --- TLS ---


def _tls_refused(cert: Path, key: Path) -> StartError:
    with pytest.raises(StartError) as caught:
        tls_context(cert, key)
    return caught.value


def test_tls_context_is_for_servers_from_1_2(make_pair: MakePair) -> None:
    """The oldest version is TLS 1.2; no client certificate is asked for; a good certificate is not warned of."""
    pair = make_pair()
    with structlog.testing.capture_logs() as logs:
        context = tls_context(pair.cert, pair.key)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    assert logs == []


def test_tls_cert_and_key_in_one_file_are_taken(make_pair: MakePair) -> None:
    """Many tools write both into one file."""
    pair = make_pair()
    pair.cert.write_bytes(pair.key.read_bytes() + pair.cert.read_bytes())
    assert tls_context(pair.cert, pair.cert)


@pytest.mark.parametrize("setting", ["tls_cert", "tls_key"])
@pytest.mark.parametrize("fault", ["missing", "directory", "empty", "text", "binary", "cut"])
def test_tls_file_of_no_use_is_named(make_pair: MakePair, tmp_path: Path, setting: str, fault: str) -> None:
    """The setting and the file at fault are in the message, which is one line."""
    pair = make_pair()
    file = pair.cert if setting == "tls_cert" else pair.key
    content = file.read_bytes()
    file.unlink()
    if fault == "directory":
        file.mkdir()
    elif fault != "missing":
        file.write_bytes({"empty": b"", "text": b"hello", "binary": bytes(range(256)), "cut": content[:80]}[fault])
    error = str(_tls_refused(pair.cert, pair.key))
    assert str(file) in error
    assert error.startswith("server.tls_cert" if fault == "cut" else f"server.{setting}")
    assert "\n" not in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_tls_file_that_may_not_be_read_is_named(make_pair: MakePair) -> None:
    """A key that belongs to somebody else is named."""
    pair = make_pair()
    pair.key.chmod(0)
    assert "Permission denied" in str(_tls_refused(pair.cert, pair.key))


def test_tls_files_swapped_are_told(make_pair: MakePair) -> None:
    """The certificate's file holds no certificate."""
    pair = make_pair()
    assert "holds no certificate in PEM form" in str(_tls_refused(pair.key, pair.cert))


def test_tls_key_of_another_certificate_is_told(make_pair: MakePair) -> None:
    """The key must belong to the certificate."""
    error = _tls_refused(make_pair("a").cert, make_pair("b").key)
    assert "does not belong to the certificate" in str(error)
    assert error.field == "server.tls_key"


def test_tls_key_encrypted_is_told_and_not_asked_for(make_pair: MakePair) -> None:
    """Nobody is at the terminal of a service: no prompt."""
    pair = make_pair(passphrase=b"secret")
    assert "is encrypted" in str(_tls_refused(pair.cert, pair.key))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"days": (-3, -1)}, "expired"),
        ({"days": (1, 3)}, "not yet valid"),
        ({"usage": ExtendedKeyUsageOID.CLIENT_AUTH}, "purpose"),
    ],
    ids=["expired", "not yet valid", "not for servers"],
)
def test_tls_cert_that_clients_refuse_is_warned_of(make_pair: MakePair, options: dict[str, object], part: str) -> None:
    """The service starts all the same, and says so in its log."""
    pair = make_pair(**options)
    with structlog.testing.capture_logs() as logs:
        assert tls_context(pair.cert, pair.key)
    assert [(entry["log_level"], part in entry["problem"]) for entry in logs] == [("warning", True)], logs


def test_open_with_bad_certificate_binds_nothing(make_pair: MakePair, path: Path) -> None:
    """TLS is looked at first: no socket is left behind."""
    pair = make_pair()
    pair.key.unlink()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    settings = ServerSettings(port=port, tls_cert=pair.cert, tls_key=pair.key, unix_socket=path)
    assert "server.tls_key" in str(_refused(settings))
    assert not path.exists()
    socket.create_server(("127.0.0.1", port)).close()


# --- settings and the command line ---


@pytest.mark.parametrize(("given", "missing"), [("tls_cert", "tls_key"), ("tls_key", "tls_cert")])
def test_settings_one_half_of_tls_is_refused(given: str, missing: str) -> None:
    """A certificate without its key, or the other way round, is a mistake: nobody is left to speak plain HTTP by it."""
    with pytest.raises(SettingsError, match=f"command line: server.{given} is set without server.{missing}") as caught:
        load_settings(overrides=[f"server.{given}=a.pem"])
    assert caught.value.field == f"server.{missing}"


def test_settings_of_listeners_are_paths_or_none() -> None:
    """None of them is set by default, an empty value takes one away, ~ is the home directory."""
    server = load_settings().server
    assert (server.tls_cert, server.tls_key, server.unix_socket) == (None, None, None)
    env = {"WEIR_SERVER__UNIX_SOCKET": "~/w.sock", "WEIR_SERVER__TLS_CERT": "1", "WEIR_SERVER__TLS_KEY": "2"}
    server = load_settings(env=env).server
    assert (server.tls_cert, server.tls_key, server.unix_socket) == (Path("1"), Path("2"), Path.home() / "w.sock")
    assert load_settings(None, ["server.unix_socket="], env).server.unix_socket is None


@pytest.mark.parametrize(
    ("workers", "part"),
    [
        ("2", "--workers 2: one process owns the state of a data directory"),
        ("64", "run one service for each partition"),
        ("0", "'--workers'"),
        ("-1", "'--workers'"),
        ("two", "'--workers'"),
        ("1.5", "'--workers'"),
        ("", "'--workers'"),
    ],
)
def test_serve_workers_that_cannot_be_are_refused(workers: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    """More than one process is refused with the reason and what to do instead; no number, and less than one, as usage."""
    assert cli.main(["serve", "--workers", workers, "--port", "0", "--data-dir", "never-made"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("weir: ")
    assert part in err
    assert not Path("never-made").exists()


def test_serve_one_worker_is_what_runs_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    """--workers 1 is said by many process managers."""
    started: list[object] = []
    monkeypatch.setattr("service.app.run", lambda settings, *, accept_loss: started.append(settings))
    monkeypatch.setattr(cli, "configure_logs", lambda: None)
    assert cli.main(["serve", "--workers", "1", "--port", "0"]) == 0
    assert len(started) == 1
