"""The Postgres of a check or a benchmark: the one that is named, or an embedded one that ends with it."""

import contextlib
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from loadgen.bench.arms import start_stores
from loadgen.bench.children import BenchError
from loadgen.bench.stores import missing_stores

URL_SETTING = "postgres.url="


def missing_database(url: str | None) -> str | None:
    """Why no database can be had, or None."""
    return None if url else missing_stores()


@contextlib.contextmanager
def database(url: str | None = None) -> Iterator[str]:
    """The URL of a Postgres. Without `url`, an embedded one is started, and ended behind. Raises BenchError."""
    if url:
        yield url
        return
    if reason := missing_stores():
        raise BenchError(f"no Postgres: {reason}; or name one with --database postgresql://...")
    # Not below the working directory: the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="weir-stacks-") as name:
        folder = Path(name)
        lender = start_stores("stacks", folder / "data", folder)
        try:
            settings = lender.stores.settings()
            yield next(setting.removeprefix(URL_SETTING) for setting in settings if setting.startswith(URL_SETTING))
        finally:
            lender.signal(signal.SIGCONT)  # it was stopped so that it would not work beside a measurement
            lender.stop()
