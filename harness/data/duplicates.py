"""Examples that repeat another one of their dataset, within a source or between two: exactly, or nearly.

Nearly: the sets of five words in a row that two examples have, all turns together, are alike (Jaccard index of at least
the threshold). MinHash (datasketch's, 128 permutations) in bands proposes pairs, and each is checked on the texts, so
that what is told is so; of pairs at the threshold about one in twenty is not proposed, of nearer ones fewer. What is
near to a near one counts as near. Of each group the example with the smallest id stays, wherever it stands in a file.

Bands are kept on disk, 8 bytes each, and compared one after the other: a million rows take less than 1 GiB.
"""

import functools
import hashlib
import importlib.metadata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from harness.artifact import build_once, cache_dir
from harness.data.embed import text_of
from harness.data.table import Array, Table, mapped
from harness.data.words import words_of
from harness.identity import fingerprint

PERMUTATIONS = 128
SHINGLE = 5  # words
FOUND = 0.94  # at least of the pairs at the threshold are proposed
FORMAT = 1  # of the bands on disk


def exact_copies(tables: Sequence[Table]) -> Array:
    """(all rows, the tables one after the other) bool: whether an example has the very turns of one before it."""
    return repeats(table.line(row) for table in tables for row in range(len(table)))


def repeats(lines: Iterable[bytes]) -> Array:
    """(lines,) bool: whether the same line came before."""
    digests = bytearray()  # of ten million lines 160 MB
    for line in lines:
        digests += hashlib.sha256(line).digest()[:16]
    marks = np.frombuffer(digests, "V16")
    repeated = np.ones(len(marks), bool)
    repeated[np.unique(marks, return_index=True)[1]] = False
    return repeated


def near_copies(tables: Sequence[Table], threshold: float, among: Array) -> Array:
    """(all rows) bool: whether an example is nearly another one, both of those `among`, of which the other one stays.

    `among` leaves exact copies out: else one could stay for which the first of its kind goes, and it goes as a copy.
    """
    width = _width(threshold)
    bands = [_bands(table, width) for table in tables]
    ids = np.concatenate([table.ids[:, :8] for table in tables]).view(">u8")[:, 0].astype(np.uint64)
    groups = _Groups(ids)
    rows = np.flatnonzero(among)
    alike = functools.partial(_alike, _Texts(tables), threshold)
    bar = tqdm(range(PERMUTATIONS // width), "near copies", unit="band", delay=2, disable=None, leave=False)
    for number in bar:
        band = np.concatenate([own[number] for own in bands])
        for one, other in _proposed(rows, band[rows], ids[rows]):
            if not groups.joined(one, other) and alike(one, other):
                groups.join(one, other)
    return groups.followers()


def _width(threshold: float) -> int:
    """Hashes a band: the most with which a pair at the threshold still shares one of the bands, in `FOUND` of cases."""
    widths = (16, 8, 4, 2)
    return next((w for w in widths if 1 - (1 - threshold**w) ** (PERMUTATIONS // w) >= FOUND), 1)


def _proposed(rows: Array, band: Array, ids: Array) -> Iterator[tuple[int, int]]:
    """Of these rows those of one hash, each with the first of them by id and with the one before it."""
    order = np.lexsort([ids, band])
    equal = band[order][1:] == band[order][:-1]
    first = -1
    for place in np.flatnonzero(equal).tolist():
        one, other = int(rows[order[place]]), int(rows[order[place + 1]])
        if not place or not equal[place - 1]:
            first = one
        yield first, other
        if one != first:
            yield one, other


class _Groups:
    """Which rows belong together; each group is known by its row of the smallest id."""

    def __init__(self, ids: Array) -> None:
        self._ids = ids
        self._above = np.arange(len(ids))

    def _head(self, row: int) -> int:
        while (above := int(self._above[row])) != row:
            self._above[row] = self._above[above]
            row = above
        return row

    def joined(self, one: int, other: int) -> bool:
        return self._head(one) == self._head(other)

    def join(self, one: int, other: int) -> None:
        a, b = self._head(one), self._head(other)
        if (self._ids[b], b) < (self._ids[a], a):
            a, b = b, a
        self._above[b] = a

    def followers(self) -> Array:
        return self._above != np.arange(len(self._above))


class _Texts:
    """The shingles of a row, the rows of all tables counted through."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        self._starts = np.cumsum([0, *map(len, tables)])
        self.shingles = functools.lru_cache(4096)(self._shingles)

    def _shingles(self, row: int) -> frozenset[int]:
        table = int(np.searchsorted(self._starts, row, side="right")) - 1
        return frozenset(_shingles(text_of(self._tables[table], row - int(self._starts[table]))).tolist())


def _alike(texts: _Texts, threshold: float, one: int, other: int) -> bool:
    a, b = texts.shingles(one), texts.shingles(other)
    common = len(a & b)
    return common >= threshold * (len(a) + len(b) - common)


def _shingles(text: str) -> Array:
    """The hashes, 32 bits, of every five words in a row; of all words where there are fewer."""
    words = words_of(text) or [text]
    each = np.fromiter((zlib.crc32(w.encode("utf-8", "replace")) for w in words), np.uint64, len(words))
    found = each[: max(1, len(each) - SHINGLE + 1)].copy()
    for ahead in range(1, min(SHINGLE, len(each))):
        found = found * np.uint64(0x9E3779B97F4A7C15) + each[ahead : ahead + len(found)]
    return np.unique(found >> np.uint64(32) ^ found & np.uint64(0xFFFFFFFF))


def _bands(table: Table, width: int) -> Array:
    """(bands, rows): a hash of each band of each row's MinHash; made once, kept on disk."""
    key = fingerprint([table.content, width, PERMUTATIONS, SHINGLE, importlib.metadata.version("datasketch"), FORMAT])
    return mapped(build_once(cache_dir() / "minhash" / key[:32], lambda at: _write(at, table, width)) / "bands.npy")


def _write(folder: Path, table: Table, width: int) -> None:
    from datasketch import MinHash

    count = PERMUTATIONS // width
    out = np.lib.format.open_memmap(folder / "bands.npy", "w+", np.uint64, (count, len(table)))
    mix = np.random.default_rng(0).integers(1, 2**63, width).astype(np.uint64) * np.uint64(2) + np.uint64(1)
    shingles = (_shingles(text_of(table, row)).tolist() for row in range(len(table)))
    hashes = MinHash.generator(shingles, num_perm=PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")
    bar = tqdm(hashes, "hashing for near copies", len(table), unit="row", delay=2, disable=None, leave=False)
    for row, one in enumerate(bar):
        words = np.asarray(one.hashvalues, np.uint64).reshape(count, width)
        words = (words ^ (words << np.uint64(17))) * mix
        out[:, row] = (words ^ (words >> np.uint64(29))).sum(axis=1)
    out.flush()
