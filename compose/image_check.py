"""What compose/Dockerfile does, without Docker: `make image-check`. Minutes and a network, so no test runs it.

    python compose/image_check.py --dir DIR

Every COPY and RUN of the build stage is carried out below DIR, with /src and /opt/weir there, by the python that runs this; of
the second stage the entry point and the health check. What needs root or Debian's packages is named and left out, as is what
only an image has: its base, its user, its layers. Fails as a build would: a source that is missing or kept out by
.dockerignore, a package without a wheel or with another hash, a step that ends with an error.
"""

import argparse
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "compose" / "Dockerfile"
NEEDS_ROOT = ("apt-get", "groupadd", "useradd")
READY_S = 120.0


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="emptied first")
    given = parser.parse_args()
    work = given.dir.absolute()
    shutil.rmtree(work, ignore_errors=True)
    source = work / "src"
    source.mkdir(parents=True)
    build, image = (list(stage) for stage in stages(DOCKERFILE.read_text(encoding="utf-8")))
    environment = {**os.environ, "PATH": f"{work}/opt/weir/bin:{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        environment.pop(name, None)
    for word, text in build:
        if word == "COPY":
            copy(text, source)
        elif word == "RUN" and not any(needed in text for needed in NEEDS_ROOT):
            # The image's python is the one of its base.
            line = text.replace("/opt/weir", f"{work}/opt/weir").replace("python -m venv", f"{sys.executable} -m venv")
            say(f"RUN {text}")
            subprocess.run(["sh", "-ec", line], cwd=source, env=environment, check=True)
        elif word == "RUN":
            say(f"left out: RUN {text}")
    serve(dict(image), work, environment)
    say("the image's commands work")
    return 0


def stages(text: str) -> Iterator[Iterator[tuple[str, str]]]:
    """The instructions of each stage: word and what follows it, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    for stage in re.split(r"^FROM .*\n", joined, flags=re.MULTILINE)[1:]:
        yield ((line.partition(" ")[0], line.partition(" ")[2].strip()) for line in stage.splitlines() if line.strip())


def copy(text: str, source: Path) -> None:
    """COPY a b ./ or COPY folder ./folder, without what .dockerignore keeps out. Exits on a source that is not there."""
    *names, target = text.split()
    rules = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    for name in names:
        path = ROOT / name
        if not path.exists() or is_ignored(name, rules):
            sys.exit(f"COPY {name}: missing, or kept out by .dockerignore")
        if path.is_file():
            shutil.copy2(path, source / target / name)
            continue

        def left_out(folder: str, inside: list[str]) -> set[str]:
            places = {entry: (Path(folder) / entry).relative_to(ROOT).as_posix() for entry in inside}
            return {entry for entry, place in places.items() if is_ignored(place, rules)}

        shutil.copytree(path, source / target, ignore=left_out)


def is_ignored(place: str, rules: list[str]) -> bool:
    """As Docker reads .dockerignore: the last rule that matches a path, or a folder above it, decides."""
    ignored = False
    parts = place.split("/")
    for rule in rules:
        pattern = rule.removeprefix("!")
        for n in range(1, len(parts) + 1):
            above = "/".join(parts[:n])
            if fnmatch.fnmatchcase(above, pattern) or (pattern[:3] == "**/" and fnmatch.fnmatchcase(parts[n - 1], pattern[3:])):
                ignored = not rule.startswith("!")
    return ignored


def serve(image: dict[str, str], work: Path, environment: dict[str, str]) -> None:
    """The entry point with the default command, the health check, the stop signal. The sources are gone, as in the image."""
    shutil.rmtree(work / "src")
    home = work / "home"
    home.mkdir()
    command = [*json.loads(image["ENTRYPOINT"]), *json.loads(image["CMD"])]
    check = json.loads(image["HEALTHCHECK"].partition("CMD ")[2])
    say(f"ENTRYPOINT {' '.join(command)}")
    with subprocess.Popen([*command, "--port", "8080", "--data-dir", str(home)], cwd=home, env=environment) as process:
        try:
            deadline = time.monotonic() + READY_S
            while subprocess.run(check, env=environment, stderr=subprocess.DEVNULL, check=False).returncode != 0:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit("the service did not become healthy")
                time.sleep(0.5)
            with urllib.request.urlopen("http://127.0.0.1:8080/metrics", timeout=5) as reply:
                scorers = [line for line in reply.read().decode().splitlines() if line.startswith("weir_tx_scored_total{")]
            say(f"healthy; {' '.join(scorers)}")
            process.send_signal(getattr(signal, image["STOPSIGNAL"]))
            if (code := process.wait(30)) != 0:
                sys.exit(f"{image['STOPSIGNAL']} ended it with code {code}")
        finally:
            process.kill()


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"image-check: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
