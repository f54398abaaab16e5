"""The sockets of the HTTP front: TCP, with TLS if a certificate is set, and a UNIX socket beside it.

`Listeners.open` binds everything, so that a port in use or a bad certificate is noticed before anything else is opened;
`start` lets connections in, each with a protocol from one factory; `close` lets no more in and leaves the ones that are
open to their owner. With TLS, SIGHUP reads certificate and key again: new connections get them, open ones keep theirs, and
what cannot be used changes nothing.

A UNIX socket speaks plain HTTP: file permissions (0660) say who may connect. A socket file that a dead process left behind is
replaced; one that somebody serves, and a file that is no socket, are never touched.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import signal
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import structlog

from service.errors import StartError
from service.settings import ServerSettings

BACKLOG: Final = 1024  # connections that wait to be accepted; the kernel caps it at net.core.somaxconn
HANDSHAKE_DEADLINE_S: Final = 10.0  # for a TLS handshake; a client that opens a connection and says nothing ends here
TLS_CLOSE_DEADLINE_S: Final = 3.0  # for the peer's goodbye; an open connection must not hold up the stop
UNIX_PATH_BYTES_MAX: Final = 107  # sockaddr_un has 108, the last of them NUL
UNIX_MODE: Final = 0o660
_CLAIM_DEADLINE_S: Final = 2.0  # for another process that claims a socket in the same directory; it takes a millisecond
_CLAIM_INTERVAL_S: Final = 0.01
# TLS 1.2 with forward secrecy and authenticated encryption alone; TLS 1.3 has nothing else.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_KEY_MARK: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_CERT_MARK: Final = re.compile(rb"-----BEGIN (TRUSTED )?CERTIFICATE-----")

_log = structlog.get_logger("weir.http")


class _EncryptedKey(Exception):
    """The private key needs a passphrase."""


class Listeners:
    """The bound sockets of one service. Made by `open`; `close` may be called more than once."""

    def __init__(self, tcp: socket.socket, url: str, tls: "_Tls | None", unix: "_UnixSocket | None") -> None:
        self.url = url
        self._tcp = tcp
        self._tls = tls
        self._unix = unix
        self._servers: list[asyncio.AbstractServer] = []

    @classmethod
    def open(cls, settings: ServerSettings) -> "Listeners":
        """Bind all sockets. Raises StartError; nothing is left open or behind then."""
        tls = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            tls = _Tls(settings.tls_cert, settings.tls_key)
        tcp = _bind_tcp(settings.host, settings.port, settings.reply_deadline_ms)
        try:
            unix = None if settings.unix_socket is None else _UnixSocket(settings.unix_socket)
        except StartError:
            tcp.close()
            raise
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        return cls(tcp, f"{'http' if tls is None else 'https'}://{host}:{tcp.getsockname()[1]}", tls, unix)

    async def start(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Accept connections; `factory` makes the protocol of each. Raises StartError."""
        loop = asyncio.get_running_loop()
        try:
            self._tcp.listen(BACKLOG)  # two that start at the same moment can both bind, one can listen; uvloop is silent
        except OSError as error:
            host, port = self._tcp.getsockname()[:2]
            raise _cannot_listen(host, port, error) from None
        server = await loop.create_server(
            factory,
            sock=self._tcp,
            backlog=BACKLOG,
            ssl=self._tls.context if self._tls else None,
            ssl_handshake_timeout=HANDSHAKE_DEADLINE_S if self._tls else None,
            ssl_shutdown_timeout=TLS_CLOSE_DEADLINE_S if self._tls else None,
        )
        self._servers.append(server)
        if self._tls is not None:
            loop.add_signal_handler(signal.SIGHUP, self._tls.reload)
        if self._unix is not None:
            self._servers.append(await loop.create_unix_server(factory, sock=self._unix.socket, backlog=BACKLOG))
            _log.info("listening", unix_socket=str(self._unix.path))

    def close(self) -> None:
        """Accept no more. Connections that are open stay; the file of the UNIX socket goes."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._tcp.close()
        if self._unix is not None:
            self._unix.close()


class _Tls:
    """The context that new connections are made with, and where its certificate came from. Raises StartError."""

    def __init__(self, cert: Path, key: Path) -> None:
        self.context = tls_context(cert, key)
        self._cert = cert
        self._key = key

    def reload(self) -> None:
        """Take the certificate and key that are in the files now. What is wrong with them is logged, and the old ones stay."""
        try:
            tls_context(self._cert, self._key)  # all of it, before the one in use is touched
            self.context.load_cert_chain(self._cert, self._key, _refuse_passphrase)
        except (StartError, OSError) as error:  # an SSLError is an OSError: somebody wrote between the two lines
            _log.error("certificate not loaded again, keeping the one in use", problem=str(error))
        else:
            _log.info("certificate loaded again", file=str(self._cert))


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """What serves the certificate (chain) of `cert` with `key`, both PEM; TLS 1.2 or newer. Raises StartError.

    A certificate that clients will refuse by its date or purpose is only warned of: a restart at night must not fail by a
    date, and whoever comes over the UNIX socket is served.
    """
    _check_pem(cert, "server.tls_cert", _CERT_MARK, "certificate")
    _check_pem(key, "server.tls_key", _KEY_MARK, "private key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.load_cert_chain(cert, key, _refuse_passphrase)
    except _EncryptedKey:
        fix = f"openssl pkey -in {key} -out PLAIN.pem takes the passphrase away"
        raise StartError(f"server.tls_key: {key} is encrypted, and nobody is here to ask; {fix}", "server.tls_key") from None
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise StartError(f"server.tls_key: {key} does not belong to the certificate {cert}", "server.tls_key") from None
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise StartError(f"server.tls_cert: {cert} and {key} cannot be used: {reason}", "server.tls_cert") from None
    doubt = _doubt_about(context, cert)
    if doubt:
        _log.warning("clients will refuse the certificate", file=str(cert), problem=doubt)
    return context


def _check_pem(file: Path, setting: str, mark: re.Pattern[bytes], what: str) -> None:
    """OpenSSL names neither the file nor what is wrong with it."""
    try:
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"{setting}: {file} cannot be read: {reason}", setting) from None
    if mark.search(content) is None:
        raise StartError(f"{setting}: {file} holds no {what} in PEM form", setting)


def _refuse_passphrase() -> str:
    raise _EncryptedKey  # without a callback OpenSSL asks on the terminal, and a service waits for ever


def _doubt_about(context: ssl.SSLContext, cert: Path) -> str:
    """Why a client that trusts exactly `cert` would refuse it: expired, not yet valid, not for servers. "": it would not.

    A handshake in memory: the standard library parses no certificate, but verifies one.
    """
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client_context.load_verify_locations(cert)
        client = client_context.wrap_bio(to_client, to_server)
        server = context.wrap_bio(to_server, to_client, server_side=True)
        for side in (client, server, client):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return error.reason or str(error)
    return ""


def _bind_tcp(host: str, port: int, reply_deadline_ms: int) -> socket.socket:
    """A bound socket that does not listen yet; `reply_deadline_ms`: for clients that do not read, 0 for none."""
    with ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; inherited by every connection, so nothing has to watch them
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, reply_deadline_ms)
            listener.bind(address)
        except OSError as error:
            raise _cannot_listen(host, port, error) from None
        stack.pop_all()
        return listener


def _cannot_listen(host: str, port: int, error: OSError) -> StartError:
    fix = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
    return StartError(f"cannot listen on {host}:{port}: {error.strerror}; give another {fix}")


class _UnixSocket:
    """A socket bound to a file. It listens at once: what listens is told from what a dead process left behind.

    Who connects before `Listeners.start` waits to be accepted, about a second. Raises StartError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        length = len(os.fsencode(path))
        if length > UNIX_PATH_BYTES_MAX:
            limit = f"has {length} bytes, a UNIX socket's path at most {UNIX_PATH_BYTES_MAX}; give a shorter one"
            raise _unix_error(path, limit)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _claimed(path):
                _remove_stale(path)
                self.socket.bind(os.fspath(path))
                path.chmod(UNIX_MODE)  # nobody can connect before listen
                self.socket.listen(BACKLOG)
                self._file = _identity(path)
        except (OSError, ValueError) as error:
            self.socket.close()
            reason = error.strerror if isinstance(error, OSError) else error
            raise _unix_error(path, f"cannot be bound: {reason}") from None
        except StartError:
            self.socket.close()
            raise

    def close(self) -> None:
        """Close it and remove its file, unless that is another one by now."""
        self.socket.close()
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._file:
                self.path.unlink()


def _unix_error(path: Path, reason: str) -> StartError:
    return StartError(f"server.unix_socket: {path} {reason}", "server.unix_socket")


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Alone among services that open a socket in this directory: two must not both find, and remove, the same old file.

    The lock is the directory's own: no lock file is left behind. Raises OSError, StartError.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _CLAIM_DEADLINE_S
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _unix_error(path, f"cannot be claimed: another process has locked {path.parent}") from None
                time.sleep(_CLAIM_INTERVAL_S)
        yield
    finally:
        os.close(directory)


def _remove_stale(path: Path) -> None:
    """Remove the socket that a dead process left at `path`, and only that. Raises OSError, StartError."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _unix_error(path, "exists and is no socket; remove it or give another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(os.fspath(path))
    if code == errno.ECONNREFUSED:
        path.unlink()
    elif code != errno.ENOENT:  # 0, EAGAIN: served. EPROTOTYPE, EACCES: somebody's, and not for us to judge
        fix = "stop it or give another path"
        raise _unix_error(path, f"is in use by another process{'' if code == 0 else f' ({os.strerror(code)})'}; {fix}")


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
