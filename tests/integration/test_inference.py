"""/v2 over HTTP with real models: limits, queue, deadline, roles, and how failures look to clients of the protocol.

The engine around them is a double: the whole service, with an unchanged client, is in tests/e2e/test_inference.py.
"""

import asyncio
import gzip
import io
import json
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import onnx
import pytest
from aiohttp import ClientSession, TCPConnector, web
from onnx import TensorProto, helper

from models.card import ARTIFACTS, load_card, read_model
from models.scorer import CPU
from models.served import ServedModel
from service.auth import KEY_FILE, KeyRing, Role, add_key
from service.errors import NotReady, SettingsError, StartError
from service.handlers.router import build_web_app
from service.inference import Inference, open_inference
from service.metrics import Metrics
from service.settings import InferenceSettings, Settings, load_settings

LIMITS = InferenceSettings(body_bytes_max=65_536, json_bytes_max=4_096, queue_max=2, queue_bytes_max=131_072)
HEADER = "Inference-Header-Content-Length"


def small_model(factor: float) -> bytes:
    """y = factor x, float32 (n, 2)."""
    nodes = [helper.make_node("Mul", ["x", "k"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    constant = helper.make_tensor("k", TensorProto.FLOAT, [], [factor])
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [constant])
    model: onnx.ModelProto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


def rows(*values: list[float], **members: Any) -> dict[str, Any]:
    """The JSON of a request to a small model."""
    tensor = {"name": "x", "shape": [len(values), 2], "datatype": "FP32", "data": [v for row in values for v in row]}
    return {"inputs": [tensor], **members}


class EngineDouble:
    """What the handlers of /v2 ask of an engine."""

    def __init__(self, inference: Inference) -> None:
        self.inference = inference
        self.pipeline = None  # of the scoring routes, which nobody asks here
        self.ready = (True, "")

    def check_started(self) -> None:
        is_ready, reason = self.ready
        if not is_ready:
            raise NotReady(reason)


class Service:
    """A running web application with its models and one key per role."""

    def __init__(self, url: str, session: ClientSession, engine: EngineDouble, metrics: Metrics, keys: dict[Role, str]) -> None:
        self.url = url
        self.session = session
        self.engine = engine
        self.inference = engine.inference
        self.metrics = metrics
        self.keys = keys

    async def call(
        self, method: str, path: str, body: Any = None, role: Role | None = Role.INGEST, **headers: str
    ) -> tuple[int, Any, Any]:
        """Status, JSON of the body (bytes if it is none), headers."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if role is not None:
            sent["Authorization"] = f"Bearer {self.keys[role]}"
        data = json.dumps(body).encode() if isinstance(body, dict | list) else body
        async with self.session.request(method, self.url + path, data=data, headers=sent) as reply:
            content = await reply.read()
            is_json = reply.content_type.endswith(("/json", "+json")) and content and method != "HEAD"
            return reply.status, json.loads(content) if is_json else content, reply.headers

    async def infer(self, body: Any, model: str = "double", **headers: Any) -> tuple[int, Any, Any]:
        """POST one inference."""
        return await self.call("POST", f"/v2/models/{model}/infer", body, **headers)


Start = Callable[..., Awaitable[Service]]


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """A model in each form: `double` with one version, `times` with two."""
    directory = tmp_path / "models"
    for path, factor in (("double.onnx", 2), ("times/1/model.onnx", 10), ("times/2/model.onnx", 100)):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(small_model(factor))
    return directory


@pytest.fixture
async def start(tmp_path: Path, models_dir: Path) -> AsyncIterator[Start]:
    """`await start(LIMITS)`: a Service; closed at the end."""
    stack = AsyncExitStack()

    async def begin(limits: InferenceSettings = LIMITS) -> Service:
        limits = msgspec.structs.replace(limits, models_dir=models_dir)
        keys = {role: add_key(tmp_path, role, role.word) for role in Role}
        card = load_card(ARTIFACTS / "cards")
        inference = await open_inference(limits, CPU, card, read_model(ARTIFACTS / "cards"), stack)
        metrics = Metrics()
        engine = EngineDouble(inference)
        app = build_web_app(cast(Any, engine), KeyRing(tmp_path / KEY_FILE), metrics, Settings(inference=limits))
        runner = web.AppRunner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        session = await stack.enter_async_context(ClientSession(connector=TCPConnector(force_close=True)))
        return Service(f"http://127.0.0.1:{runner.addresses[0][1]}", session, engine, metrics, keys)

    yield begin
    await stack.aclose()


class Gate:
    """Holds every run of a model until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        real = ServedModel.run

        def run(model: ServedModel, *arguments: Any) -> Any:
            self.entered.release()
            assert self.opened.wait(10)
            return real(model, *arguments)

        monkeypatch.setattr(ServedModel, "run", run)

    async def wait_entered(self) -> None:
        """Until one more run is held."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=10)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def test_infer_in_json_returns_outputs(start: Start) -> None:
    """A request in JSON is answered in JSON, with its id."""
    service = await start()
    status, reply, headers = await service.infer(rows([1, 2], [3, 4], id="q"))
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert reply == {
        "model_name": "double",
        "model_version": "1",
        "id": "q",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [2.0, 4.0, 6.0, 8.0]}],
    }


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
async def test_infer_in_bytes_returns_bytes(start: Start, encoding: str) -> None:
    """Raw bytes in and out; a compressed body is undone before its parts are told apart."""
    service = await start()
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = head + np.array([1, np.nan], "<f4").tobytes()
    encode: dict[str, Callable[[bytes], bytes]] = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}
    sent = encode[encoding](body)
    headers = {"Content_Encoding": encoding, HEADER: str(len(head))}
    status, reply, got = await service.infer(sent, **headers)
    assert (status, got["Content-Type"]) == (200, "application/octet-stream")
    n_json = int(got[HEADER])
    assert json.loads(reply[:n_json])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    np.testing.assert_array_equal(np.frombuffer(reply[n_json:], "<f4"), np.array([2, np.nan], np.float32))


async def test_infer_takes_the_newest_version_or_the_one_named(start: Start) -> None:
    """Without a version the highest number answers, and says which it is."""
    service = await start()
    for path, version, value in (("times", "2", 100.0), ("times/versions/1", "1", 10.0), ("times/versions/2", "2", 100.0)):
        _, reply, _ = await service.infer(rows([1, 0]), path)
        assert (reply["model_version"], reply["outputs"][0]["data"][0]) == (version, value)


async def test_metadata_describes_servers_and_models(start: Start) -> None:
    """What clients read before they infer: server, models, versions, tensors, Triton's configuration, the index."""
    service = await start()
    _, server, _ = await service.call("GET", "/v2")
    assert server["name"] == "weir"
    assert "binary_tensor_data" in server["extensions"]
    _, model, _ = await service.call("GET", "/v2/models/times")
    tensor = {"datatype": "FP32", "shape": [-1, 2]}
    assert model == {
        "name": "times",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}],
    }
    _, configuration, _ = await service.call("GET", "/v2/models/times/versions/1/config")
    assert configuration["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 2]}]
    assert (await service.call("GET", "/v2/models/times/ready"))[1] == {"name": "times", "ready": True}
    _, index, _ = await service.call("POST", "/v2/repository/index")
    assert [(entry["name"], entry["version"]) for entry in index[1:]] == [("double", "1"), ("times", "1"), ("times", "2")]


async def test_model_of_the_scorer_is_opened_when_it_is_asked(start: Start) -> None:
    """A service that nobody asks has not opened it; ten who ask at once open it once."""
    service = await start()
    name = next(iter(service.inference.lanes))
    (lane,) = service.inference.lanes[name].values()
    assert lane.model is None
    replies = await asyncio.gather(*(service.call("GET", f"/v2/models/{name}") for _ in range(10)))
    assert {status for status, _, _ in replies} == {200}
    assert replies[0][1]["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 40]}]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/times/versions/3", 404),
        ("POST", "/v2/models/none/infer", 404),
        ("GET", "/v2/models/none/ready", 404),
        ("GET", "/v2/models/double/stats", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/double/infer", 405),
        ("POST", "/v2/repository/models/double/load", 409),
        ("POST", "/v2/models/double/infer", 400),
    ],
)
async def test_failure_is_a_problem_with_error(start: Start, method: str, path: str, status: int) -> None:
    """Every failure under /v2 has the protocol's `error` beside the members of a problem."""
    service = await start()
    got, reply, headers = await service.call(method, path)
    assert (got, headers["Content-Type"]) == (status, "application/problem+json")
    assert reply["error"] == reply["detail"]
    assert reply["status"] == status


async def test_failure_elsewhere_has_no_error_member(start: Start) -> None:
    """Problems of the other routes stay as they are."""
    service = await start()
    assert "error" not in (await service.call("GET", "/v1/nothing"))[1]


async def test_models_are_closed_to_callers_without_a_key(start: Start) -> None:
    """All but health needs a key; the least role is enough."""
    service = await start()
    for method, path in (("GET", "/v2"), ("GET", "/v2/models/double"), ("POST", "/v2/repository/index")):
        assert (await service.call(method, path, role=None))[0] == 401
        assert (await service.call(method, path))[0] == 200
    status, reply, headers = await service.call("POST", "/v2/models/double/infer", rows([1, 2]), role=None)
    assert (status, "Bearer" in headers["WWW-Authenticate"]) == (401, True)
    assert "no API key" in reply["error"]


async def test_health_is_open_and_follows_the_engine(start: Start) -> None:
    """Live is always live; ready says why not."""
    service = await start()
    assert (await service.call("GET", "/v2/health/live", role=None))[:2] == (200, {"live": True})
    assert (await service.call("GET", "/v2/health/ready", role=None))[:2] == (200, {"ready": True})
    service.engine.ready = (False, "recovering")
    status, reply, _ = await service.call("GET", "/v2/health/ready", role=None)
    assert (status, reply["error"]) == (503, "recovering")


async def test_requests_wait_until_recovery_is_done(start: Start) -> None:
    """Before that a model is as closed as everything else, and says so to the client; it is alive all the same."""
    service = await start()
    service.engine.ready = (False, "recovering: 1 of about 2 entries (50 %)")
    for status, reply, headers in (await service.infer(rows([1, 2])), await service.call("GET", "/v2/models/double/ready")):
        assert (status, reply["error"], headers["Retry-After"]) == (503, "recovering: 1 of about 2 entries (50 %)", "1")
    assert (await service.call("GET", "/v2/health/live", role=None))[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"", {}, 400, "the JSON part"),
        (b"{", {}, 400, "the JSON part"),
        (rows([1, 2, 3]), {}, 400, "tensor 'x': 3 elements; shape [1, 2] has 2"),
        ({"inputs": []}, {}, 400, "input 'x' is missing"),
        (rows([1, 2]), {HEADER: "100000"}, 400, "1 to "),
        (rows([1, 2]), {HEADER: "5"}, 400, "the JSON part"),
        (b"x" * 5_000, {}, 413, "inference.json_bytes_max"),
        (b"x" * 70_000, {}, 413, "inference.body_bytes_max"),
        (gzip.compress(b"x" * 70_000), {"Content_Encoding": "gzip"}, 413, "inference.body_bytes_max"),
        (b"no gzip", {"Content_Encoding": "gzip"}, 400, "Content-Encoding"),
        (b"x", {"Content_Encoding": "compress"}, 415, "gzip, deflate"),
    ],
)
async def test_bad_body_is_refused_and_the_next_is_served(
    start: Start, body: Any, headers: dict[str, str], status: int, words: str
) -> None:
    """Whatever was wrong, the reply says it, the place is given up, and the service goes on."""
    service = await start()
    got, reply, _ = await service.infer(body, **headers)
    assert (got, words in reply["error"]) == (status, True), reply
    assert service.inference.n_bytes == 0
    assert (await service.infer(rows([1, 2])))[0] == 200


async def test_body_of_unknown_length_past_the_limit_is_refused(start: Start) -> None:
    """A chunked body is cut off at the limit, not read to its end."""
    service = await start()
    status, reply, _ = await service.infer(io.BytesIO(b"x" * 70_000))
    assert (status, reply["title"]) == (413, "Body too large")


async def test_body_at_the_limit_is_read(start: Start) -> None:
    """The last byte that is allowed is read: what is refused then is the JSON."""
    service = await start()
    status, reply, _ = await service.infer(b"x" * LIMITS.body_bytes_max)
    assert (status, "inference.json_bytes_max" in reply["error"]) == (413, True)


async def test_queue_that_is_full_refuses_and_recovers(start: Start, gate: Gate) -> None:
    """One past the limit gets 429 with Retry-After at once; those inside are served, and then there is room again."""
    service = await start()
    inside = [asyncio.create_task(service.infer(rows([1, 2]))) for _ in range(2)]
    await gate.wait_entered()
    while next(iter(service.inference.lanes["double"].values())).n_inside < 2:  # noqa: ASYNC110  # no event tells
        await asyncio.sleep(0.001)
    status, reply, headers = await service.infer(rows([1, 2]))
    assert (status, headers["Retry-After"]) == (429, "1")
    assert "inference.queue_max = 2" in reply["error"]
    gate.opened.set()
    assert [status for status, _, _ in await asyncio.gather(*inside)] == [200, 200]
    assert (await service.infer(rows([1, 2])))[0] == 200
    assert service.inference.n_bytes == 0


async def test_queue_counts_bytes_of_all_models(start: Start, gate: Gate) -> None:
    """Bodies of unknown length count as the largest: two of them fill the queue for every model."""
    service = await start()
    body = json.dumps(rows([1, 2])).encode()
    inside = [asyncio.create_task(service.infer(io.BytesIO(gzip.compress(body)), Content_Encoding="gzip")) for _ in range(2)]
    await gate.wait_entered()
    while service.inference.n_bytes < LIMITS.queue_bytes_max:  # noqa: ASYNC110  # no event tells
        await asyncio.sleep(0.001)
    status, reply, _ = await service.infer(rows([1, 2]), "times")
    assert (status, "inference.queue_bytes_max" in reply["error"]) == (429, True)
    gate.opened.set()
    assert [status for status, _, _ in await asyncio.gather(*inside)] == [200, 200]


async def test_slow_model_holds_up_neither_loop_nor_other_models(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one model runs, health answers and another model infers."""
    service = await start()
    gate = Gate(monkeypatch)
    slow = asyncio.create_task(service.infer(rows([1, 2])))
    await gate.wait_entered()
    other = asyncio.create_task(service.infer(rows([1, 0]), "times"))
    await gate.wait_entered()  # the second run began although the first has not ended
    assert (await service.call("GET", "/v2/health/live"))[0] == 200
    assert not slow.done()
    gate.opened.set()
    assert (await slow)[1]["outputs"][0]["data"] == [2.0, 4.0]
    assert (await other)[1]["outputs"][0]["data"] == [100.0, 0.0]


async def test_deadline_stops_what_runs_and_what_waits(start: Start, gate: Gate) -> None:
    """A run that is late is a 504, one that had no turn a 429; the thread is free again afterwards."""
    service = await start(InferenceSettings(queue_max=2, deadline_ms=150))
    running = asyncio.create_task(service.infer(rows([1, 2])))
    await gate.wait_entered()
    waiting = asyncio.create_task(service.infer(rows([1, 2])))
    status, reply, _ = await running
    assert (status, "is stopped" in reply["error"]) == (504, True)
    status, reply, _ = await waiting
    assert (status, "was busy" in reply["error"]) == (429, True)
    lane = service.inference.find("double", None)
    assert lane.n_inside == 1  # the thread still has the first one: its place is taken
    gate.opened.set()
    assert (await service.infer(rows([1, 2])))[0] == 200
    assert (lane.n_inside, service.inference.n_bytes, lane.runs) == (0, 0, set())


async def test_body_that_never_ends_is_given_up(start: Start) -> None:
    """The deadline holds for the body, too; its place is free afterwards."""
    service = await start(InferenceSettings(deadline_ms=150))

    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(10)

    status, reply, _ = await service.infer(endless())
    assert (status, "inference.deadline_ms" in reply["error"]) == (408, True)
    assert service.inference.n_bytes == 0


async def test_metrics_count_inferences_by_model_and_result(start: Start) -> None:
    """Served and refused inferences, and their time, by model."""
    service = await start()
    await service.infer(rows([1, 2]))
    await service.infer({"inputs": []})
    assert service.metrics.infer["double", "ok"] == 1
    assert service.metrics.infer["double", "invalid-tensor"] == 1
    text = service.metrics.render().decode()
    assert 'weir_infer_total{model="double",result="ok"} 1.0' in text
    assert 'weir_infer_seconds_count{model="double"} 2.0' in text


def test_queue_smaller_than_one_body_is_refused() -> None:
    """A queue that no body fits in would refuse everything: the settings say so."""
    with pytest.raises(SettingsError, match=r"expected at least inference\.body_bytes_max, 67108864"):
        load_settings(None, ["inference.queue_bytes_max=1048576"])
    settings = load_settings(None, ["inference.queue_bytes_max=1048576", "inference.body_bytes_max=1048576"])
    assert settings.inference.queue_bytes_max == 1 << 20


async def test_broken_model_stops_the_start(models_dir: Path) -> None:
    """A file that is no model, and a second model of the scorer's name, are noticed before anything is served."""
    card, content = load_card(ARTIFACTS / "cards"), read_model(ARTIFACTS / "cards")
    limits = InferenceSettings(models_dir=models_dir)
    (models_dir / "broken.onnx").write_bytes(b"no model")
    async with AsyncExitStack() as stack:
        with pytest.raises(StartError, match=r"broken\.onnx: is not a model"):
            await open_inference(limits, CPU, card, content, stack)
    (models_dir / "broken.onnx").rename(models_dir / f"{card.name}.onnx")
    async with AsyncExitStack() as stack:
        with pytest.raises(StartError, match="the scorer's name"):
            await open_inference(limits, CPU, card, content, stack)
