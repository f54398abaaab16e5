"""API keys: who may call what. Closed by default: with no key file nobody gets in.

Keys live in `<data_dir>/keys.json` (mode 0600), outside RocksDB, so that `weir keys` works while the service runs: writers
hold a lock file and replace the file atomically, a running KeyRing notices within a second (a key that was revoked or has
expired stops working then), and at once when it is shown a key that it does not know. Only the SHA-256 of a key is stored. One
round of it is right here, unlike for passwords: a key holds 256 random bits, so there is nothing to guess that salt or a slow
hash would protect.

Comparing takes no time that tells anything: what is looked up is a digest, in a table with a secret hash, and compared with
hmac.compare_digest. Cost of a known key: one dict look-up and one clock read, 0.2 µs. Keys never appear in logs or errors.

A key may have a rate (service/pace.py), its own or its role's. Those without one stand in a table of their own, so that they
pay nothing for it.
"""

import enum
import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from service.correlation import loggable
from service.durable_file import replace_file
from service.errors import Forbidden, KeyFileError, Unauthorized, WeirError
from service.pace import Allowance, Pace

KEY_FILE: Final = "keys.json"
_LOCK_FILE: Final = "keys.lock"
_FILE_VERSION: Final = 1
DAY_MS: Final = 86_400_000
RATE_MAX: Final = 10_000_000  # events a second; no service takes more
LATEST_MS: Final = 1 << 62  # later than any time
_KEY_BYTES: Final = 32  # random bytes; 43 URL-safe characters
_CHECK_INTERVAL_S: Final = 0.2  # s between two looks at the file: "within a second" with room to spare
_CACHED_HEADERS_MAX: Final = 4096  # spellings of valid headers; bounds memory, a service has far fewer keys

_log = structlog.get_logger("weir.auth")


class Role(enum.IntEnum):
    """What a key may do; each role includes the ones before it."""

    INGEST = 1  # score, label, read decisions
    ANALYST = 2  # entities, lists, tiers
    ADMIN = 3  # everything

    @property
    def word(self) -> str:
        """The role as keys, files and the command line spell it."""
        return self.name.lower()


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key in the file. `created` and `expires` are ms UTC, `sha256` hex of the whole key."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
    role: Annotated[str, Meta(pattern=r"^(ingest|analyst|admin)\Z")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    created: int
    expires: int | None = None  # from here on it opens nothing; None: never
    rate: Annotated[float, Meta(ge=0, le=RATE_MAX)] | None = None  # events a second; 0: no limit; None: its role's


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    keys: list[KeyEntry]


def parse_role(word: str) -> Role:
    """The role called `word`. Raises KeyFileError."""
    for role in Role:
        if role.word == word:
            return role
    raise KeyFileError(f"{word!r} is not a role; roles are {', '.join(role.word for role in Role)}", "role")


def add_key(data_dir: Path, role: Role, name: str, days: float | None = None, rate: float | None = None) -> str:
    """Make a key, store its digest in `data_dir` (created if absent), return the key: nobody can read it again later.

    `days`: how long it is good for; None: until it is revoked. `rate`: events a second, 0 for no limit; None: its role's.
    Raises KeyFileError if the name is taken or not 1 to 64 of A-Z a-z 0-9 _ . -, or the file cannot be written.
    """
    key = f"weir_{role.word}_{secrets.token_urlsafe(_KEY_BYTES)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    created = _wall_ms()
    expires = None if days is None else created + round(days * DAY_MS)
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(data_dir / _LOCK_FILE, "w", opener=_private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = _read(data_dir / KEY_FILE)
            if any(entry.name == name for entry in entries):
                raise KeyFileError(f"a key called {name!r} exists already in {data_dir / KEY_FILE}", "name")
            told = {"name": name, "role": role.word, "sha256": digest, "created": created, "expires": expires, "rate": rate}
            entry = msgspec.convert(told, KeyEntry)
            _write(data_dir / KEY_FILE, [*entries, entry])
    except msgspec.ValidationError:
        raise KeyFileError(f"{name!r} is no name for a key: use 1 to 64 of A-Z a-z 0-9 _ . -", "name") from None
    except OSError as error:
        raise KeyFileError(f"cannot write keys in {data_dir}: {error.strerror}") from None
    return key


def list_keys(data_dir: Path) -> list[KeyEntry]:
    """The keys of `data_dir` in the order in which they were made. Raises KeyFileError."""
    return _read(data_dir / KEY_FILE)


def revoke_key(data_dir: Path, name: str) -> KeyEntry:
    """Take the key out of the file: a running service refuses it within a second. Raises KeyFileError if there is none."""
    path = data_dir / KEY_FILE
    try:
        if not path.exists():
            raise KeyFileError(f"there are no keys in {data_dir}")
        with open(data_dir / _LOCK_FILE, "w", opener=_private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = _read(path)
            found = next((entry for entry in entries if entry.name == name), None)
            if found is None:
                raise KeyFileError(f"there is no key called {name[:64]!r} in {path}", "name")
            _write(path, [entry for entry in entries if entry is not found])
    except OSError as error:
        raise KeyFileError(f"cannot write keys in {data_dir}: {error.strerror}") from None
    return found


class KeyRing:
    """The keys of one file, watched. Raises KeyFileError when made over a broken file; a missing one is empty."""

    def __init__(
        self,
        path: Path,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] | None = None,
        rates: Mapping[Role, float] | None = None,
    ) -> None:
        self._path = path
        self._rates = rates or {}  # role -> events a second; 0 or absent: no limit
        self._paces: dict[str, Pace] = {}  # hex digest -> its pace, of the keys that have one
        self._limited: dict[str, tuple[Role, Pace]] = {}  # Authorization header -> role and pace; the others are in _cache
        self._monotonic = monotonic
        self._wall_ms = wall_ms or _wall_ms
        self._expires_at: dict[str, int] = {}  # hex digest -> ms, of those that will expire
        self._roles: dict[str, tuple[str, Role]] = {}  # hex digest -> itself, role
        self._names: dict[str, str] = {}  # hex digest -> the key's name
        self._cache: dict[str, Role] = {}  # Authorization header -> role
        self._version: tuple[int, int, int] | None = None  # mtime_ns, size, inode of what was read
        self._check_at = 0.0  # monotonic s; the file is looked at again from here on
        self._read_if_changed()

    def __len__(self) -> int:
        return len(self._roles)

    def role_of(self, header: str | None) -> Role:
        """The role of the key in an Authorization header. Raises Unauthorized."""
        if header is None:
            raise Unauthorized("no API key; send it as Authorization: Bearer <key>", "Authorization")
        if self._monotonic() >= self._check_at:
            self._look()
        role = self._cache.get(header)
        return self._find(header)[0] if role is None else role

    def admit(self, header: str | None) -> Role:
        """`role_of`, and counts one event against the key's rate. Raises Unauthorized, RateExceeded."""
        if header is None:
            raise Unauthorized("no API key; send it as Authorization: Bearer <key>", "Authorization")
        now = self._monotonic()
        if now >= self._check_at:
            self._look()
        role = self._cache.get(header)
        if role is not None:
            return role
        found = self._limited.get(header) or self._find(header)
        if found[1] is not None:
            found[1].take(now)
        return found[0]

    def allowance(self, header: str | None) -> Allowance:
        """What more rows of a request with this header, which was admitted, count against."""
        return Allowance(self._paces.get(_digest_of(header or "")) if self._paces else None, self._monotonic)

    def name_of(self, header: str | None) -> str:
        """The name of a key that `role_of` knows, for the audit; empty for one that has gone meanwhile."""
        return self._names.get(_digest_of(header or ""), "")

    def known(self, digest: str) -> tuple[str, Role] | None:
        """Name and role of the key whose hex SHA-256 this is; None if there is none, or none any more. For sessions."""
        if self._monotonic() >= self._check_at:
            self._look()
        found = self._roles.get(digest)
        if found is None or self._expires_at.get(digest, LATEST_MS) <= self._wall_ms():
            return None
        return self._names[digest], found[1]

    def _find(self, header: str) -> tuple[Role, Pace | None]:
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("the Authorization header must be: Bearer <key>", "Authorization")
        digest = _digest_of(header)
        found = self._roles.get(digest)
        if found is None:  # it may have been added a moment ago
            self._look()
            found = self._roles.get(digest)
        if found is None or not hmac.compare_digest(found[0], digest):
            raise Unauthorized("the API key is not known here", "Authorization")
        if self._expires_at.get(digest, LATEST_MS) <= self._wall_ms():
            raise Unauthorized("the API key has expired", "Authorization")
        if len(self._cache) + len(self._limited) >= _CACHED_HEADERS_MAX:
            self._forget()
        pace = self._paces.get(digest)
        if pace is None:
            self._cache[header] = found[1]
        else:
            self._limited[header] = found[1], pace
        return found[1], pace

    def _forget(self) -> None:
        """Have each header judged again."""
        self._cache.clear()
        self._limited.clear()

    def _look(self) -> None:
        """Read the file again if it changed. One that broke while we run keeps the keys that we have, and is logged."""
        self._check_at = self._monotonic() + _CHECK_INTERVAL_S
        try:
            self._read_if_changed()
        except KeyFileError as error:
            _log.error("key file not read, keeping the keys known before", reason=error.detail)
        if self._expires_at and min(self._expires_at.values()) <= self._wall_ms():
            self._forget()

    def _read_if_changed(self) -> None:
        version = self._stat()
        if version == self._version:
            return
        self._version = version
        entries = _read(self._path)
        self._roles = {entry.sha256: (entry.sha256, parse_role(entry.role)) for entry in entries}
        self._names = {entry.sha256: entry.name for entry in entries}
        self._expires_at = {entry.sha256: entry.expires for entry in entries if entry.expires is not None}
        self._paces = self._paces_of(entries)
        self._forget()

    def _paces_of(self, entries: list[KeyEntry]) -> dict[str, Pace]:
        """Those whose rate is as it was keep how far ahead they are: adding a key frees nobody."""
        paces = {}
        for entry in entries:
            rate = self._rates.get(parse_role(entry.role), 0.0) if entry.rate is None else entry.rate
            known = self._paces.get(entry.sha256)
            if rate > 0:
                paces[entry.sha256] = known if known is not None and known.rate_max == rate else Pace(rate)
        return paces

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _digest_of(header: str) -> str:
    return hashlib.sha256(header.partition(" ")[2].strip().encode("utf-8", "surrogateescape")).hexdigest()


def log_refusal(
    error: WeirError, keys: KeyRing, header: str | None, call: str, remote: object, request_id: str | None = None
) -> None:
    """A line for a call that was refused for its key: the key's name, if it has one, and never the key."""
    if isinstance(error, Unauthorized | Forbidden):
        _log.warning(
            "call refused", call=call, status=error.status, reason=error.detail, key=keys.name_of(header), remote=remote,
            **({"request_id": loggable(request_id)} if request_id else {}),
        )  # fmt: skip


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def require(have: Role, need: Role) -> None:
    """Raise Forbidden unless `have` includes `need`."""
    if have < need:
        raise Forbidden(f"this key has the role {have.word}, the call needs {need.word}", "Authorization")


def _read(path: Path) -> list[KeyEntry]:
    """Entries of the file; none if it does not exist. Raises KeyFileError."""
    try:
        with path.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            content = opened.read()
        if mode & 0o022:  # whoever writes here opens every door
            raise KeyFileError(f"key file {path} may be written by others (mode {mode & 0o777:o}); chmod 600 {path}")
        file = msgspec.json.decode(content, type=_KeyFile)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KeyFileError(f"key file {path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeyFileError(f"key file {path} is damaged: {error}") from None
    if file.version != _FILE_VERSION:
        raise KeyFileError(f"key file {path} has version {file.version}, this weir reads version {_FILE_VERSION}")
    return file.keys


def _write(path: Path, entries: list[KeyEntry]) -> None:
    """Replace the file, readable by its owner alone."""
    replace_file(path, msgspec.json.format(msgspec.json.encode(_KeyFile(_FILE_VERSION, entries)), indent=2) + b"\n")
