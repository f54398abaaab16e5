"""Which profiles have changed since write-behind last looked, and the first LSN that changed each of them."""


class Touched:
    """One dict per kind: id -> LSN of the first change that write-behind has not seen."""

    def __init__(self, n_kinds: int) -> None:
        self.by_kind: list[dict[str, int]] = [{} for _ in range(n_kinds)]

    def mark(self, kind: int, entity: str, lsn: int) -> None:
        """The profile was changed by the entry with this LSN."""
        self.by_kind[kind].setdefault(entity, lsn)

    def take(self) -> list[dict[str, int]]:
        """Everything marked since the last call."""
        taken, self.by_kind = self.by_kind, [{} for _ in self.by_kind]
        return taken
