"""/v1/models over real HTTP: swaps that drop nothing, what outlives a restart, who may, what is refused, what /metrics says."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from features.transaction import Transaction
from models.card import ModelCard, Thresholds
from service.auth import Role, add_key

pytestmark = pytest.mark.e2e

MakeModel = Callable[..., ModelCard]
CHAMPION, CHALLENGER, MODELS = "/v1/models/champion", "/v1/models/challenger", "/v1/models"


def put(weir: Any, path: str, **body: object) -> Any:
    return weir.call("PUT", path, json.dumps({"reason": "test"} | body).encode())


async def test_swap_under_load_drops_no_request(make_weir: Any, stream: list[Transaction], make_model: MakeModel) -> None:
    """Four clients send one by one and in batches while the champion changes; every reply is a decision of either model."""
    weir = make_weir()
    await weir.start()
    rival = make_model(weir.directory / "models" / "rival", thresholds=Thresholds(0.02, 0.2))
    first = weir.call("GET", MODELS).json["champion"]["model"]
    replies: list[dict[str, Any]] = []

    async def send(txs: Sequence[Transaction], batch: int) -> None:
        async with weir.client() as session:
            for at in range(0, len(txs), batch):
                part = txs[at : at + batch]
                path, body = ("/v1/score", part[0]) if batch == 1 else ("/v1/score/batch", part)
                async with session.post(path, data=msgspec.json.encode(body)) as response:
                    assert response.status == 200, await response.text()
                    reply = msgspec.json.decode(await response.read())
                replies.extend([reply] if batch == 1 else reply)

    async def swap() -> None:
        async with weir.client() as session:
            for number in range(8):
                body = {"model": rival.model if number % 2 == 0 else first, "reason": "test"}
                async with session.put(CHAMPION, json=body) as response:
                    assert response.status == 200, await response.text()
                await asyncio.sleep(0.05)

    await asyncio.gather(send(stream[:300], 1), send(stream[300:600], 1), send(stream[600:2800], 300), swap())
    assert len({reply["event_id"] for reply in replies}) == len(replies) == 2800
    assert {reply["model"] for reply in replies} == {first, rival.model}
    for reply in replies:
        review, decline = (0.02, 0.2) if reply["model"] == rival.model else _thresholds(weir)
        expected = "decline" if reply["score"] >= decline else "review" if reply["score"] >= review else "approve"
        assert reply["outcome"] == expected
        assert ("reasons" in reply) == (expected != "approve")
    weir.stop()


def _thresholds(weir: Any) -> tuple[float, float]:
    card = next(m for m in weir.call("GET", MODELS).json["models"] if m["source"] == "packaged" and m["problem"] is None)
    return card["thresholds"]["review"], card["thresholds"]["decline"]


async def test_choice_outlives_restarts_and_is_audited(
    make_weir: Any, stream: list[Transaction], make_model: MakeModel
) -> None:
    """Champion, previous and challenger are there again after a stop and after a kill; one call rolls back."""
    weir = make_weir("watch.challenger_share=1")
    await weir.start()
    rival = make_model(weir.directory / "models" / "rival")
    third = make_model(weir.directory / "models" / "third", seed=3, name="third")
    first = weir.call("GET", MODELS).json["champion"]["model"]
    assert put(weir, CHAMPION, model=rival.model).json["champion"]["model"] == rival.model
    assert put(weir, CHALLENGER, model=third.model).json["challenger"]["model"] == third.model
    for end in (weir.stop, weir.kill):
        end()
        await weir.start()
        shown = weir.call("GET", MODELS).json
        assert (shown["champion"]["model"], shown["previous"], shown["challenger"]["model"]) == (
            rival.model,
            first,
            third.model,
        )
    (reply,) = weir.call("POST", "/v1/score/batch", msgspec.json.encode(stream[:1])).json
    assert reply["model"] == rival.model
    back = put(weir, CHAMPION, rollback=True).json
    assert (back["champion"]["model"], back["previous"]) == (first, rival.model)
    assert weir.call("DELETE", CHALLENGER).json["challenger"] is None
    entries = [e for e in weir.call("GET", "/v1/audit").json["entries"] if e["action"] == "model"]
    assert [(e["role"], e["before"], e["model"]) for e in reversed(entries)] == [
        ("champion", first, rival.model), ("challenger", None, third.model), ("champion", rival.model, first),
        ("challenger", third.model, None),
    ]  # fmt: skip
    weir.stop()


BAD_BODIES: dict[str, tuple[str, bytes, int, str]] = {
    "empty": (CHAMPION, b"", 400, "body"),
    "not JSON": (CHAMPION, b"{", 400, "body"),
    "not UTF-8": (CHAMPION, b'{"model": "\xff", "reason": "x"}', 400, "model"),
    "array": (CHAMPION, b"[]", 400, "body"),
    "no reason": (CHAMPION, b'{"model": "m"}', 422, "reason"),
    "empty reason": (CHAMPION, b'{"model": "m", "reason": ""}', 422, "reason"),
    "long reason": (CHAMPION, b'{"model": "m", "reason": "%b"}' % (b"x" * 257), 422, "reason"),
    "unprintable reason": (CHAMPION, b'{"model": "m", "reason": "a\\u0000b"}', 422, "reason"),
    "no model": (CHAMPION, b'{"reason": "x"}', 422, "model"),
    "model null": (CHAMPION, b'{"model": null, "reason": "x"}', 422, "model"),
    "model a number": (CHAMPION, b'{"model": 1, "reason": "x"}', 422, "model"),
    "model empty": (CHAMPION, b'{"model": "", "reason": "x"}', 422, "model"),
    "model long": (CHAMPION, b'{"model": "%b", "reason": "x"}' % (b"m" * 257), 422, "model"),
    "unknown model": (CHAMPION, b'{"model": "nobody@1", "reason": "x"}', 404, "model"),
    "a path": (CHAMPION, b'{"model": "../../../etc", "reason": "x"}', 404, "model"),
    "both": (CHAMPION, b'{"model": "m", "rollback": true, "reason": "x"}', 422, "model"),
    "rollback false": (CHAMPION, b'{"rollback": false, "reason": "x"}', 422, "model"),
    "rollback a word": (CHAMPION, b'{"rollback": "yes", "reason": "x"}', 422, "rollback"),
    "nothing before": (CHAMPION, b'{"rollback": true, "reason": "x"}', 409, "rollback"),
    "unknown field": (CHAMPION, b'{"model": "m", "reason": "x", "share": 1}', 422, "share"),
    "challenger rollback": (CHALLENGER, b'{"rollback": true, "reason": "x"}', 422, "rollback"),
    "challenger no model": (CHALLENGER, b'{"reason": "x"}', 422, "model"),
    "challenger unknown": (CHALLENGER, b'{"model": "nobody@1", "reason": "x"}', 404, "model"),
}


def test_bad_requests_are_refused_and_change_nothing(weir: Any) -> None:
    """Each is a problem that names the field; models, files and audit stay as they are."""
    before = weir.call("GET", MODELS).json
    files = sorted(path.name for path in weir.directory.iterdir() if path.name != "toggles.json")
    audit = weir.call("GET", "/v1/audit").body
    for name, (path, body, status, field) in BAD_BODIES.items():
        reply = weir.call("PUT", path, body)
        assert (reply.status, reply.json["field"]) == (status, field), (name, reply.body)
        assert reply.headers["content-type"] == "application/problem+json", name
    champion = json.dumps({"model": before["champion"]["model"], "reason": "x"}).encode()
    reply = weir.call("PUT", CHALLENGER, champion)
    assert (reply.status, reply.json["type"]) == (409, "urn:weir:problem:model-refused")
    handbook = next(m for m in before["models"] if "handbook" in m["model"])
    assert "trained for spec 'handbook'" in handbook["problem"]
    reply = weir.call("PUT", CHAMPION, json.dumps({"model": handbook["model"], "reason": "x"}).encode())
    assert (reply.status, reply.json["type"]) == (409, "urn:weir:problem:model-refused")
    assert "trained for spec 'handbook'" in reply.json["detail"]
    after = weir.call("GET", MODELS).json
    assert {k: after[k] for k in ("champion", "previous", "challenger", "models")} == {
        k: before[k] for k in ("champion", "previous", "challenger", "models")
    }
    assert sorted(path.name for path in weir.directory.iterdir() if path.name != "toggles.json") == files
    assert weir.call("GET", "/v1/audit").body == audit


def test_models_are_for_analysts(weir: Any) -> None:
    """No key 401, ingest 403, analyst passes; other methods 405; a query that is not known 422."""
    ingest = {"Authorization": f"Bearer {add_key(weir.directory, Role.INGEST, 'models-ingest')}"}
    analyst = {"Authorization": f"Bearer {add_key(weir.directory, Role.ANALYST, 'models-analyst')}"}
    for method, path in (("GET", MODELS), ("PUT", CHAMPION), ("PUT", CHALLENGER), ("DELETE", CHALLENGER)):
        assert weir.call(method, path, headers={"Authorization": ""}).status == 401
        assert weir.call(method, path, headers=ingest).status == 403
    assert weir.call("GET", MODELS, headers=analyst).status == 200
    assert weir.call("DELETE", CHAMPION).status == 405
    assert weir.call("POST", MODELS, b"{}").status == 405
    assert weir.call("GET", f"{MODELS}?x=1").status == 422
    assert weir.call("PUT", "/v1/models/king", b"{}").status == 404


async def test_metrics_of_models(make_weir: Any, stream: list[Transaction], make_model: MakeModel) -> None:
    """/metrics has the models in use, stability of every feature, labels by model, and the challenger's counts."""
    weir = make_weir("watch.share=1", "watch.challenger_share=1")
    await weir.start()
    rival = make_model(weir.directory / "models" / "rival")
    assert put(weir, CHALLENGER, model=rival.model).status == 200
    for at in range(0, 1500, 300):
        assert weir.call("POST", "/v1/score/batch", msgspec.json.encode(stream[at : at + 300])).status == 200
    labels = [
        {"event_id": tx.event_id, "label": "fraud" if n % 2 else "legit", "ts": tx.ts} for n, tx in enumerate(stream[:20])
    ]
    assert weir.call("POST", "/v1/labels", json.dumps(labels).encode()).json["applied"] == 20
    async with asyncio.timeout(10):
        while weir.call("GET", MODELS).json["challenger"]["rows"] < 1500:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.05)
    shown = weir.call("GET", MODELS).json
    text = weir.call("GET", "/metrics").body.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    champion = shown["champion"]["model"]
    assert lines[f'weir_model{{model="{champion}",role="champion"}}'] == "1.0"
    assert lines[f'weir_model{{model="{rival.model}",role="challenger"}}'] == "1.0"
    stability = {key: float(value) for key, value in lines.items() if key.startswith("weir_population_stability{")}
    assert len(stability) == len(shown["drift"]["features"]) == 40
    assert float(lines[f'weir_score_stability{{model="{champion}"}}']) == pytest.approx(
        shown["drift"]["score"]["psi"], abs=1e-4
    )
    assert float(lines["weir_drift_rows"]) == shown["drift"]["rows"] == 1500
    labelled = sum(float(value) for key, value in lines.items() if key.startswith("weir_labelled{"))
    assert labelled == sum(sum(n.values()) for n in shown["quality"][champion]["labelled"].values()) == 20
    assert float(lines[f'weir_challenger_rows{{model="{rival.model}"}}']) == 1500
    outcomes = sum(float(value) for key, value in lines.items() if key.startswith("weir_challenger_outcomes{"))
    assert outcomes == 1500
    assert 0 <= float(lines[f'weir_challenger_agreement{{model="{rival.model}"}}']) <= 1
    assert float(lines['weir_vector_log_total{result="written"}']) == 1500
    weir.stop()
    command = [sys.executable, "-m", "service", "doctor", "--skew", "--data-dir", str(weir.directory)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1,500 recomputed from the journal and compared" in done.stdout


async def test_choice_that_cannot_be_had_stops_the_start_with_one_line(make_weir: Any, make_model: MakeModel) -> None:
    """A service never starts with another model than the one that was chosen, and says what to do; the fix works."""
    weir = make_weir()
    await weir.start()
    directory = weir.directory / "models" / "rival"
    rival = make_model(directory)
    assert put(weir, CHAMPION, model=rival.model).status == 200
    weir.stop()
    state, card, model = weir.directory / "models.json", directory / "card.json", directory / "model.onnx"
    whole = {path: path.read_bytes() for path in (state, card, model)}
    for path, damaged in ((state, whole[state][:-3]), (state, b"\xff\xfe"), (card, None), (model, b"something else")):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        done = await asyncio.to_thread(subprocess.run, weir.command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1, (path, damaged)
        assert done.stderr.count("\n") == 1, done.stderr
        assert "models.json" in done.stderr
        path.write_bytes(whole[path])
    state.unlink()
    await weir.start()
    assert weir.call("GET", MODELS).json["champion"]["model"].startswith("cards-mlp@")
    weir.stop()


async def test_challenger_that_is_gone_costs_nothing(make_weir: Any, make_model: MakeModel) -> None:
    """It only ever looked on: the service starts without it."""
    weir = make_weir()
    await weir.start()
    rival = make_model(weir.directory / "models" / "rival")
    assert put(weir, CHALLENGER, model=rival.model).status == 200
    weir.stop()
    (weir.directory / "models" / "rival" / "model.onnx").unlink()
    await weir.start()
    assert weir.call("GET", MODELS).json["challenger"] is None
    assert rival.model in weir.log()
    weir.stop()
