"""A curve as a sample: the scores of its runs, item by item, and draws of what another sample would have given.

The score of run k with s examples on item i is taken as ``mu_s + seed_sk + item_si + rest_ski``; what is wanted is
mu_s, the expected score over fresh runs and fresh items of the same kind. `draws` is a parametric bootstrap of all
sizes at once, from which every interval of a curve is read:

- **Items** are resampled, in their clusters, and the same resample serves all cells that answered the same items,
  whatever their size, method or base: what they have in common cancels in a difference as it should (Miller 2024,
  arXiv:2411.00640). Of proportions near 0 or 1, where few items differ, the variance is made up to that of Agresti and
  Coull's interval (Am. Stat. 52:119, 1998): 200 right answers of 200 do not mean that no item can be failed.
- **Runs** add normal noise. Their mean square at a size estimates ``var(seed) + var(rest)/n``; what is above
  ``var(rest)/n``, told from the items, is the runs' own, never less than 0. The squares of all sizes are shrunk towards
  their common value by empirical Bayes (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3), of proportions relative to
  p(1-p). Three runs a size say little by themselves, but a curve whose runs part ways only where it climbs must not
  have that noise spread over its plateau; how much is shrunk is decided by how much the squares differ. They are drawn
  from their scaled inverse chi-square, so that few runs make intervals as wide as Student's t does.
- **What all runs of a size share** is not seen between them: what the examples add where all had the same ones (one
  subset seed), and all noise of the runs where there is one a size. It is told from how rough the curve is, by third
  differences over log size, if it has six sizes. With fewer, `Series.cautions` says what intervals do not hold.

Without answers by item, items are drawn by lm-eval's standard error, as if each size had items of its own and more runs
made them no surer: wider than they need to be, mostly. Where neither is known, nor how runs differ, there are no
intervals. `Series.cautions` says so.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from analysis.points import CURVE, LEVEL, check, has_sizes, is_proportion
from harness.items import Asked, Items

DRAWS = 2000
ROUGH = 6  # sizes from which roughness tells what the runs of a size share


@dataclass(frozen=True)
class Estimate:
    """A number and its interval, or why there is none. Without `low` and `high` nothing is known of its noise."""

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    why: str = ""  # it cannot be told

    @classmethod
    def of(cls, value: float, draws: np.ndarray, level: float = LEVEL) -> "Estimate":
        """`draws` [B] may hold infinities."""
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
        return cls(float(value), float(low), float(high))

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def words(self, tell: Callable[[float], str] = "{:.2f}".format) -> str:
        if self.why:
            return f"cannot be told ({self.why})"
        return tell(self.value) + ("" if np.isnan(self.low) else f" [{tell(self.low)}, {tell(self.high)}]")


@dataclass(frozen=True)
class Point:
    """The K runs of one recipe at one size."""

    runs: np.ndarray  # [K] scores
    error: float  # lm-eval's standard error over items, root mean square of the runs; NaN where it gave none
    n: int  # items
    items: np.ndarray | None = None  # [K, n]
    proportion: bool = True  # a share of right answers
    paths: tuple[str, ...] = ()  # [K] where the records lie
    extra: float = 0.0  # `made_up` of a score that is no proportion

    @cached_property
    def score(self) -> float:
        return float(self.runs.mean())

    @cached_property
    def rest(self) -> float:
        """var(rest) / n: how much runs differ only for answering each item anew; NaN for one run or unknown items."""
        if self.items is None or len(self.runs) < 2:
            return np.nan
        apart = self.items - self.items.mean(axis=0) - self.items.mean(axis=1, keepdims=True) + self.items.mean()
        k, n = self.items.shape
        return float((apart**2).sum() / ((k - 1) * max(n - 1, 1) * n))

    @property
    def scale(self) -> float:
        """By what mean squares are made comparable between sizes."""
        return self.smooth * (1 - self.smooth) if self.proportion else 1.0

    @property
    def smooth(self) -> float:
        """A proportion with two successes and two failures added."""
        return (self.score * self.n + 2) / (self.n + 4)

    @property
    def made_up(self) -> float:
        """Variance that items near 0 or 1 have, though this sample does not show it."""
        return max(self.scale - self.score * (1 - self.score), 0.0) / self.n if self.proportion else self.extra


@dataclass(frozen=True)
class Series:
    """One curve: the runs at S sizes, and the untouched base (size 0) where the sweep has it."""

    base: str
    data: str
    method: str
    variant: str
    task: str
    metric: str
    filter: str
    headline: bool
    sizes: np.ndarray  # [S], ascending
    points: tuple[Point, ...]  # [S]
    start: Point | None
    asked: Asked | None  # the items; None where their scores were not kept one by one
    better: int  # 1, or -1 where lower scores are better
    one_subset: bool  # all runs of a size had the same examples
    lost: tuple[str, ...] = ()  # what failed or diverged, in words

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(getattr(self, name) for name in CURVE)

    @cached_property
    def scores(self) -> np.ndarray:
        """[S]: mean over runs."""
        return np.array([point.score for point in self.points])

    @property
    def hidden(self) -> bool:
        """Noise of the runs cannot be seen between them, and there are sizes enough to see it by."""
        return (self.one_subset or all(len(p.runs) == 1 for p in self.points)) and len(self.sizes) >= ROUGH

    @property
    def name(self) -> str:
        return " ".join(filter(None, [self.base, self.method, self.variant, "on", self.data]))

    def cautions(self) -> list[str]:
        """What its intervals do not hold, a sentence each."""
        runs = [len(point.runs) for point in self.points]
        said = list(self.lost)
        if self.start is None:
            said.append("The untouched base was not scored on this task, so no gain can be told.")
        if len(runs) < 3:
            said.append(f"{len(runs)} sizes give no shape: whether it bends between or beyond them is not known.")
        if max(runs) == 1 and self.hidden:
            said.append("One run a size: how runs differ is told only from how rough the curve is.")
        elif max(runs) == 1:
            said.append("One run a size: nothing is known of how runs differ, and intervals are over items only.")
        elif self.one_subset and not self.hidden:
            said.append("All runs of a size had the same examples: intervals are for these examples, not for others.")
        if self.asked is None and np.isnan([point.error for point in self.points]).any():
            said.append("Neither scores by item nor a standard error: intervals, if any, do not hold the items' noise.")
        elif self.asked is None:
            said.append("No score by item: items are taken from lm-eval's standard error, as if each size had its own.")
        return said


@dataclass(frozen=True)
class Draws:
    """B draws of a curve's expected scores; equal b means equal items in every series with the same items."""

    scores: np.ndarray  # [B, S]
    start: np.ndarray | None  # [B]


def collect(frame: pd.DataFrame, items: Items) -> list[Series]:
    """Every curve of `frame`, which is `harness.store.load`'s table. Refuses what `analysis.curves.check` refuses."""
    done = frame[(frame["status"] == "ok") & frame["score"].notna()]
    check(done)
    done = done.drop_duplicates([*CURVE, "size", "seed", "subset_seed"])
    untouched = done[done["method"] == "base"]
    found = []
    for key, rows in done[has_sizes(done)].groupby(CURVE, sort=True):
        named = dict(zip(CURVE, map(str, key), strict=True))
        by_size = [(int(str(size)), group) for size, group in rows.groupby("size", sort=True)]
        same = (untouched[["base", "task", "metric", "filter"]] == [key[0], *key[4:]]).all(axis=1)
        paths = [*rows["path"], *untouched.loc[same, "path"]]
        stacked = items.stack(paths, named["task"], named["metric"], named["filter"])
        scores = dict(zip(paths, stacked[1], strict=True)) if stacked else None
        several = [group for _, group in by_size if len(group) > 1]
        found.append(
            Series(
                **named,
                headline=bool(rows["headline"].iloc[0]),
                sizes=np.array([size for size, _ in by_size]),
                points=tuple(_point(group, scores) for _, group in by_size),
                start=_point(untouched[same], scores) if same.any() else None,
                asked=stacked[0] if stacked else None,
                better=1 if rows["higher_is_better"].iloc[0] else -1,
                one_subset=bool(several) and all(group["subset_seed"].nunique() == 1 for group in several),
                lost=_lost(frame, named),
            )
        )
    return found


def _point(rows: pd.DataFrame, scores: dict[str, np.ndarray] | None) -> Point:
    numbers = rows[["score", "stderr", "n_items"]].to_numpy(float)
    return Point(
        runs=numbers[:, 0],
        error=float(np.sqrt(np.mean(numbers[:, 1] ** 2))),
        n=int(numbers[:, 2].min()),
        items=np.stack([scores[path] for path in rows["path"]]).astype(float) if scores else None,
        proportion=all(is_proportion(*run) for run in numbers),
        paths=tuple(rows["path"]),
    )


def _lost(frame: pd.DataFrame, named: dict[str, str]) -> tuple[str, ...]:
    mine = (frame[["base", "data", "method", "variant"]] == [named[c] for c in CURVE[:4]]).all(axis=1)
    said = []
    for (size, status), rows in frame[mine & (frame["status"] != "ok")].groupby(["size", "status"], sort=True):
        finished = frame.loc[mine & (frame["size"] == size) & (frame["status"] == "ok"), "path"].nunique()
        left = f"its score is that of the {finished} others" if finished else "there is no score for this size"
        said.append(f"With {size:,} examples {rows['path'].nunique()} run(s) {status}; {left}.")
    return tuple(said)


# -------------------------------------------------------------------------------------------------------------- draws


def draws(series: Series, n: int = DRAWS, seed: int = 0) -> Draws:
    """`n` draws of the expected scores. The same `seed` gives the same items everywhere, and the same draws again."""
    columns = [*series.points] + ([series.start] if series.start else [])
    own = int.from_bytes(hashlib.sha256("\n".join(series.key).encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, own])
    centre = np.array([point.score for point in columns])
    if series.asked is not None:
        answers = np.stack([point.items.mean(axis=0) for point in columns if point.items is not None], axis=1)
        drawn = resample(series.asked, answers, n, seed)
        spread = np.sqrt([point.made_up for point in columns])
    else:
        drawn = np.broadcast_to(centre, (n, len(columns)))
        spread = np.sqrt([np.nan_to_num(point.error) ** 2 + point.made_up for point in columns])
    drawn = drawn + spread * rng.standard_normal((n, len(columns)))
    drawn[:, : len(series.sizes)] += _runs(series.points, n, rng)
    if series.hidden:
        drawn[:, : len(series.sizes)] += _rough(series, drawn[:, : len(series.sizes)], rng)
    if all(point.proportion for point in columns):
        drawn = drawn.clip(0, 1)
    if not drawn.var(axis=0).any():  # nothing is known of any noise, which is not the same as none
        drawn = np.full_like(drawn, np.nan)
    return Draws(drawn[:, : len(series.sizes)], drawn[:, -1] if series.start else None)


def level(point: Point, asked: Asked | None, n: int = DRAWS, seed: int = 0) -> np.ndarray:
    """`n` draws of the expected score of a model by itself, which has no runs to differ."""
    rng = np.random.default_rng([seed, point.n])
    error = 0.0 if asked is not None else np.nan_to_num(point.error)
    drawn = point.score + np.sqrt(error**2 + point.made_up) * rng.standard_normal(n)
    if asked is not None and point.items is not None:
        drawn += resample(asked, point.items.mean(axis=0)[:, None], n, seed)[:, 0] - point.score
    return drawn.clip(0, 1) if point.proportion else drawn


def resample(asked: Asked, answers: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Means over `n` resamples of the items' clusters, [n_items, m] -> [n, m]; the same for equal items and seed."""
    count = int(asked.clusters.max()) + 1
    sums = np.zeros((count, answers.shape[1]))
    np.add.at(sums, asked.clusters, answers)
    members = np.bincount(asked.clusters).astype(float)
    mark = hashlib.sha256("\n".join(asked.names).encode()).hexdigest()
    times = times_drawn(mark, count, n, seed)
    parts = (times[first : first + 256].astype(np.float32) for first in range(0, n, 256))
    both = np.hstack([sums, members[:, None]]).astype(np.float32)
    drawn = np.concatenate([part @ both for part in parts]).astype(float)
    means = drawn[:, :-1] / drawn[:, -1:]
    middle = sums.sum(axis=0) / members.sum()
    return middle + (means - middle) * np.sqrt(count / max(count - 1, 1))  # resamples of few vary too little


@lru_cache(maxsize=8)
def times_drawn(mark: str, count: int, n: int, seed: int) -> np.ndarray:
    """[n, count]: how often each cluster is drawn in each resample."""
    rng = np.random.default_rng([seed, int(mark[:16], 16)])
    parts = []
    for first in range(0, n, 64):
        rows = min(64, n - first)
        picked = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        parts.append(np.bincount(picked.ravel(), minlength=rows * count).astype(np.uint8).reshape(rows, count))
    return np.concatenate(parts)


def _runs(points: Iterable[Point], n: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of the runs, [n, S]; none where no size has two of them."""
    points = list(points)
    squares = Squares.of(points)
    if squares is None:
        return np.zeros((n, len(points)))
    # One estimate for all sizes is drawn once for all of them.
    df = squares.df[:1] if squares.pooled else squares.df
    chi = rng.chisquare(df, (n, len(df)))
    variance = np.maximum(squares.mean * squares.df / chi - squares.rest, 0)
    runs = np.array([len(point.runs) for point in points])
    return np.sqrt(variance / runs) * rng.standard_normal((n, len(points)))


@dataclass(frozen=True)
class Squares:
    """Mean squares between the runs of each size, shrunk towards each other."""

    mean: np.ndarray  # [S]: estimates var(seed) + var(rest) / n
    df: np.ndarray  # [S]
    rest: np.ndarray  # [S]: var(rest) / n; 0 where items are unknown
    pooled: bool  # they do not differ by more than chance: one estimate for all

    @classmethod
    def of(cls, points: list[Point]) -> "Squares | None":
        """None where no size has two runs."""
        scale = np.array([point.scale for point in points])
        free = np.array([len(point.runs) - 1.0 for point in points])
        if not free.any():
            return None
        square = np.array([point.runs.var(ddof=1) if len(point.runs) > 1 else 0.0 for point in points])
        floor = np.array([0.05 / point.n if point.proportion else 0.0 for point in points])  # equal by rounding
        known = free > 0
        relative = np.maximum(square / scale, floor)
        pool = float((free * relative)[known].sum() / free.sum())
        if not pool:
            return cls(np.zeros(len(points)), np.full(len(points), free.sum()), np.zeros(len(points)), True)
        relative = np.maximum(relative, 1e-3 * pool)
        rest = np.array([point.rest for point in points]) / scale
        rest = np.where(np.isnan(rest), np.nanmean(rest) if not np.isnan(rest).all() else 0.0, rest)
        few, prior = _prior(relative[known], free[known])
        if np.isinf(few):
            mean, df = np.full(len(points), pool), np.full(len(points), free.sum())
        else:
            mean = (few * prior + free * relative) / (few + free)
            df = np.minimum(few + free, free.sum())
        return cls(mean * scale, df, rest * scale, bool(np.isinf(few)))

    def seed_sd(self) -> np.ndarray:
        """[S]: standard deviation between runs, what each answers anew to the items taken off."""
        return np.sqrt(np.maximum(self.mean - self.rest, 0))


def _prior(squares: np.ndarray, df: np.ndarray) -> tuple[float, float]:
    """Smyth's (2004) degrees of freedom and value of what the mean squares scatter about; infinite for no scatter."""
    logs = np.log(squares) - digamma(df / 2) + np.log(df / 2)
    if len(squares) < 3:
        return np.inf, float(np.exp(logs.mean()))
    extra = logs.var(ddof=1) - polygamma(1, df / 2).mean()
    if extra <= float(polygamma(1, np.exp(6.0))):
        return np.inf, float(np.exp(logs.mean()))
    half = float(np.exp(brentq(lambda x: float(polygamma(1, np.exp(x))) - extra, -12.0, 6.1)))
    return 2 * half, float(np.exp(logs.mean() + digamma(half) - np.log(half)))


def _rough(series: Series, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of what the runs of a size share, [n, S], by how much rougher the curve is than `drawn` explains."""
    contrasts = third_differences(np.log10(series.sizes))
    square = float(((contrasts @ series.scores) ** 2).mean())
    explained = float((drawn @ contrasts.T).var(axis=0, ddof=1).mean())
    overlap = contrasts @ contrasts.T
    df = np.trace(overlap) ** 2 / (overlap**2).sum()
    # What was explained is not in doubt, so only the excess is drawn: drawing the square itself covers 99%, not 95%.
    variance = max(square - explained, 0) * df / rng.chisquare(df, (len(drawn), 1))
    return np.sqrt(variance) * rng.standard_normal(drawn.shape)


def third_differences(x: np.ndarray) -> np.ndarray:
    """[S - 3, S]: rows of length 1 that are blind to whatever is quadratic in `x` [S]."""
    rows = np.zeros((len(x) - 3, len(x)))
    for i in range(len(rows)):
        window = x[i : i + 4]
        rows[i, i : i + 4] = [1 / np.prod([a - b for b in window if b != a]) for a in window]
        rows[i] /= np.linalg.norm(rows[i])
    return rows
