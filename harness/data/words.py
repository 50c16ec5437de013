"""When two texts say the same: up to case and spacing, or by their words."""

import hashlib
import re

_WORD = re.compile(r"\w+")


def mark(text: str) -> bytes:
    """Equal for texts that count as the same."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8", "replace")).digest()[:12]


def words_of(text: str) -> list[str]:
    """Its words, up to case, without punctuation."""
    return _WORD.findall(text.casefold())
