"""FastAPI and a pool of four processes with a session each, as published: tensors are pickled on their way there."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager

import onnxruntime

from loadgen.stacks.fastapi_card import serve
from loadgen.stacks.fastapi_image import Infer, Tensor, make_app, open_session, run

PROCESSES = 4

_sessions: list[onnxruntime.InferenceSession] = []  # the one of this process, in the pool


def open_in_worker() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the processes are the threads
    _sessions.append(open_session(options))


def run_in_worker(tensor: Tensor) -> Tensor:
    return run(_sessions[0], tensor)


def ready_in_worker() -> bool:
    return bool(_sessions)


@asynccontextmanager
async def in_pool() -> AsyncIterator[Infer]:
    loop = asyncio.get_running_loop()
    context = multiprocessing.get_context("spawn")  # a fork would copy threads that onnxruntime has started
    with ProcessPoolExecutor(PROCESSES, context, open_in_worker) as pool:

        async def infer(tensor: Tensor) -> Tensor:
            return await loop.run_in_executor(pool, run_in_worker, tensor)

        # A process starts with the first task that finds all others busy: now, not in a request.
        await asyncio.gather(*(loop.run_in_executor(pool, ready_in_worker) for _ in range(PROCESSES)))
        yield infer


app = make_app(in_pool)

if __name__ == "__main__":
    serve("serve_image_pool")
