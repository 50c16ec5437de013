"""Two curves at one size, item by item: what differs between methods, between bases, and from end to end of a curve.

The difference of two models on the same items has less noise than either score, as hard items are hard for both. Its
standard error is that of the items' mean differences, summed within clusters (Miller 2024, arXiv:2411.00640), joined
with the noise of the runs of both sides (`analysis.sample.Squares`; run k of one side has nothing to do with run k of
the other); Student's t with Satterthwaite's degrees of freedom. Of all comparisons of one call p-values are corrected
by Holm (1979, Scand. J. Stat. 6:65), so that the chance of even one false difference among them is 5%. Where all runs
of a size had the same examples, what those add is not in it.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit

from analysis.elicitation import Sampled, shown_variants
from analysis.points import LEVEL, ruler
from analysis.sample import Estimate, Point, Series, Squares
from harness.items import Asked


@dataclass(frozen=True)
class Comparison:
    """The first less the second, so that up is better."""

    one: str
    other: str
    where: str  # what both have in common
    task: str
    ruler: str  # metric and filter
    difference: Estimate
    p: float  # two-sided; NaN where nothing is known of the noise
    paired: bool  # item by item
    size: int = 0  # examples that both had; 0 where they differ in that
    adjusted: float = np.nan  # p by Holm, over all comparisons made together

    @property
    def clear(self) -> bool:
        return self.adjusted < 1 - LEVEL

    def words(self) -> str:
        said, task = self.difference.words("{:+.3f}".format), f"{self.task}, {self.where}"
        task += f", {self.size:,} examples" * bool(self.size)
        if np.isnan(self.p):
            return f"{task}: {self.one} less {self.other} is {said}; nothing is known of its noise."
        kind = "is better than" if self.difference.value > 0 else "is worse than"
        kind = kind if self.clear else "cannot be told from"
        p = "p < 0.0001" if self.adjusted < 1e-4 else f"p = {self.adjusted:.2g}"
        apart = "" if self.paired else ", not item by item"
        return f"{task}: {self.one} {kind} {self.other}: {said}{apart}, {p} among all compared."


@dataclass(frozen=True)
class Side:
    """One of the two models compared."""

    name: str
    series: Series
    size: int  # 0: the untouched base

    @property
    def point(self) -> Point:
        point = self.series.points[list(self.series.sizes).index(self.size)] if self.size else self.series.start
        assert point is not None
        return point

    def noise(self) -> tuple[float, float]:
        """Variance that the runs add to the score, and its degrees of freedom; none for the untouched base."""
        squares = Squares.of(list(self.series.points)) if self.size else None
        if squares is None:
            return 0.0, np.inf
        i = list(self.series.sizes).index(self.size)
        return float(squares.seed_sd()[i] ** 2 / len(self.point.runs)), float(squares.df[i])


def methods(curves: Sequence[Sampled]) -> list[Comparison]:
    """All pairs of methods and variants on one base, data and task, at the largest size that both have."""
    shown = shown_variants(curves)
    return _pairs(
        curves,
        alike=lambda s: (s.base, s.data, s.task, s.metric, s.filter),
        name=lambda s: f"{s.method} {shown[s.key]}".strip(),
        where=lambda s: f"{s.base} on {s.data}",
    )


def bases(curves: Sequence[Sampled]) -> list[Comparison]:
    """All pairs of bases with one data, method and task, at the largest size that both have.

    Settings of a method may differ where each base has one variant only: those that suit it.
    """
    shown = shown_variants(curves)
    return _pairs(
        curves,
        alike=lambda s: (s.data, s.method, shown[s.key], s.task, s.metric, s.filter),
        name=lambda s: s.base,
        where=lambda s: " ".join(filter(None, [s.method, shown[s.key], "on", s.data])),
    )


def ends(curves: Sequence[Sampled]) -> list[Comparison]:
    """Of each curve the largest size against the untouched base, and against the smallest size."""
    pairs = []
    for series in (curve.series for curve in curves if curve.series.headline):
        last, first = int(series.sizes[-1]), int(series.sizes[0])
        whole = Side(f"{last:,} examples", series, last)
        if series.start:
            pairs.append((whole, Side("the untouched base", series, 0), series.name))
        if first < last:
            pairs.append((whole, Side(f"{first:,} examples", series, first), series.name))
    return holm([compare(*pair) for pair in pairs])


def _pairs(
    curves: Sequence[Sampled],
    alike: Callable[[Series], tuple[str, ...]],
    name: Callable[[Series], str],
    where: Callable[[Series], str],
) -> list[Comparison]:
    found = []
    for a, b in itertools.combinations([curve.series for curve in curves if curve.series.headline], 2):
        both = set(a.sizes.tolist()) & set(b.sizes.tolist())
        if both and alike(a) == alike(b):
            size = max(both)
            found.append(compare(Side(name(a), a, size), Side(name(b), b, size), where(a)))
    return holm(found)


def compare(one: Side, other: Side, where: str) -> Comparison:
    """Without Holm's correction, which is for those who know what else was compared."""
    a, b, asked = one.point, other.point, one.series.asked
    better = one.series.better
    paired = asked is not None and other.series.asked is not None and asked.names == other.series.asked.names
    if paired and asked is not None and a.items is not None and b.items is not None:
        clusters = int(asked.clusters.max()) + 1
        parts = [(clustered(a.items.mean(axis=0) - b.items.mean(axis=0), asked), max(clusters - 1.0, 1.0))]
    else:
        parts = [(p.error**2, max(p.n - 1.0, 1.0)) for p in (a, b)]
    parts += [(a.made_up + b.made_up, np.inf), one.noise(), other.noise()]
    variance = sum(part for part, _ in parts)
    value = better * (a.score - b.score)
    named = one.name, other.name, where, one.series.task, ruler(one.series.metric, one.series.filter)
    size = one.size if one.size == other.size else 0
    if not variance > 0:
        return Comparison(*named, Estimate(value), np.nan, paired, size)
    df = variance**2 / max(sum(part**2 / free for part, free in parts), 1e-300)
    error = np.sqrt(variance)
    reach = float(stdtrit(df, 0.5 + LEVEL / 2)) * error
    p = 2 * float(stdtr(df, -abs(value) / error))
    return Comparison(*named, Estimate(value, value - reach, value + reach), p, paired, size)


def clustered(values: np.ndarray, asked: Asked) -> float:
    """Variance of the mean of `values` [n], which may hang together within clusters."""
    sums = np.bincount(asked.clusters, values - values.mean())
    count = len(sums)
    return float((sums**2).sum() / len(values) ** 2 * count / max(count - 1, 1))


def holm(found: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons, in order, with p-values adjusted for their number."""
    known = sorted((i for i, c in enumerate(found) if not np.isnan(c.p)), key=lambda i: found[i].p)
    made, least = list(found), 0.0
    for rank, i in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * found[i].p))
        made[i] = replace(found[i], adjusted=least)
    return made
