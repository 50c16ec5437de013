"""Which of a dataset's examples are used and which come first: fields of a cell's `data`."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Select:
    """Which examples of a source come first. Every rule nests; what it leaves open, the hash order decides."""

    rule: str = "random"  # | longest | score | diversity | quality_diversity | stratified
    column: str = ""  # of the rows: their score or, for stratified, the value whose examples take turns
    scorer: dict[str, Any] | None = None  # in place of a column of scores: `_target_` of a callable, turns -> number
    embed: dict[str, Any] | None = (
        None  # for diversity: `_target_` of what gives vectors; None: harness.data.embed.Words
    )
    candidates: int = 20_000  # so many, in the order of hash or score, diversity is sought among; the others follow
    picks: int = 5_000  # rule=diversity: so many of them are picked; the others follow by hash
    similarity: float = 0.5  # rule=quality_diversity: the cosine from which an example is too near to a better one;
    # word vectors are seldom nearer than that (DEITA has 0.9, for hidden states)


@dataclass
class Dedupe:
    """What becomes of examples that repeat another one of the same data: report | drop | fail."""

    exact: str = "report"
    near: str = "off"  # or one of these, see harness/data/duplicates.py
    threshold: float = 0.8  # Jaccard index of their five-word sequences, from which two are near


@dataclass
class Contamination:
    """What becomes of examples that hold what one of the cell's evaluations asks: report | drop | fail."""

    policy: str = "report"
    words: int = 13  # so many in a row, in an example and in an item, are no coincidence
    against: dict[str, Any] = field(default_factory=dict)  # of drop and fail: the evaluations that the cell began with
