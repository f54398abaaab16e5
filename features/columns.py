"""Event columns: a transaction as int64 numbers, one per name in plan.COLUMNS; -1 means absent.

Ids and other texts become 32-bit hashes (CRC-32): they only ever answer "the same as last time?" and "how many different
ones?", for which one collision in four billion is far below the error of a 64-bit linear-counting bitmap.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from features.plan import Plan
from features.transaction import CHANNELS, InvalidTransaction, Transaction

Int64s = npt.NDArray[np.int64]
CHANNEL_CODES = {name: code for code, name in enumerate(CHANNELS)}


def encode(tx: Transaction, currencies: dict[str, int]) -> tuple[int, ...]:
    """The columns of one checked transaction, amount in base minor units, rounded half up.

    lat and lon are millionths of a degree, shifted to be positive. Raises InvalidTransaction for an unknown currency.
    """
    rate = currencies.get(tx.currency)
    if rate is None:
        raise InvalidTransaction("currency", f"{tx.currency[:16]!r} has no rate; the spec knows {', '.join(currencies)}")
    amount = tx.amount if rate == 1_000_000 else (tx.amount * rate + 500_000) // 1_000_000
    country, device, ip = tx.country, tx.device_id, tx.ip
    return (
        tx.ts,
        amount,
        -1 if country is None else ord(country[0]) * 26 + ord(country[1]) - 65 * 27,
        -1 if tx.mcc is None else tx.mcc,
        -1 if tx.channel is None else CHANNEL_CODES[tx.channel],
        crc32(tx.card_id.encode()),
        crc32(tx.merchant_id.encode()),
        -1 if device is None else crc32(device.encode()),
        -1 if ip is None else crc32(ip.encode()),
        -1 if tx.lat is None else round(tx.lat * 1e6) + 90_000_000,
        -1 if tx.lon is None else round(tx.lon * 1e6) + 180_000_000,
    )


def encode_many(txs: Sequence[Transaction], plan: Plan) -> Int64s:
    """int64 (n, len(COLUMNS)), C-contiguous. Raises InvalidTransaction as encode does."""
    return np.array([encode(tx, plan.currencies) for tx in txs], dtype=np.int64)
