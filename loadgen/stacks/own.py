"""What a first build of Weir's own programs takes, measured as that of the rival in Go: from nothing but downloaded modules.

One after the other, each with an empty compile cache: libweir.so is what `weir serve` needs for the go scorer, weir-go the
service in Go alone. What is built here is thrown away; what runs is that of `make go`, which builds both, and a yardstick, in
one cache.
"""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from gocore.build import MODULE, build_command, find_go
from gocore.locate import LIBRARY, SERVER
from loadgen.bench.children import BenchError
from loadgen.stacks.build import LOG, Clock, go_environment, run_tool, tail
from loadgen.stacks.manifest import BUILT, DATA, Built, lacking

Say = Callable[[str], None]
OWN = {"weir go": LIBRARY, "weir-go": SERVER}  # arm of weir bench stacks -> the program that is built for it
FOLDER = "weir"  # in the data folder
SUFFIXES = (".go", ".h", ".s", ".mod", ".sum")


def measure_own(arm: str, say: Say, data: Path = DATA, *, again: bool = False) -> Built | None:
    """Build the program of an arm from an empty cache. None: that was done for these sources. Raises BenchError."""
    built, sources = load_own(arm, data), own_sources()
    if not again and built is not None and built.sources == sources:
        return None
    if reason := lacking("go", data):
        raise BenchError(f"{arm}: {reason}")
    folder = _folder(arm, data)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    program = OWN[arm]
    say(f"building {program.name} from an empty cache")
    go, environment = find_go(), go_environment(folder)
    assert go is not None, "lacking looked"
    if subprocess.run([go, "mod", "download"], cwd=MODULE, env=environment, capture_output=True, check=False).returncode:
        raise BenchError(f"{arm}: its Go modules are neither here nor to be had from the Go module proxy")
    out, clock = folder / program.name, Clock()
    if code := run_tool(build_command(go, program, out), MODULE, environment, folder / LOG):
        raise BenchError(f"{arm}: the build ended with code {code}: {tail(folder / LOG)}")
    took = clock.took()
    done = Built(
        seconds=took.seconds,
        cpu_s=took.cpu_s,
        rebuild_s=None,
        installed_bytes=out.stat().st_size,
        sources=sources,
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    for path in (folder / "cache", out, out.with_suffix(".h")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (folder / BUILT).write_bytes(msgspec.json.encode(done) + b"\n")
    return done


def load_own(arm: str, data: Path = DATA) -> Built | None:
    """What its last measurement left, or None: there was none, or nothing is built for this arm."""
    if arm not in OWN:
        return None
    try:
        return msgspec.json.decode((_folder(arm, data) / BUILT).read_bytes(), type=Built)
    except (OSError, msgspec.DecodeError):
        return None


def own_sources() -> str:
    """A hash of the Go module's sources."""
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(MODULE):
        folders[:] = sorted(name for name in folders if name != "build")
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not name.endswith("_test.go"):
                content = (Path(folder) / name).read_bytes()
                digest.update(f"{Path(folder).relative_to(MODULE) / name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _folder(arm: str, data: Path) -> Path:
    return (data / FOLDER / OWN[arm].name).absolute()
