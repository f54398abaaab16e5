"""Models under /v2: which there are, and running them beside scoring.

The models of `inference.models_dir` are opened at the start, so that a broken one is noticed there; the scorer's model when
it is first asked for, so that a service which nobody asks pays nothing. Every model has a thread of its own, on which a
request is decoded, run and encoded: a slow model holds up neither the event loop (onnxruntime lets go of the interpreter)
nor another model. A request has its place in the queue before its body is read, so that bodies in memory are bounded, and
keeps it until its thread is done with it. One whose deadline is over is stopped at the model's next node.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Final

import msgspec

from models.card import ModelCard
from models.scorer import ModelError
from models.served import ModelSource, Run, RunFailed, RunRefused, ServedModel, TensorSpec, find_models
from service.errors import InferenceFailed, InferenceTimeout, InvalidTensor, NotFound, Overloaded, StartError
from service.infer_codec import decode_request, encode_reply, read_header_length, read_inputs, wanted_outputs
from service.settings import InferenceSettings

PLATFORM: Final = "onnxruntime_onnx"


class Reply(msgspec.Struct, frozen=True):
    """`json_bytes`: of the JSON part, where raw bytes follow it."""

    body: bytes
    json_bytes: int | None


class Lane:
    """One version of a model: where it comes from, its thread, who waits for it."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.model: ServedModel | None = None
        self.opening = asyncio.Lock()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=f"infer-{source.name}")
        self.n_inside = 0  # requests that wait, run, or whose body is being read
        self.runs: set[Run] = set()

    @property
    def shown(self) -> str:
        """Name and version, for messages."""
        return f"{self.source.name}@{self.source.version}"


class Place:
    """A request's place in the queue of `lane`, with `n_bytes` of body."""

    def __init__(self, inference: "Inference", lane: Lane, n_bytes: int) -> None:
        self._inference = inference
        self._lane = lane
        self._n_bytes = n_bytes
        self.work: asyncio.Future[Reply] | None = None

    def leave(self) -> None:
        """Give the place up, once the thread is done with the request."""
        if self.work is not None and not self.work.done():
            self.work.add_done_callback(lambda _: self.leave())
            return
        if self.work is not None and not self.work.cancelled():
            self.work.exception()  # seen, though nobody may wait for it any more
        self._lane.n_inside -= 1
        self._inference.n_bytes -= self._n_bytes


class Inference:
    """The served models. `lanes`: name -> version -> Lane, the newest version last."""

    def __init__(self, settings: InferenceSettings, sources: Sequence[ModelSource], providers: Sequence[str]) -> None:
        self._settings = settings
        self._providers = providers
        self.n_bytes = 0  # of bodies inside
        self.lanes: dict[str, dict[str, Lane]] = {}
        for source in sources:
            self.lanes.setdefault(source.name, {})[source.version] = Lane(source)

    def find(self, name: str, version: str | None) -> Lane:
        """The lane of a model; without a version the newest. Raises NotFound."""
        versions = self.lanes.get(name)
        if versions is None:
            raise NotFound(f"there is no model {name[:80]!r}; there are {', '.join(self.lanes)}", "name")
        if version is None:
            return next(reversed(versions.values()))
        if version not in versions:
            raise NotFound(f"model {name} has no version {version[:80]!r}; it has {', '.join(versions)}", "version")
        return versions[version]

    async def opened(self, lane: Lane) -> ServedModel:
        """The model of a lane, opened if it is not yet. Raises InferenceFailed."""
        if lane.model is None:
            async with lane.opening:
                if lane.model is None:
                    try:
                        lane.model = await asyncio.wrap_future(lane.thread.submit(ServedModel, lane.source, self._providers))
                    except ModelError as error:
                        raise InferenceFailed(str(error)) from None
        return lane.model

    def enter(self, lane: Lane, announced: int | None) -> Place:
        """A place for a request, `announced` bytes long, None if it is not known. Raises Overloaded."""
        limit = self._settings
        n_bytes = limit.body_bytes_max if announced is None else min(announced, limit.body_bytes_max)
        if lane.n_inside >= limit.queue_max:
            raise Overloaded(f"{lane.n_inside} of inference.queue_max = {limit.queue_max} requests for {lane.shown} are here")
        if self.n_bytes + n_bytes > limit.queue_bytes_max:
            raise Overloaded(
                f"requests of {self.n_bytes} bytes are here, {n_bytes} more exceed inference.queue_bytes_max ="
                f" {limit.queue_bytes_max}"
            )
        lane.n_inside += 1
        self.n_bytes += n_bytes
        return Place(self, lane, n_bytes)

    async def infer(self, place: Place, lane: Lane, body: bytes | bytearray, header_length: str | None) -> Reply:
        """Run one request on the lane's thread. Raises CallerError, Overloaded, InferenceTimeout, InferenceFailed."""
        model = await self.opened(lane)
        run, began = model.new_run(), threading.Event()
        json_bytes_max = self._settings.json_bytes_max

        def work() -> Reply:
            began.set()
            return _run(model, run, body, header_length, json_bytes_max)

        submitted = lane.thread.submit(work)
        place.work = asyncio.wrap_future(submitted)
        lane.runs.add(run)
        place.work.add_done_callback(lambda _: lane.runs.discard(run))
        try:
            async with asyncio.timeout(self._settings.deadline_ms / 1000):
                return await asyncio.shield(place.work)
        except TimeoutError:
            raise self._late(lane, began.is_set()) from None
        finally:
            if not place.work.done():
                run.stop()
                submitted.cancel()  # if it waits for the thread; one that runs ends at its next node

    def _late(self, lane: Lane, has_begun: bool) -> InferenceTimeout | Overloaded:
        limit = f"inference.deadline_ms = {self._settings.deadline_ms} ms"
        if has_begun:
            return InferenceTimeout(f"{lane.shown} was not done within {limit} and is stopped; send less at once, or raise it")
        return Overloaded(f"{lane.shown} was busy with {lane.n_inside - 1} other requests for {limit}")

    def close(self) -> None:
        """Stop what runs and end the threads. No request may follow."""
        for lane in self._all_lanes():
            for run in lane.runs:
                run.stop()
            lane.thread.shutdown(wait=True, cancel_futures=True)

    def _all_lanes(self) -> list[Lane]:
        return [lane for versions in self.lanes.values() for lane in versions.values()]

    def index(self) -> list[dict[str, str]]:
        """What the repository index shows: every version of every model; all of them are ready."""
        sources = [lane.source for lane in self._all_lanes()]
        return [{"name": source.name, "version": source.version, "state": "READY", "reason": ""} for source in sources]


async def open_inference(
    settings: InferenceSettings, providers: Sequence[str], card: ModelCard, scorer_model: bytes, stack: AsyncExitStack
) -> Inference:
    """The scorer's model, closed by `stack`, and the opened models of the directory. Raises ModelError, StartError."""
    sources = [ModelSource(card.name, card.version, scorer_model)]
    if settings.models_dir is not None:
        sources += await asyncio.to_thread(find_models, settings.models_dir)
    if any(source.name == card.name for source in sources[1:]):
        raise StartError(f"inference.models_dir {settings.models_dir} has a model {card.name!r}, the scorer's name; rename it")
    inference = Inference(settings, sources, providers)
    stack.push_async_callback(asyncio.to_thread, inference.close)
    for source in sources[1:]:
        try:
            await inference.opened(inference.find(source.name, source.version))
        except InferenceFailed as error:
            raise StartError(error.detail) from None
    return inference


def metadata(model: ServedModel, versions: Mapping[str, Lane]) -> dict[str, object]:
    """What the model metadata shows."""
    return {
        "name": model.name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": [_tensor(spec) for spec in model.outputs],
    }


def configuration(model: ServedModel) -> dict[str, object]:
    """The part of Triton's model configuration that means something here; dims hold the batch dimension."""
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "input": [_configured(spec) for spec in model.inputs],
        "output": [_configured(spec) for spec in model.outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _configured(spec: TensorSpec) -> dict[str, object]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(spec.shape)}


def _run(model: ServedModel, run: Run, body: bytes | bytearray, header_length: str | None, json_bytes_max: int) -> Reply:
    """Decode, run, encode; on the lane's thread."""
    json_bytes = read_header_length(header_length, len(body))
    request = decode_request(body, json_bytes, json_bytes_max)
    wanted = wanted_outputs(request, model.outputs)
    feeds = read_inputs(request, body, json_bytes, model.inputs)
    try:
        arrays = model.run(feeds, list(wanted), run)
    except RunRefused as error:
        raise InvalidTensor(f"{model.name} cannot run on these tensors: {error}") from None
    except RunFailed as error:
        raise InferenceFailed(f"{model.name}: {error}") from None
    outputs = {name: (array, is_raw) for (name, is_raw), array in zip(wanted.items(), arrays, strict=True)}
    return Reply(*encode_reply((model.name, model.version), request, outputs, json_bytes_max))
