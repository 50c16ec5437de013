"""Examples as vectors, by which the diverse ones are told.

Vectors are kept as whole numbers, of length `SCALE`: every sum in a product of two of them is a whole number below
2^24, which float32 holds exactly, so products, and the orders made from them, have the same bits on every machine.
"""

import hashlib
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from tqdm import tqdm

from harness.artifact import build_once, cache_dir
from harness.data.table import Array, Table, mapped
from harness.data.words import words_of
from harness.identity import fingerprint

SCALE = 4000
FORMAT = 1  # of the vectors on disk; raise it with a change that makes others


class Embedder(Protocol):
    def identity(self) -> str:
        """What the vectors depend on beside the texts."""
        ...

    def embed(self, texts: Iterable[str]) -> Array:
        """(texts, d) floats; d below 8,192."""
        ...


def vectors(table: Table, rows: Array, embedder: Embedder) -> Array:
    """(rows, d) float32 whole numbers: all turns of each row as a vector of length about `SCALE`; kept on disk.

    `rows` in any order share what is kept, so a table that is embedded whole is embedded once for all seeds.
    """
    order = np.argsort(rows)
    wanted = rows[order]
    which = hashlib.sha256(np.asarray(wanted, np.uint32).tobytes()).hexdigest()
    key = fingerprint([table.content, which, embedder.identity(), FORMAT])

    def write(folder: Path) -> None:
        texts = (text_of(table, int(row)) for row in wanted)
        bar = tqdm(texts, "embedding", len(wanted), unit="example", delay=2, disable=None, leave=False)
        np.save(folder / "vectors.npy", whole(embedder.embed(bar)))

    found = mapped(build_once(cache_dir() / "vectors" / key[:32], write) / "vectors.npy")
    result = np.empty(found.shape, np.float32)
    result[order] = found
    return result


def text_of(table: Table, row: int) -> str:
    return "\n".join(turn["content"] for turn in table.messages(row))


def whole(floats: Array) -> Array:
    """(n, d) int16: each row at length `SCALE`, rounded; a row of zeros stays one."""
    result = np.empty(floats.shape, np.int16)
    for start in range(0, len(floats), 4096):
        some = floats[start : start + 4096].astype(np.float64)
        length = np.sqrt(np.square(some).sum(axis=1, keepdims=True))
        result[start : start + 4096] = np.rint(some / np.maximum(length, 1e-30) * SCALE)
    return result


class Words:
    """Which words and pairs of neighbours a text has, the rare ones weighing more, hashed to `DIMENSIONS` with a sign.

    TF-IDF under a random projection (cosines to within about 0.05). It needs no model, and its weights are whole
    numbers made without logarithms, so vectors are the same everywhere. It knows words, not meanings: two ways to ask
    one thing may be far apart, and in a script that writes no spaces a clause is one word.
    """

    DIMENSIONS: ClassVar[int] = 512

    def identity(self) -> str:
        return f"words-{self.DIMENSIONS}-1"

    def embed(self, texts: Iterable[str]) -> Array:
        features = [_features(text) for text in texts]
        having = np.zeros(2**24, np.int32)  # how many texts have a feature, by the first bits of its hash
        for feature in features:
            having[np.unique(feature >> np.uint64(40))] += 1
        weights = _rarity(having, len(features))
        found = np.zeros((len(features), self.DIMENSIONS), np.float32)
        for number, feature in enumerate(features):
            sign = np.where(feature & np.uint64(512), -1.0, 1.0)
            dimension = (feature & np.uint64(511)).astype(np.int64)
            weight = weights[having[feature >> np.uint64(40)]]
            found[number] = np.bincount(dimension, sign * weight, self.DIMENSIONS)
        return found


def _features(text: str) -> Array:
    """The hashes of a text's different words and pairs; of the whole text where it has no word."""
    words = words_of(text) or [text]
    single = np.fromiter((zlib.crc32(w.encode("utf-8", "replace")) for w in words), np.uint64, len(words))
    pairs = single[:-1] * np.uint64(0x9E3779B97F4A7C15) + single[1:] + np.uint64(1)
    return _mixed(np.unique(np.concatenate([single, pairs])))


def _mixed(numbers: Array) -> Array:
    """splitmix64's finaliser, which spreads every bit over all of them."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _rarity(having: Array, texts: int) -> Array:
    """(texts + 1,): the weight of what so many texts have, 1 + floor(8 log2((1 + texts) / (1 + count))), exactly.

    What one text alone has likens it to no other, and counts nothing.
    """
    weights, most = np.zeros(texts + 1), (1 + texts) ** 8
    for count in np.flatnonzero(np.bincount(having)).tolist():
        weights[count] = (most // (1 + count) ** 8).bit_length() if count > 1 else 0
    return weights
