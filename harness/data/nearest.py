"""The nearest of some texts to another, by Okapi BM25 (Robertson and Zaragoza 2009, k1 = 1.5, b = 0.75)."""

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

K1, B = 1.5, 0.75
_WORD = re.compile(r"\w+")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


class Nearest:
    """``Nearest(texts)(question, count)``: the places of the `count` best, the best first; of equals the earlier."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = len(texts)
        counts = [Counter(_words(text)) for text in texts]
        lengths = [count.total() for count in counts]
        mean = sum(lengths) / max(1, len(lengths))
        holding: dict[str, list[tuple[int, float]]] = defaultdict(list)  # of a word: text, its saturated frequency
        for number, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            for word, times in count.items():
                weight = times * (K1 + 1) / (times + K1 * (1 - B + B * length / mean))
                holding[word].append((number, weight))
        self._holding = dict(holding)

    def __call__(self, question: str, count: int) -> list[int]:
        scores = [0.0] * self._texts
        for word in sorted(set(_words(question))):  # sorted, so that sums are the same in every process
            found = self._holding.get(word, [])
            rarity = math.log(1 + (self._texts - len(found) + 0.5) / (len(found) + 0.5))
            for number, weight in found:
                scores[number] += rarity * weight
        return heapq.nsmallest(count, range(self._texts), key=lambda number: (-scores[number], number))
