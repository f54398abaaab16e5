"""What the two FastAPI image stacks have in common: the route and the three decoders. A stack adds where the model runs.

Imports nothing of Weir: it is as self-contained as a service of its own would be.
"""

import io
import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated

import numpy as np
import onnxruntime
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field

SIDE = 224
SHAPE = (1, 3, SIDE, SIDE)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)

Tensor = NDArray[np.float32]
Infer = Callable[[Tensor], Awaitable[Tensor]]  # (1, 3, 224, 224) -> (1000,)
Open = Callable[[], AbstractAsyncContextManager[Infer]]


class Prediction(BaseModel):
    """What is answered."""

    label: Annotated[int, Field(serialization_alias="class")]
    score: float


def make_app(open_model: Open) -> FastAPI:
    """The service. `open_model` holds the model as long as the service runs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_model() as app.state.infer:
            yield

    app = FastAPI(lifespan=lifespan)
    bearer = HTTPBearer(auto_error=False)
    key = os.environ["STACK_KEY"].encode()

    async def check_key(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if given is None or not secrets.compare_digest(given.credentials.encode(), key):
            raise HTTPException(401, "the API key is missing or wrong")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/predict", dependencies=[Depends(check_key)])
    async def predict(request: Request) -> Prediction:
        decode = DECODERS.get(request.headers.get("content-type", ""))
        if decode is None:
            raise HTTPException(415, f"expected {', '.join(DECODERS)}")
        try:
            tensor = decode(await request.body())
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise HTTPException(422, f"{type(error).__name__}: {error}") from None
        if tensor.shape != SHAPE:
            raise HTTPException(422, f"shape {tensor.shape}: expected {SHAPE}")
        scores = await request.app.state.infer(tensor)
        best = int(scores.argmax())
        return Prediction(label=best, score=float(scores[best]))

    return app


def from_json(body: bytes) -> Tensor:
    return np.asarray(json.loads(body)["tensor"], np.float32)


def from_binary(body: bytes) -> Tensor:
    return np.frombuffer(body, "<f4").reshape(SHAPE)


def from_jpeg(body: bytes) -> Tensor:
    pixels = np.asarray(Image.open(io.BytesIO(body), formats=["JPEG"]).convert("RGB"), np.float32)
    return np.ascontiguousarray(((pixels / 255 - MEAN) / DEVIATION).transpose(2, 0, 1)[np.newaxis])


DECODERS = {"application/json": from_json, "application/octet-stream": from_binary, "image/jpeg": from_jpeg}


def open_session(options: onnxruntime.SessionOptions | None = None) -> onnxruntime.InferenceSession:
    """A session of the image model."""
    return onnxruntime.InferenceSession(os.environ["STACK_IMAGE_MODEL"], options)


def run(session: onnxruntime.InferenceSession, tensor: Tensor) -> Tensor:
    """The scores of all classes."""
    scores: Tensor = session.run(["scores"], {"image": tensor})[0][0]
    return scores
