"""The bodies of the image workload in a folder, for the load generator: pictures, tensors, what the reference says."""

import json
from pathlib import Path

import msgspec
import numpy as np

from loadgen.bench.load.job import Payload
from loadgen.bench.load.requests import ImageSet
from loadgen.stacks.check import IMAGE_TOLERANCE, JPEG_TOLERANCE
from loadgen.stacks.mobilenet import INPUT_NAME, OUTPUT_NAME
from loadgen.stacks.pictures import body_of, decode_jpeg, picture, tensor_of
from loadgen.stacks.reference import Reference

N_PICTURES = 4
FIRST_SEED = 1_000  # of the pictures; those below say where the model's middle is
WORKLOADS = ("image-json", "image-binary", "image-jpeg")
V2_OF: dict[str, Payload] = {"image-json": "v2-json", "image-binary": "v2-binary"}  # the same work through Weir's /v2
MODEL_NAME = "mobilenet"
SHAPE = [1, 3, 224, 224]


def write_images(folder: Path, reference: Reference) -> None:
    """Every body of every picture, and images.json."""
    folder.mkdir(parents=True, exist_ok=True)
    scores, jpeg_scores, header_bytes = [], [], 0
    for n in range(N_PICTURES):
        pixels = picture(FIRST_SEED + n)
        for workload in WORKLOADS:
            (folder / f"{workload}.{n}").write_bytes(body_of(workload, pixels))
        tensor = tensor_of(pixels).astype("<f4")
        header, body = _v2_binary(tensor.tobytes())
        header_bytes = len(header)
        (folder / f"v2-binary.{n}").write_bytes(header + body)
        (folder / f"v2-json.{n}").write_bytes(_v2_json(tensor))
        scores.append(reference.scores(pixels))
        jpeg_scores.append(reference.scores(decode_jpeg((folder / f"image-jpeg.{n}").read_bytes())))
    images = ImageSet(
        classes=[int(of.argmax()) for of in scores],
        scores=[float(of.max()) for of in scores],
        jpeg_scores=[of.tolist() for of in jpeg_scores],
        tolerance=IMAGE_TOLERANCE,
        jpeg_tolerance=JPEG_TOLERANCE,
        v2_path=f"/v2/models/{MODEL_NAME}/infer",
        v2_header=header_bytes,
    )
    (folder / "images.json").write_bytes(msgspec.json.encode(images))


def _v2_binary(data: bytes) -> tuple[bytes, bytes]:
    tensor = {"name": INPUT_NAME, "shape": SHAPE, "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": OUTPUT_NAME}]}).encode(), data


def _v2_json(tensor: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> bytes:
    values = tensor.astype(np.float64).round(7).ravel().tolist()
    given = {"name": INPUT_NAME, "shape": SHAPE, "datatype": "FP32", "data": values}
    return json.dumps({"inputs": [given], "outputs": [{"name": OUTPUT_NAME}]}).encode()
