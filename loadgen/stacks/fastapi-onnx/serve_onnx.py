"""FastAPI over onnxruntime with its session's defaults, as in the published comparison."""

import os
from collections.abc import Sequence

import onnxruntime

from loadgen.stacks.fastapi_card import Array, Columns, Infer, make_app, serve


def load() -> Infer:
    session = onnxruntime.InferenceSession(os.environ["STACK_MODEL"])

    def infer(vectors: Array) -> Sequence[float]:
        risks: list[float] = session.run(["risk"], {"features": vectors})[0].tolist()
        return risks

    return infer


app = make_app(load, Columns())

if __name__ == "__main__":
    serve("serve_onnx")
