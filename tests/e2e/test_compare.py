"""POST /v1/compare: a comparison runs beside the service, is told of, cancelled and kept; bad requests change nothing."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadgen.bench.stores import descendants, is_running
from service.auth import Role, add_key

if TYPE_CHECKING:
    from tests.e2e.conftest import MakeWeir, Weir

pytestmark = pytest.mark.e2e

ASK = {"configs": [{"off": ["l1", "bloom", "l2"]}], "events": 1_000}
BIG = {"configs": [{"off": ["l1"]}, {"off": ["l2"]}], "events": 20_000, "rounds": 10}


def post(weir: "Weir", asked: object, key: str | None = None) -> Any:
    return weir.call(
        "POST", "/v1/compare", json.dumps(asked).encode(), {} if key is None else {"Authorization": f"Bearer {key}"}
    )


def wait_for(weir: "Weir", path: str, is_there: Callable[[Any], bool], deadline_s: float = 240.0) -> Any:
    deadline = time.monotonic() + deadline_s
    while not is_there(shown := weir.call("GET", path).json):
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)
    return shown


@pytest.mark.usefixtures("in_turn")
async def test_comparison_runs_and_is_kept(make_weir: "MakeWeir") -> None:
    """It goes from running to done, tells its progress and what changed, and is there after a restart; then it is forgotten."""
    weir = make_weir("decide.review_threshold=0.01", "decide.decline_threshold=0.2")
    await weir.start()
    reply = post(weir, ASK)
    assert reply.status == 202, reply.body
    path = f"/v1/compare/{reply.json['id']}"
    assert reply.json["state"] == "running"
    assert post(weir, ASK).status == 409
    shown = wait_for(weir, path, lambda c: c["progress"]["done"] > 0)
    assert shown["progress"]["total"] == 4_000
    assert shown["result"] is None
    shown = wait_for(weir, path, lambda c: c["state"] != "running")
    assert shown["state"] == "done", shown
    assert shown["progress"]["done"] == 4_000
    all_on, none = shown["result"]["arms"]
    assert [all_on["name"], none["name"]] == ["all", "no-l1 no-bloom no-l2"]
    assert shown["result"]["options"]["settings"][-2:] == ["decide.review_threshold=0.01", "decide.decline_threshold=0.2"]
    changes = none["changes"]
    assert changes["compared"] == changes["degraded"] == 1_000
    assert changes["examples"][0]["profiles"]["card"][1] == "unknown"
    assert weir.call("GET", "/v1/compare").json["comparisons"][0]["state"] == "done"
    assert [entry["action"] for entry in weir.call("GET", "/v1/audit").json["entries"]] == ["compare"]
    weir.stop()
    await weir.start()
    assert weir.call("GET", path).json == shown
    assert weir.call("DELETE", path).status == 200
    assert weir.call("GET", path).status == 404
    assert list((weir.directory / "compare").iterdir()) == []


@pytest.mark.skipif(shutil.which("nice") is None, reason="there is no nice here")
async def test_comparison_gives_way_to_all_others(make_weir: "MakeWeir") -> None:
    """It runs with the least priority that there is."""
    weir = make_weir()
    await weir.start()
    path = f"/v1/compare/{post(weir, BIG).json['id']}"
    wait_for(weir, path, lambda _: [os.getpriority(os.PRIO_PROCESS, pid) for pid in family(weir.directory)[:1]] == [19])
    assert weir.call("DELETE", path).status == 200


@pytest.mark.usefixtures("in_turn")
async def test_comparison_is_cancelled_and_ends_with_the_service(make_weir: "MakeWeir") -> None:
    """DELETE ends the running one and everything that it started; so does the end of the service, a kill included."""
    weir = make_weir()
    await weir.start()
    for end in ("delete", "stop", "kill"):
        comparison_id = post(weir, BIG).json["id"]
        wait_for(weir, f"/v1/compare/{comparison_id}", lambda c: c["progress"]["done"] > 0)
        pids = family(weir.directory)
        assert len(pids) >= 2, "the command and a service"
        if end == "delete":
            reply = weir.call("DELETE", f"/v1/compare/{comparison_id}")
            assert (reply.status, reply.json["state"]) == (200, "cancelled")
        elif end == "stop":
            weir.stop()
            await weir.start()
            assert weir.call("GET", f"/v1/compare/{comparison_id}").json["state"] == "cancelled"
        else:
            weir.kill()
        wait_until_ended(pids)


def family(directory: Path) -> list[int]:
    """The processes of the comparison of this data directory that runs: the command and whatever it started."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if "tiers" in words and any(word.startswith(f"{directory}/compare/") for word in words):
                return [int(path.parent.name), *descendants(int(path.parent.name))]
    return []


def wait_until_ended(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("asked", "status", "field"),
    [
        ({}, 422, "configs"),
        ({"configs": []}, 422, "configs"),
        ({"configs": [{}] * 13}, 422, "configs"),
        ({"configs": [{"off": ["l3"]}]}, 422, "configs[0].off[0]"),
        ({"configs": [{"off": ["l1", "l1"]}]}, 422, "configs[0].off"),
        ({"configs": [{"off": ["redis"]}]}, 422, "configs[0].off"),
        ({"configs": [{"scorer": "rust"}]}, 422, "configs[0].scorer"),
        ({"configs": [{"tiers": []}]}, 422, "configs[0].tiers"),
        ({**ASK, "events": 999}, 422, "events"),
        ({**ASK, "events": 200_001}, 422, "events"),
        ({**ASK, "events": "many"}, 422, "events"),
        ({**ASK, "seed": -1}, 422, "seed"),
        ({**ASK, "delays_ms": [0.5]}, 422, "delays_ms"),
        ({**ASK, "delays_ms": [-1]}, 422, "delays_ms[0]"),
        ({**ASK, "rounds": 0}, 422, "rounds"),
        ({**ASK, "reason": "x"}, 422, "reason"),
        ([], 400, "body"),
        ("x" * 2_000_000, 413, "body"),
    ],
)
def test_bad_comparisons_are_refused(weir: "Weir", asked: object, status: int, field: str) -> None:
    """Each is a problem that names the field, and nothing runs."""
    reply = post(weir, asked)
    assert (reply.status, reply.json["field"]) == (status, field), reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    assert weir.call("GET", "/v1/compare").json == {"comparisons": []}


def test_comparison_needs_an_analyst(weir: "Weir") -> None:
    """An ingest key starts, sees and ends nothing; an id that is not known is 404."""
    key = add_key(weir.directory, Role.INGEST, "gateway")
    assert post(weir, ASK, key).status == 403
    assert weir.call("GET", "/v1/compare/0123456789ab", headers={"Authorization": f"Bearer {key}"}).status == 403
    assert weir.call("GET", "/v1/compare/0123456789ab").status == 404
    assert weir.call("DELETE", "/v1/compare/0123456789ab").status == 404
