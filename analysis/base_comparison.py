"""Which base is the better one to tune: ranked with its uncertainty, a better start told from learning more and faster.

What a base ends with is its start and its gain, so a difference between two bases is the sum of two, each with an
interval. How fast it learns is another matter: the examples for half and nine tenths of its own gain. All bases answer
the same items, and draws are shared, so that ranks are counted draw by draw.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.elicitation import Sampled, crossing, examples, gain, isotonic, reached, shown_variants
from analysis.points import LEVEL, names
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
    key: tuple[str, ...]  # of its curve

    @property
    def places(self) -> tuple[int, int]:
        """The first and the last place that it may have: those between the tails of 2.5% of the draws each."""
        tail, upto = (1 - LEVEL) / 2, np.cumsum(self.ranks)
        return int(np.argmax(upto > tail)) + 1, int(np.argmax(upto >= 1 - tail - 1e-9)) + 1


@dataclass(frozen=True)
class Ranking:
    task: str
    method: str
    variant: str  # what tells it from others
    data: str
    standings: tuple[Standing, ...]  # the best first
    sizes: np.ndarray
    lead: tuple[Estimate, Estimate, Estimate]  # first less second: in the end, at the start, in gain
    faster: Estimate  # the second's examples for half of its own gain, over the first's

    @property
    def where(self) -> str:
        return " ".join(filter(None, [f"{self.task}, {self.method}", self.variant, "on", self.data]))

    def words(self) -> list[str]:
        number = lambda n: examples(n, self.sizes)  # noqa: E731
        said = []
        for s in self.standings:
            line = f"{s.base}: {s.final.words()} with {s.size:,} examples, {s.start.words()} untouched"
            line += f"; first with a probability of {s.ranks[0]:.2f}"
            if not s.half.why:
                line += f"; half of its gain with {s.half.words(number)} examples, nine tenths {s.ninety.words(number)}"
            if not s.head_start.why:
                line += f"; where it starts, the lowest gets with {s.head_start.words(number)}"
            said.append(line + ".")
        return [f"{self.where}. {line}" for line in [*said, self.lead_words()]]

    def lead_words(self) -> str:
        """The first against the second: a better start, or learning more, or faster?"""
        whole, start, learned = self.lead
        first, second = self.standings[0].base, self.standings[1].base
        sign = "{:+.2f}".format
        clear = "ahead of" if whole.low > 0 else "not to be told from"
        parts = f"{_turned(start, 'a better start', 'a worse start', 'its start', sign)} and "
        parts += _turned(learned, "learning more", "learning less", "its gain", sign)
        return f"{first} is {clear} {second}, by {whole.words(sign)}: {parts}. {self._pace(first, second)}"

    def _pace(self, first: str, second: str) -> str:
        ratio, tell = self.faster, "{:.2g}".format
        if ratio.why:
            return f"Which of them learns faster cannot be told ({ratio.why})."
        said = f"for half of its own gain {second} needs {ratio.words(tell)} times the examples that {first} needs"
        if ratio.low > 1:
            return f"{first} also learns faster: {said}."
        return (
            f"{first} learns more slowly: {said}." if ratio.high < 1 else f"Which learns faster is not clear: {said}."
        )


def _turned(part: Estimate, better: str, worse: str, open_: str, sign: Callable[[float], str]) -> str:
    kind = better if part.low > 0 else worse if part.high < 0 else open_
    return f"{kind} {part.words(sign)}" + ("" if kind != open_ else " (not clear)")


def rankings(curves: Sequence[Sampled]) -> list[Ranking]:
    """One for each task, data and method on which two bases or more were tuned and scored untouched; `suite` makes
    curves of averages, to be ranked alike."""
    wanted = [c for c in curves if c.series.headline and c.series.start is not None]
    return [ranking for group, variant in _alike(wanted) if (ranking := _rank(group, variant))]


def unranked(curves: Sequence[Sampled]) -> list[str]:
    """A sentence for each task, data and method whose bases cannot all be compared, with the reason."""
    said = []
    for group, variant in _alike([c for c in curves if c.series.headline]):
        one = group[0].series
        where = " ".join(filter(None, [f"{one.task}, {one.method}", variant, "on", one.data]))
        bare = [c.series.base for c in group if c.series.start is None]
        able = [c for c in group if c.series.start is not None]
        if len(group) > 1 and bare:
            said.append(f"{where}: {names(bare)} cannot be compared, as no score of it untouched is there.")
        if len(able) > 1 and not _shared(able):
            said.append(f"{where}: {names(c.series.base for c in able)} have no size in common.")
    return said


def _alike(curves: Sequence[Sampled]) -> list[tuple[list[Sampled], str]]:
    """Curves that differ in their base only, and what of their variant tells them from others."""
    shown = shown_variants(curves)

    def alike(curve: Sampled) -> tuple[str, ...]:
        s = curve.series
        return s.task, s.metric, s.filter, s.data, s.method, shown[s.key]

    return [(list(group), key[-1]) for key, group in itertools.groupby(sorted(curves, key=alike), key=alike)]


def _shared(curves: Sequence[Sampled]) -> set[int]:
    return set.intersection(*(set(c.series.sizes.tolist()) for c in curves))


def _rank(curves: list[Sampled], variant: str) -> Ranking | None:
    shared = _shared(curves)
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
            key=curves[i].series.key,
        )
        for i in order
    )
    one, two = curves[order[0]], curves[order[1]]
    series = one.series
    named = series.task, series.method, variant, series.data
    return Ranking(*named, standings, series.sizes, _lead(one, two), faster(one, two))


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


def faster(curve: Sampled, other: Sampled) -> Estimate:
    """How many times the examples `other` needs for half of its own gain. Below its smallest size a curve is not known,
    so that fewer examples count as that size."""
    halves = []
    for one in (curve, other):
        if why := reached(one, 0.5, one.start()).why:
            return Estimate(why=f"of {one.series.base}, {why}")
        start, x = _start(one), np.log10(one.series.sizes)
        rows = one.series.better * np.vstack([one.series.scores, one.draws.scores])
        base = one.series.better * np.concatenate([[start[0]], start[1]])
        halves.append(crossing(x, isotonic(rows), (base + rows[:, -1]) / 2).clip(x[0], x[-1]))
    if halves[0][0] == halves[1][0] == np.log10(curve.series.sizes[0]):
        return Estimate(why=f"both have half of it with {curve.series.sizes[0]:,} examples or fewer")
    ratio = 10 ** (halves[1] - halves[0])
    return Estimate.of(ratio[0], ratio[1:])


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
