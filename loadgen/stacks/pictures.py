"""Pictures for the image workload, seeded, and the three bodies that carry one: JSON tensor, binary tensor, JPEG.

A picture is uint8 (224, 224, 3), RGB. Its tensor is float32 (1, 3, 224, 224): /255, minus ImageNet's mean, by its deviation.
"""

import io
import json

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loadgen.stacks.mobilenet import SIDE

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet, as every MobileNetV2 expects it
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
N_PATCHES = 12
JPEG_QUALITY = 90
CONTENT_TYPES = {"image-json": "application/json", "image-binary": "application/octet-stream", "image-jpeg": "image/jpeg"}

Pixels = NDArray[np.uint8]
Tensor = NDArray[np.float32]


def picture(seed: int) -> Pixels:
    """Coloured patches over a gradient with some noise: it compresses like a photograph."""
    rng = np.random.default_rng((seed, 224))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    canvas = np.stack([x, y, (x + y) / 2], axis=2) * rng.uniform(60, 200, 3)
    for _ in range(N_PATCHES):
        top, left = rng.integers(0, SIDE - 16, 2)
        height, width = rng.integers(16, SIDE // 2, 2)
        canvas[top : top + height, left : left + width] = rng.uniform(0, 255, 3)
    canvas += rng.normal(0, 6, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def tensor_of(pixels: Pixels) -> Tensor:
    """What the model is given, float32 (1, 3, 224, 224)."""
    scaled = (pixels.astype(np.float32) / np.float32(255) - MEAN) / DEVIATION
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[np.newaxis])


def jpeg_of(pixels: Pixels) -> bytes:
    """The picture as a JPEG, its colours at full resolution (4:4:4): decoders differ in how they enlarge halved ones."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def decode_jpeg(content: bytes) -> Pixels:
    """The pixels of a JPEG as libjpeg decodes it."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def body_of(workload: str, pixels: Pixels) -> bytes:
    """The body of POST /predict for `image-json`, `image-binary` or `image-jpeg`."""
    if workload == "image-jpeg":
        return jpeg_of(pixels)
    tensor = tensor_of(pixels)
    if workload == "image-binary":
        return tensor.astype("<f4", copy=False).tobytes()
    assert workload == "image-json", workload
    # Digits for the same float32 again but next to zero, where it is off by less than 5e-9.
    return json.dumps({"tensor": tensor.astype(np.float64).round(8).tolist()}).encode()
