"""Sessions of the console: a cookie in place of a key, so that no script ever holds the key.

A session stands for the key that opened it: it may do what that key may do at this moment, and ends with it. Whoever changes
anything with a session also sends its CSRF token, which another site cannot read; the cookie is SameSite=Strict besides.
Sessions live in this process: a restart ends them. Nothing here is asked for a request that carries an Authorization header.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Final

import msgspec

from service.auth import KeyRing, Role, require
from service.errors import Forbidden, Unauthorized
from service.settings import ConsoleSettings

COOKIE: Final = "weir_session"
CSRF_HEADER: Final = "X-CSRF-Token"
SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
SESSIONS_MAX: Final = 256  # open ones; the one that was used least recently makes room
_TOKEN_BYTES: Final = 32  # random bytes


class Session(msgspec.Struct):
    """One sign-in. `key_digest`: hex SHA-256 of its key; times are of the monotonic clock, in s."""

    key_digest: str
    csrf: str
    ends_at: float
    used_at: float


class Holder(msgspec.Struct, frozen=True):
    """Who is signed in, as GET /v1/session shows it. `expires_s`: s until the session ends if it is used meanwhile."""

    name: str
    role: str
    csrf: str
    expires_s: int


class Sessions:
    """The open sessions of one service."""

    def __init__(self, keys: KeyRing, settings: ConsoleSettings, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._lifetime_s = settings.session_hours * 3600.0
        self._idle_s = settings.idle_minutes * 60.0
        self._monotonic = monotonic
        self._open: dict[str, Session] = {}  # digest of the cookie -> session

    def __len__(self) -> int:
        return len(self._open)

    def open(self, key: str) -> tuple[str, Holder]:
        """A session for an analyst's or admin's API key: the cookie's value, and its holder. Raises Unauthorized, Forbidden."""
        require(self._keys.role_of(f"Bearer {key}"), Role.ANALYST)
        now = self._monotonic()
        self._drop_ended(now)
        if len(self._open) >= SESSIONS_MAX:
            del self._open[min(self._open, key=lambda digest: self._open[digest].used_at)]
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        session = Session(_digest(key.strip()), secrets.token_urlsafe(_TOKEN_BYTES), now + self._lifetime_s, now)
        self._open[_digest(token)] = session
        return token, self._holder(session)

    def holder(self, token: str | None) -> Holder:
        """Who the cookie's value stands for; counts as a use. Raises Unauthorized."""
        return self._holder(self._find(token))

    def admit(self, token: str | None, method: str, csrf: str | None) -> Role:
        """The role of a request with this cookie and CSRF header. Raises Unauthorized, Forbidden for a token that is wrong."""
        session = self._find(token)
        if method not in SAFE_METHODS and not hmac.compare_digest((csrf or "").encode(), session.csrf.encode()):
            problem = "is not this session's" if csrf else "is missing"
            raise Forbidden(f"the header {CSRF_HEADER} {problem}: with a session, changes carry its CSRF token", CSRF_HEADER)
        known = self._keys.known(session.key_digest)
        assert known is not None, "_find has looked"
        return known[1]

    def close(self, token: str | None) -> None:
        """Sign out; nothing happens where nobody is signed in."""
        self._open.pop(_digest(token or ""), None)

    def _find(self, token: str | None) -> Session:
        digest = _digest(token or "")
        session = self._open.get(digest)
        if session is None:
            raise Unauthorized("not signed in: the session is not known here, or has ended", "Cookie")
        now = self._monotonic()
        if now >= self._ends_at(session):
            del self._open[digest]
            raise Unauthorized("the session has expired; sign in again", "Cookie")
        if self._keys.known(session.key_digest) is None:
            del self._open[digest]
            raise Unauthorized("the session has ended: its key was revoked", "Cookie")
        session.used_at = now
        return session

    def _holder(self, session: Session) -> Holder:
        name, role = self._keys.known(session.key_digest) or ("", Role.INGEST)
        return Holder(name, role.word, session.csrf, int(self._ends_at(session) - self._monotonic()))

    def _ends_at(self, session: Session) -> float:
        return min(session.ends_at, session.used_at + self._idle_s)

    def _drop_ended(self, now: float) -> None:
        for digest in [digest for digest, session in self._open.items() if now >= self._ends_at(session)]:
            del self._open[digest]


def _digest(text: str) -> str:
    """The table is kept by digest: the time of a look-up says nothing about the secret."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
