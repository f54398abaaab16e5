"""What `weir bench scorers` is asked and what it writes with --json. Times are µs, memory is bytes or MiB as its name says."""

import msgspec

from models.machine import Machine


class ScorersOptions(msgspec.Struct, frozen=True):
    """What is measured. All numbers of entities count all kinds together; `rows` are sizes of a batch.

    `batch_rows_min` rows per round, arm and size, in at most `batches_max` batches. `full_entities` 0: no full rings.
    """

    rounds: int = 5
    rows: tuple[int, ...] = (1, 8, 64, 256, 1024)
    entities: tuple[int, ...] = (10_000, 1_000_000)
    objects_entities_max: int = 1_000_000
    events_per_s: float = 20_000.0
    slow_hours: float = 4.0
    huge_pages: bool = False  # under the slabs, as l1.huge_pages has it
    batch_rows_min: int = 6_144
    batches_max: int = 400
    memory_entities: int = 40_000
    full_entities: int = 12_000
    call_batches: int = 300


class Scene(msgspec.Struct):
    """Entities and how fast time moves: events per second of stream time, hours between two events of an entity."""

    name: str
    entities: int
    events_per_s: float
    hours_between: float
    ring_moves_per_tx: float


class Cell(msgspec.Struct):
    """One arm and batch size in one scene. µs per transaction: medians over the rounds of each round's median batch.

    features and inference add up to total; an arm that takes ready vectors has no features. `totals` are those of the rounds,
    `of_session_run` is total over session.run's, paired by round, `checksum` the sum of all scores.
    """

    scene: str
    n: int
    arm: str
    features_us: float
    inference_us: float
    total_us: float
    cpu_us: float
    totals: list[float]
    of_session_run: float
    checksum: float


class Calls(msgspec.Struct):
    """µs of what surrounds a score call, on so many cores. Both of the last two score 256 rows, features included."""

    cores: int
    empty_call_us: float
    put_us: float
    eventfd_us: float
    inline_us: float
    submit_us: float


class EntityMemory(msgspec.Struct):
    """Resident bytes per entity, mean of the kinds."""

    holder: str
    history: str
    entities: int
    bytes_per_entity: int


class ProcessMemory(msgspec.Struct):
    """A Python process after one score."""

    scorers: str
    rss_mb: float
    anonymous_mb: float


class Target(msgspec.Struct):
    """A goal. `value` and `met` are None if this run did not measure it."""

    name: str
    limit: float
    value: float | None
    met: bool | None
    note: str = ""


class ScorersResult(msgspec.Struct):
    """What --json writes. `profile_bytes` by kind. Sums of the scores agree among all arms, or there would be no result."""

    kind: str
    created: str
    options: ScorersOptions
    machine: Machine
    core: int
    clock_us: float
    profile_bytes: dict[str, int]
    scenes: list[Scene]
    cells: list[Cell]
    calls: list[Calls]
    entity_memory: list[EntityMemory]
    process_memory: list[ProcessMemory]
    targets: list[Target]
    caveats: list[str]
