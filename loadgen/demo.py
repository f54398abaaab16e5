"""`make demo` and `make run`: the whole service on embedded servers, driven from outside like any user would.

The demo generates a labelled stream, starts `weir serve --embedded` as a child process, replays the stream over HTTP, prints
the results, stops the service and ends. `--serve` leaves the service up instead and prints how to talk to it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WEIR = [sys.executable, "-m", "service"]
READY_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0


class Service:
    """A `weir serve` child process from `start` to `stop`."""

    def __init__(self, data_dir: Path, port: int, options: list[str]) -> None:
        self.data_dir = data_dir
        command = [*WEIR, "serve", "--embedded", "--data-dir", str(data_dir), "--port", str(port), *options]
        # A group of its own: Ctrl-C reaches only this process, which then stops the service in order.
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.url = self._wait_until_ready()

    def add_key(self, role: str, name: str) -> str:
        """A new API key; the running service accepts it at once."""
        command = [*WEIR, "keys", "add", "--role", role, "--name", name, "--data-dir", str(self.data_dir)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def wait(self) -> int:
        """Until the service ends by itself; its exit code."""
        return self._process.wait()

    def stop(self) -> int:
        """Ask it to stop and wait; its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _wait_until_ready(self) -> str:
        assert self._process.stdout is not None
        deadline = time.monotonic() + READY_DEADLINE_S
        for line in self._process.stdout:
            if line.startswith("weir ready "):
                return line.split("url=")[1].split()[0]
            if time.monotonic() > deadline:
                break
        self.stop()
        raise SystemExit("weir: the service did not become ready; its log is above")


def main() -> int:
    """Run the demo or, with --serve, the service. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000, help="transactions of the generated stream")
    parser.add_argument("--seed", type=int, default=7, help="seed of the generated stream")
    parser.add_argument("--report", type=Path, default=Path("demo-report.html"), help="where the report goes")
    parser.add_argument("--serve", action="store_true", help="leave the service up instead of replaying a stream")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="data directory of --serve")
    parser.add_argument("--port", type=int, default=8080, help="port of --serve")
    arguments = parser.parse_args()
    try:
        if arguments.serve:
            return _serve(arguments.data_dir, arguments.port)
        return _demo(arguments.events, arguments.seed, arguments.report)
    except KeyboardInterrupt:
        return 130
    except subprocess.CalledProcessError as error:
        sys.stderr.write(error.stderr or f"weir: {error}\n")
        return 1


def _demo(events: int, seed: int, report: Path) -> int:
    directory = Path(tempfile.mkdtemp(prefix="weir-demo-"))
    try:
        stream = directory / "stream.parquet"
        subprocess.run([*WEIR, "generate", str(stream), "--events", str(events), "--seed", str(seed)], check=True)
        _say("starting the service with an embedded Valkey and Postgres ...")
        started = time.monotonic()
        service = Service(directory / "data", 0, ["--set", "time.clock=stream"])
        try:
            _say(f"ready at {service.url} after {time.monotonic() - started:.1f} s")
            command = [*WEIR, "replay", str(stream), "--url", service.url, "--mode", "batch", "--clients", "1", "--labels"]
            environment = os.environ | {"WEIR_KEY": service.add_key("analyst", "demo")}
            code = subprocess.run([*command, "--report", str(report)], env=environment, check=False).returncode
        finally:
            stopped = service.stop()
        _say(f"the service has stopped (exit code {stopped}); the report is {report}")
        return code or stopped
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _serve(data_dir: Path, port: int) -> int:
    service = Service(data_dir, port, [])
    try:
        key = service.add_key("admin", f"run-{int(time.time())}")
        _say(f"url  {service.url}\nkey  {key}\n")
        _say("try  " + _curl(service.url, key) + "\n\nCtrl-C stops the service; the data stays in " + str(data_dir))
        return service.wait()
    except KeyboardInterrupt:
        return service.stop()


def _curl(url: str, key: str) -> str:
    tx = (
        '{"event_id":"try-\'$(date +%s%N)\'","ts":\'$(date +%s000)\',"amount":1299,"currency":"EUR",'
        '"card_id":"c1","merchant_id":"m1","device_id":"d1","ip":"203.0.113.7","country":"DE","channel":"ecom"}'
    )
    return f"curl -s '{url}/v1/score?explain=1&trace=1' -H 'Authorization: Bearer {key}' -d '{tx}'"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
