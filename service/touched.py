"""Which profiles have changed since write-behind last looked, and the first LSN that changed each of them."""

from collections.abc import Sequence


class Touched:
    """One dict per kind: id -> LSN of the first change that write-behind has not seen."""

    def __init__(self, n_kinds: int) -> None:
        self.by_kind: list[dict[str, int]] = [{} for _ in range(n_kinds)]

    def mark(self, kind: int, entity: str, lsn: int) -> None:
        """The profile was changed by the entry with this LSN."""
        self.by_kind[kind].setdefault(entity, lsn)

    def mark_all(self, entities: Sequence[str | None], lsn: int) -> None:
        """The profiles of all these entities, one per kind (None: absent), were changed by the entry with this LSN."""
        for marked, entity in zip(self.by_kind, entities, strict=True):
            if entity is not None:
                marked.setdefault(entity, lsn)

    def take(self) -> list[dict[str, int]]:
        """Everything marked since the last call."""
        taken, self.by_kind = self.by_kind, [{} for _ in self.by_kind]
        return taken
