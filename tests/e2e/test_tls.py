"""TLS as it is served: what is refused, and a new certificate without a restart."""

import datetime
import json
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from tests.e2e.conftest import MakeWeir

pytestmark = pytest.mark.e2e

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
WAIT_S = 10.0


def make_pair(directory: Path) -> bytes:
    """A self-signed certificate and its key in `directory`, replacing what is there; returns the certificate as DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weir")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (directory / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return cert.public_bytes(serialization.Encoding.DER)


def settings_of(directory: Path) -> tuple[str, str]:
    return f"server.tls_cert={directory / 'cert.pem'}", f"server.tls_key={directory / 'key.pem'}"


def connect(url: str, change: Callable[[ssl.SSLContext], object] = lambda context: None) -> ssl.SSLSocket:
    """A connection that believes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    change(context)
    plain = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=WAIT_S)
    return context.wrap_socket(plain)


def is_live(connection: ssl.SSLSocket) -> bool:
    connection.sendall(LIVEZ)
    return connection.recv(4096).startswith(b"HTTP/1.1 200")


async def test_certificate_is_loaded_again_at_sighup(make_weir: "MakeWeir", tmp_path: Path) -> None:
    """New connections get the new one, an open one goes on; files that are of no use change nothing, and the log says so."""
    first = make_pair(tmp_path)
    weir = make_weir(*settings_of(tmp_path))
    await weir.start()
    pid = weir._process.pid if weir._process else 0

    def served() -> bytes | None:
        with connect(weir.url) as connection:
            assert is_live(connection)
            return connection.getpeercert(binary_form=True)

    def hang_up(word: str) -> None:
        """SIGHUP, and wait for the line about it."""
        n_before = weir.log().count(word)
        os.kill(pid, signal.SIGHUP)
        deadline = time.monotonic() + WAIT_S
        while weir.log().count(word) == n_before:
            assert time.monotonic() < deadline, weir.log()
            time.sleep(0.02)

    old = connect(weir.url)
    assert is_live(old)
    assert served() == first
    second = make_pair(tmp_path)
    assert served() == first, "nothing happens before the signal"
    hang_up("certificate loaded again")
    assert served() == second
    assert is_live(old)
    cert = (tmp_path / "cert.pem").read_bytes()
    make_pair(tmp_path)
    (tmp_path / "cert.pem").write_bytes(cert)  # the key is another one's
    hang_up("certificate not loaded again")
    assert served() == second
    (tmp_path / "key.pem").unlink()
    hang_up("certificate not loaded again")
    assert served() == second
    third = make_pair(tmp_path)
    hang_up("certificate loaded again")
    assert served() == third
    old.close()
    weir.stop()
    told = [json.loads(line) for line in weir.log().splitlines()]
    assert ["does not belong" in entry["problem"] for entry in told if "not loaded" in entry["event"]] == [True, False]


async def test_old_and_weak_tls_is_refused(make_weir: "MakeWeir", tmp_path: Path) -> None:
    """TLS 1.3, and 1.2 with forward secrecy and authenticated encryption; nothing else."""
    make_pair(tmp_path)
    weir = make_weir(*settings_of(tmp_path))
    await weir.start()

    def only(version: ssl.TLSVersion, ciphers: str = "") -> Callable[[ssl.SSLContext], None]:
        def change(context: ssl.SSLContext) -> None:
            context.set_ciphers(ciphers or "DEFAULT:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version

        return change

    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with connect(weir.url, only(version)) as connection:
            assert is_live(connection)
            assert connection.compression() is None
            name = connection.cipher()
            assert name is not None
            assert "GCM" in name[0] or "CHACHA20" in name[0]
    for ciphers in ("ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0", "ECDHE-ECDSA-AES256-SHA384", "AES128-GCM-SHA256"):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connect(weir.url, only(ssl.TLSVersion.TLSv1_2, ciphers))
    with pytest.raises((ssl.SSLError, ConnectionError)), pytest.warns(DeprecationWarning, match="TLSv1_1"):
        connect(weir.url, only(ssl.TLSVersion.TLSv1_1))
    with connect(weir.url) as connection:
        assert is_live(connection), "refusing harms nobody"
    weir.stop()
