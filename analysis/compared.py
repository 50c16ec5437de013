"""Bases and methods compared, in the words and cells of a page: who leads and why, and which differences stand.

Nothing is estimated here: numbers are those of `analysis.base_comparison` and `analysis.paired`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import base_comparison, paired
from analysis.base_comparison import SUITE, Ranking, Standing
from analysis.elicitation import Sampled, examples
from analysis.paired import Comparison
from analysis.sample import Estimate
from analysis.words import count

NAMED = 5  # differences that a sentence names
SHOWN = 60  # rows of each table of differences; all are in the file beside the page
SIGNED = "{:+.2f}".format
NO_LAW = Estimate(why="no gain that is sure, so no law was sought")
NO_SUITE = Estimate(why="an average of tasks has no law of its own")


@dataclass(frozen=True)
class Told:
    """An estimate in a cell of a table: its value, and below it its interval or why there is none."""

    value: str
    beside: str = ""


@dataclass(frozen=True)
class BaseRow:
    """One base on one task; the table has a row for each."""

    where: str  # task, method and data
    opens: bool  # the first of its task, method and data
    base: str
    first: Told  # its probability of being first, and the places that hold 95%
    final: Told
    start: Told
    gain: Told
    half: Told
    ninety: Told
    head_start: Told
    asymptote: Told


@dataclass(frozen=True)
class Pairs:
    """Differences that Holm's correction counts as compared together."""

    kind: str  # between what: methods, or bases
    made: tuple[Comparison, ...]  # the surest first

    @property
    def tests(self) -> int:
        return sum(not np.isnan(c.p) for c in self.made)

    def words(self) -> str:
        """How many stand and which, in a sentence or two."""
        clear = [c for c in self.made if c.clear]
        said = f"Between {self.kind}: of {count(self.tests, 'difference')} tested together " if self.tests else ""
        said += {0: "none stands", 1: "one stands"}.get(len(clear), f"{len(clear)} stand") if self.tests else ""
        if clear:
            more = f"; and {len(clear) - NAMED} more" * (len(clear) > NAMED)
            said += ": " + "; ".join(map(_better, clear[:NAMED])) + more
        said += "." * bool(self.tests)
        if unknown := len(self.made) - self.tests:
            said += f" Of {count(unknown, 'difference')} between {self.kind} nothing is known of the noise."
        return said.strip()

    def rows(self) -> list[dict[str, Any]]:
        """Cells of the page's table."""
        return [
            {
                "pair": f"{c.one} less {c.other}",
                "where": f"{c.task}, {c.where}",
                "size": f"{c.size:,}",
                "difference": told(c.difference, "{:+.3f}".format),
                "p": "" if np.isnan(c.adjusted) else "< 0.0001" if c.adjusted < 1e-4 else f"{c.adjusted:.2g}",
                "stands": "yes" if c.clear else "no",
                "how": "item by item" if c.paired else "items apart",
            }
            for c in self.made[:SHOWN]
        ]


def _better(c: Comparison) -> str:
    best, worse = (c.one, c.other) if c.difference.value > 0 else (c.other, c.one)
    return f"{best} over {worse} by {abs(c.difference.value):.2f} ({c.task}, {c.where}, {c.size:,} examples)"


@dataclass(frozen=True)
class Compared:
    """What a page shows of bases side by side."""

    bases: tuple[BaseRow, ...] = ()
    leads: tuple[str, ...] = ()  # a sentence for each ranking
    unranked: tuple[str, ...] = ()  # what cannot be compared, and why
    pairs: tuple[Pairs, ...] = ()

    def table(self) -> pd.DataFrame:
        """Every difference at full precision."""
        return pd.DataFrame(
            {
                "between": pairs.kind, "task": c.task, "measure": c.ruler, "where": c.where, "size": c.size,
                "one": c.one, "other": c.other, "difference": c.difference.value, "low": c.difference.low,
                "high": c.difference.high, "p": c.p, "p_holm": c.adjusted, "tests": pairs.tests, "by_item": c.paired,
            }
            for pairs in self.pairs
            for c in pairs.made
        )  # fmt: skip


def compared(curves: Sequence[Sampled], asymptotes: Mapping[tuple[str, ...], Estimate]) -> Compared:
    """`asymptotes` by a series' key; where a curve has none, no law was sought."""
    averages = base_comparison.suite(curves)
    made = [*base_comparison.rankings(curves), *base_comparison.rankings(averages)]
    unranked = base_comparison.unranked(curves)
    if len({ranking.task for ranking in made}) > 1 and not averages:
        unranked.append(
            "There is no average of the tasks: it takes tasks that every base was scored on with the same cells, item "
            "by item, as shares of right answers."
        )
    return Compared(
        bases=tuple(row for ranking in made for row in _rows(ranking, asymptotes)),
        leads=tuple(f"{ranking.where}: {ranking.lead_words()}" for ranking in made),
        unranked=tuple(unranked),
        pairs=tuple(
            Pairs(kind, tuple(sorted(found, key=lambda c: (np.isnan(c.p), c.p, c.where))))
            for kind, found in (("bases", paired.bases(curves)), ("methods", paired.methods(curves)))
            if found
        ),
    )


def _rows(ranking: Ranking, asymptotes: Mapping[tuple[str, ...], Estimate]) -> list[BaseRow]:
    def number(n: float) -> str:
        return examples(n, ranking.sizes)

    def end(s: Standing) -> Estimate:
        return NO_SUITE if ranking.task == SUITE else asymptotes.get(s.key, NO_LAW)

    return [
        BaseRow(
            where=f"{ranking.where}, {s.size:,} examples",
            opens=i == 0,
            base=s.base,
            first=Told(f"{s.ranks[0]:.2f}", _places(s)),
            final=told(s.final),
            start=told(s.start),
            gain=told(s.gain, SIGNED),
            half=told(s.half, number),
            ninety=told(s.ninety, number),
            head_start=Told("none", s.head_start.why) if s.head_start.why else told(s.head_start, number),
            asymptote=told(end(s)),
        )
        for i, s in enumerate(ranking.standings)
    ]


def _places(s: Standing) -> str:
    low, high = s.places
    return f"place {low}" if low == high else f"places {low} to {high}"


def told(estimate: Estimate, write: Callable[[float], str] = "{:.2f}".format) -> Told:
    if estimate.why:
        return Told("cannot be told", estimate.why)
    if np.isnan(estimate.low):
        return Told(write(estimate.value), "noise not known")
    return Told(write(estimate.value), f"[{write(estimate.low)}, {write(estimate.high)}]")
