"""What `weir bench recovery` is asked and what it writes with --json."""

import msgspec

from models.machine import Machine


class RecoveryOptions(msgspec.Struct, frozen=True):
    """`cards` cards, each with a device and an address of its own, and 1,000 merchants; a label per `label_every` events."""

    rounds: int = 5
    events: int = 1_000_000
    cards: int = 20_000
    batch_rows: int = 128
    label_every: int = 1_000
    scorers: tuple[str, ...] = ("go", "onnx")
    settings: tuple[str, ...] = ()


class Run(msgspec.Struct):
    """One start over a fresh copy of the journal. Seconds of recovery alone; `ready_s` is from the process's start."""

    scorer: str
    entries: int
    seconds: float
    cpu_s: float
    ready_s: float
    memory_mb: float
    memory_max_mb: float
    checksum: str


class Arm(msgspec.Struct):
    """Medians of a scorer's runs; seconds and CPU seconds are per million entries."""

    scorer: str
    seconds: float
    seconds_least: float
    seconds_most: float
    events_per_s: float
    cpu_s: float
    ready_s: float
    memory_mb: float
    memory_max_mb: float


class RecoveryResult(msgspec.Struct):
    """`entries`, `journal_mb`: of what every run recovers. Checksums of all runs agree, or there would be no result."""

    kind: str
    created: str
    options: RecoveryOptions
    machine: Machine
    entries: int
    journal_mb: float
    checksum: str
    arms: list[Arm]
    runs: list[Run]
    skipped: dict[str, str]
    caveats: list[str]
