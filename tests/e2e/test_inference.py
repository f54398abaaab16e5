"""/v2 of a real `weir serve`, spoken to by Triton's own client, unchanged: two models at once beside the scorer."""

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from features.transaction import Transaction
from models.card import ARTIFACTS, load_card

pytestmark = pytest.mark.e2e

IMAGE = (3, 224, 224)
N_CLASSES = 1000
# MobileNetV2: expansion, channels, repeats, stride of each group of blocks
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FRAUD = load_card(ARTIFACTS / "cards")

Serve = Callable[..., Any]
Array = NDArray[Any]


class ImageModel:
    """The layers of MobileNetV2, batch normalisation folded in, with random weights: 3.5 million parameters."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self.n_parameters = 0

    def build(self) -> bytes:
        """`image` float32 (n, 3, 224, 224) -> `scores` float32 (n, 1000)."""
        at = self._convolve("image", 3, 32, 3, 2, 1)
        channels = 32
        for expansion, width, repeats, stride in BLOCKS:
            for i in range(repeats):
                at = self._block(at, channels, width, expansion, stride if i == 0 else 1)
                channels = width
        at = self._add("GlobalAveragePool", [self._convolve(at, channels, 1280, 1, 1, 1)])
        weights = [self._constant((1280, N_CLASSES), 1280), self._constant((N_CLASSES,), 1280)]
        self._nodes.append(helper.make_node("Gemm", [self._add("Flatten", [at]), *weights], ["scores"]))
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *IMAGE])
        scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", N_CLASSES])
        graph = helper.make_graph(self._nodes, "image", [image], [scores], self._constants)
        model: onnx.ModelProto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        return bytes(model.SerializeToString())

    def _block(self, at: str, channels: int, width: int, expansion: int, stride: int) -> str:
        hidden = channels * expansion
        out = at if expansion == 1 else self._convolve(at, channels, hidden, 1, 1, 1)
        out = self._convolve(out, hidden, hidden, 3, stride, hidden)
        out = self._convolve(out, hidden, width, 1, 1, 1, is_linear=True)
        return self._add("Add", [at, out]) if stride == 1 and channels == width else out

    def _convolve(self, at: str, n_in: int, n_out: int, size: int, stride: int, groups: int, is_linear: bool = False) -> str:
        fan_in = n_in // groups * size * size
        weights = [self._constant((n_out, n_in // groups, size, size), fan_in), self._constant((n_out,), fan_in)]
        pads = [size // 2] * 4
        out = self._add("Conv", [at, *weights], kernel_shape=[size] * 2, strides=[stride] * 2, pads=pads, group=groups)
        return out if is_linear else self._add("Relu", [out])

    def _constant(self, shape: tuple[int, ...], fan_in: int) -> str:
        name = f"constant_{len(self._constants)}"
        values = self._rng.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)
        self._constants.append(numpy_helper.from_array(values, name))
        self.n_parameters += values.size
        return name

    def _add(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        out = f"value_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [out], **attributes))
        return out


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the image model, as version 3 of `image`."""
    directory = tmp_path_factory.mktemp("models")
    (directory / "image" / "3").mkdir(parents=True)
    model = ImageModel(seed=11)
    (directory / "image" / "3" / "model.onnx").write_bytes(model.build())
    assert 3_400_000 < model.n_parameters < 3_600_000
    return directory


@pytest.fixture(scope="module")
def settings(models_dir: Path) -> tuple[str, ...]:
    """Of a service with both models, on a machine that is busy."""
    return f"inference.models_dir={models_dir}", "inference.deadline_ms=60000"


@pytest.fixture(scope="module")
def served(make_one: Serve, settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running service with both models, for all tests that do not stop it."""
    yield from make_one(tmp_path_factory.mktemp("served") / "data", settings)


@pytest.fixture
def client(served: Any) -> Iterator[Any]:
    """Triton's client; every call is given the key as a header, by the client's own means."""
    with InferenceServerClient(served.url.removeprefix("http://"), network_timeout=60) as client:
        yield client


@pytest.fixture
def key(served: Any) -> dict[str, str]:
    """Headers with the service's key. A copy: the client writes into what it is given."""
    return {"Authorization": f"Bearer {served.key}"}


@pytest.fixture(scope="module")
def local(models_dir: Path) -> Callable[[str, Array], Array]:
    """`local(model, rows)`: what onnxruntime itself makes of them, in this process."""
    onnxruntime = pytest.importorskip("onnxruntime")
    files = {"image": models_dir / "image" / "3" / "model.onnx", FRAUD.name: ARTIFACTS / "cards" / "model.onnx"}
    sessions = {
        name: onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]) for name, file in files.items()
    }

    def run(model: str, rows: Array) -> Array:
        session = sessions[model]
        output: Array = session.run(None, {session.get_inputs()[0].name: rows})[0]
        return output

    return run


def features(n_rows: int, seed: int = 1) -> Array:
    """Random feature vectors of the fraud model's width."""
    return np.random.default_rng(seed).normal(0, 3, (n_rows, len(FRAUD.feature_names))).astype(np.float32)


def images(n: int) -> Array:
    """Random images."""
    return np.random.default_rng(2).random((n, *IMAGE), dtype=np.float32)


def as_input(name: str, rows: Array, is_binary: bool) -> Any:
    """Triton's input of an FP32 array."""
    tensor = InferInput(name, list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=is_binary)
    return tensor


@pytest.mark.parametrize("is_binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_fraud_model_gives_the_scorers_risk(
    client: Any, key: dict[str, str], local: Any, is_binary: bool, compression: str | None
) -> None:
    """The same risk as onnxruntime's own, in both forms, compressed or not."""
    rows = features(50)
    reply = client.infer(
        FRAUD.name,
        [as_input("features", rows, is_binary)],
        outputs=[InferRequestedOutput("risk", binary_data=is_binary)],
        request_id="r-1",
        headers=key,
        request_compression_algorithm=compression,
    )
    np.testing.assert_allclose(reply.as_numpy("risk"), local(FRAUD.name, rows), rtol=0, atol=1e-6)
    assert reply.get_response()["id"] == "r-1"
    assert reply.get_response()["model_version"] == FRAUD.version
    assert ("data" in reply.get_output("risk")) is not is_binary


def test_fraud_model_agrees_with_v1_score(served: Any, client: Any, key: dict[str, str], stream: list[Transaction]) -> None:
    """The features that a trace shows, sent to /v2, give the score that /v1/score gave."""
    reply = served.call("POST", "/v1/score?trace=1", msgspec.json.encode(stream[0])).json
    shown = reply["trace"]["features"]
    rows = np.array([[shown[name] for name in FRAUD.feature_names]], np.float32)
    risk = client.infer(FRAUD.name, [as_input("features", rows, True)], headers=key).as_numpy("risk")
    assert risk[0] == pytest.approx(reply["score"], abs=1e-4)  # a reply rounds the score


@pytest.mark.parametrize(("n", "is_binary"), [(1, False), (1, True), (16, True)])
def test_image_model_gives_scores(client: Any, key: dict[str, str], local: Any, n: int, is_binary: bool) -> None:
    """One image as JSON or bytes, sixteen (9.6 MB) as bytes: the scores of onnxruntime's own run."""
    rows = images(n)
    reply = client.infer("image", [as_input("image", rows, is_binary)], headers=key)
    np.testing.assert_allclose(reply.as_numpy("scores"), local("image", rows), rtol=1e-4, atol=1e-4)


def test_image_batch_as_json_says_to_send_bytes(client: Any, key: dict[str, str]) -> None:
    """What would hold scoring up as JSON is refused, with the way to send it."""
    with pytest.raises(InferenceServerException, match="binary_data_size") as caught:
        client.infer("image", [as_input("image", images(2), False)], headers=key)
    assert caught.value.status() == "413"


def test_client_finds_out_what_is_served(client: Any, key: dict[str, str]) -> None:
    """All that the client asks before it infers."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("image", headers=key)
    assert client.is_model_ready("image", "3", headers=key)
    assert not client.is_model_ready("image", "4", headers=key)
    assert not client.is_model_ready("nothing", headers=key)
    assert "binary_tensor_data" in client.get_server_metadata(headers=key)["extensions"]
    described = client.get_model_metadata(FRAUD.name, headers=key)
    assert described["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 40]}]
    assert described["versions"] == [FRAUD.version]
    configured = client.get_model_config("image", headers=key)
    assert configured["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [-1, *IMAGE]}]
    index = client.get_model_repository_index(headers=key)
    assert [(entry["name"], entry["state"]) for entry in index] == [(FRAUD.name, "READY"), ("image", "READY")]


def test_client_shows_what_was_wrong(client: Any, key: dict[str, str]) -> None:
    """The client's exception holds our message and status, whatever failed."""
    wrong: list[tuple[str, Callable[[], Any]]] = [
        ("401", lambda: client.infer("image", [as_input("image", images(1), True)])),
        ("404", lambda: client.infer("nothing", [as_input("image", images(1), True)], headers=dict(key))),
        ("400", lambda: client.infer("image", [as_input("picture", images(1), True)], headers=dict(key))),
        ("400", lambda: client.infer("image", [as_input("image", images(1)[:, :2], True)], headers=dict(key))),
        ("404", lambda: client.get_inference_statistics("image", headers=dict(key))),
        ("409", lambda: client.load_model("image", headers=dict(key))),
        ("404", lambda: client.get_log_settings(headers=dict(key))),
    ]
    for status, call in wrong:
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == status, caught.value
        assert "decoding" not in caught.value.message()  # what the client says of a reply without `error`


def test_json_of_a_client_with_nan_is_read(client: Any, key: dict[str, str], local: Any) -> None:
    """The client writes NaN, which is no JSON: it is read, and the risk is that of the raw bytes."""
    rows = features(2)
    rows[1, 3] = np.nan
    asked = [InferRequestedOutput("risk", binary_data=False)]
    reply = client.infer(FRAUD.name, [as_input("features", rows, False)], outputs=asked, headers=key)
    np.testing.assert_allclose(reply.as_numpy("risk"), local(FRAUD.name, rows), rtol=0, atol=1e-6)


def test_scoring_goes_on_while_the_image_model_runs(served: Any, client: Any, stream: list[Transaction]) -> None:
    """Transactions and the fraud model under /v2 are answered while a batch of images is under way."""
    key = {"Authorization": f"Bearer {served.key}"}
    batch = as_input("image", images(16), True)
    client.infer("image", [as_input("image", images(1), True)], headers=dict(key))
    finished: list[float] = []

    def infer() -> None:
        with InferenceServerClient(served.url.removeprefix("http://"), network_timeout=60) as own:
            for _ in range(3):
                own.infer("image", [batch], headers=dict(key))
        finished.append(time.perf_counter())

    waits: list[float] = []
    n_fraud = 0
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(infer)
        for tx in stream:
            if under_way.done():
                break
            began = time.perf_counter()
            assert served.call("POST", "/v1/score", msgspec.json.encode(tx)).json["outcome"] in ("approve", "review", "decline")
            waits.append(time.perf_counter() - began)
            if len(waits) % 10 == 0:
                client.infer(FRAUD.name, [as_input("features", features(1), True)], headers=dict(key))
                n_fraud += 1
        under_way.result()
    assert finished
    assert len(waits) >= 20
    assert n_fraud >= 2
    assert sorted(waits)[len(waits) // 2] < 0.1


def test_many_clients_get_their_own_answers(served: Any, local: Any) -> None:
    """Eight clients on two models at once: nobody is given another one's outputs."""
    key = {"Authorization": f"Bearer {served.key}"}
    before = counts(served)

    def ask(number: int) -> None:
        with InferenceServerClient(served.url.removeprefix("http://"), network_timeout=60) as own:
            for turn in range(10):
                rows = features(number + 1, seed=100 * number + turn)
                risk = own.infer(FRAUD.name, [as_input("features", rows, turn % 2 == 0)], headers=dict(key)).as_numpy("risk")
                np.testing.assert_allclose(risk, local(FRAUD.name, rows), rtol=0, atol=1e-6)
            rows = images(number + 1)[number:]
            scores = own.infer("image", [as_input("image", rows, True)], headers=dict(key)).as_numpy("scores")
            np.testing.assert_allclose(scores, local("image", rows), rtol=1e-4, atol=1e-4)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(ask, number) for number in range(8)]:
            done.result()
    assert counts(served) - before == {FRAUD.name: 80, "image": 8}


def counts(served: Any) -> Counter[str]:
    """How many calls of each model went well."""
    text = served.call("GET", "/metrics").body.decode()
    found = re.findall(r'^weir_infer_total\{model="([^"]+)",result="ok"\} ([0-9.]+)$', text, re.MULTILINE)
    return Counter({model: int(float(value)) for model, value in found})


async def test_stop_while_a_model_runs_is_clean(make_weir: Serve, settings: tuple[str, ...]) -> None:
    """SIGTERM ends the process with 0 although an inference is under way."""
    served = make_weir(*settings)
    await served.start()
    head = {
        "inputs": [{"name": "image", "shape": [16, *IMAGE], "datatype": "FP32", "parameters": {"binary_data_size": 9_633_792}}]
    }
    head_bytes = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(head_bytes))}
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(
            lambda: served.call("POST", "/v2/models/image/infer", head_bytes + images(16).tobytes(), headers).status
        )
        await asyncio.sleep(0.3)
        served.stop()
        with contextlib.suppress(OSError):  # the connection may be closed before the reply
            assert sent.result() in (200, 500)


def test_broken_model_is_a_start_error(make_weir: Serve, tmp_path: Path) -> None:
    """A file that is no model keeps the service from starting, in one line."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "broken.onnx").write_bytes(b"no model")
    weir = make_weir(f"inference.models_dir={tmp_path / 'models'}")
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(AssertionError, match=r"broken\.onnx: is not a model"):
            loop.run_until_complete(weir.start())
    finally:
        loop.close()
