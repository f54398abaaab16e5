"""How many connections may be open: in all, and from one address. One more gets a 503 and is closed.

Both lanes ask here when a connection begins, and tell when it has ended; one that goes over from the fast lane to aiohttp is
the same connection. Nothing here is asked per request. An IPv6 client counts as its /64, which one customer usually has whole;
the UNIX socket counts in all, but is no address. What this cannot stop is said in docs/explanation/threat-model.md.
"""

import asyncio
import resource
from collections import Counter
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

import structlog

from service.errors import PROBLEM_CONTENT_TYPE, TooManyConnections, problem
from service.metrics import Metrics
from service.settings import ServerSettings

FILES_BESIDE: Final = 1_024  # open files that are no connections: RocksDB's tables, the journal, the stores' connections
LOG_INTERVAL_S: Final = 10.0  # between two lines about refused connections

_log = structlog.get_logger("weir.http")


class Connections:
    """The open connections of one service; those that were one too many are counted in `weir_refused_total`."""

    def __init__(self, server: ServerSettings, metrics: Metrics) -> None:
        self._refused = metrics.refused
        self._max = server.connections_max
        self._per_address_max = server.connections_per_address_max
        self._open: dict[asyncio.BaseTransport, str] = {}
        self._by_address: Counter[str] = Counter()
        self._told_at = float("-inf")

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, transport: asyncio.Transport) -> bool:
        """Whether the connection may stay; one that is counted already may. Else it has been answered and is closing."""
        if transport in self._open:
            return True
        address = _group(transport.get_extra_info("peername"))
        limit = ""
        if len(self._open) >= self._max:
            limit = f"{len(self._open)} of server.connections_max = {self._max} connections are open"
        elif address and 0 < self._per_address_max <= self._by_address[address]:
            limit = f"this address has {self._per_address_max} connections open, server.connections_per_address_max"
        if limit:
            self._refuse(transport, limit)
            return False
        self._open[transport] = address
        if address:
            self._by_address[address] += 1
        return True

    def leave(self, transport: asyncio.BaseTransport | None) -> None:
        """The connection has ended."""
        address = self._open.pop(transport, "") if transport is not None else ""
        if address:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def _refuse(self, transport: asyncio.Transport, limit: str) -> None:
        error = TooManyConnections(f"{limit}; close some, or raise it")
        self._refused[error.code,] += 1
        body = problem(error)
        transport.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (error.status, HTTPStatus(error.status).phrase.encode(), PROBLEM_CONTENT_TYPE.encode(), len(body), body)
        )
        transport.close()
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= LOG_INTERVAL_S:  # a flood must not fill the log
            self._told_at = now
            _log.warning("connections refused", refused=int(self._refused[error.code,]), open=len(self._open), reason=limit)


def raise_open_files(connections_max: int) -> None:
    """Raise the limit of open files to what this process may be asked for; a warning if the hard limit is lower."""
    wanted = connections_max + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if possible > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < wanted:
        fix = f"ulimit -n {wanted}, or lower server.connections_max"
        _log.warning("too few open files for server.connections_max", limit=possible, wanted=wanted, fix=fix)


def _group(peer: object) -> str:
    """What an address counts as; empty for a UNIX socket."""
    if not isinstance(peer, tuple):
        return ""
    try:
        ip = ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return ""
    if isinstance(ip, IPv6Address):
        return str(ip.ipv4_mapped or ip_network((ip, 64), strict=False))
    return str(ip)
