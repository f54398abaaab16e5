"""The rivals of `weir bench http`: FastAPI and net/http answer what Weir answers, and FastAPI refuses what Weir refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from features.transaction import InvalidTransaction, Transaction, check
from loadgen.bench.arms import FASTAPI, GO_JSON, missing_arm, start_arm
from loadgen.bench.children import Child
from loadgen.sender import Client, Reply, Target

pytestmark = pytest.mark.bench

TX: dict[str, Any] = {
    "event_id": "t-1", "ts": 1_750_000_000_000, "amount": 1299, "currency": "EUR", "card_id": "c1", "merchant_id": "m1",
    "device_id": "d1", "ip": "203.0.113.7", "country": "DE", "mcc": 5411, "channel": "ecom", "lat": 52.5, "lon": 13.4,
}  # fmt: skip
CHANGES: list[dict[str, Any]] = [
    {}, {"lat": None, "lon": None}, {"amount": 0}, {"amount": 10**10}, {"device_id": None},
    {"event_id": ""}, {"event_id": "x" * 129}, {"event_id": "a\nb"}, {"amount": -1}, {"amount": 10**10 + 1}, {"amount": "12"},
    {"amount": 1.5}, {"ts": 1_750_000_000}, {"ts": 2**63}, {"country": "de"}, {"mcc": 10_000}, {"channel": "tv"}, {"lat": None},
    {"lat": 91}, {"card_id": None}, {"extra": 1}, {"card_id": 7},
]  # fmt: skip


@pytest.fixture(scope="module", params=[FASTAPI, GO_JSON])
def rival(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    if (reason := missing_arm(request.param)) is not None:
        pytest.skip(reason)
    folder: Path = tmp_path_factory.mktemp("rival")
    child = start_arm(request.param, folder, folder, ())
    yield child
    child.stop()


async def _post(child: Child, path: str, body: bytes) -> Reply:
    target = Target.parse(child.url, "none")
    client = Client(target, 10.0)
    try:
        return await client.request(target.encode("POST", path, body))
    finally:
        client.close()


def _weir_accepts(body: bytes) -> bool:
    try:
        check(msgspec.json.decode(body, type=Transaction))
    except (msgspec.DecodeError, InvalidTransaction):
        return False
    return True


@pytest.mark.parametrize("changes", CHANGES, ids=str)
async def test_rival_takes_what_weir_takes(rival: Child, changes: dict[str, Any]) -> None:
    """What Weir accepts each accepts, with a decision; what Weir refuses FastAPI refuses too, and net/http need not."""
    body = json.dumps({name: value for name, value in (TX | changes).items() if value is not None}).encode()
    reply = await _post(rival, "/v1/score", body)
    if _weir_accepts(body):
        assert reply.status == 200, reply.body
        assert {"event_id", "score", "outcome", "lsn", "replayed", "degraded"} <= json.loads(reply.body).keys()
    elif rival.name == FASTAPI:
        assert reply.status == 422


async def test_rival_answers_batches_row_by_row(rival: Child) -> None:
    """As many decisions as transactions."""
    for n in (0, 1, 300):
        reply = await _post(rival, "/v1/score/batch", json.dumps([TX] * n).encode())
        assert reply.status == 200
        assert len(json.loads(reply.body)) == n


async def test_rival_refuses_what_is_no_json(rival: Child) -> None:
    """A 4xx, and it goes on."""
    assert 400 <= (await _post(rival, "/v1/score", b"{")).status < 500
    assert (await _post(rival, "/v1/score", json.dumps(TX).encode())).status == 200
