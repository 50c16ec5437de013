"""Diverse ones first, over integer vectors as `harness.data.embed` makes them: exact, so the same on every machine."""

import numpy as np
from tqdm import tqdm

from harness.data.embed import SCALE
from harness.data.table import Array

BLOCK = 512


def farthest_first(vectors: Array, count: int) -> Array:
    """k-center greedy: the first, then always the one least similar to its nearest among those before; `count` places.

    `vectors` is (n, d) float32. Time and memory traffic are n x d for each pick. Of equals the earlier one.
    """
    count = min(count, len(vectors))
    nearest = np.full(len(vectors), -np.inf, np.float32)
    picked = np.zeros(count, np.int64)
    for number in tqdm(range(count), "picking", unit="example", delay=2, disable=None, leave=False):
        place = int(nearest.argmin())
        picked[number] = place
        np.maximum(nearest, vectors @ vectors[place], out=nearest)
        nearest[place] = np.inf
    return picked


def spread(vectors: Array, similarity: float) -> Array:
    """(n,) bool: in this order, each that has a cosine below `similarity` with all that were taken before it."""
    limit = similarity * SCALE**2
    taken = np.zeros(len(vectors), bool)
    for start in tqdm(range(0, len(vectors), BLOCK), "spreading", unit="block", delay=2, disable=None, leave=False):
        block = vectors[start : start + BLOCK]
        nearest = _nearest(block, vectors, np.flatnonzero(taken))
        inside = block @ block.T
        mine: list[int] = []
        for number in range(len(block)):
            if nearest[number] < limit and not (inside[number, mine] >= limit).any():
                mine.append(number)
        taken[start + np.array(mine, np.int64)] = True
    return taken


def _nearest(block: Array, vectors: Array, taken: Array) -> Array:
    """For each of the block, its largest product with one of the taken; some thousand of these at a time."""
    nearest = np.full(len(block), -np.inf, np.float32)
    for start in range(0, len(taken), 8 * BLOCK):
        products = block @ vectors[taken[start : start + 8 * BLOCK]].T
        np.maximum(nearest, products.max(axis=1), out=nearest)
    return nearest
