"""Training examples that hold what an evaluation asks: some words in a row (13, as of GPT-3 on), or a whole question.

Words are compared up to case and punctuation, and never across the border of two turns. What stands in more than
`COMMON` items of an evaluation is its form and tells none of them. A question put in other words is not found.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from harness.artifact import build_once, cache_dir
from harness.cell import Message
from harness.data.order import LARGE
from harness.data.table import Array, Table, mapped
from harness.data.words import mark, words_of
from harness.identity import fingerprint

COMMON = 10
FORMAT = 1  # of what is kept on disk


class Items(Protocol):
    """An evaluation, as far as its items' texts go."""

    def texts(self) -> list[list[str]]:
        """What each item asks and says."""
        ...


class Index:
    """An evaluation's items by what they would be known by in other texts."""

    def __init__(self, items: Sequence[Sequence[str]], words: int) -> None:
        self.identity = fingerprint([[list(texts) for texts in items], words, COMMON, FORMAT])
        self._words, self._half = words, (words + 1) // 2
        self._grams: dict[str, set[int]] = defaultdict(set)
        self._whole: dict[bytes, set[int]] = defaultdict(set)
        halves: dict[str, set[int]] = defaultdict(set)
        for number, texts in enumerate(items):
            for text in texts:
                self._whole[mark(text)].add(number)
                said = words_of(text)
                for gram in _grams(said, words):
                    self._grams[gram].add(number)
        self._grams = {gram: found for gram, found in self._grams.items() if len(found) <= COMMON}
        # Of so many words in a row, half as many stand at one of every half-th place: most texts need no closer look.
        for gram in self._grams:
            halves.update((half, set()) for half in _grams(gram.split(" "), self._half))
        self._halves = frozenset(halves)

    def found_in(self, turns: Sequence[Message]) -> set[int]:
        """The items of which a turn has the words, or which a user asks."""
        found: set[int] = set()
        for turn in turns:
            if turn["role"] == "user":
                found |= self._whole.get(mark(turn["content"]), set())
            said = words_of(turn["content"])
            starts = range(0, len(said) - self._half + 1, self._half)
            if any(" ".join(said[at : at + self._half]) in self._halves for at in starts):
                found = found.union(*(self._grams.get(gram, ()) for gram in _grams(said, self._words)))
        return found


def _grams(words: Sequence[str], count: int) -> Iterable[str]:
    return (" ".join(words[at : at + count]) for at in range(len(words) - count + 1))


def in_table(table: Table, index: Index) -> Array:
    """(found, 2): a row and an item that it holds; of a large table kept on disk."""
    if len(table) < LARGE:
        return in_rows(table, range(len(table)), index)
    key = fingerprint([table.content, index.identity])

    def write(folder: Path) -> None:
        np.save(folder / "pairs.npy", in_rows(table, range(len(table)), index))

    return mapped(build_once(cache_dir() / "contamination" / key[:32], write) / "pairs.npy")


def in_rows(table: Table, rows: Sequence[int], index: Index) -> Array:
    """The same of some rows."""
    bar = tqdm(rows, "words of evaluations", unit="row", delay=2, disable=None, leave=False)
    pairs = [(row, item) for row in bar for item in index.found_in(table.messages(row))]
    return np.array(pairs, np.int64).reshape(-1, 2)
