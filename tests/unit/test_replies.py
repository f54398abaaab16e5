"""Replies behave as a list of bytes, whole and in part."""

import pytest

from service.replies import Replies

TEXTS = [b"{}", b'{"a":1}', b"", b"0123456789"]


@pytest.mark.parametrize("n_rows", range(len(TEXTS) + 1))
def test_replies_are_a_sequence_of_bytes(n_rows: int) -> None:
    """Length, items, negative places, slices and the lines of all of them."""
    texts = TEXTS[:n_rows]
    replies = Replies.of(texts)
    assert list(replies) == replies.as_list() == texts
    assert len(replies) == n_rows
    assert [replies[-place - 1] for place in range(n_rows)] == texts[::-1]
    for start in range(n_rows + 2):
        for stop in range(-1, n_rows + 2):
            part = replies[start:stop]
            assert part.as_list() == list(part) == texts[start:stop]
            assert part.lines == b"".join(text + b"\n" for text in texts[start:stop])
    with pytest.raises(IndexError):
        replies[n_rows]
    with pytest.raises(ValueError, match="in their order"):
        replies[::2]
