"""The servers of `weir bench stacks` in one form: a rival stack or one of Weir's, started, asked until its first right answer.

A rival reads Postgres, one for all of them. Each of Weir's has a Valkey and a Postgres of its own, lent by a process that does
nothing else, so that no start includes a database's.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import msgspec

from loadgen.bench.arms import WEIR_GO as SERVER_ARM
from loadgen.bench.arms import missing_arm, start_arm, start_stores
from loadgen.bench.children import BenchError, Child, add_key
from loadgen.bench.load.job import LoadJob, Payload
from loadgen.bench.load.requests import first_event_number, open_requests
from loadgen.bench.load.run import Watched
from loadgen.bench.payloads import Payloads
from loadgen.bench.processes import tree
from loadgen.bench.stacks.images import MODEL_NAME, V2_OF
from loadgen.bench.stacks.limits import Limits, on_cores
from loadgen.bench.stacks.result import CARD, WEIR_ARMS, WEIR_GO, order_of
from loadgen.bench.stores import missing_stores
from loadgen.bench.touch import touch_cards
from loadgen.sender import Client, SendError, Target
from loadgen.stacks.launch import StackSettings, start_stack
from loadgen.stacks.manifest import Stack, load_stack, missing, stack_names

ANSWER_DEADLINE_S = 60.0  # s from the start to the first correct answer
ASK_EVERY_S = 0.002


class Rig(msgspec.Struct):
    """What all arms share. `database` lends the rivals their Postgres; `images` is the folder of the image workload."""

    settings: StackSettings
    database: Child
    work: Path
    data: Path
    expected: Path
    images: Path
    other_cores: Sequence[int]
    job: LoadJob


class Arm(msgspec.Struct):
    """A server that runs, paused between its measurements. `workloads` maps those it answers to the generator's payloads."""

    name: str
    child: Child
    target: Target
    workers: int
    first_answer_s: float
    workloads: dict[str, Payload]
    watched: Watched
    stop: Callable[[], None]

    def job(self, rig: Rig, workload: str, rows: int) -> LoadJob:
        """The load of this workload for this arm."""
        payload = self.workloads[workload]
        return msgspec.structs.replace(
            rig.job,
            host=self.target.host,
            port=self.target.port,
            key=self.target.key,
            payload=payload,
            rows=rows,
            folder=str(rig.images),
            expected=str(rig.expected) if payload == "stack" else "",
        )


def parse_stacks(text: str | None) -> tuple[str, ...]:
    """The arms named in "go,weir go", all of them without a text, in the order of tables. Raises BenchError."""
    known = sorted([*stack_names(), *WEIR_ARMS], key=order_of)
    if text is None:
        return tuple(known)
    names = {part.strip() for part in text.split(",") if part.strip()}
    unknown = sorted(names - set(known))
    if unknown or not names:
        raise BenchError(
            f"--stacks {text[:80]}: {f'no stack {unknown[0]!r}' if unknown else 'no name'}; there are: {', '.join(known)}"
        )
    return tuple(name for name in known if name in names)


def missing_here(name: str, data: Path) -> str | None:
    """Why this arm cannot run here, or None. Raises BenchError on a broken stack.toml."""
    if (reason := missing_stores()) is not None:
        return reason
    if name in WEIR_ARMS:
        return missing_arm(SERVER_ARM if name == "weir-go" else name)
    return missing(load_stack(name), data)


def workloads_of(name: str) -> dict[str, Payload]:
    """Which workloads an arm answers, each with the payload that the generator sends it."""
    if name in WEIR_ARMS:
        found: dict[str, Payload] = {CARD: "weir"}
        if name == WEIR_GO:
            found |= V2_OF
        return found
    stack = load_stack(name)
    return {word: "stack" if word == CARD else word for word in stack.workloads}  # type: ignore[misc]  # manifest checks words


async def open_arm(name: str, rig: Rig, limits: Limits, workers: int, *, images: bool = False) -> Arm:
    """Start it inside `limits`, wait for its first correct answer, pause it. Raises BenchError."""
    number = len(list(rig.work.iterdir()))
    if name in WEIR_ARMS:
        arm = _open_weir(name, rig, limits, rig.work / f"{number}-{name.replace(' ', '-')}", images)
    else:
        arm = _open_stack(load_stack(name), rig, limits, rig.work / f"{number}-{name}", workers)
    try:
        workload = next(iter(word for word in arm.workloads if images == (word != CARD)))
        await _until_right(arm, rig, workload)
        if name in WEIR_ARMS and not images:
            await touch_cards(arm.child, arm.target, Payloads(arm.target, rig.job.cards, alone=True), rig.job.cards)
    except BaseException:
        arm.stop()
        raise
    arm.child.pause()
    return arm


def _open_stack(stack: Stack, rig: Rig, limits: Limits, folder: Path, workers: int) -> Arm:
    folder.mkdir()
    settings = msgspec.structs.replace(rig.settings, workers=workers)
    started = time.perf_counter()
    with limits.entered():
        child = start_stack(stack, settings, folder, rig.data)
    return Arm(
        name=stack.name,
        child=child,
        target=Target.parse(child.url, settings.key),
        workers=workers,
        first_answer_s=started,
        workloads=workloads_of(stack.name),
        watched=Watched(child.pids, rig.database.stores.pids),
        stop=partial(_stop, child),
    )


def _open_weir(name: str, rig: Rig, limits: Limits, folder: Path, images: bool) -> Arm:
    folder.mkdir()
    data_dir = folder / "data"
    data_dir.mkdir()
    key = add_key(data_dir)
    kind = SERVER_ARM if name == "weir-go" else name
    with ExitStack() as stack:
        settings: tuple[str, ...] = ()
        lender = None
        if images:
            models = folder / "models"
            models.mkdir()
            (models / f"{MODEL_NAME}.onnx").symlink_to(rig.settings.models.image)
            settings = (f"inference.models_dir={models}",)
        else:
            with on_cores(rig.other_cores):
                lender = start_stores(name, folder / "stores", folder)
            stack.callback(lender.kill)
            settings = lender.stores.settings()
        started = time.perf_counter()
        with limits.entered():
            child = start_arm(kind, data_dir, folder, settings)
        stack.pop_all()
    child.lend(lender)
    stores = child.stores
    return Arm(
        name=name,
        child=child,
        target=Target.parse(child.url, key),
        workers=1,
        first_answer_s=started,
        workloads=workloads_of(name),
        watched=Watched(lambda: [child.pid] if lender is not None else tree(child.pid), stores.pids if lender else None),
        stop=partial(_stop, child),
    )


def _stop(child: Child) -> None:
    """Whether it is paused or not, alive or not."""
    child.stop() if child.alive() else child.kill()


async def _until_right(arm: Arm, rig: Rig, workload: str) -> None:
    """Ask for one thing until the answer is right; then `first_answer_s` is the time since the start. Raises BenchError."""
    job = msgspec.structs.replace(arm.job(rig, workload, 1), first=first_event_number() + 500_000)
    requests = open_requests(job)
    client = Client(arm.target, ANSWER_DEADLINE_S)
    started, problem = arm.first_answer_s, "no answer"
    try:
        while time.perf_counter() - started < ANSWER_DEADLINE_S:
            request, number = requests.make()
            try:
                reply = await client.request(request)
            except SendError as error:
                problem = str(error)
            else:
                wrong = requests.check(number, reply)
                if wrong is None:
                    arm.first_answer_s = round(time.perf_counter() - started, 4)
                    return
                problem = f"{wrong}: {reply.body[:200]!r}"
            await asyncio.sleep(ASK_EVERY_S)
    finally:
        client.close()
    raise BenchError(f"{arm.name}: no right answer within {ANSWER_DEADLINE_S:.0f} s of its start: {problem}")
