"""Format against capability: what of a gain is only the form of the answers.

Three further curves of the same runs and items, each a `Series` of its own, so that their intervals are made as all
others: the share of answers in which the strict filter found something; the score of those answers; and the difference
between the strict and the flexible score, whose change from the untouched base to the largest size is the part of the
gain that is format.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.elicitation import Sampled, gain
from analysis.sample import Estimate, Point, Series, draws
from harness.items import Items


@dataclass(frozen=True)
class Form:
    """What is known of the format of one curve's answers."""

    gain: Estimate  # of the strict filter, over the untouched base
    flexible: Estimate  # of the flexible filter
    only_form: Estimate  # the difference of the two, answer by answer
    valid: Sampled | None  # share of answers in the strict filter's form; None where that filter refuses none
    given_valid: Sampled | None  # score of those

    @property
    def finding(self) -> str:
        """format, capability, both or cannot tell: which of the two gains is surely above 0."""
        if self.gain.why or self.only_form.why or not self.gain.low > 0:
            return "cannot tell"
        able, formal = self.flexible.low > 0, self.only_form.low > 0
        return {(True, True): "both", (True, False): "capability", (False, True): "format"}.get(
            (able, formal), "cannot tell"
        )

    def words(self) -> str:
        if self.only_form.why:
            return f"format or capability {self.only_form.words()}"
        kind = {
            "format": "all that is sure of the gain is format", "capability": "the gain is one of capability",
            "both": "the gain is of both format and capability",
            "cannot tell": "whether the gain is format cannot be told",
        }[self.finding]  # fmt: skip
        sign = "{:+.2f}".format
        rate = ""
        if self.valid and (start := self.valid.start()):
            first, last = start[0], float(self.valid.series.scores[-1])
            rate = f"; answers in the strict form: {first:.0%} of the untouched base's, {last:.0%} at the end"
        apart = f"{self.gain.words(sign)} strict, {self.flexible.words(sign)} flexible"
        return f"{kind}: {apart}, so {self.only_form.words(sign)} is format{rate}"


def form(curve: Sampled, others: Sequence[Sampled], items: Items) -> Form:
    """`others` are all curves of the sweep, among which the same runs under a flexible filter are looked for."""
    series = curve.series
    mine = gain(curve, curve.start())
    valid, given = valid_format(series, items)
    flexible = _flexible(series, others)
    if flexible is None:
        why = Estimate(why="the task has no flexible filter")
        return Form(mine, why, why, valid, given)
    apart = replace(
        series, metric=f"{series.metric} strict less flexible", points=_minus(series, flexible.series),
        start=_less(series.start, flexible.series.start), asked=flexible.series.asked and series.asked,
    )  # fmt: skip
    difference = Sampled(apart, draws(apart, len(curve.draws.scores)))
    return Form(mine, gain(flexible, flexible.start()), gain(difference, difference.start()), valid, given)


def _flexible(series: Series, others: Sequence[Sampled]) -> Sampled | None:
    """The one other filter of the same runs, or that which is called flexible."""
    alike = [
        o for o in others
        if o.series.filter != series.filter and replace(o.series, filter=series.filter).key == series.key
        and [p.paths for p in o.series.points] == [p.paths for p in series.points]
    ]  # fmt: skip
    named = [o for o in alike if "flex" in o.series.filter]
    found = named if len(alike) > 1 else alike
    return found[0] if len(found) == 1 else None


def _minus(one: Series, other: Series) -> tuple[Point, ...]:
    return tuple(p for a, b in zip(one.points, other.points, strict=True) if (p := _less(a, b)))


def _less(one: Point | None, other: Point | None) -> Point | None:
    if one is None or other is None or one.paths != other.paths:
        return None
    items = one.items - other.items if one.items is not None and other.items is not None else None
    error = float(np.hypot(one.error, other.error))  # without items the two are taken as independent, which is wider
    apart = float(np.abs(items).mean()) if items is not None else 0.0
    extra = max((apart * one.n + 2) / (one.n + 4) - apart, 0) / one.n  # no answer differs: some of others may
    return replace(one, runs=one.runs - other.runs, error=error, items=items, proportion=False, extra=extra)


def valid_format(series: Series, items: Items) -> tuple[Sampled | None, Sampled | None]:
    """The share of answers in the filter's form, and the score of those; None where all answers have it."""
    if series.asked is None:
        return None, None
    points = [*series.points] + ([series.start] if series.start else [])
    kept = [[items.valid.get((path, series.task, series.filter)) for path in point.paths] for point in points]
    found = [
        np.stack([v for v in runs if v is not None]).astype(float) for runs in kept if all(v is not None for v in runs)
    ]
    if len(found) < len(points) or all(v.all() for v in found):
        return None, None
    rates = [
        replace(p, runs=v.mean(axis=1), items=v, error=np.nan, proportion=True)
        for p, v in zip(points, found, strict=True)
    ]
    scores = [_given(p, v) for p, v in zip(points, found, strict=True)]
    return _curve(series, "valid format", rates), _curve(series, f"{series.metric} given valid format", scores)


def _given(point: Point, valid: np.ndarray) -> Point | None:
    """Score over valid answers, a ratio of means; of each item, by what it moves that ratio (linearisation)."""
    rate = valid.mean(axis=1)
    if point.items is None or not rate.all():
        return None
    runs = (point.items * valid).mean(axis=1) / rate
    moved = runs[:, None] + (point.items - runs[:, None]) * valid / rate[:, None]
    return replace(point, runs=runs, items=moved, error=np.nan, proportion=False)


def _curve(series: Series, metric: str, points: Sequence[Point | None]) -> Sampled | None:
    """The sizes that have a value; None where none has."""
    sizes = [size for size, point in zip(series.sizes, points, strict=False) if point]
    start = points[-1] if series.start else None
    if not sizes:
        return None
    kept = tuple(point for point in points[: len(series.sizes)] if point)
    made = replace(series, metric=metric, headline=False, sizes=np.array(sizes), points=kept, start=start)
    return Sampled(made, draws(made))
