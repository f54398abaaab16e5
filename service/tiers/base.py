"""What every tier below L1 promises, and what they share: LSNs of opaque profiles, slices, the gate.

A profile is opaque bytes here; all that a tier knows of it is its LSN, u64 little-endian at `LSN_OFFSET`.
Invariants of every `Tier`:
* `put` never takes a profile back to a lower LSN, and never its position either; a repeated put is a no-op;
* `position` is stored with the data: what `read_position` gives is never ahead of what the store durably holds;
* an operation either answers or raises TierUnavailable within its deadline; it never gives a stale profile;
* after TierUnavailable the caller calls `read_position` (which connects again) before it trusts the tier again.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol, runtime_checkable

LSN_OFFSET = 16  # bytes into a profile; the same number as features.profile.LSN_OFFSET (tested), which needs numpy
LSN_BYTES = 8
LSN_MAX = (1 << 63) - 1  # epochs end at 32767, so that an LSN fits the signed bigint of Postgres

CLAIM_KEY = b"\x00claim"  # of the record by which a run claims its LSNs; no entity's key begins with a zero byte
ENTITY_KEYS_FROM = b"\x01"  # every entity's key is at or above it

_U64 = struct.Struct("<Q")


class Tier(Protocol):
    """A place below L1 that holds profiles."""

    name: str

    async def fill(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One round trip: the profile of each key, in the order of `keys`, or None. Raises TierUnavailable."""
        ...

    async def put(self, profiles: Mapping[bytes, bytes], position: int) -> None:
        """Store each profile unless the tier has it at the same or a higher LSN; then the position, if it is higher.

        `position`: every change up to this LSN is in the tier once this call returns; 0 leaves it as it is.
        Raises TierUnavailable; then an unknown part of `profiles` is stored, the position is not, and the call may be
        repeated.
        """
        ...

    async def read_position(self) -> int:
        """The position that is durably stored, 0 in an empty tier. Raises TierUnavailable."""
        ...


@runtime_checkable
class NearTier(Protocol):
    """A tier in this process, which can be asked with no await."""

    def fill_now(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """`fill` for as many of the keys as can be read in about a millisecond, the first ones. Raises TierUnavailable."""
        ...


def lsn_of(profile: bytes) -> int:
    """The LSN that `profile` has reached."""
    lsn: int = _U64.unpack_from(profile, LSN_OFFSET)[0]
    return lsn


def pack_lsn(lsn: int) -> bytes:
    """`lsn` as it stands in a profile: 8 bytes, little-endian."""
    return _U64.pack(lsn)


def unpack_lsn(packed: bytes) -> int:
    """Inverse of `pack_lsn`."""
    lsn: int = _U64.unpack(packed)[0]
    return lsn


def claim(lsn: int) -> bytes:
    """A record that is put under CLAIM_KEY, like a profile that has reached `lsn`."""
    return bytes(LSN_OFFSET) + pack_lsn(lsn)


async def read_reach(tier: Tier) -> tuple[int, int]:
    """The tier's position, and the highest LSN that it has met: its position or a claim. Raises TierUnavailable."""
    position = await tier.read_position()
    (record,) = await tier.fill([CLAIM_KEY])
    return position, max(position, 0 if record is None else lsn_of(record))


class Graveyard(Protocol):
    """A tier that can let go of tombstones."""

    async def bury(self, tombstones: Mapping[bytes, int]) -> None:
        """Remove every key whose profile still has exactly this LSN. Raises TierUnavailable; the call may be repeated."""
        ...


class Size(NamedTuple):
    """Profiles in a tier, and the bytes that they take there, overhead included; both as the store estimates them."""

    keys: int
    bytes: int


@runtime_checkable
class Sized(Protocol):
    """A tier that knows how much it holds."""

    async def size(self) -> Size:
        """For people who look: it may take a while. Raises TierUnavailable."""
        ...


def slices(items: Iterable[tuple[bytes, bytes]], keys_max: int, bytes_max: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """`items` in lists of at most `keys_max` pairs; one that reaches `bytes_max` bytes of values ends too."""
    part: list[tuple[bytes, bytes]] = []
    n_bytes = 0
    for item in items:
        part.append(item)
        n_bytes += len(item[1])
        if len(part) == keys_max or n_bytes >= bytes_max:
            yield part
            part, n_bytes = [], 0
    if part:
        yield part


class Gate:
    """Bounded concurrency in front of a remote store; the wait for a place counts against the deadline.

    Without it a slow store would collect every request of an overload, and an outage of Redis would become a flood
    on Postgres.
    """

    def __init__(self, concurrency_max: int) -> None:
        self._places = asyncio.Semaphore(concurrency_max)

    @asynccontextmanager
    async def enter(self, deadline_ms: int) -> AsyncIterator[None]:
        """Hold a place for the body. Raises TimeoutError once `deadline_ms` have passed, the wait included."""
        async with asyncio.timeout(deadline_ms / 1000), self._places:
            yield
