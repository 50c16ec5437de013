"""The order of examples: within a source by hash, between sources by weight. Every size is a prefix of it.

`harness.data.select` may put those of a source into another order before they are dealt.
"""

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from harness.artifact import build_once, cache_dir
from harness.data.table import Array, Table, mapped

LARGE = 50_000  # rows from which an order is kept on disk; it takes a microsecond a row
_RULE = 1  # of the order on disk


def deal(orders: Sequence[tuple[Array, Array]], weights: Sequence[Fraction]) -> tuple[Array, Array]:
    """(source, row) of every example, as two arrays, from (rows, hashes) of each source in its own order.

    Sources are dealt by weight: the r-th example of a source with weight w stands at (r + 1/2) / w, so each prefix
    holds the sources in the ratio of their weights, to within one example for two or three sources and half their
    number for more, until a source runs out. Where two stand at the same place, the smaller hash goes first.
    """
    source = np.repeat(np.arange(len(orders), dtype=np.uint16), [len(rows) for rows, _ in orders])
    if len(orders) == 1:
        return source, orders[0][0]
    rows = np.concatenate([rows for rows, _ in orders])
    keys = np.concatenate([keys for _, keys in orders])
    places = np.concatenate([_places(len(own), weight) for (own, _), weight in zip(orders, weights, strict=True)])
    order = _sort(np.concatenate([places, keys], axis=1))
    return source[order], rows[order]


def _places(rows: int, weight: Fraction) -> Array:
    """(rows, 3) integers that sort, from left to right, as (r + 1/2) / weight does, exactly.

    Twice the place is (2r + 1) d / n for the weight n / d: its whole part and the first 88 binary digits of the rest.
    Weights lie between 1e-6 and 1e6 and d below 1e6, so n is below 2^40, two unequal places lie over 2^-80 apart, and
    nothing here is over 2^63.
    """
    n, d = weight.as_integer_ratio()
    whole, rest = np.divmod(np.arange(1, 2 * rows, 2, dtype=np.int64) * d, n)
    digits = []
    for _ in range(4):
        digit, rest = np.divmod(rest << 22, n)
        digits.append(digit)
    return np.stack([whole, digits[0] << 22 | digits[1], digits[2] << 22 | digits[3]], axis=1).astype(np.uint64)


def hashed(table: Table, seed: int) -> tuple[Array, Array]:
    """The table's rows in the order of sha256("seed:id"), and these hashes in that order, (rows, 4) words each."""
    if len(table) < LARGE:
        return _hashed(table, seed)
    folder = cache_dir() / "orders" / f"{table.content[:32]}-{seed}-{_RULE}"

    def write(scratch: Path) -> None:
        rows, keys = _hashed(table, seed)
        np.save(scratch / "rows.npy", rows)
        np.save(scratch / "keys.npy", keys)

    build_once(folder, write)
    return mapped(folder / "rows.npy"), mapped(folder / "keys.npy")


def _hashed(table: Table, seed: int) -> tuple[Array, Array]:
    digests = bytearray()
    for start in range(0, len(table), LARGE):
        ids = table.ids[start : start + LARGE].tobytes().hex()
        for at in range(0, len(ids), 64):
            digests += hashlib.sha256(f"{seed}:{ids[at : at + 64]}".encode()).digest()
    keys = np.frombuffer(digests, ">u8").reshape(-1, 4).astype(np.uint64)
    order = _sort(keys)
    return order.astype(np.uint32), keys[order]


def _sort(keys: Array) -> Array:
    """The stable order of the rows of `keys`, compared from left to right. Later columns only count for equal rows."""
    few = keys[:, :-3]  # of a hash the first word almost always settles it
    order = np.lexsort(few.T[::-1])
    sorted_ = few[order]
    if len(keys) > 1 and (sorted_[1:] == sorted_[:-1]).all(axis=1).any():
        return np.lexsort(keys.T[::-1])
    return order
