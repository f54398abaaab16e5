"""The models that every stack serves, as files: ONNX for onnxruntime, safetensors with the same weights for torch and candle.

The card model is the packaged champion: normalise, clip, 40→256→128→1, sigmoid. In safetensors its layers have PyTorch's names
and layout (outputs, inputs): `mean`, `inverse_std` (40), `clip` (1), `layers.N.weight`, `layers.N.bias`, N = 0, 1, 2. The image
model is a seeded MobileNetV2.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.stacks.mobilenet import INPUT_NAME, build_mobilenet, initializers
from loadgen.stacks.pictures import picture, tensor_of
from models.card import ARTIFACTS, MODEL_FILE
from models.onnx_session import open_session

IMAGE_SEED = 11
CENTRE_PICTURES = 24  # say where the middle is and which way pictures differ; a run of each takes 10 ms
DIRECTIONS = 8  # of the 24: the first are what pictures show, the last what noise and decoders change
N_FEATURES = 40
N_LAYERS = 3

Array = NDArray[np.float32]


class ModelFiles(msgspec.Struct, frozen=True):
    """Absolute paths."""

    card: Path
    card_weights: Path
    image: Path
    image_weights: Path


def export_models(folder: Path) -> ModelFiles:
    """Write the four files into `folder`, those that are there already too: a second is cheaper than a stale weight."""
    folder.mkdir(parents=True, exist_ok=True)
    card = (ARTIFACTS / "cards" / MODEL_FILE).read_bytes()
    image, image_weights = build_mobilenet(IMAGE_SEED, _centre())
    files = ModelFiles(*((folder / name).absolute() for name in
                         ("card.onnx", "card.safetensors", "mobilenet.onnx", "mobilenet.safetensors")))  # fmt: skip
    _replace(files.card, card)
    _replace(files.card_weights, safetensors(card_weights(initializers(card))))
    _replace(files.image, image)
    _replace(files.image_weights, safetensors(image_weights))
    return files


def card_weights(constants: Mapping[str, Array]) -> dict[str, Array]:
    """The champion's constants (models/graph.py) under the names above."""
    weights = {name: constants[name] for name in ("mean", "inverse_std")}
    weights["clip"] = constants["clip_high"].reshape(1)
    for layer in range(N_LAYERS):
        weights[f"layers.{layer}.weight"] = np.ascontiguousarray(constants[f"weight_{layer + 1}"].T)
        weights[f"layers.{layer}.bias"] = constants[f"bias_{layer + 1}"]
    return weights


def normalisation() -> tuple[Array, Array]:
    """Mean and standard deviation of the champion's features, float32 (40,) each: where its inputs lie."""
    constants = initializers((ARTIFACTS / "cards" / MODEL_FILE).read_bytes())
    return constants["mean"], np.reciprocal(constants["inverse_std"])


def safetensors(tensors: Mapping[str, Array]) -> bytes:
    """float32 tensors in the safetensors format: u64 length of the header, JSON header, data; all little-endian."""
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        assert tensor.dtype == np.float32, name
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    data = b"".join(np.ascontiguousarray(tensor, "<f4").tobytes() for tensor in tensors.values())
    return len(text).to_bytes(8, "little") + text + data


def _centre() -> tuple[Array, Array]:
    """Mean (1280,) of the pooled features over seeded pictures, and their main directions (8, 1280) by deviation of 1."""
    trunk, _ = build_mobilenet(IMAGE_SEED, None)
    session = open_session(trunk, "the seeded MobileNetV2")
    pooled = np.vstack([session.run(None, {INPUT_NAME: tensor_of(picture(seed))})[0] for seed in range(CENTRE_PICTURES)])
    mean = pooled.mean(axis=0)
    _, deviations, directions = np.linalg.svd((pooled - mean) / np.sqrt(len(pooled)), full_matrices=False)
    return mean, directions[:DIRECTIONS] / deviations[:DIRECTIONS, np.newaxis]


def _replace(path: Path, content: bytes) -> None:
    """Into place by a rename: a server may have the old file mapped."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.replace(path)
