"""Sessions of the console and the throttle of signing in, with a clock of the test's own."""

from pathlib import Path

import pytest

from service.auth import KEY_FILE, KeyRing, Role, _read, _write, add_key
from service.console.sessions import CSRF_HEADER, SESSIONS_MAX, Sessions
from service.console.throttle import ADDRESSES_MAX, WINDOW_S, Throttle
from service.errors import Forbidden, TooManyAttempts, Unauthorized
from service.settings import ConsoleSettings


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(tmp_path: Path, clock: Clock) -> dict[Role, str]:
    """One key per role in tmp_path."""
    return {role: add_key(tmp_path, role, role.word) for role in Role}


@pytest.fixture
def sessions(tmp_path: Path, keys: dict[Role, str], clock: Clock) -> Sessions:
    return Sessions(KeyRing(tmp_path / KEY_FILE, clock), ConsoleSettings(session_hours=2, idle_minutes=30), clock)


def test_session_stands_for_its_key(sessions: Sessions, keys: dict[Role, str]) -> None:
    """Name and role are the key's; reading needs the cookie alone, changing the CSRF token too."""
    token, holder = sessions.open(keys[Role.ANALYST])
    assert (holder.name, holder.role, holder.expires_s) == ("analyst", "analyst", 1800)
    assert sessions.admit(token, "GET", None) == Role.ANALYST
    assert sessions.admit(token, "PUT", holder.csrf) == Role.ANALYST
    assert sessions.holder(token).csrf == holder.csrf


@pytest.mark.parametrize("csrf", [None, "", "x", "é" * 43])
def test_change_without_the_right_csrf_token_is_refused(sessions: Sessions, keys: dict[Role, str], csrf: str | None) -> None:
    """Whatever is sent in its place, the header is named."""
    token, _ = sessions.open(keys[Role.ADMIN])
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        with pytest.raises(Forbidden) as raised:
            sessions.admit(token, method, csrf)
        assert raised.value.field == CSRF_HEADER


def test_csrf_token_of_another_session_is_refused(sessions: Sessions, keys: dict[Role, str]) -> None:
    """Two sessions of one key have a token each."""
    token, _ = sessions.open(keys[Role.ADMIN])
    _, other = sessions.open(keys[Role.ADMIN])
    with pytest.raises(Forbidden):
        sessions.admit(token, "PUT", other.csrf)


def test_who_may_open_a_session(sessions: Sessions, keys: dict[Role, str]) -> None:
    """Not an ingest key, not an unknown one."""
    with pytest.raises(Forbidden):
        sessions.open(keys[Role.INGEST])
    for wrong in ("weir_admin_x", " ", "ä", "\udcff", "a b"):
        with pytest.raises(Unauthorized):
            sessions.open(wrong)
    assert len(sessions) == 0


@pytest.mark.parametrize("token", [None, "", "x", "é", "x" * 5000])
def test_unknown_cookie_is_unauthorized(sessions: Sessions, token: str | None) -> None:
    """The cookie is named."""
    with pytest.raises(Unauthorized) as raised:
        sessions.admit(token, "GET", None)
    assert raised.value.field == "Cookie"


def test_session_ends_when_idle_and_after_its_hours(sessions: Sessions, keys: dict[Role, str], clock: Clock) -> None:
    """A use prolongs it by the idle time, not beyond the hours."""
    token, _ = sessions.open(keys[Role.ADMIN])
    for _ in range(4):
        clock.now += 1799
        sessions.admit(token, "GET", None)
    clock.now += 4
    with pytest.raises(Unauthorized, match="expired"):
        sessions.admit(token, "GET", None)
    idle, _ = sessions.open(keys[Role.ADMIN])
    clock.now += 1800
    with pytest.raises(Unauthorized, match="expired"):
        sessions.admit(idle, "GET", None)
    assert len(sessions) == 0


def test_session_ends_with_its_key(sessions: Sessions, keys: dict[Role, str], clock: Clock, tmp_path: Path) -> None:
    """Once the key has left the file the session is nobody's; other sessions go on."""
    token, _ = sessions.open(keys[Role.ADMIN])
    other, _ = sessions.open(keys[Role.ANALYST])
    _write(tmp_path / KEY_FILE, [entry for entry in _read(tmp_path / KEY_FILE) if entry.name != "admin"])
    clock.now += 1
    with pytest.raises(Unauthorized, match="revoked"):
        sessions.admit(token, "GET", None)
    assert sessions.admit(other, "GET", None) == Role.ANALYST


def test_signing_out_ends_one_session(sessions: Sessions, keys: dict[Role, str]) -> None:
    """The other one of the same key goes on; signing out twice does nothing."""
    token, _ = sessions.open(keys[Role.ADMIN])
    other, _ = sessions.open(keys[Role.ADMIN])
    sessions.close(token)
    sessions.close(token)
    with pytest.raises(Unauthorized):
        sessions.holder(token)
    assert sessions.holder(other).name == "admin"


def test_sessions_are_bounded(sessions: Sessions, keys: dict[Role, str], clock: Clock) -> None:
    """One more than the limit ends the one that was used least recently."""
    tokens = []
    for _ in range(SESSIONS_MAX):
        clock.now += 1
        tokens.append(sessions.open(keys[Role.ADMIN])[0])
    clock.now += 1
    sessions.admit(tokens[0], "GET", None)
    sessions.open(keys[Role.ADMIN])
    assert len(sessions) == SESSIONS_MAX
    assert sessions.admit(tokens[0], "GET", None) == Role.ADMIN
    with pytest.raises(Unauthorized):
        sessions.admit(tokens[1], "GET", None)


def test_throttle_lets_the_limit_pass_and_not_one_more(clock: Clock) -> None:
    """At the limit the address waits, until the oldest failure is a window old; others do not."""
    throttle = Throttle(3, clock)
    for _ in range(3):
        throttle.check("192.0.2.1")
        throttle.failed("192.0.2.1")
        clock.now += 10
    with pytest.raises(TooManyAttempts) as raised:
        throttle.check("192.0.2.1")
    assert raised.value.headers() == {"Retry-After": "30"}
    throttle.check("192.0.2.2")
    throttle.check(None)
    clock.now += WINDOW_S - 30
    throttle.check("192.0.2.1")


def test_throttle_takes_an_ipv6_network_for_one_client(clock: Clock) -> None:
    """Who has a /64 has 2^64 addresses; IPv4 in IPv6 counts by itself."""
    throttle = Throttle(1, clock)
    throttle.failed("2001:db8::1")
    with pytest.raises(TooManyAttempts):
        throttle.check("2001:db8::2%eth0")
    throttle.check("2001:db8:0:1::1")
    throttle.failed("::ffff:192.0.2.1")
    throttle.check("::ffff:192.0.2.2")


def test_throttle_is_bounded(clock: Clock) -> None:
    """However many addresses fail, the table does not grow beyond its limit."""
    throttle = Throttle(1, clock)
    for number in range(ADDRESSES_MAX + 50):
        throttle.failed(f"10.0.{number // 256}.{number % 256}")
    assert len(throttle._failed_at) == ADDRESSES_MAX
    throttle.check("10.0.0.0")
    with pytest.raises(TooManyAttempts):
        throttle.check(f"10.0.4.{ADDRESSES_MAX + 49 - 1024}")
