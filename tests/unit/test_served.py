"""Served models: which a directory holds, what each says of its tensors, running and stopping it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.card import ARTIFACTS, MODEL_FILE
from models.scorer import ModelError
from models.served import ModelSource, RunFailed, RunRefused, ServedModel, TensorSpec, find_models

Make = Callable[..., bytes]
Value = tuple[str, int, list[Any]]  # name, element type, shape


@pytest.fixture
def make_model() -> Make:
    """`make_model(nodes, inputs, outputs)`: the bytes of a small ONNX model."""

    def make(nodes: list[Any], inputs: list[Value], outputs: list[Value]) -> bytes:
        infos = [[helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
        graph = helper.make_graph(nodes, "g", infos[0], infos[1])
        model: onnx.ModelProto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        return bytes(model.SerializeToString())

    return make


@pytest.fixture
def identity(make_model: Make) -> Make:
    """`identity(element_type)`: a model that gives back what it takes, of shape (n, 2)."""

    def make(kind: int = TensorProto.FLOAT) -> bytes:
        return make_model([helper.make_node("Identity", ["x"], ["y"])], [("x", kind, ["n", 2])], [("y", kind, ["n", 2])])

    return make


@pytest.mark.parametrize(
    ("kind", "datatype", "values"),
    [
        (TensorProto.BOOL, "BOOL", np.array([[True, False]])),
        (TensorProto.UINT8, "UINT8", np.array([[0, 255]], np.uint8)),
        (TensorProto.UINT16, "UINT16", np.array([[0, 1]], np.uint16)),
        (TensorProto.UINT32, "UINT32", np.array([[0, 1]], np.uint32)),
        (TensorProto.UINT64, "UINT64", np.array([[0, 2**64 - 1]], np.uint64)),
        (TensorProto.INT8, "INT8", np.array([[-1, 1]], np.int8)),
        (TensorProto.INT16, "INT16", np.array([[-1, 1]], np.int16)),
        (TensorProto.INT32, "INT32", np.array([[-1, 1]], np.int32)),
        (TensorProto.INT64, "INT64", np.array([[-1, 1]], np.int64)),
        (TensorProto.FLOAT16, "FP16", np.array([[0.5, 1]], np.float16)),
        (TensorProto.FLOAT, "FP32", np.array([[0.5, np.nan]], np.float32)),
        (TensorProto.DOUBLE, "FP64", np.array([[0.5, 1]], np.float64)),
        (TensorProto.STRING, "BYTES", np.array([["é", ""]], object)),
    ],
)
def test_model_of_each_datatype_is_described_and_run(identity: Make, kind: int, datatype: str, values: Any) -> None:
    """Every datatype of the protocol reaches onnxruntime and comes back."""
    model = ServedModel(ModelSource("m", "1", identity(kind)))
    assert model.inputs == [TensorSpec("x", datatype, (-1, 2))]
    assert model.outputs == [TensorSpec("y", datatype, (-1, 2))]
    (output,) = model.run({"x": values}, ["y"], model.new_run())
    np.testing.assert_array_equal(output, values)


def test_model_of_another_type_is_refused(identity: Make) -> None:
    """A tensor that the protocol cannot carry is noticed when the model is opened."""
    with pytest.raises(ModelError, match="'x' is tensor\\(bfloat16\\)"):
        ServedModel(ModelSource("m", "1", identity(TensorProto.BFLOAT16)))


def test_model_that_is_none_is_refused(tmp_path: Path) -> None:
    """Bytes that are no model, and a file that is not there, are named."""
    with pytest.raises(ModelError, match=r"^m: is not a model"):
        ServedModel(ModelSource("m", "1", b"no model"))
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        ServedModel(ModelSource("gone", "1", tmp_path / "gone.onnx"))


def test_model_card_of_the_scorer_is_served() -> None:
    """The packaged model takes and gives what its card says."""
    model = ServedModel(ModelSource("cards", "1", ARTIFACTS / "cards" / MODEL_FILE))
    assert model.inputs == [TensorSpec("features", "FP32", (-1, 40))]
    assert model.outputs == [TensorSpec("risk", "FP32", (-1,))]


def test_run_of_tensors_that_a_layer_refuses_says_why(make_model: Make) -> None:
    """Sizes that fit the declaration and not the graph are the caller's mistake, in onnxruntime's words."""
    node = helper.make_node("Add", ["a", "b"], ["y"])
    inputs: list[Value] = [("a", TensorProto.FLOAT, ["n"]), ("b", TensorProto.FLOAT, ["m"])]
    model = ServedModel(ModelSource("m", "1", make_model([node], inputs, [("y", TensorProto.FLOAT, ["k"])])))
    with pytest.raises(RunRefused, match="Add") as caught:
        model.run({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}, ["y"], model.new_run())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_run_of_a_rank_that_is_not_declared_is_refused(identity: Make) -> None:
    """What onnxruntime itself checks is the caller's mistake, too."""
    model = ServedModel(ModelSource("m", "1", identity()))
    with pytest.raises(RunRefused, match="Invalid rank"):
        model.run({"x": np.zeros(2, np.float32)}, ["y"], model.new_run())


def test_run_that_is_stopped_does_not_begin(identity: Make) -> None:
    """A stopped run fails; the model goes on serving others."""
    model = ServedModel(ModelSource("m", "1", identity()))
    run = model.new_run()
    run.stop()
    with pytest.raises(RunFailed, match="stopped"):
        model.run({"x": np.zeros((1, 2), np.float32)}, ["y"], run)
    assert model.run({"x": np.ones((1, 2), np.float32)}, ["y"], model.new_run())[0].tolist() == [[1, 1]]


def test_onnxruntime_is_not_loaded_before_a_model_is_opened() -> None:
    """A service that scores with go, and that nobody asks under /v2, does not hold it."""
    code = "import sys, service.app, service.inference; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_find_models_in_both_forms(tmp_path: Path) -> None:
    """NAME.onnx is version 1; NAME/VERSION/model.onnx sorts by number; other files are left alone."""
    (tmp_path / "b.onnx").touch()
    for version in ("10", "9"):
        (tmp_path / "a" / version).mkdir(parents=True)
        (tmp_path / "a" / version / "model.onnx").touch()
    for other in ("README.md", "b.onnx.data", ".hidden.onnx", "a/config.pbtxt"):
        (tmp_path / other).touch()
    found = [(source.name, source.version) for source in find_models(tmp_path)]
    assert found == [("a", "9"), ("a", "10"), ("b", "1")]


def test_find_models_in_an_empty_directory_finds_none(tmp_path: Path) -> None:
    """An empty directory is no mistake."""
    assert find_models(tmp_path) == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a/model.onnx"], "holds no version; put the model into"),
        (["a/v1/model.onnx"], "holds no version"),
        (["a/0/model.onnx"], "holds no version"),
        (["a/1/other.onnx"], "holds no model.onnx"),
        (["a.onnx", "a/1/model.onnx"], "both a.onnx and a/"),
        (["a b.onnx"], "is no name for a model"),
        (["-a/1/model.onnx"], "is no name for a model"),
    ],
)
def test_find_models_names_what_is_wrong(tmp_path: Path, files: list[str], words: str) -> None:
    """A directory that is laid out in another way is refused with the path and the fix."""
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(ModelError) as caught:
        find_models(tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_find_models_without_the_directory_says_so(tmp_path: Path) -> None:
    """A directory that does not exist, or is a file, is refused."""
    (tmp_path / "file").touch()
    for name in ("gone", "file"):
        with pytest.raises(ModelError, match=f"inference.models_dir .*{name}"):
            find_models(tmp_path / name)
