"""`make audit`: pip-audit over the lock files, one by one; tells a vulnerability (exit code 1) from no database (3)."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

NO_DATABASE: Final = 3  # exit code
DEADLINE_S: Final = 300
_UNREACHABLE: Final = ("ConnectionError", "ConnectTimeout", "Max retries exceeded", "ServiceError", "HTTPError", "ProxyError")


def main(files: Sequence[str]) -> int:
    """Audit each file; returns the exit code."""
    code = 0
    for name in files:
        command = [str(Path(sys.executable).with_name("pip-audit")), "--requirement", name, "--disable-pip", "--require-hashes",
                   "--progress-spinner", "off", "--format", "json", "--timeout", "20"]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        except subprocess.TimeoutExpired:
            sys.stdout.write(f"{name}: not audited: no answer from the database in {DEADLINE_S} s\n")
            code = code or NO_DATABASE
            continue
        try:
            found = json.loads(done.stdout)["dependencies"]
        except (ValueError, KeyError):
            why = "no database of vulnerabilities can be reached from here"
            last = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
            is_offline = any(word in done.stderr for word in _UNREACHABLE)
            sys.stdout.write(f"{name}: not audited: {why if is_offline else last}\n")
            code = code or (NO_DATABASE if is_offline else 1)
            continue
        known = [(each["name"], each["version"], bug) for each in found for bug in each.get("vulns", [])]
        skipped = [each["name"] for each in found if "skip_reason" in each]
        if len(skipped) == len(found):
            sys.stdout.write(f"{name}: not audited: no database that can be reached from here knows any of its packages\n")
            code = code or NO_DATABASE
            continue
        sys.stdout.write(f"{name}: {len(found)} packages, {len(known)} known vulnerabilities, {len(skipped)} not judged\n")
        for package, version, bug in known:
            fixed = ", ".join(bug.get("fix_versions", [])) or "no version yet"
            sys.stdout.write(f"  {package} {version}: {bug['id']}; fixed in {fixed}\n")
        code = 1 if known else code
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
