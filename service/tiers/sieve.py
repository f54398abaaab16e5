"""SIEVE: which profile leaves when room is needed (Zhang et al., NSDI 2024).

A queue in order of arrival with one bit per member, "was looked up since the hand passed". The hand walks from the oldest to
the newest: a member with the bit loses it and stays where it is, the first without it leaves. A hit only sets a bit, so nothing
is moved on the hot path. Pinned members are passed over. Members are small integers (slots); memory is 13 bytes each.
"""

from array import array

NONE = -1


class Sieve:
    """The queue. `visited[slot] = 1` and `pins[slot] += 1` are set by the owner, directly: they are the hot path."""

    def __init__(self) -> None:
        self.visited = bytearray()
        self.pins = array("i")
        self._newer = array("i")
        self._older = array("i")
        self._newest = self._oldest = self._hand = NONE
        self._n_members = 0

    def __len__(self) -> int:
        return self._n_members

    def grow(self) -> int:
        """Make room for one more slot and return its number."""
        self.visited.append(0)
        self.pins.append(0)
        self._newer.append(NONE)
        self._older.append(NONE)
        return len(self.visited) - 1

    def insert(self, slot: int) -> None:
        """Put `slot` at the newest end."""
        self.visited[slot] = 0
        self._older[slot] = self._newest
        self._newer[slot] = NONE
        if self._newest != NONE:
            self._newer[self._newest] = slot
        else:
            self._oldest = slot
        self._newest = slot
        self._n_members += 1

    def remove(self, slot: int) -> None:
        """Take `slot` out, wherever it stands."""
        newer, older = self._newer[slot], self._older[slot]
        if self._hand == slot:
            self._hand = newer
        if newer != NONE:
            self._older[newer] = older
        else:
            self._newest = older
        if older != NONE:
            self._newer[older] = newer
        else:
            self._oldest = newer
        self._n_members -= 1

    def evict_many(self, n: int) -> list[int]:
        """`evict` up to n times: who left, fewer if the others are pinned."""
        found: list[int] = []
        while len(found) < n:
            slot = self.evict()
            if slot == NONE:
                break
            found.append(slot)
        return found

    def evict(self) -> int:
        """Take out the member that may leave and return it, or -1 if all are pinned."""
        hand = self._hand
        for _ in range(2 * self._n_members):  # a first round may only take bits away
            if hand == NONE:
                hand = self._oldest
            if not self.visited[hand] and not self.pins[hand]:
                self._hand = hand
                self.remove(hand)
                return hand
            self.visited[hand] = 0
            hand = self._newer[hand]
        self._hand = hand
        return NONE
