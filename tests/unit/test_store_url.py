"""Passwords of stores come from files, and no message ever holds one."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from structlog.testing import capture_logs

from service.errors import StartError
from service.store_url import warn_of_arguments, with_password

NASTY = "p@ss:w/ord?#%ü"


@pytest.mark.parametrize(
    "url",
    [
        "redis://weir@valkey:6379/0",
        "redis://valkey:6379/0",
        "postgresql://weir@db:5432/weir?sslmode=require",
        "rediss://[::1]:7/2",
    ],
)
def test_password_of_the_file_stands_in_the_url_and_nothing_else_changes(tmp_path: Path, url: str) -> None:
    """Whatever characters it has; the line break at the end of the file is none of it."""
    file = tmp_path / "password"
    file.write_text(NASTY + "\nsecond line\n")
    found, before = urlsplit(with_password(url, file, "redis")), urlsplit(url)
    assert unquote(found.password or "") == NASTY
    assert (found.username or None, found.hostname, found.port) == (before.username, before.hostname, before.port)
    assert (found.scheme, found.path, found.query) == (before.scheme, before.path, before.query)


def test_url_without_a_file_stays_as_it_is() -> None:
    """No file, no change, a password in the URL included."""
    assert with_password("redis://:x@h/0", None, "redis") == "redis://:x@h/0"


@pytest.mark.parametrize(
    ("url", "content", "told"),
    [
        ("redis://:inline@h/0", b"secret\n", "has a password, too"),
        ("redis://h/0", b"", "is empty"),
        ("redis://h/0", b"\nsecret", "is empty"),
        ("redis://h/0", None, "No such file"),
    ],
    ids=["two passwords", "empty file", "empty line", "no file"],
)
def test_bad_password_file_names_the_setting_and_no_secret(tmp_path: Path, url: str, content: bytes | None, told: str) -> None:
    """What is wrong, with which setting, without what the file or the URL holds."""
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StartError, match=told) as raised:
        with_password(url, file, "redis")
    assert raised.value.field == "redis.password_file"
    assert "secret" not in str(raised.value)
    assert "inline" not in str(raised.value)


@pytest.mark.parametrize(
    ("argument", "is_told"),
    [
        ("redis.url=redis://weir:hunter2@h:1/0", True),
        ("postgres.url=postgresql://:hunter2@h/d", True),
        ("redis.url=redis://weir@h:1/0", False),
        ("redis.url=redis://h:6379/0", False),
        ("postgres.url=postgresql://weir@/d?host=%2Frun", False),
        ("model=/a:b@c", False),
    ],
)
def test_password_on_the_command_line_is_told_but_not_shown(argument: str, is_told: bool) -> None:
    """The warning names the kind of store and the fix."""
    with capture_logs() as entries:
        warn_of_arguments(["weir", "serve", "--set", argument])
    assert bool(entries) == is_told
    assert "hunter2" not in repr(entries)
