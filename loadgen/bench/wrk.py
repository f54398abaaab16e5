"""wrk as the client of `weir bench http`: the Lua script that it runs, how it is run, and what its output says.

Every request is a new event. wrk calls the script once per request, so the script only puts five strings together: a head, an
id of two parts that are made ahead, a time that is read once per thousand requests, and one of the draws of card, merchant and
amount that a file beside it holds. One thread: the ids of two would be the same. wrk takes whole seconds only.
"""

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadgen.bench.children import BenchError
from loadgen.recorder import LatencySummary

MARK = "weir-wrk "
REPLY_DEADLINE_S = 30  # s; --timeout: later replies count as errors
STOP_DEADLINE_S = 60.0  # s beyond the measurement
RUNS_MAX = 100_000  # five digits of an event's id say in which run it was sent
TOOL_DEADLINE_S = 10.0

# The order of done's numbers is that of `Summary`. Latencies are µs already.
SCRIPT = """\
local tails = {}
for line in io.lines("@draws@") do tails[#tails + 1] = line end
local low = {}
for i = 0, 999 do low[i] = string.format("%03d", i) end
local head, n, count, high, ts = @head@, 0, #tails, "", ""

function request()
  local i = n % 1000
  if i == 0 then
    high = string.format("@run@-%05d", n / 1000)
    ts = string.format('","ts":%d000', os.time())
  end
  n = n + 1
  return head .. high .. low[i] .. ts .. tails[(n + @skip@) % count + 1]
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("@mark@[%d,%d,%d,%d,%d,%d,%d,%.1f,%d,%d,%d,%d,%d,%d]\\n",
    summary.duration, summary.requests, e.connect, e.read, e.write, e.status, e.timeout,
    latency.mean, latency:percentile(50), latency:percentile(90), latency:percentile(95),
    latency:percentile(99), latency:percentile(99.9), latency.max))
end
"""


class Summary(msgspec.Struct, array_like=True):
    """What one run of wrk found out. Times in µs; `status` counts replies above 399."""

    duration_us: int
    requests: int
    connect: int
    read: int
    write: int
    status: int
    timeout: int
    mean: float
    p50: int
    p90: int
    p95: int
    p99: int
    p99_9: int
    max: int

    @property
    def errors(self) -> int:
        return self.connect + self.read + self.write + self.status + self.timeout

    @property
    def error_example(self) -> str:
        words = ("connect", "read", "write", "status", "timeout")
        return ", ".join(f"{word} {n}" for word in words if (n := getattr(self, word)))

    def latency(self) -> LatencySummary:
        return LatencySummary(self.requests, self.mean, self.p50, self.p90, self.p95, self.p99, self.p99_9, self.max)


class WrkRun(msgspec.Struct):
    """One run, the CPU that wrk took for it and how long it lived, both with reading its script."""

    summary: Summary
    cpu_s: float
    wall_s: float


def missing_wrk() -> str | None:
    """Why wrk cannot be used, or None if it can."""
    return None if shutil.which("wrk") else "wrk is not on PATH; Debian has it as a package"


def wrk_version() -> str:
    """ "wrk 4.1.0". Raises BenchError."""
    try:  # its exit code for -v is 1
        done = subprocess.run(["wrk", "-v"], capture_output=True, text=True, timeout=TOOL_DEADLINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"wrk -v failed: {error}") from None
    found = re.search(r"wrk (?:debian/)?(\d\S*)", done.stdout + done.stderr)
    return f"wrk {found[1]}" if found else "wrk"


def build_script(head: bytes, tails: Sequence[bytes], run: int, skip: int, folder: Path) -> Path:
    """Write script and draws into `folder`; `head` ends where the event's id begins, a tail begins after its time.

    `run` makes the ids new, `skip` says with which tail to begin. Raises BenchError after RUNS_MAX runs.
    """
    if run >= RUNS_MAX:
        raise BenchError(f"{run} runs of wrk: event ids have room for {RUNS_MAX}")
    draws, script = folder / "draws.txt", folder / "load.lua"
    draws.write_bytes(b"\n".join(tails) + b"\n")
    text = SCRIPT
    values = {"head": lua_string(head), "draws": str(draws), "run": f"{run:05d}", "skip": str(skip), "mark": MARK}
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    script.write_text(text, encoding="ascii")
    return script


def lua_string(raw: bytes) -> str:
    """`raw` as a literal of Lua."""
    return '"' + "".join(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\{c:03d}" for c in raw) + '"'


def parse_output(text: str) -> Summary:
    """The line that the script's `done` writes. Raises BenchError."""
    for line in text.splitlines():
        if line.startswith(MARK):
            try:
                return msgspec.json.decode(line.removeprefix(MARK), type=Summary)
            except msgspec.DecodeError as error:
                raise BenchError(f"wrk's numbers are not readable: {error}: {line}") from None
    raise BenchError(f"wrk printed no numbers: {text.strip()[-400:] or 'nothing'}")


def run_wrk(url: str, script: Path, connections: int, seconds: float) -> WrkRun:
    """Load `url` for at least `seconds`, whole ones. Blocks. Raises BenchError."""
    whole = max(1, math.ceil(seconds))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", f"--timeout={REPLY_DEADLINE_S}s", "-s", str(script), url]
    out, err = script.with_suffix(".out"), script.with_suffix(".err")
    started = time.perf_counter()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL)
        try:
            status, cpu_s = _wait(process, whole + STOP_DEADLINE_S)
        except BaseException:
            process.kill()
            process.wait()
            raise
    wall_s = time.perf_counter() - started
    text = out.read_text(encoding="utf-8", errors="replace")
    if status:
        raise BenchError(f"wrk ended with {status}: {(err.read_text(errors='replace') + text).strip()[-400:]}")
    return WrkRun(parse_output(text), cpu_s, wall_s)


def _wait(process: "subprocess.Popen[bytes]", seconds: float) -> tuple[int, float]:
    """Exit code and CPU seconds of the process. Raises BenchError at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_utime + usage.ru_stime
        if time.monotonic() > deadline:
            raise BenchError(f"wrk did not end within {seconds:.0f} s")
        time.sleep(0.02)
