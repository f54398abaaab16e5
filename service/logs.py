"""Logging, configured once per process: JSON lines on stderr, or a readable form if stderr is a terminal.

What libraries report through `logging` takes the same form. Of an exception stands there where it came from and its type, not
its text, which may quote; of an OSError what the system says, too.

A record that cannot be written (the disk of the log is full) is dropped: logging never fails whoever logs.

What may be logged: causes, counts, tiers, positions, request ids. Never API keys, ids of entities or events, bodies.
"""

import contextlib
import logging
import os
import sys
import traceback

import structlog


def configure_logs(level: int = logging.INFO) -> None:
    """Set up structlog for the process; records below `level` (logging.INFO, ...) are dropped."""
    to_terminal = sys.stderr.isatty()
    final = structlog.dev.ConsoleRenderer() if to_terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            _tell_exception,
            final,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=_Stderr()),  # type: ignore[arg-type]  # it needs write and flush
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryRecords()], force=True)


class _Stderr:
    """Standard error without Python's buffer: what that could not write would fail the next record, and the exit code."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        pass


class _LibraryRecords(logging.Handler):
    """Passes the records of libraries on to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {"library": record.name}
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            fields["exc_info"] = error
        structlog.get_logger("weir").log(record.levelno, record.getMessage().partition("\n")[0], **fields)


def _tell_exception(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """In the place of exc_info: the types of the exception and of its causes, and the frames."""
    given = event.pop("exc_info", None)
    error = sys.exception() if given is True else given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["error"] = " from ".join(_named(each) for each in _causes(error))
        event["frames"] = traceback.format_tb(error.__traceback__)
    return event


def _causes(error: BaseException) -> list[BaseException]:
    found = [error]
    while (cause := found[-1].__cause__ or (None if found[-1].__suppress_context__ else found[-1].__context__)) is not None:
        if cause in found:
            break
        found.append(cause)
    return found


def _named(error: BaseException) -> str:
    name = type(error).__name__
    return f"{name}: {error.strerror}" if isinstance(error, OSError) and error.strerror else name
