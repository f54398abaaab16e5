"""MobileNetV2 with seeded random weights as a plain ONNX graph, ready for inference: batch norms are folded into convolutions.

`image` float32 (N, 3, 224, 224) -> Conv, Clip(0, 6) ... -> GlobalAveragePool -> Gemm -> Softmax -> `scores` float32 (N, 1000).
3.5 million parameters, as published (Sandler et al. 2018, table 2; width 1.0). Nothing is learned: the time of a run is that
of any MobileNetV2, the class means nothing.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INPUT_NAME, OUTPUT_NAME, POOLED_NAME = "image", "scores", "flat"
SIDE = 224  # pixels
N_CLASSES = 1_000
# expansion, channels, repeats, stride of the first: table 2 of the paper
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, HEAD = 32, 1_280  # channels of the first and of the last convolution
OPSET, IR_VERSION = 17, 8  # as in models/graph.py
LOGIT_GAIN = 2.5  # deviation of the logits over pictures: scores of some percent, classes that differ from picture to picture

Array = NDArray[np.float32]


class _Writer:
    """Nodes and constants as they are added; `last` is the name of the newest tensor."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
        self.last = INPUT_NAME

    def convolve(self, name: str, inputs: int, outputs: int, size: int, stride: int, groups: int, relu6: bool) -> None:
        """A convolution with bias, its padding "same", and ReLU6 behind it if asked for."""
        fan_in = inputs // groups * size * size
        # Half of He's variance: with all of it 52 layers amplify a pixel that is off by one until the class changes.
        gain = 1.0 if relu6 else 0.5
        shape = (outputs, inputs // groups, size, size)
        weight = self._rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(gain / fan_in))
        bias = self._rng.standard_normal(outputs, dtype=np.float32) * np.float32(0.1)
        self.constants |= {f"{name}.weight": weight, f"{name}.bias": bias}
        pad = size // 2
        self.nodes.append(
            helper.make_node("Conv", [self.last, f"{name}.weight", f"{name}.bias"], [name],
                             kernel_shape=[size, size], strides=[stride] * 2, pads=[pad] * 4, group=groups)
        )  # fmt: skip
        self.last = name
        if relu6:
            self.nodes.append(helper.make_node("Clip", [name, "low", "high"], [f"{name}.relu6"]))
            self.last = f"{name}.relu6"

    def block(self, name: str, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        """An inverted residual: expand, filter each channel, project; added to its input where the shapes agree."""
        start, wide = self.last, inputs * expansion
        if expansion > 1:
            self.convolve(f"{name}.expand", inputs, wide, 1, 1, 1, relu6=True)
        self.convolve(f"{name}.depthwise", wide, wide, 3, stride, wide, relu6=True)
        self.convolve(f"{name}.project", wide, outputs, 1, 1, 1, relu6=False)
        if stride == 1 and inputs == outputs:
            self.nodes.append(helper.make_node("Add", [start, self.last], [name]))
            self.last = name

    def pool(self) -> None:
        """The mean of each channel, (N, channels)."""
        self.nodes += [
            helper.make_node("GlobalAveragePool", [self.last], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], [POOLED_NAME]),
        ]
        self.last = POOLED_NAME

    def classify(self, mean: Array, directions: Array) -> None:
        """One dense layer over directions @ (pooled - mean), which is folded into its weights; then probabilities."""
        mix = self._rng.standard_normal((N_CLASSES, len(directions)), dtype=np.float32)
        weight = (mix @ directions * (LOGIT_GAIN / np.sqrt(len(directions)))).astype(np.float32)
        self.constants |= {"classifier.weight": weight, "classifier.bias": -(weight @ mean).astype(np.float32)}
        self.nodes += [
            helper.make_node("Gemm", [self.last, "classifier.weight", "classifier.bias"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], [OUTPUT_NAME], axis=1),
        ]


def build_mobilenet(seed: int, centre: tuple[Array, Array] | None) -> tuple[bytes, dict[str, Array]]:
    """The serialised model and its weights by name, as PyTorch lays them out. The same bytes for the same arguments.

    `centre`: of what comes out of the pooling for typical pictures, float32: its mean (1280,) and the directions in which it
    varies (k, 1280), each scaled to a deviation of 1. Random convolutions give nearly the same for all pictures: without it
    each would be of one class, and with all directions a pixel that is off by one would change the class. None builds the
    network up to there, with the output `flat` (N, 1280).
    """
    writer = _Writer(seed)
    writer.convolve("stem", 3, STEM, 3, 2, 1, relu6=True)
    channels, number = STEM, 0
    for expansion, outputs, repeats, first_stride in BLOCKS:
        for repeat in range(repeats):
            writer.block(f"block_{number}", channels, outputs, first_stride if repeat == 0 else 1, expansion)
            channels, number = outputs, number + 1
    writer.convolve("head", channels, HEAD, 1, 1, 1, relu6=True)
    writer.pool()
    output, width = POOLED_NAME, HEAD
    if centre is not None:
        writer.classify(*centre)
        output, width = OUTPUT_NAME, N_CLASSES
    graph = helper.make_graph(
        writer.nodes,
        "mobilenet_v2",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(value, name) for name, value in writer.constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, producer_name="weir", ir_version=IR_VERSION, opset_imports=opsets)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content, {name: value for name, value in writer.constants.items() if "." in name}


def initializers(model: bytes) -> dict[str, NDArray[np.float32]]:
    """The float32 constants of a model by name."""
    graph = onnx.load_model_from_string(model).graph
    arrays = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype == np.float32}
