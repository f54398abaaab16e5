"""The same service after an afternoon with a profiler: one model thread, no spinning, features as bytes, no resets."""

import os
from collections.abc import Sequence
from functools import partial

import asyncpg
import numpy as np
import onnxruntime

from loadgen.stacks.fastapi_card import Array, Columns, Infer, make_app, serve


def load() -> Infer:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(os.environ["STACK_MODEL"], options, providers=["CPUExecutionProvider"])

    def infer(vectors: Array) -> Sequence[float]:
        risks: list[float] = session.run(["risk"], {"features": vectors})[0].tolist()
        return risks

    return infer


async def keep(connection: asyncpg.Connection) -> None:
    """Instead of a reset when a connection goes back to the pool: no session state is ever set on it."""


app = make_app(load, Columns("packed", partial(np.frombuffer, dtype="<f4")), {"reset": keep})

if __name__ == "__main__":
    serve("serve_tuned")
