"""Was it already there? A section of the page for each instrument that looks inside a gain, or why it is absent.

An instrument reads what finished cells kept and says what it finds, in sentences with intervals, tables and figures.
Each is a file of its own with one function, ``section(evidence) -> Section``; here they are gathered in the page's
order.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from harness.items import Items


@dataclass(frozen=True)
class Evidence:
    """What an instrument can look at: `frame` is `harness.store.load(root)`, probes' scores included, and `items` its
    answers (`harness.items.load_items`)."""

    root: Path
    frame: pd.DataFrame
    items: Items

    @property
    def plain(self) -> pd.DataFrame:
        """The tasks' own scores, without what probes left."""
        return self.frame[self.frame["probe"].isna() | (self.frame["probe"] == "")]

    def of_probe(self, name: str) -> pd.DataFrame:
        """The rows of finished cells that a probe of this class left; `harness.items.answers` has their items."""
        return self.frame[(self.frame["probe"] == name) & (self.frame["status"] == "ok")]


@dataclass(frozen=True)
class Table:
    """Cells are short texts, ready to be read; escaped by the page."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure of its own files, ``<stem>.png`` and ``.svg``; title and reading are text of ours."""

    stem: str
    title: str
    reading: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """`absent` is why there is nothing to say and how to mend it; then all but the title is empty.

    `data` are the numbers behind it at full precision: a CSV each beside the page, by its stem.
    """

    title: str  # the question, e.g. "Does sampling find what greedy answers do not?"
    lines: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    data: dict[str, pd.DataFrame] = field(default_factory=dict)
    absent: str = ""


Instrument = Callable[[Evidence], Section]


def instruments() -> tuple[Instrument, ...]:
    """In the page's order."""
    # Each imports this file.
    from analysis import anatomy, arena, bits, forgetting, new_knowledge, pass_at_k, perplexity, shift

    looks = (pass_at_k, shift, arena, anatomy, perplexity, forgetting, new_knowledge, bits)
    return tuple(look.section for look in looks)


def sections(evidence: Evidence) -> list[Section]:
    """Of all instruments, present or absent, in the page's order."""
    return [instrument(evidence) for instrument in instruments()]
