"""Many token sequences as a few arrays, in memory or memory-mapped, that hand out each one when it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from harness.data.chat import Tokens
from harness.data.table import Array

CHUNK = 2**20  # sequences


@dataclass(frozen=True, eq=False)
class Store:
    """Uncut sequences, end to end."""

    ids: Array  # (tokens,)
    learned: Array  # (tokens,) bool
    bounds: Array  # (sequences + 1,): sequence i is [bounds[i], bounds[i + 1])
    target: Array  # (sequences,): place of its first learned token that has one before it; its length if there is none
    refused: dict[int, str] = field(default_factory=dict)  # sequences that could not be made, and why; they are empty


class TokenSequences(Sequence[Tokens]):
    """Sequences out of `stores`, cut at `max_length` tokens. What is asked of all of them at once is an array:

    `lengths`, in tokens; `truncated`, whether it was cut; `answered`, whether anything of it is a target, that is, it
    was not cut before its answer begins. With `windows` none is cut: a longer one becomes several of at most
    `max_length`, each beginning with the last token of the one before, so that every token but the first is predicted
    once.
    """

    def __init__(
        self, stores: Sequence[Store], store: Array, place: Array, max_length: int, *, windows: bool = False
    ) -> None:
        """Sequence i is the one at ``place[i]`` of ``stores[store[i]]``."""
        self._stores, self._store = list(stores), store
        self._start, whole = (np.empty(len(place), np.int64) for _ in range(2))
        answered = np.empty(len(place), bool)
        for begin in range(0, len(place), CHUNK):  # of ten million at once, each intermediate array is 80 MB
            here = slice(begin, begin + CHUNK)
            for number, of in enumerate(self._stores):
                mine = store[here] == number
                rows = place[here][mine].astype(np.int64)
                start = of.bounds[rows]
                length = of.bounds[rows + 1] - start
                self._start[here][mine], whole[here][mine] = start, length
                answered[here][mine] = of.target[rows] < np.minimum(length, max_length)
        if windows:
            step = max_length - 1
            count = np.maximum(1, -(-(whole - 1) // step))
            source = np.repeat(np.arange(len(place)), count)
            offset = (np.arange(len(source)) - np.repeat(np.cumsum(count) - count, count)) * step
            self._store, self._start = store[source], self._start[source] + offset
            whole = np.minimum(whole[source] - offset, max_length)
            answered = whole > 1
        self.lengths = np.minimum(whole, max_length)
        self.truncated = whole > max_length
        self.answered = answered

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Tokens: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tokens]: ...
    def __getitem__(self, index: int | slice) -> Tokens | list[Tokens]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        store, start = self._stores[self._store[index]], self._start[index]
        here = slice(start, start + self.lengths[index])
        return Tokens(store.ids[here].tolist(), store.learned[here].tolist(), bool(self.truncated[index]))
