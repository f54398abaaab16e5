"""FastAPI and one session in the same process: a run is given to a thread and leaves the GIL to the event loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loadgen.stacks.fastapi_card import serve
from loadgen.stacks.fastapi_image import Infer, Tensor, make_app, open_session, run


@asynccontextmanager
async def in_process() -> AsyncIterator[Infer]:
    session = open_session()

    async def infer(tensor: Tensor) -> Tensor:
        return await asyncio.to_thread(run, session, tensor)

    yield infer


app = make_app(in_process)

if __name__ == "__main__":
    serve("serve_image")
