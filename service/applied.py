"""How far the journal's entries have been applied to profiles and decisions: all of them, except while recovery is at it.

Whoever stores a position asks here, not the journal: a position never claims an entry that has not been applied yet.
"""

from service.journal import Journal


class Applied:
    """`lsn`: every entry up to it is applied, and what it changed is marked (Touched) or in the stores already."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._recovered_lsn: int | None = None

    @property
    def lsn(self) -> int:
        """The last LSN of which that is true."""
        return self._journal.last_lsn if self._recovered_lsn is None else self._recovered_lsn

    @property
    def is_recovering(self) -> bool:
        """True while the journal has entries that are still to be applied again."""
        return self._recovered_lsn is not None

    def begin(self, lsn: int) -> None:
        """Recovery begins above `lsn`."""
        self._recovered_lsn = lsn

    def reach(self, lsn: int) -> None:
        """Recovery has applied everything up to `lsn`, and marked it."""
        assert self._recovered_lsn is not None
        self._recovered_lsn = max(self._recovered_lsn, lsn)

    def finish(self) -> None:
        """Recovery is at the journal's end: from here on an entry is applied before it is appended."""
        self._recovered_lsn = None
