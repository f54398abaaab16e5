"""The usual way: FastAPI, a Pydantic model with the same rules as Weir's transaction, and onnxruntime on the same model.

It checks no key, keeps no state and writes nothing down; its vector is built from the request's own fields alone, 40 numbers
at a constant cost. One worker on uvloop and httptools. Run as a script; prints "ready url=..." when it listens.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import numpy.typing as npt
import uvicorn
from fastapi import FastAPI

from features.plan import compile_plan
from features.spec import load_spec
from loadgen.bench.pydantic_models import Decision, Tx
from models.card import ARTIFACTS, MODEL_FILE
from models.onnx_scorer import OnnxScorer

BACKLOG = 2_048  # connections; uvicorn's own default


_plan = compile_plan(load_spec("cards"))
_scorer = OnnxScorer(_plan, ARTIFACTS / "cards" / MODEL_FILE)


def vectors(txs: list[Tx]) -> npt.NDArray[np.float32]:
    """float32 (rows, 40): amount, hour and category over and over."""
    rows = np.zeros((len(txs), _plan.n_features), dtype=np.float32)
    for row, tx in zip(rows, txs, strict=True):
        row[0] = tx.amount
        row[1] = tx.ts // 3_600_000 % 24
        row[2] = tx.mcc or 0
    return rows


def decide(tx: Tx, risk: float) -> Decision:
    return Decision(
        event_id=tx.event_id,
        score=risk,
        outcome="approve" if risk < 0.5 else "review",
        model="cards-mlp",
        scorer="onnxruntime",
        lsn=1,
        replayed=False,
        degraded=[],
    )


@asynccontextmanager
async def _ready(app: FastAPI) -> AsyncIterator[None]:
    # The socket listens already: what connects from now on waits in the backlog for a moment.
    sys.stdout.write(f"ready url=http://127.0.0.1:{app.state.port}\n")
    sys.stdout.flush()
    yield


app = FastAPI(lifespan=_ready)


@app.post("/v1/score")
async def score(tx: Tx) -> Decision:
    return decide(tx, float(_scorer.infer(vectors([tx]))[0]))


@app.post("/v1/score/batch")
async def batch(txs: list[Tx]) -> list[Decision]:
    risks = _scorer.infer(vectors(txs)).tolist() if txs else []
    return [decide(tx, risk) for tx, risk in zip(txs, risks, strict=True)]


def serve() -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    app.state.port = listening.getsockname()[1]
    config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning", backlog=BACKLOG)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(uvicorn.Server(config).serve(sockets=[listening]))


if __name__ == "__main__":
    serve()
