"""SIEVE: who leaves, in which order, and that the queue stays whole under any sequence of operations."""

import os
import random

from service.tiers.sieve import NONE, Sieve


def make(n: int) -> Sieve:
    sieve = Sieve()
    for _ in range(n):
        sieve.insert(sieve.grow())
    return sieve


def test_evict_untouched_members_leave_in_order_of_arrival() -> None:
    """Nobody was looked up: the oldest goes first, an empty queue gives NONE."""
    sieve = make(4)
    assert [sieve.evict() for _ in range(5)] == [0, 1, 2, 3, NONE]
    assert len(sieve) == 0


def test_evict_visited_member_stays_once_and_loses_its_bit() -> None:
    """The hand passes a visited member, takes its bit, and does not move it."""
    sieve = make(3)
    sieve.visited[0] = 1
    assert sieve.evict() == 1
    assert not sieve.visited[0]
    assert sieve.evict() == 2
    assert sieve.evict() == 0


def test_evict_continues_at_the_hand_not_at_the_oldest() -> None:
    """After an eviction the hand goes on towards the newest; a survivor behind it is met again only after a full round."""
    sieve = make(4)
    sieve.visited[0] = 1
    assert sieve.evict() == 1
    newcomer = sieve.grow()
    sieve.insert(newcomer)
    assert [sieve.evict() for _ in range(4)] == [2, 3, newcomer, 0]


def test_evict_pinned_members_are_passed_over() -> None:
    """Pinned ones never leave, all pinned gives NONE, one unpinned is found wherever the hand stands."""
    sieve = make(3)
    for slot in range(3):
        sieve.pins[slot] = 1
    assert sieve.evict() == NONE
    sieve.pins[1] -= 1
    assert sieve.evict() == 1
    assert sieve.evict() == NONE
    assert len(sieve) == 2


def test_insert_again_after_eviction_starts_without_a_bit() -> None:
    """A slot that is used again carries no bit of its former member."""
    sieve = make(2)
    slot = sieve.evict()
    sieve.visited[slot] = 1
    sieve.insert(slot)
    assert not sieve.visited[slot]
    assert [sieve.evict(), sieve.evict()] == [1, slot]


def test_evict_many_is_evict_as_often_as_anybody_may_leave() -> None:
    """In the same order, and fewer where the others are pinned."""
    sieve = make(5)
    sieve.visited[0] = 1
    sieve.pins[2] = 1
    assert sieve.evict_many(0) == []
    assert sieve.evict_many(2) == [1, 3]
    assert sieve.evict_many(3) == [4, 0]
    assert len(sieve) == 1


def test_any_sequence_agrees_with_a_plain_list() -> None:
    """10,000 random steps: the same victims as an implementation over a list."""
    seed = int(os.environ.get("SEED", "3"))
    print(f"SEED={seed}")  # noqa: T201  # shown by -rP
    rng = random.Random(seed)
    sieve = Sieve()
    queue: list[int] = []
    hand = NONE
    free: list[int] = []
    n_evicted = 0
    for _ in range(10_000):
        step = rng.random()
        if step < 0.35 or not queue:
            slot = free.pop() if free else sieve.grow()
            sieve.insert(slot)
            queue.append(slot)
        elif step < 0.6:
            sieve.visited[rng.choice(queue)] = 1
        elif step < 0.7:
            slot = rng.choice(queue)
            sieve.pins[slot] ^= 1
        elif step < 0.75:
            slot = rng.choice(queue)
            hand = after(queue, slot) if hand == slot else hand
            sieve.remove(slot)
            queue.remove(slot)
            free.append(slot)
        else:
            n_evicted += 1
            bits = {slot: sieve.visited[slot] for slot in queue}
            expected = NONE
            for _ in range(2 * len(queue)):
                slot = queue[0] if hand == NONE else hand
                hand = after(queue, slot)
                if not bits[slot] and not sieve.pins[slot]:
                    expected = slot
                    queue.remove(slot)
                    free.append(slot)
                    break
                bits[slot] = 0
            assert sieve.evict() == expected
        assert len(sieve) == len(queue)
    assert n_evicted > 1_000


def after(queue: list[int], slot: int) -> int:
    """The next newer member, NONE after the newest: the hand then starts again at the oldest."""
    place = queue.index(slot) + 1
    return queue[place] if place < len(queue) else NONE
