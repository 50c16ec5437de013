"""What was trained on twice, and what is asked that was trained on. Both are told and nothing is removed for it.

Texts are the same if they are letter for letter, up to case and spacing. A question put in other words, or wrapped in
another prompt, is not found: a count of 0 says that nothing was copied outright, no more.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from harness.data.subset import Subset

SHORTEST = 20  # characters of an item's field by which it is known; a shorter one may well be a common answer


def mark(text: str) -> bytes:
    """Equal for texts that count as the same."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8", "replace")).digest()[:12]


def copies(subset: Subset) -> int:
    """How many examples have the very turns of another one before them; of any source."""
    names = list(subset.tables.values())
    lines = (names[source].line(int(row)) for source, row in zip(subset.source, subset.row, strict=True))
    return len(subset) - len({hashlib.sha256(line).digest() for line in lines})


def user_turns(subset: Subset) -> set[bytes]:
    """The marks of all that users say in the examples."""
    return {mark(turn["content"]) for example in subset for turn in example.messages if turn["role"] == "user"}


def marks_of(doc: Mapping[str, Any], question: Any) -> set[bytes]:
    """By what an evaluation's item would be known among the users' turns: what it asks, and its own longer texts."""
    own = [value for value in doc.values() if isinstance(value, str) and len(value) >= SHORTEST]
    return {mark(text) for text in [*own, *([question] if isinstance(question, str) else [])]}
