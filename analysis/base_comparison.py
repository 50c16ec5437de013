"""Which base is the better one to tune: ranked with its uncertainty, a better start told from learning more and faster.

What a base ends with is its start and its gain, so a difference between two bases is the sum of two, each with an
interval. How fast it learns is another matter: the examples for half and nine tenths of its own gain. All bases answer
the same items, and draws are shared, so that ranks are counted draw by draw.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.elicitation import Sampled, crossing, examples, gain, isotonic, reached, shown_variants
from analysis.sample import DRAWS, Estimate, Point, Series, draws
from harness.items import Asked

SUITE = "average of the tasks"


@dataclass(frozen=True)
class Standing:
    """One base among those that were tuned alike."""

    base: str
    size: int  # the largest that all have
    start: Estimate
    final: Estimate
    gain: Estimate
    half: Estimate  # examples for half of its own gain
    ninety: Estimate
    head_start: Estimate  # examples after which the base with the lowest start is where this one begins
    ranks: tuple[float, ...]  # probability of being first, second, ... with `size` examples


@dataclass(frozen=True)
class Ranking:
    task: str
    method: str
    data: str
    standings: tuple[Standing, ...]  # the best first
    sizes: np.ndarray
    lead: tuple[Estimate, Estimate, Estimate] | None  # first less second: in the end, at the start, in gain

    def words(self) -> list[str]:
        number = lambda n: examples(n, self.sizes)  # noqa: E731
        first = self.standings[0]
        said = []
        for s in self.standings:
            line = f"{s.base}: {s.final.words()} with {s.size:,} examples, {s.start.words()} untouched"
            line += f"; first with a probability of {s.ranks[0]:.2f}"
            if not s.half.why:
                line += f"; half of its gain with {s.half.words(number)} examples, nine tenths {s.ninety.words(number)}"
            if not s.head_start.why:
                line += f"; where it starts, the lowest gets with {s.head_start.words(number)}"
            said.append(line + ".")
        if self.lead:
            whole, start, learned = self.lead
            sign, second = "{:+.2f}".format, self.standings[1].base
            clear = "ahead of" if whole.low > 0 else "not to be told from"
            parts = []
            for part, name in ((start, "a better start"), (learned, "learning more")):
                parts.append(f"{name} {part.words(sign)}" + ("" if part.low > 0 else " (not clear)"))
            said.append(f"{first.base} is {clear} {second}, by {whole.words(sign)}: {' and '.join(parts)}.")
        return [f"{self.task}, {self.method} on {self.data}. {line}" for line in said]


def rankings(curves: Sequence[Sampled]) -> list[Ranking]:
    """One for each task, data and method on which two bases or more were tuned and scored untouched; `suite` makes
    curves of averages, to be ranked alike."""
    wanted = [c for c in curves if c.series.headline and c.series.start is not None]
    shown = shown_variants(wanted)

    def alike(curve: Sampled) -> tuple[str, ...]:
        s = curve.series
        return s.task, s.metric, s.filter, s.data, s.method, shown[s.key]

    grouped = itertools.groupby(sorted(wanted, key=alike), key=alike)
    return [ranking for _, group in grouped if (ranking := _rank(list(group)))]


def _rank(curves: list[Sampled]) -> Ranking | None:
    shared = set.intersection(*(set(c.series.sizes.tolist()) for c in curves))
    if len(curves) < 2 or not shared:
        return None
    curves = [_until(c, max(shared)) for c in curves]
    better, size = curves[0].series.better, max(shared)
    finals = np.stack([better * c.draws.scores[:, -1] for c in curves])  # [bases, B]
    places = (-finals + 1e-9 * np.random.default_rng(0).standard_normal(finals.shape)).argsort(axis=0).argsort(axis=0)
    order = sorted(range(len(curves)), key=lambda i: -better * curves[i].series.scores[-1])
    lowest = min(curves, key=lambda c: better * _start(c)[0])
    standings = tuple(
        Standing(
            base=curves[i].series.base,
            size=size,
            start=Estimate.of(*_start(curves[i])),
            final=Estimate.of(float(curves[i].series.scores[-1]), curves[i].draws.scores[:, -1]),
            gain=gain(curves[i], curves[i].start()),
            half=reached(curves[i], 0.5, curves[i].start()),
            ninety=reached(curves[i], 0.9, curves[i].start()),
            head_start=head_start(curves[i], lowest),
            ranks=tuple(float((places[i] == place).mean()) for place in range(len(curves))),
        )
        for i in order
    )
    one, two = curves[order[0]], curves[order[1]]
    series = one.series
    return Ranking(series.task, series.method, series.data, standings, one.series.sizes, _lead(one, two))


def _until(curve: Sampled, size: int) -> Sampled:
    """The curve up to `size`."""
    kept = int(np.searchsorted(curve.series.sizes, size)) + 1
    series = replace(curve.series, sizes=curve.series.sizes[:kept], points=curve.series.points[:kept])
    return Sampled(series, replace(curve.draws, scores=curve.draws.scores[:, :kept]))


def _start(curve: Sampled) -> tuple[float, np.ndarray]:
    start = curve.start()
    assert start is not None
    return start


def _lead(one: Sampled, other: Sampled) -> tuple[Estimate, Estimate, Estimate]:
    better = one.series.better
    end = float(one.series.scores[-1] - other.series.scores[-1]), one.draws.scores[:, -1] - other.draws.scores[:, -1]
    start = _start(one)[0] - _start(other)[0], _start(one)[1] - _start(other)[1]
    learned = end[0] - start[0], end[1] - start[1]
    return tuple(Estimate.of(better * value, better * drawn) for value, drawn in (end, start, learned))  # type: ignore


def head_start(curve: Sampled, other: Sampled) -> Estimate:
    """The examples after which `other`, made monotone, is where `curve` begins; infinite: more than it was given."""
    better = curve.series.better
    level = better * np.concatenate([[_start(curve)[0]], _start(curve)[1]])
    if curve.series.base == other.series.base:
        return Estimate(why="its own start is the lowest")
    rows = better * np.vstack([other.series.scores, other.draws.scores])
    found = 10 ** crossing(np.log10(other.series.sizes), isotonic(rows), level)  # 0 for fewer than its smallest size
    return Estimate.of(found[0], found[1:])


def suite(curves: Iterable[Sampled], n: int = DRAWS, seed: int = 0) -> list[Sampled]:
    """For each base, data and method its average over the tasks that every base has, as a curve of its own.

    Leading metrics that are shares of right answers, equally weighted; only where all tasks were scored on the same
    cells and item by item. The tasks are these and no others: their choice adds no noise.
    """
    able = [c.series for c in curves if c.series.headline and _whole(c.series)]
    tasks = {base: {s.task for s in able if s.base == base} for base in {s.base for s in able}}
    common = set.intersection(*tasks.values()) if tasks else set()
    made = []
    groups: dict[tuple[str, ...], list[Series]] = {}
    for series in able:
        if series.task in common:
            groups.setdefault((series.base, series.data, series.method, series.variant), []).append(series)
    for group in groups.values():
        paths = {tuple(point.paths for point in series.points) for series in group}
        if len(group) > 1 and len(group) == len(common) and len(paths) == 1:
            average = _average(group)
            made.append(Sampled(average, draws(average, n, seed)))
    return made


def _whole(series: Series) -> bool:
    points = [*series.points, *([series.start] if series.start else [])]
    return series.asked is not None and series.start is not None and all(p.proportion for p in points)


def _average(group: list[Series]) -> Series:
    first, askeds = group[0], [s.asked for s in group if s.asked]
    ahead = np.cumsum([0, *(int(a.clusters.max()) + 1 for a in askeds)])
    asked = Asked(
        names=tuple(f"{s.task}/{name}" for s, a in zip(group, askeds, strict=True) for name in a.names),
        clusters=np.concatenate([a.clusters + k for a, k in zip(askeds, ahead, strict=False)]),
        targets=tuple(target for a in askeds for target in a.targets),
        chance=float(np.mean([a.chance for a in askeds])),
    )
    points = [_mean([s.points[i] for s in group]) for i in range(len(first.sizes))]
    start = _mean([s.start for s in group if s.start])
    return replace(first, task=SUITE, metric="mean", filter="none", points=tuple(points), start=start, asked=asked)


def _mean(points: list[Point]) -> Point:
    """Items are centred on their task's score, so that resampling them all together keeps each task's weight."""
    runs = np.mean([point.runs for point in points], axis=0)
    total = sum(point.n for point in points)
    parts = [
        runs[:, None] + (p.items - p.runs[:, None]) * total / (len(points) * p.n) for p in points if p.items is not None
    ]
    extra = sum(point.made_up for point in points) / len(points) ** 2
    error = float(np.sqrt(sum(point.error**2 for point in points)) / len(points))
    return Point(runs, error, total, np.concatenate(parts, axis=1), False, points[0].paths, extra)
