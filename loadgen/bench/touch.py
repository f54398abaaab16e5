"""Giving every card of a benchmark its profile before anything is measured."""

from loadgen.bench.children import BenchError, Child
from loadgen.bench.payloads import Payloads
from loadgen.sender import Client, SendError, Target

TOUCH_ROWS = 256  # cards per batch when the profiles are made


async def touch_cards(child: Child, target: Target, payloads: Payloads, n_cards: int) -> None:
    """Give every card (and its device and address) a profile. Raises BenchError."""
    client = Client(target, 60.0)
    try:
        for start in range(0, n_cards, TOUCH_ROWS):
            reply = await client.request(payloads.each_card(start, min(start + TOUCH_ROWS, n_cards)))
            if reply.status != 200 or b'"status":' in reply.body:
                raise BenchError(f"{child.name} refused the first events: {reply.status} {reply.body[:400]!r}")
    except SendError as error:
        raise BenchError(f"{child.name}: {error}") from error
    finally:
        client.close()
