"""One measurement of `weir bench http` with wrk as the client, and a check that the service has scored what was answered."""

import asyncio
import re
from pathlib import Path

from loadgen.bench.children import BenchError, Child
from loadgen.bench.closed_loop import Sample
from loadgen.bench.payloads import Payloads
from loadgen.bench.wrk import build_script, run_wrk
from loadgen.sender import Client, SendError, Target

SCORED = re.compile(rb"^weir_tx_total\{[^}]*\} (\d+)", re.MULTILINE)
METRICS_DEADLINE_S = 10.0


class WrkClient:
    """Runs wrk again and again, each time with new events; its files lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "wrk"
        self._folder.mkdir()
        self._runs = 0

    async def measure(self, server: Child, target: Target, payloads: Payloads, connections: int, seconds: float) -> Sample:
        """Load the server for `seconds`, rounded up to whole ones. Raises BenchError."""
        head, tails = payloads.parts()
        script = build_script(head, tails, self._runs, payloads.n_events % len(tails), self._folder)
        self._runs += 1
        scored, server_cpu = await read_scored(target), server.cpu_s()
        run = await asyncio.to_thread(run_wrk, server.url, script, connections, seconds)
        server_cpu = server.cpu_s() - server_cpu
        summary, duration_s = run.summary, run.summary.duration_us / 1e6
        if not summary.requests:
            raise BenchError(f"{server.name}: wrk got no reply: {summary.error_example or 'no error either'}")
        errors, example = summary.errors, summary.error_example
        if scored is not None:
            counted = (await read_scored(target) or 0) - scored
            # Those that were under way when wrk closed its connections are scored, and answered to nobody.
            lost = max(summary.requests - summary.status - counted, counted - summary.requests - connections, 0)
            if lost:
                errors += lost
                example = example or f"{summary.requests:,} replies, but the service scored {counted:,}"
        payloads.n_events += summary.requests
        return Sample(
            seconds=round(duration_s, 4),
            requests=summary.requests,
            requests_per_s=round(summary.requests / duration_s, 1),
            rows_per_s=round(summary.requests / duration_s, 1),
            latency_us=summary.latency(),
            server_cpu_us_per_request=round(server_cpu / summary.requests * 1e6, 1),
            server_cpu_share=round(server_cpu / duration_s, 3),
            client_cpu_share=round(run.cpu_s / run.wall_s, 3),
            errors=errors,
            error_example=example,
        )


async def read_scored(target: Target) -> int | None:
    """Transactions that the service has scored so far; None if it does not count them. Raises BenchError."""
    client = Client(target, METRICS_DEADLINE_S)
    try:
        reply = await client.request(target.encode("GET", "/metrics"))
    except SendError as error:
        raise BenchError(f"{target.host}:{target.port}: {error}") from error
    finally:
        client.close()
    found = SCORED.findall(reply.body) if reply.status == 200 else []
    return sum(map(int, found)) if found else None
