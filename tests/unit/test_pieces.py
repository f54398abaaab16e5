"""Pieces behave as a list of bytes, whole and in part."""

import pytest

from service.pieces import Pieces, Replies

TEXTS = [b"{}", b'{"a":1}', b"", b"0123456789"]


@pytest.mark.parametrize("kind", [Pieces, Replies])
@pytest.mark.parametrize("n_rows", range(len(TEXTS) + 1))
def test_pieces_are_a_sequence_of_bytes(n_rows: int, kind: type[Pieces]) -> None:
    """Length, items, negative places, slices and the bytes of all of them."""
    texts = TEXTS[:n_rows]
    pieces = kind.of(texts)
    assert list(pieces) == pieces.as_list() == texts
    assert len(pieces) == n_rows
    assert [pieces[-place - 1] for place in range(n_rows)] == texts[::-1]
    for start in range(n_rows + 2):
        for stop in range(-1, n_rows + 2):
            part = pieces[start:stop]
            assert part.as_list() == list(part) == texts[start:stop]
            assert part.data == b"".join(text + kind.gap for text in texts[start:stop])
    with pytest.raises(IndexError):
        pieces[n_rows]
    with pytest.raises(ValueError, match="in their order"):
        pieces[::2]


def test_replies_are_lines() -> None:
    """As they are sent."""
    assert Replies.of([b"{}", b"1"]).lines == b"{}\n1\n"
