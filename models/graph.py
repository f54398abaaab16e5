"""Models as ONNX graphs: the only module that imports onnx, and only training needs it.

`features` float32 (N, n_features) -> Sub, Mul, Clip -> Gemm, Relu (as often as there are hidden layers) -> Gemm, Sigmoid
-> `risk` float32 (N,). Normalisation stays three cheap nodes of its own: the clip, which keeps an unseen value from taking
the network anywhere, cannot be folded into a matrix, and raw features of 10^10 would cost the first Gemm its digits.

Trees: one TreeEnsembleRegressor of ai.onnx.ml, then either Mul, Add, Sigmoid (log odds) or Clip (a share already).
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from models.card import INPUT_NAME, OUTPUT_NAME
from models.trees import Trees

ML_OPSET = 3  # ai.onnx.ml; its later TreeEnsemble is read by fewer runtimes
OPSET = 17  # old enough for every onnxruntime that we allow, new enough for all nodes used
IR_VERSION = 8  # the one that belongs to opset 17

Array = NDArray[np.float32]


class Network(msgspec.Struct, frozen=True):
    """x -> clip((x - mean) * inverse_std, -clip, clip) -> relu layers -> sigmoid. weights[i]: (inputs, outputs)."""

    mean: Array
    inverse_std: Array
    clip: float
    weights: Sequence[Array]
    biases: Sequence[Array]

    @property
    def n_parameters(self) -> int:
        """Learned parameters (the normalisation's constants are not learned)."""
        return sum(w.size for w in self.weights) + sum(b.size for b in self.biases)


def build_graph(network: Network, metadata: Mapping[str, str]) -> bytes:
    """The serialised model, the same bytes for the same arguments. Checked by onnx before it is returned."""
    f32 = np.float32
    constants: dict[str, NDArray[np.float32 | np.int64]] = {
        "mean": network.mean.astype(f32),
        "inverse_std": network.inverse_std.astype(f32),
        "clip_low": np.array(-network.clip, f32),
        "clip_high": np.array(network.clip, f32),
        "last_axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Sub", [INPUT_NAME, "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "inverse_std"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "clip_low", "clip_high"], ["layer_0"]),
    ]
    last = len(network.weights)
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True), 1):
        constants[f"weight_{i}"], constants[f"bias_{i}"] = weight.astype(f32), bias.astype(f32)
        nodes.append(helper.make_node("Gemm", [f"layer_{i - 1}", f"weight_{i}", f"bias_{i}"], [f"sum_{i}"]))
        nodes.append(helper.make_node("Sigmoid" if i == last else "Relu", [f"sum_{i}"], [f"layer_{i}"]))
    nodes.append(helper.make_node("Squeeze", [f"layer_{last}", "last_axis"], [OUTPUT_NAME]))
    return _finished(nodes, constants, len(network.mean), metadata)


def build_tree_graph(
    trees: Trees, n_features: int, calibration: tuple[float, float] | None, metadata: Mapping[str, str]
) -> bytes:
    """The serialised model of trees over n_features. `calibration`: slope and shift of their log odds; None for trees whose
    answer is a probability. Checked as build_graph does."""
    is_leaf = trees.feature < 0
    sizes = np.diff(np.append(trees.starts, len(trees.feature)))
    tree_of = np.repeat(np.arange(len(sizes)), sizes)
    node_of = np.arange(len(trees.feature)) - np.repeat(trees.starts, sizes)
    node = helper.make_node(
        "TreeEnsembleRegressor", [INPUT_NAME], ["sum"], domain="ai.onnx.ml",
        n_targets=1, aggregate_function="SUM", post_transform="NONE", base_values=[float(trees.base)],
        nodes_treeids=tree_of.tolist(), nodes_nodeids=node_of.tolist(),
        nodes_modes=np.where(is_leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_featureids=np.maximum(trees.feature, 0).tolist(), nodes_values=trees.threshold.tolist(),
        nodes_truenodeids=np.where(is_leaf, 0, trees.left).tolist(),
        nodes_falsenodeids=np.where(is_leaf, 0, trees.right).tolist(),
        target_treeids=tree_of[is_leaf].tolist(), target_nodeids=node_of[is_leaf].tolist(),
        target_ids=[0] * int(is_leaf.sum()), target_weights=trees.value[is_leaf].tolist(),
    )  # fmt: skip
    constants: dict[str, NDArray[np.float32 | np.int64]] = {"last_axis": np.array([1], np.int64)}
    if calibration is None:
        constants |= {"low": np.array(0, np.float32), "high": np.array(1, np.float32)}
        after = [
            helper.make_node("Clip", ["sum", "low", "high"], ["risks"])
        ]  # a hundred float32 shares may add up to 1.0000001
    else:
        slope, shift = calibration
        constants |= {"slope": np.array(slope, np.float32), "shift": np.array(shift, np.float32)}
        after = [
            helper.make_node("Mul", ["sum", "slope"], ["scaled"]),
            helper.make_node("Add", ["scaled", "shift"], ["log_odds"]),
            helper.make_node("Sigmoid", ["log_odds"], ["risks"]),
        ]
    after.append(helper.make_node("Squeeze", ["risks", "last_axis"], [OUTPUT_NAME]))
    return _finished([node, *after], constants, n_features, metadata)


def _finished(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, NDArray[np.float32 | np.int64]],
    n_features: int,
    metadata: Mapping[str, str],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "weir",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["N", n_features])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    if any(node.domain for node in nodes):
        opsets.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))
    model = helper.make_model(graph, producer_name="weir", ir_version=IR_VERSION, opset_imports=opsets)
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def run_graph(model: bytes, vectors: Array) -> Array:
    """Risk float32 (n,) of vectors (n, n_features) by onnx's reference implementation: proves the bytes, not fast."""
    (risk,) = ReferenceEvaluator(onnx.load_model_from_string(model)).run([OUTPUT_NAME], {INPUT_NAME: vectors})
    result: Array = np.asarray(risk, np.float32)
    return result
