"""The URL of a store with the password that a file holds: so it stands in no process list, environment or configuration."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

import structlog

from service.errors import StartError

PASSWORD_BYTES_MAX: Final = 4096  # of the file
_PASSWORD: Final = re.compile(r"(redis|rediss|unix|postgres|postgresql)://[^:/@\s]*:[^@/\s]+@")
_log = structlog.get_logger(__name__)


def with_password(url: str, file: Path | None, setting: str) -> str:
    """`url` with the first line of `file` as its password; as it is without a file. `setting`: for messages, as "redis".

    Raises StartError, which never holds the password: no such file, nothing in it, or a URL that has a password itself.
    """
    if file is None:
        return url
    field = f"{setting}.password_file"
    parts = urlsplit(url)
    if parts.password is not None:
        raise StartError(f"{field} is set, but {setting}.url has a password, too: take it out of the url", field)
    try:
        with file.open("rb") as opened:
            password = opened.read(PASSWORD_BYTES_MAX).partition(b"\n")[0].rstrip(b"\r")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"{field}: {file} cannot be read: {reason}", field) from None
    if not password:
        raise StartError(f"{field}: the first line of {file} is empty", field)
    user, at, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user if at else ''}:{quote(password, safe='')}@{place}"))


def warn_of_arguments(arguments: Iterable[str]) -> None:
    """A line in the log if a command line, which everybody on the machine can read, holds a store's password."""
    stores = sorted({found[1] for argument in arguments if (found := _PASSWORD.search(argument))})
    if stores:
        fix = "give it in a file: redis.password_file, postgres.password_file"
        _log.warning(
            "a password stands on the command line, for everybody to read", url=[f"{s}://..." for s in stores], fix=fix
        )
