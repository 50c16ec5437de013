"""What was trained on twice, and what is asked that was trained on: told of the examples that a cell takes.

Texts are the same if they are letter for letter, up to case and spacing. A question put in other words, or wrapped in
another prompt, is not found: a count of 0 says that nothing was copied outright, no more. `overlap` also finds what is
wrapped, by words in a row. What is dropped for it, and when, is for `harness.data.screen`.
"""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from harness.data.contamination import Index, in_rows, in_table
from harness.data.duplicates import repeats
from harness.data.order import LARGE
from harness.data.subset import Subset
from harness.data.words import mark

SHORTEST = 20  # characters of an item's field by which it is known; a shorter one may well be a common answer


def copies(subset: Subset) -> int:
    """How many examples have the very turns of another one before them; of any source."""
    names = list(subset.tables.values())
    lines = (names[source].line(int(row)) for source, row in zip(subset.source, subset.row, strict=True))
    return int(repeats(lines).sum())


def users_say(subset: Subset, marks: Container[bytes]) -> set[bytes]:
    """Which of the `marks` are of what users say in the examples."""
    said = (mark(turn["content"]) for example in subset for turn in example.messages if turn["role"] == "user")
    return {one for one in said if one in marks}


def texts_of(doc: Mapping[str, Any], question: Any) -> list[str]:
    """By what an evaluation's item would be known among the examples: what it asks, and its own longer texts."""
    own = [value for value in doc.values() if isinstance(value, str) and len(value) >= SHORTEST]
    return [*own, *([question] if isinstance(question, str) else [])]


def overlap(subset: Subset, index: Index) -> dict[str, int]:
    """``examples`` of the subset that hold an item's words, and ``items`` whose words stand in one."""
    examples, items = 0, set[int]()
    for number, table in enumerate(subset.tables.values()):
        mine = subset.row[subset.source == number]
        if len(table) >= LARGE and len(mine) > len(table) // 20:  # what is found for one size serves them all
            pairs = in_table(table, index)
            pairs = pairs[np.isin(pairs[:, 0], mine)]
        else:
            pairs = in_rows(table, mine.tolist(), index)
        examples += len(np.unique(pairs[:, 0]))
        items |= set(pairs[:, 1].tolist())
    return {"examples": examples, "items": len(items)}
