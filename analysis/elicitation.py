"""How much of a curve's gain came with how few examples, and whether it goes on: each with its interval.

All numbers are read from one set of draws (`analysis.sample`), so that they agree with each other.

- **Gain**: score at the largest size less a reference. **Elicited share at n**: (score(n) - reference) / gain. Never
  the maximum over sizes, whose noise makes the share of a plateau too small; undefined where the gain's interval holds
  0. The interval of the ratio is that of Fieller's theorem, with the noise of numerator and denominator drawn together.
- Between measured sizes scores are interpolated linearly in log size; never beyond them.
- **n50, n90**: the smallest n from which half or nine tenths of the gain are reached by the curve made monotone
  (isotonic regression, all sizes alike). ``-inf`` stands for less than the smallest size.
- **Slope at the end**: least squares over the sizes of the last decade, or the last two; score per decade.
- **Saturated**: the slope's 90% interval lies within the margin (two one-sided tests at 5%). The default, 0.02 a
  decade, is about what two trainings that differ only in their seed differ by, and a tenth of what curves that are
  called still rising in the literature gain. It is for scores between 0 and 1; others need a margin of their own.

References: the base in the tuned template (size 0), the base with plain few-shot examples (method icl on the same data,
with the most examples), and with URIAL's prompt (icl on the data urial): a template alone can look like a gain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.points import brief, telling
from analysis.sample import Draws, Estimate, Series

MARGIN = 0.02  # score per decade
LIMA = 1000  # examples
TEMPLATE, FEWSHOT, URIAL = "the untouched base", "the base with few-shot examples", "the base with URIAL's prompt"


@dataclass(frozen=True)
class Sampled:
    """A curve with its draws."""

    series: Series
    draws: Draws

    def at(self, n: float) -> tuple[float, np.ndarray]:
        """The score with `n` examples and its draws [B]; n within the measured sizes."""
        weights = weights_at(self.series.sizes, n)
        return float(self.series.scores @ weights), self.draws.scores @ weights

    def start(self) -> tuple[float, np.ndarray] | None:
        if self.series.start is None or self.draws.start is None:
            return None
        return self.series.start.score, self.draws.start


def shown_variants(curves: Sequence[Sampled]) -> dict[tuple[str, ...], str]:
    """By a series' key, what of its variant tells it from others (`analysis.curves.telling`)."""
    rows = [{name: getattr(c.series, name) for name in ("base", "data", "method", "variant")} for c in curves]
    table = pd.DataFrame(rows, columns=["base", "data", "method", "variant"])
    return {c.series.key: v for c, v in zip(curves, telling(table)["variant"], strict=True)}


def weights_at(sizes: np.ndarray, n: float) -> np.ndarray:
    """[S]: how much each measured size counts in the score with `n` examples. Raises ValueError outside of them."""
    if not sizes[0] <= n <= sizes[-1]:
        raise ValueError(f"{n} is not within {sizes[0]} to {sizes[-1]}")
    return np.array([np.interp(np.log10(n), np.log10(sizes), row) for row in np.eye(len(sizes))])


def lima_scale(sizes: np.ndarray) -> float | None:
    """The examples that stand for LIMA's thousand: 1,000 where a sweep goes to 10,000 or beyond, else a tenth of its
    largest size; None where even the smallest size is more."""
    few = LIMA if sizes[-1] >= 10 * LIMA else sizes[-1] / 10
    return float(few) if few >= sizes[0] else None


def references(curve: Sampled, others: Sequence[Sampled]) -> dict[str, tuple[float, np.ndarray] | None]:
    """Score and draws of what a gain can be counted from; None for what the sweep does not hold."""
    mine = curve.series
    alike = [o for o in others if o.series.method == "icl" and _same(o.series, mine)]
    shots = [o for o in alike if o.series.data == mine.data]
    urial = [o for o in alike if o.series.data == "urial"]
    return {TEMPLATE: curve.start(), FEWSHOT: _last(shots), URIAL: _last(urial)}


def _same(one: Series, other: Series) -> bool:
    return (one.base, one.task, one.metric, one.filter) == (other.base, other.task, other.metric, other.filter)


def _last(found: list[Sampled]) -> tuple[float, np.ndarray] | None:
    if not found:
        return None
    most = max(found, key=lambda o: o.series.sizes[-1])
    return most.at(most.series.sizes[-1])


def gain(curve: Sampled, reference: tuple[float, np.ndarray] | None, n: float | None = None) -> Estimate:
    """How much better the score with `n` examples (the largest size) is than the reference; in the metric's unit."""
    if reference is None:
        return Estimate(why="the reference was not scored")
    value, drawn = curve.at(curve.series.sizes[-1] if n is None else n)
    better = curve.series.better
    return Estimate.of(better * (value - reference[0]), better * (drawn - reference[1]))


def share(curve: Sampled, n: float, reference: tuple[float, np.ndarray] | None) -> Estimate:
    """The elicited share at `n` examples."""
    sizes = curve.series.sizes
    whole = gain(curve, reference)
    if reference is None or (why := _undefined(whole)):
        return Estimate(why=whole.why or why)
    if not sizes[0] <= n <= sizes[-1]:
        return Estimate(why=f"{n:,.0f} examples are outside the measured sizes, {sizes[0]:,} to {sizes[-1]:,}")
    value, drawn = curve.at(n)
    last, last_drawn = curve.at(sizes[-1])
    return Estimate.of(
        (value - reference[0]) / (last - reference[0]), _ratio(drawn - reference[1], last_drawn - reference[1])
    )


def _undefined(whole: Estimate) -> str:
    if np.isnan(whole.low):
        return f"nothing is known of the noise of the gain, {whole.value:.3f}"
    if whole.holds(0):
        return f"the gain, {whole.words('{:.3f}'.format)}, may be nothing"
    return "tuning made it worse" if whole.value < 0 else ""


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(above / below, nan=0.0, posinf=np.inf, neginf=-np.inf)


def reached(curve: Sampled, part: float, reference: tuple[float, np.ndarray] | None) -> Estimate:
    """The smallest n from which the monotone curve has `part` of the gain; -inf: fewer than the smallest size."""
    whole = gain(curve, reference)
    if reference is None or (why := _undefined(whole)):
        return Estimate(why=whole.why or why)
    rows = np.vstack([curve.series.scores, curve.draws.scores]) * curve.series.better
    base = np.concatenate([[reference[0]], reference[1]]) * curve.series.better
    found = crossing(np.log10(curve.series.sizes), isotonic(rows), base + part * (rows[:, -1] - base))
    return Estimate.of(10 ** found[0], 10 ** found[1:]) if np.isfinite(found[0]) else _below(found)


def _below(found: np.ndarray) -> Estimate:
    limits = Estimate.of(found[0], found[1:])
    return Estimate(-np.inf, -np.inf, 10**limits.high if np.isfinite(limits.high) else limits.high)


def isotonic(rows: np.ndarray) -> np.ndarray:
    """Least-squares nondecreasing fit of each row [B, S], by its max-min formula."""
    b, s = rows.shape
    sums = np.concatenate([np.zeros((b, 1)), rows.cumsum(axis=1)], axis=1)
    fitted = np.full((b, s), -np.inf)
    for first in range(s):  # the mean from `first` to each last size, then its least for last >= i
        means = (sums[:, first + 1 :] - sums[:, [first]]) / np.arange(1, s - first + 1)
        least = np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
        fitted[:, first:] = np.maximum(fitted[:, first:], least)
    return fitted


def crossing(x: np.ndarray, rows: np.ndarray, level: np.ndarray) -> np.ndarray:
    """[B]: where nondecreasing rows [B, S] over x [S] first reach `level` [B]; -inf before x, inf beyond it."""
    above = rows >= level[:, None] - 1e-12
    found = np.full(len(rows), np.inf)
    found[above[:, 0]] = -np.inf
    here = above.any(axis=1) & ~above[:, 0]
    at = above[here].argmax(axis=1)
    line = np.flatnonzero(here)
    low, high = rows[line, at - 1], rows[line, at]
    found[here] = x[at - 1] + (x[at] - x[at - 1]) * (level[here] - low) / (high - low)
    return found


def examples(n: float, sizes: np.ndarray) -> str:
    """A number of examples in words, ``<10`` and ``>1M`` outside the sizes."""
    if n < sizes[0]:
        return f"<{brief(sizes[0])}"
    return f">{brief(sizes[-1])}" if n > sizes[-1] else f"{float(f'{n:.2g}'):,.0f}"


@dataclass(frozen=True)
class End:
    """Whether a curve goes on where the sweep ends."""

    slope: Estimate  # score per decade, up is better
    state: str  # saturated, still rising, falling, cannot tell
    since: float  # the sizes from here on count
    margin: float

    def words(self) -> str:
        slope = self.slope.words("{:+.3f}".format)
        reason = {
            "saturated": f" (its 90% interval is within {self.margin} either way)",
            "cannot tell": ": neither flat nor rising for sure",
        }
        return f"{self.state}: {slope} a decade from {self.since:,.0f} examples on" + reason.get(self.state, "")


def end(curve: Sampled, margin: float | None = None) -> End:
    """`margin` in score per decade; by default `MARGIN` where the score is a share of right answers, else none."""
    sizes = curve.series.sizes
    if len(sizes) < 2:
        return End(Estimate(why="one size has no slope"), "cannot tell", float(sizes[0]), margin or MARGIN)
    if margin is None:
        margin = MARGIN if all(point.proportion for point in curve.series.points) else 0.0
    first = min(int(np.searchsorted(sizes, sizes[-1] / 10)), len(sizes) - 2)
    x = np.log10(sizes[first:]) - np.log10(sizes[first:]).mean()
    weights = curve.series.better * x / (x @ x)
    value, drawn = curve.series.scores[first:] @ weights, curve.draws.scores[:, first:] @ weights
    slope, narrow = Estimate.of(value, drawn), Estimate.of(value, drawn, level=0.90)
    if -margin <= narrow.low and narrow.high <= margin:
        state = "saturated"
    elif slope.low > 0:
        state = "still rising"
    else:
        state = "falling" if slope.high < 0 else "cannot tell"
    return End(slope, state, float(sizes[first]), margin)
