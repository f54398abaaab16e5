"""What a service leaves on the disk and in the process list: its owner's alone, and no secret where others can read it."""

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.auth import KEY_FILE, KeyRing, Role, add_key
from service.doctor import check_private
from service.errors import KeyFileError
from service.settings import load_settings

if TYPE_CHECKING:
    from tests.e2e.conftest import MakeWeir

pytestmark = pytest.mark.e2e

TX = {"event_id": "p-1", "ts": 1750000000000, "amount": 1299, "currency": "EUR", "card_id": "c1", "merchant_id": "m1"}


def _loose(directory: Path) -> list[str]:
    """What somebody else could read or enter, of all that lies below."""
    paths = [directory, *directory.rglob("*")]
    return [f"{p} {stat.S_IMODE(p.lstat().st_mode):o}" for p in paths if not p.is_symlink() and p.lstat().st_mode & 0o077]


def _doctor(directory: Path, *settings: str) -> dict[str, tuple[str, str]]:
    """What `weir doctor` says of permissions: state and detail by name."""
    checks = check_private(load_settings(None, [f"data_dir={directory}", *settings]))
    return {check.name: (check.state, check.detail) for check in checks}


@pytest.mark.parametrize("program", ["weir", "weir-go"])
async def test_everything_in_the_data_directory_is_its_owners_alone(
    make_weir: "MakeWeir", program: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Journal, RocksDB, audit, keys, lock: after a run under the usual umask of 022 nobody else can read a byte."""
    make = make_weir if program == "weir" else request.getfixturevalue("make_weir_go")
    before = os.umask(0o022)
    try:
        weir = make(name="private")
        await weir.start()
    finally:
        os.umask(before)
    assert weir.call("POST", "/v1/score", json.dumps(TX).encode()).status == 200
    weir.stop()
    assert _loose(weir.directory) == []
    assert len(list(weir.directory.rglob("*"))) > 8
    if program == "weir":
        assert "not private" not in weir.log()
        assert {name: state for name, (state, _) in _doctor(weir.directory).items()} == {"private": "ok", "keys": "ok"}


async def test_directory_that_others_may_enter_is_warned_of(make_weir: "MakeWeir") -> None:
    """It serves all the same, and the log and the doctor say what to do."""
    weir = make_weir()
    weir.directory.mkdir(mode=0o755)
    weir.directory.chmod(0o755)
    await weir.start()
    weir.stop()
    assert f"chmod 700 {weir.directory}" in weir.log()
    state, detail = _doctor(weir.directory)["private"]
    assert (state, f"chmod 700 {weir.directory}" in detail) == ("bad", True)


async def test_key_file_that_others_may_write_opens_nothing(make_weir: "MakeWeir", tmp_path: Path) -> None:
    """The start is refused in one line; while the service runs, the keys known before stay and the new ones are not taken."""
    weir = make_weir()
    await weir.start()
    assert weir.call("GET", "/v1/tiers").status == 200
    path = weir.directory / KEY_FILE
    path.chmod(0o666)
    late = add_key(tmp_path / "other", Role.ADMIN, "intruder")
    path.write_bytes((tmp_path / "other" / KEY_FILE).read_bytes())
    assert weir.call("GET", "/v1/tiers", None, {"Authorization": f"Bearer {late}"}).status == 401
    assert weir.call("GET", "/v1/tiers").status == 200
    weir.stop()
    assert "may be written by others (mode 666)" in weir.log()
    with pytest.raises(KeyFileError, match="chmod 600"):
        KeyRing(path)


def test_doctor_names_secrets_that_others_may_read(tmp_path: Path) -> None:
    """A password or a private key in an open directory is bad; the same file in a private one is not."""
    for mode, is_bad in ((0o755, True), (0o700, False)):
        place = tmp_path / f"{mode:o}"
        place.mkdir()
        place.chmod(mode)
        (place / "password").write_text("x\n")
        (place / "password").chmod(0o444)
        state, detail = _doctor(tmp_path / "none", f"redis.password_file={place / 'password'}")["redis password"]
        assert state == ("bad" if is_bad else "ok")
        assert ("chmod 600" in detail) == is_bad
