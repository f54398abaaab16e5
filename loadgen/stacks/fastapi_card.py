"""What the FastAPI stacks have in common: routes, validation and the two queries. A stack adds its model and its codec.

Imports nothing of Weir: it runs in the stacks' own environment as well.
"""

import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Array = NDArray[np.float32]
Infer = Callable[[Array], Sequence[float]]  # feature vectors float32 (n, 40) -> n risk scores
Id = Annotated[str, Field(min_length=1, max_length=128)]

CARD = "SELECT {column} FROM stack_cards WHERE card_id = $1"
MERCHANT = "SELECT {column} FROM stack_merchants WHERE merchant_id = $1"
CARDS = "SELECT card_id, {column} FROM stack_cards WHERE card_id = ANY($1)"
MERCHANTS = "SELECT merchant_id, {column} FROM stack_merchants WHERE merchant_id = ANY($1)"


class Tx(BaseModel):
    """A transaction, as it is asked about."""

    model_config = ConfigDict(strict=True)

    event_id: Id
    card_id: Id
    merchant_id: Id
    amount: Annotated[int, Field(ge=0, le=10**10)]
    ts: Annotated[int, Field(ge=10**11, le=2**62)]


class Decision(BaseModel):
    """What is answered."""

    event_id: str
    score: float
    outcome: str


class Columns:
    """How features come out of the database: a column, and what turns its value into float32 (n,)."""

    def __init__(self, column: str = "features", decode: Callable[[Any], Any] = lambda value: value) -> None:
        self.card, self.merchant, self.cards, self.merchants = (
            query.format(column=column) for query in (CARD, MERCHANT, CARDS, MERCHANTS)
        )
        self.decode = decode


def make_app(load: Callable[[], Infer], columns: Columns, pool_options: dict[str, Any] | None = None) -> FastAPI:
    """The service. `load` opens the model, once per worker, and returns what runs it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        size = max(1, int(os.environ["STACK_POOL"]) // int(os.environ["STACK_WORKERS"]))
        app.state.infer = load()
        app.state.pool = await asyncpg.create_pool(
            os.environ["STACK_DATABASE_URL"], min_size=size, max_size=size, **(pool_options or {})
        )
        yield
        await app.state.pool.close()

    app = FastAPI(lifespan=lifespan)
    bearer = HTTPBearer(auto_error=False)
    key = os.environ["STACK_KEY"].encode()

    async def check_key(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if given is None or not secrets.compare_digest(given.credentials.encode(), key):
            raise HTTPException(401, "the API key is missing or wrong")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/score", dependencies=[Depends(check_key)])
    async def score(tx: Tx, request: Request) -> Decision:
        state = request.app.state
        async with state.pool.acquire() as connection:
            card = await connection.fetchval(columns.card, tx.card_id)
            merchant = await connection.fetchval(columns.merchant, tx.merchant_id)
        if card is None:
            raise HTTPException(404, f"no card {tx.card_id}")
        if merchant is None:
            raise HTTPException(404, f"no merchant {tx.merchant_id}")
        vector = np.concatenate((columns.decode(card), columns.decode(merchant)), dtype=np.float32)
        (risk,) = state.infer(vector[np.newaxis])
        return decide(tx, risk)

    @app.post("/score/batch", dependencies=[Depends(check_key)])
    async def batch(txs: Annotated[list[Tx], Field(min_length=1, max_length=1024)], request: Request) -> list[Decision]:
        state = request.app.state
        async with state.pool.acquire() as connection:
            cards = dict(await connection.fetch(columns.cards, [tx.card_id for tx in txs]))
            merchants = dict(await connection.fetch(columns.merchants, [tx.merchant_id for tx in txs]))
        vectors = np.empty((len(txs), 40), np.float32)
        try:
            for row, tx in zip(vectors, txs, strict=True):
                row[:30] = columns.decode(cards[tx.card_id])
                row[30:] = columns.decode(merchants[tx.merchant_id])
        except KeyError as missing:
            raise HTTPException(404, f"no card or merchant {missing.args[0]}") from None
        return [decide(tx, risk) for tx, risk in zip(txs, state.infer(vectors), strict=True)]

    return app


def decide(tx: Tx, risk: float) -> Decision:
    """The outcome by thresholds."""
    outcome = "approve" if risk < 0.5 else "review" if risk < 0.9 else "decline"
    return Decision(event_id=tx.event_id, score=risk, outcome=outcome)


def serve(module: str) -> None:
    """Run `module`:app under uvicorn with STACK_WORKERS processes."""
    workers = int(os.environ["STACK_WORKERS"])
    host, port = os.environ["STACK_HOST"], int(os.environ["STACK_PORT"])
    uvicorn.run(f"{module}:app", host=host, port=port, workers=workers, access_log=False, log_level="warning")
