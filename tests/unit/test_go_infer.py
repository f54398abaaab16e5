"""The core's generic infer: any ONNX model whose tensors are numbers gives what onnxruntime gives."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from gocore.binding import Core, load_core
from gocore.errors import BadArgument, BadModel
from gocore.locate import missing_core
from models.card import ARTIFACTS, MODEL_FILE
from models.graph import IR_VERSION, OPSET

MISSING = missing_core()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

Array = npt.NDArray[Any]
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
TYPES: Sequence[tuple[int, Any]] = [
    (FLOAT, np.float32), (TensorProto.UINT8, np.uint8), (TensorProto.INT8, np.int8), (TensorProto.UINT16, np.uint16),
    (TensorProto.INT16, np.int16), (TensorProto.INT32, np.int32), (INT64, np.int64), (BOOL, np.bool_),
    (TensorProto.DOUBLE, np.float64), (TensorProto.UINT32, np.uint32), (TensorProto.UINT64, np.uint64),
]  # fmt: skip


@pytest.fixture(scope="module")
def core() -> Core:
    return load_core()


def build(
    nodes: Sequence[tuple[str, str, str]], ins: dict[str, Any], outs: dict[str, Any], **attributes: dict[str, Any]
) -> bytes:
    """A model of nodes (op, inputs, outputs), tensors as name: (type, shape), attributes by op."""
    made = [helper.make_node(op, i.split(), o.split(), **attributes.get(op, {})) for op, i, o in nodes]
    infos = [[helper.make_tensor_value_info(name, *what) for name, what in side.items()] for side in (ins, outs)]
    graph = helper.make_graph(made, "test", infos[0], infos[1])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    packed: bytes = model.SerializeToString()
    return packed


def answers(packed: bytes, inputs: Sequence[Array]) -> list[Array]:
    """onnxruntime's own."""
    session = onnxruntime.InferenceSession(packed, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, {i.name: array for i, array in zip(session.get_inputs(), inputs, strict=True)})
    return found


def check(core: Core, packed: bytes, inputs: Sequence[Array]) -> None:
    """The core's outputs are onnxruntime's in type, shape and value."""
    model = core.load_model(packed)
    outputs = core.infer(model, inputs)
    core.close_model(model)
    for got, want in zip(outputs, answers(packed, inputs), strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize(("element_type", "dtype"), TYPES, ids=[dtype.__name__ for _, dtype in TYPES])
def test_infer_every_type_passes_in_and_out(element_type: int, dtype: Any, core: Core) -> None:
    """Each element type that is taken comes back bit by bit, with its edge values."""
    values: list[Any]
    if dtype is np.bool_:
        values = [True, False, True]
    elif np.issubdtype(dtype, np.integer):
        values = [np.iinfo(dtype).min, 1, np.iinfo(dtype).max]
    else:
        values = [-np.inf, np.nan, np.finfo(dtype).tiny]
    tensor = {"x": (element_type, ["n"])}, {"y": (element_type, ["n"])}
    check(core, build([("Identity", "x", "y")], *tensor), [np.array(values, dtype)])


def test_infer_several_inputs_and_outputs_of_several_types(core: Core) -> None:
    """Inputs go in and outputs come out in the model's order."""
    packed = build(
        [("Gather", "table places", "rows"), ("ReduceSum", "rows axes", "sums"), ("Where", "keep sums zero", "kept")],
        {
            "table": (FLOAT, ["n", 3]), "places": (INT64, ["k"]), "axes": (INT64, [1]), "keep": (BOOL, ["k"]),
            "zero": (FLOAT, [1]),
        },
        {"kept": (FLOAT, ["k"]), "rows": (FLOAT, ["k", 3])},
        ReduceSum={"keepdims": 0},
    )  # fmt: skip
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    inputs = [table, np.array([3, 0, 3]), np.array([1]), np.array([True, False, True]), np.zeros(1, np.float32)]
    check(core, packed, inputs)


@pytest.mark.parametrize("set_bits", [0, 1, 5])
def test_infer_output_shape_that_only_the_run_knows(set_bits: int, core: Core) -> None:
    """NonZero gives as many columns as there are; none at all is an empty array of the right shape."""
    x = np.zeros((3, 4), np.bool_)
    x.reshape(-1)[:set_bits] = True
    check(core, build([("NonZero", "x", "y")], {"x": (BOOL, ["a", "b"])}, {"y": (INT64, [2, "n"])}), [x])


def test_infer_many_dimensions_up_to_eight(core: Core) -> None:
    """Eight dimensions pass; a ninth is refused with the limit."""
    for n in (8, 9):
        names = [f"d{i}" for i in range(n)]
        packed = build([("Identity", "x", "y")], {"x": (FLOAT, names)}, {"y": (FLOAT, names)})
        x = np.arange(2**n, dtype=np.float32).reshape((2,) * n)
        if n == 8:
            check(core, packed, [x])
        else:
            with pytest.raises(BadArgument, match="9 dimensions, not 0 to 8"):
                core.infer(core.load_model(packed), [x])


def test_infer_scoring_model_gives_onnxruntimes_risk(core: Core) -> None:
    """A packaged model, loaded for anything, answers like onnxruntime."""
    packed = (ARTIFACTS / "cards" / MODEL_FILE).read_bytes()
    vectors = np.random.default_rng(7).lognormal(1, 2, (17, 40)).astype(np.float32)
    (risk,) = core.infer(core.load_model(packed), [vectors])
    np.testing.assert_allclose(risk, answers(packed, [vectors])[0], rtol=0, atol=1e-6)


def test_infer_output_larger_than_the_room_is_refused(core: Core) -> None:
    """An output of more bytes than allowed raises with both numbers; one of exactly as many passes."""
    model = core.load_model(build([("Identity", "x", "y")], {"x": (FLOAT, ["n"])}, {"y": (FLOAT, ["n"])}))
    with pytest.raises(BadArgument, match="needs 1004 bytes, there is room for 1000"):
        core.infer(model, [np.ones(251, np.float32)], output_bytes_max=1000)
    (y,) = core.infer(model, [np.ones(250, np.float32)], output_bytes_max=1000)
    assert y.sum() == 250


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ([], "0 inputs, not 1"),
        ([np.ones(3, np.float32)] * 2, "2 inputs, the model has 1"),
        ([np.ones((3, 1), np.float32)], "2 dimensions, the model's has 1"),
        ([np.ones((), np.float32)], "0 dimensions, the model's has 1"),
        ([np.ones(0, np.float32)], "0 bytes"),
        ([np.ones(3, np.float64)], "element type 11, the model's is 1"),
        ([np.ones(3, np.int64)], "element type 7, the model's is 1"),
        ([np.ones(6, np.float32)[::2]], "C-contiguous"),
        ([np.ones(3, ">f4")], "type >f4"),
        ([np.array(["a"])], "type <U1"),
        ([np.ones(3, np.complex64)], "type complex64"),
    ],
)
def test_infer_wrong_inputs_are_refused(inputs: list[Array], named: str, core: Core) -> None:
    """Another number, type, shape or memory layout than the model's raises BadArgument that says which."""
    model = core.load_model(build([("Identity", "x", "y")], {"x": (FLOAT, ["n"])}, {"y": (FLOAT, ["n"])}))
    with pytest.raises(BadArgument, match=named):
        core.infer(model, inputs)


def test_infer_fixed_dimension_is_checked(core: Core) -> None:
    """A dimension that the model fixes is not to be another."""
    model = core.load_model(build([("Identity", "x", "y")], {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["n", 3])}))
    with pytest.raises(BadArgument, match="dimension 1 is 4, the model's is 3"):
        core.infer(model, [np.ones((2, 4), np.float32)])


@pytest.mark.parametrize(
    ("packed", "x", "error", "named"),
    [
        (
            lambda: build([("ReduceSum", "x", "y")], {"x": (FLOAT, ["n"])}, {"y": (FLOAT, [])}, ReduceSum={"keepdims": 0}),
            np.ones(3, np.float32),
            BadModel,
            "no dimensions",
        ),
        (
            lambda: build([("Identity", "x", "y")], {"x": (TensorProto.FLOAT16, ["n"])}, {"y": (TensorProto.FLOAT16, ["n"])}),
            np.ones(3, np.float16),
            BadArgument,
            "element type 10",
        ),
        (
            lambda: build(
                [("Cast", "x", "y")], {"x": (FLOAT, ["n"])}, {"y": (TensorProto.STRING, ["n"])}, Cast={"to": TensorProto.STRING}
            ),
            np.ones(3, np.float32),
            BadArgument,
            "element type 8",
        ),
        (
            lambda: build([("Reshape", "x n", "y")], {"x": (FLOAT, ["n"]), "n": (INT64, [1])}, {"y": (FLOAT, ["m"])}),
            np.ones(3, np.float32),
            BadModel,
            "Reshape",
        ),
    ],
    ids=["scalar output", "float16 output", "text output", "fails as it runs"],
)
def test_infer_model_that_cannot_be_answered_says_why_and_stays_usable(
    packed: Callable[[], bytes], x: Array, error: type[Exception], named: str, core: Core
) -> None:
    """Outputs that are not taken, and models that fail, raise by name each time: no panic."""
    model = core.load_model(packed())
    n_inputs = len(core.describe_model(model)["inputs"])
    for _ in range(3):
        with pytest.raises(error, match=named):
            core.infer(model, [x, np.array([7])][:n_inputs])
    core.close_model(model)


def test_describe_model_tells_names_types_and_shapes(core: Core) -> None:
    """Free dimensions are -1; a description of any length is read."""
    long = "x" * 5000
    packed = build([("Cast", long, "y")], {long: (BOOL, ["n", 2])}, {"y": (INT64, ["n", 2])}, Cast={"to": INT64})
    assert core.describe_model(core.load_model(packed)) == {
        "inputs": [{"name": long, "element_type": 9, "shape": [-1, 2]}],
        "outputs": [{"name": "y", "element_type": 7, "shape": [-1, 2]}],
    }
