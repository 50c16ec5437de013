"""What an instrument of `analysis.instruments` is given and gives back: evidence in, a section of the page out."""

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
