"""API keys: only known keys get in, new and removed ones count at once, and nothing but digests is stored."""

import hashlib
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.auth import KEY_FILE, KeyRing, Role, add_key, list_keys, parse_role, require, revoke_key
from service.errors import Forbidden, KeyFileError, Unauthorized


class Clock:
    """A monotonic clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_add_key_format_and_file(tmp_path: Path) -> None:
    """The key has its role in it and 43 random characters; the file holds its digest alone, for its owner alone."""
    key = add_key(tmp_path, Role.INGEST, "gateway")
    path = tmp_path / KEY_FILE
    assert key.startswith("weir_ingest_")
    assert len(key) == len("weir_ingest_") + 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key not in path.read_text()
    (entry,) = json.loads(path.read_text())["keys"]
    assert entry["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert (entry["name"], entry["role"]) == ("gateway", "ingest")


def test_add_key_duplicate_name_refused(tmp_path: Path) -> None:
    """A second key of the same name is refused and changes nothing."""
    add_key(tmp_path, Role.INGEST, "a")
    before = (tmp_path / KEY_FILE).read_bytes()
    with pytest.raises(KeyFileError, match="'a' exists already"):
        add_key(tmp_path, Role.ADMIN, "a")
    assert (tmp_path / KEY_FILE).read_bytes() == before


@pytest.mark.parametrize("name", ["", "a b", "a\n", "x" * 65, "ä"])
def test_add_key_bad_name_refused(tmp_path: Path, name: str) -> None:
    """A name outside of the alphabet or too long is refused."""
    with pytest.raises(KeyFileError, match="name"):
        add_key(tmp_path, Role.INGEST, name)


def test_add_key_concurrently_keeps_all(tmp_path: Path) -> None:
    """Writers wait for each other: twenty keys added at once are all there."""
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda n: add_key(tmp_path, Role.INGEST, f"k{n}"), range(20)))
    ring = KeyRing(tmp_path / KEY_FILE)
    assert len(ring) == 20
    assert all(ring.role_of(f"Bearer {key}") is Role.INGEST for key in keys)


def test_key_ring_known_key_gives_role(tmp_path: Path) -> None:
    """The scheme may be written in any case; the role is the one that the key was made for."""
    key = add_key(tmp_path, Role.ANALYST, "a")
    ring = KeyRing(tmp_path / KEY_FILE)
    assert ring.role_of(f"Bearer {key}") is Role.ANALYST
    assert ring.role_of(f"bearer {key}") is Role.ANALYST


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer weir_admin_x", "Bearer \udcff"])
def test_key_ring_other_headers_unauthorized(tmp_path: Path, header: str | None) -> None:
    """No header, another scheme, no key and an unknown key are all 401, and the key is not repeated."""
    add_key(tmp_path, Role.ADMIN, "a")
    with pytest.raises(Unauthorized) as caught:
        KeyRing(tmp_path / KEY_FILE).role_of(header)
    assert caught.value.field == "Authorization"
    assert "weir_admin_x" not in str(caught.value)


def test_key_ring_without_file_is_closed_until_a_key_is_added(tmp_path: Path) -> None:
    """No key file means nobody; the first key works at once, without waiting for the next look at the file."""
    clock = Clock()
    ring = KeyRing(tmp_path / KEY_FILE, clock)
    with pytest.raises(Unauthorized):
        ring.role_of("Bearer weir_admin_guess")
    key = add_key(tmp_path, Role.ADMIN, "a")
    assert ring.role_of(f"Bearer {key}") is Role.ADMIN


def test_key_ring_removed_key_is_refused_within_a_second(tmp_path: Path) -> None:
    """A key taken out of the file stops working although its header was cached."""
    clock = Clock()
    key = add_key(tmp_path, Role.ADMIN, "a")
    ring = KeyRing(tmp_path / KEY_FILE, clock)
    ring.role_of(f"Bearer {key}")
    (tmp_path / KEY_FILE).write_text('{"version": 1, "keys": []}')
    clock.now += 0.99
    with pytest.raises(Unauthorized):
        ring.role_of(f"Bearer {key}")


def test_revoke_key_takes_one_away_and_its_name_is_free(tmp_path: Path) -> None:
    """The others stay; a running service refuses the key within a second, and the name can be given again."""
    clock = Clock()
    kept, gone = add_key(tmp_path, Role.INGEST, "a"), add_key(tmp_path, Role.ADMIN, "b")
    ring = KeyRing(tmp_path / KEY_FILE, clock)
    assert ring.role_of(f"Bearer {gone}") is Role.ADMIN
    assert revoke_key(tmp_path, "b").role == "admin"
    clock.now += 0.99
    with pytest.raises(Unauthorized, match="not known"):
        ring.role_of(f"Bearer {gone}")
    assert ring.role_of(f"Bearer {kept}") is Role.INGEST
    assert [entry.name for entry in list_keys(tmp_path)] == ["a"]
    assert add_key(tmp_path, Role.ADMIN, "b") != gone


@pytest.mark.parametrize("is_new", [True, False])
def test_revoke_key_that_is_not_there_changes_nothing(tmp_path: Path, is_new: bool) -> None:
    """It is named; no file and no directory is made."""
    directory = tmp_path / "new" if is_new else tmp_path
    if not is_new:
        add_key(directory, Role.INGEST, "a")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyFileError, match=r"there is no key called 'z'|there are no keys"):
        revoke_key(directory, "z")
    assert sorted(tmp_path.rglob("*")) == before


def test_key_ring_key_expires(tmp_path: Path) -> None:
    """A key with an end works until then, cached or not, and then says that it has expired; others go on."""
    clock, now_ms = Clock(), [0]
    short, long = add_key(tmp_path, Role.ANALYST, "a", days=1.0), add_key(tmp_path, Role.ADMIN, "b")
    created, expires = next((e.created, e.expires) for e in list_keys(tmp_path) if e.name == "a")
    assert expires == created + 86_400_000
    ring = KeyRing(tmp_path / KEY_FILE, clock, lambda: now_ms[0])
    now_ms[0] = expires - 1
    assert ring.role_of(f"Bearer {short}") is Role.ANALYST
    clock.now, now_ms[0] = 1.0, expires
    for _ in range(2):
        with pytest.raises(Unauthorized, match="has expired"):
            ring.role_of(f"Bearer {short}")
        assert ring.role_of(f"Bearer {long}") is Role.ADMIN


def test_key_ring_reads_files_without_expiry(tmp_path: Path) -> None:
    """A file of a version that knew no expiry is read, and one without any is written as before."""
    key = add_key(tmp_path, Role.INGEST, "a")
    assert "expires" not in (tmp_path / KEY_FILE).read_text()
    assert KeyRing(tmp_path / KEY_FILE).role_of(f"Bearer {key}") is Role.INGEST


def test_key_ring_file_breaks_while_running_keeps_keys(tmp_path: Path) -> None:
    """A file that somebody broke by hand does not lock everybody out of a running service."""
    clock = Clock()
    key = add_key(tmp_path, Role.ADMIN, "a")
    ring = KeyRing(tmp_path / KEY_FILE, clock)
    (tmp_path / KEY_FILE).write_text("{")
    clock.now += 1
    assert ring.role_of(f"Bearer {key}") is Role.ADMIN


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 9, "keys": []}', '{"version": 1, "keys": [{"name": "a"}]}'])
def test_key_ring_over_broken_file_refuses_to_start(tmp_path: Path, text: str) -> None:
    """At start a damaged or newer key file is an error that names the file."""
    path = tmp_path / KEY_FILE
    path.write_text(text)
    with pytest.raises(KeyFileError, match=r"keys\.json"):
        KeyRing(path)


def test_require_roles_are_ordered() -> None:
    """Each role includes the ones below it and no other."""
    for have in Role:
        for need in Role:
            if have >= need:
                require(have, need)
            else:
                with pytest.raises(Forbidden, match=need.word):
                    require(have, need)


def test_parse_role_unknown_word_refused() -> None:
    """A role that does not exist is refused with the ones that do."""
    assert parse_role("analyst") is Role.ANALYST
    with pytest.raises(KeyFileError, match="ingest, analyst, admin"):
        parse_role("root")
