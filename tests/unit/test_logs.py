"""Logging never fails whoever logs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RAISING = """
import logging
import structlog
from service.logs import configure_logs

configure_logs()
log = structlog.get_logger("test")
try:
    try:
        {}["card-4000000000000002"]
    except KeyError as error:
        raise OSError(28, "No space left on device", "card-4000000000000002") from error
except OSError as error:
    log.exception("first")
    log.error("second", exc_info=error)
    logging.getLogger("library").error("third", exc_info=error)
log.error("fourth")
"""
FULL = Path("/dev/full")
PROGRAM = """
import logging, sys
import structlog
from service.logs import configure_logs

configure_logs()
for n in range(100):
    structlog.get_logger("test").error("disk full", text="x" * 1000)
    logging.getLogger("library").error("disk full")
sys.exit(7)
"""


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_log_on_a_full_disk_is_dropped_and_changes_nothing() -> None:
    """A hundred records that cannot be written raise nothing, and the exit code is the program's."""
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=full, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (7, b"")


def test_log_is_one_json_line_per_record() -> None:
    """Our records and those of libraries reach standard error at once, each as a line."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert len(done.stderr.splitlines()) == 200
    assert all(line.startswith("{") and line.endswith("}") for line in done.stderr.splitlines())


def test_exception_in_the_log_has_types_and_frames_but_no_text() -> None:
    """What an exception says may quote an id; what the system says of an OSError may not. Causes are named too."""
    done = subprocess.run([sys.executable, "-c", RAISING], capture_output=True, text=True, timeout=60, check=True)
    assert "4000000000000002" not in done.stderr
    *raised, last = map(json.loads, done.stderr.splitlines())
    assert [record["event"] for record in raised] == ["first", "second", "third"]
    for record in raised:
        assert record["error"] == "OSError: No space left on device from KeyError"
        assert "<string>" in record["frames"][0]
        assert "exc_info" not in record
    assert "error" not in last
