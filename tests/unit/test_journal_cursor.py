"""Reading blocks' bytes from a place on: over new segments and trimmed ones, and where it cannot it says so."""

from pathlib import Path

import numpy as np
import pytest

from service.journal import TX, Journal
from service.journal_cursor import Bytes, Cursor, Misfit, Place
from service.journal_format import BLOCK_HEADER_BYTES, SEGMENT_HEADER_BYTES

WINDOW = 1 << 12


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Segments of 4 KiB, each for three of our blocks."""
    return Journal.open(tmp_path / "journal", sync="os", segment_bytes=4096)


def block(byte: int) -> list[tuple[int, bytes, bytes]]:
    return [(TX, bytes([byte]) * 1_200, b"")]


def cursor(journal: Journal, place: Place | None, position: int) -> Cursor:
    return Cursor(journal.segments_from(position + 1, 100), place, position, np.empty(WINDOW, dtype=np.uint8))


def read(journal: Journal, place: Place | None, position: int) -> tuple[list[int], Place | None]:
    """The byte that each block is full of, to the end; and the place there."""
    found = []
    with cursor(journal, place, position) as at:
        while (window := at.read()).size:
            for start, size, lsn, byte in blocks_in(window):
                assert lsn > at.floor_lsn
                found.append(byte)
                at.advance(size, lsn)
                assert start + size <= window.size
        return found, at.place


def blocks_in(window: Bytes) -> list[tuple[int, int, int, int]]:
    """(start, size, LSN, byte) of blocks of one entry."""
    found, start = [], 0
    while start + BLOCK_HEADER_BYTES < window.size:
        size = int.from_bytes(window[start : start + 4].tobytes(), "little") + 8
        lsn = int.from_bytes(window[start + 8 : start + 16].tobytes(), "little")
        if start + size <= window.size:
            found.append((start, size, lsn, int(window[start + size - 1])))
        start += size
    return found


def test_cursor_goes_on_where_it_was_over_new_blocks_and_segments(journal: Journal) -> None:
    """Each visit gives what was appended since the last one, once."""
    place, position, expected = None, 0, []
    for number in range(1, 30):
        expected.append(number)
        journal.append(block(number))
        if number % 4 == 0:
            found, place = read(journal, place, position)
            assert found == expected
            assert place is not None
            assert place.position == journal.last_lsn
            position, expected = place.position, []
    assert len(journal.segments()) > 5
    assert read(journal, place, position)[0] == [29]


def test_cursor_without_a_place_begins_with_the_segment_of_the_position(journal: Journal) -> None:
    """What was passed already in that segment is given again: whoever reads passes over it."""
    lsns = [journal.append(block(number)) for number in range(1, 10)]
    assert read(journal, None, 0)[0] == list(range(1, 10))
    assert read(journal, None, lsns[4])[0] == list(range(4, 10))
    wrong = Place(lsns[3], journal.segments()[0].first_lsn, SEGMENT_HEADER_BYTES, 0)
    assert read(journal, wrong, lsns[4])[0] == list(range(4, 10)), "a place of another position counts for nothing"
    beyond = Place(lsns[4], journal.segments()[1].first_lsn, 1 << 20, 0)
    assert read(journal, beyond, lsns[4])[0] == list(range(4, 10)), "nor does one past its segment's end"


def test_cursor_whose_segment_was_trimmed_goes_on_with_the_next(journal: Journal) -> None:
    """It stood at the end of one; its file and its name are gone."""
    for number in (1, 2, 3):
        last = journal.append(block(number))
    _, place = read(journal, None, 0)
    for number in (4, 5):
        journal.append(block(number))
    segments = journal.segments_from(last + 1, 100)
    assert journal.trim(journal.next_lsn) > 0
    with Cursor(segments, place, last, np.empty(WINDOW, dtype=np.uint8)) as before_trim:
        assert [found[3] for found in blocks_in(before_trim.read())] == [4, 5]
    assert read(journal, place, last)[0] == [4, 5]


def test_cursor_trimmed_under_its_feet_says_so(journal: Journal) -> None:
    """It was given a segment that still held something for it, and that is gone when it comes."""
    for number in range(1, 6):
        journal.append(block(number))
    with cursor(journal, None, 0) as at:
        journal.trim(journal.next_lsn)
        with pytest.raises(Misfit, match="cannot be read"):
            at.read()


def test_cursor_segment_without_blocks_is_passed(journal: Journal) -> None:
    """Nothing came after it was begun, and LSNs were burnt before."""
    journal.append(block(1))
    journal.burn(5)
    journal.finished_segments(journal.next_lsn)
    journal.burn(5)
    journal.finished_segments(journal.next_lsn)
    journal.append(block(2))
    assert len(journal.segments()) == 3
    assert read(journal, None, 0)[0] == [1, 2]


def test_cursor_window_grows_for_a_large_block_but_not_for_bytes_that_are_none(journal: Journal) -> None:
    """A block of three windows is read whole; at the end of the segment there is nothing more to be had."""
    journal.append([(TX, bytes(3 * WINDOW), b"")])
    with cursor(journal, None, 0) as at:
        while not blocks_in(at.read()):
            at.widen()
        assert len(at.read()) == journal.segments()[0].size - SEGMENT_HEADER_BYTES
        with pytest.raises(Misfit, match="no block"):
            at.widen()


def test_cursor_blocks_decodes_from_where_it_stands(journal: Journal) -> None:
    """The cursor moves with them; a damaged one is a misfit."""
    lsns = [journal.append(block(number)) for number in (1, 2, 3)]
    with cursor(journal, None, 0) as at:
        start, size, lsn, _ = blocks_in(at.read())[0]
        assert start == 0
        at.advance(size, lsn)
        found = next(at.blocks())
        assert (found.first_lsn, found.entries[0].body[:1]) == (lsns[1], b"\x02")
        assert at.place == Place(lsns[1], lsns[0], SEGMENT_HEADER_BYTES + 2 * size, lsns[1])
        path = journal.segments()[0].path
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        with pytest.raises(Misfit, match="checksum"):
            next(at.blocks())


def test_cursor_damaged_header_or_a_missing_segment_is_a_misfit(journal: Journal) -> None:
    """What is no segment, and one that does not follow the one before it."""
    for number in range(1, 9):
        journal.append(block(number))
    segments = journal.segments()
    with Cursor([segments[0], segments[2]], None, 0, np.empty(WINDOW, dtype=np.uint8)) as at:
        for _, size, lsn, _ in blocks_in(at.read()):
            at.advance(size, lsn)
        with pytest.raises(Misfit, match="does not follow"):
            at.read()
    path = segments[0].path
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with cursor(journal, None, 0) as at, pytest.raises(Misfit, match="magic"):
        at.read()


def test_segments_from_gives_copies_from_the_one_that_holds_the_lsn(journal: Journal) -> None:
    """Before the first, in the middle, behind the last; no more than asked for."""
    for number in range(1, 10):
        journal.append(block(number))
    first = [segment.first_lsn for segment in journal.segments()]
    assert len(first) == 3
    cases = [(0, 0), (first[0], 0), (first[1] - 1, 0), (first[1], 1), (first[1] + 1, 1), (first[2], 2), (first[2] + 99, 2)]
    for lsn, start in cases:
        assert [segment.first_lsn for segment in journal.segments_from(lsn, 100)] == first[start:], lsn
    found = journal.segments_from(0, 2)
    assert [segment.first_lsn for segment in found] == first[:2]
    size = journal.segments()[0].size
    found[0].size = 0
    assert journal.segments()[0].size == size
