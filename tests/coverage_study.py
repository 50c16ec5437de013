"""Do the intervals hold the truth as often as they say? Sweeps simulated from known curves, by the thousand.

``python -m tests.coverage_study`` (make coverage) prints the table; tests/test_coverage.py runs a small one. Scores are
answers to items, right or wrong: item i has a difficulty that all cells meet, half of the variance of its answers, and
the rest is each cell's own. Runs scatter about the curve, and in some settings half of that is common to all runs of a
size, as where all have the same examples. For comparison, what the usual bootstraps of the points would have said.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from analysis.elicitation import Sampled, reached, share
from analysis.sample import Estimate, Point, Series, draws
from harness.items import Asked

COMMON = math.sin(
    math.pi / 4
)  # of the latent normal of an item: half of the answers' variance, at scores near one half


@dataclass(frozen=True)
class Shape:
    name: str
    base: float
    score: Callable[[np.ndarray], np.ndarray]


SHAPES = (
    Shape("early plateau", 0.30, lambda n: 0.66 - 0.36 / (1 + (n / 40) ** 1.2)),
    Shape("rising to the end", 0.30, lambda n: 0.30 + 0.08 * np.log10(n / 3).clip(0)),
    Shape("rectified law", 0.05, lambda n: 1 - (0.30 + 6 / (8 + n**0.45))),
)


@dataclass(frozen=True)
class Setting:
    name: str
    sizes: tuple[int, ...]
    runs: tuple[int, ...]
    n: int  # items
    seed_sd: float


LARGE = Setting(
    "11 sizes by 3 runs by 1,319 items", tuple(round(10 ** (1 + i / 2)) for i in range(11)), (3,) * 11, 1319, 0.015
)
SMALL = Setting(
    "7 sizes by 3 to 5 runs by 200 items", (10, 30, 100, 300, 1000, 3000, 10000), (5, 5, 5, 5, 3, 3, 3), 200, 0.03
)
SHARED = {"own": 0.0, "half shared in a size": 0.5}


def simulate(shape: Shape, setting: Setting, shared: float, rng: np.random.Generator, asked: Asked) -> Series:
    """One sweep: a curve whose truth is `shape`."""
    sizes = np.array(setting.sizes)
    truth = shape.score(sizes.astype(float))
    common = COMMON * rng.standard_normal(setting.n)
    own = math.sqrt(1 - COMMON**2)

    def answers(chances: np.ndarray) -> np.ndarray:
        from scipy.special import ndtri

        return (common + own * rng.standard_normal((len(chances), setting.n)) < ndtri(chances)[:, None]).astype(float)

    points = []
    for mean, k in zip(truth, setting.runs, strict=True):
        together = math.sqrt(shared) * setting.seed_sd * rng.standard_normal()
        apart = math.sqrt(1 - shared) * setting.seed_sd * rng.standard_normal(k)
        points.append(point(answers(np.clip(mean + together + apart, 0.001, 0.999))))
    names = {"base": "b", "data": "d", "method": "sft", "variant": "", "task": "t", "metric": "acc", "filter": "none"}
    return Series(
        **names, headline=True, sizes=sizes, points=tuple(points), start=point(answers(np.array([shape.base]))),
        asked=asked, better=1, one_subset=shared > 0,
    )  # fmt: skip


def point(items: np.ndarray) -> Point:
    runs = items.mean(axis=1)
    n = items.shape[1]
    return Point(runs, float(np.sqrt(np.mean(runs * (1 - runs)) / (n - 1))), n, items)


def by_points(series: Series, n: int, rng: np.random.Generator) -> np.ndarray:
    """The bootstrap of independent points, [n, S]: runs of a size resampled, their items taken for granted."""
    columns = [p.runs[rng.integers(0, len(p.runs), (n, len(p.runs)))].mean(axis=1) for p in series.points]
    return np.stack(columns, axis=1)


def by_items(series: Series, n: int, rng: np.random.Generator) -> np.ndarray:
    """lm-eval's standard error alone, over all runs' answers as if each were of an item of its own, [n, S]."""
    errors = np.array([p.error / math.sqrt(len(p.runs)) for p in series.points])
    return series.scores + errors * rng.standard_normal((n, len(series.points)))


@dataclass
class Tally:
    hits: int = 0
    tries: int = 0
    width: float = 0.0

    def add(self, estimate: Estimate, truth: float) -> None:
        if not estimate.why:
            self.hits += estimate.low <= truth <= estimate.high
            self.tries += 1
            self.width += estimate.high - estimate.low

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.hits + other.hits, self.tries + other.tries, self.width + other.width)

    @property
    def share(self) -> float:
        return self.hits / max(self.tries, 1)


Row = tuple[str, str, str, str]  # shape, setting, seeds, quantity


def study(
    shape: Shape, setting: Setting, name: str, sweeps: int, seed: int, b: int = 1000
) -> dict[Row, dict[str, Tally]]:
    """Coverage and summed widths by quantity, ours and by the shortcuts."""
    rng = np.random.default_rng([seed, sweeps])
    asked = Asked(tuple(map(str, range(setting.n))), np.arange(setting.n), ("",) * setting.n, 0.0)
    sizes = np.array(setting.sizes)
    truth = shape.score(sizes.astype(float))
    table: dict[Row, dict[str, Tally]] = {}

    def add(quantity: str, method: str, estimate: Estimate, value: float) -> None:
        row = table.setdefault((shape.name, setting.name, name, quantity), {})
        row.setdefault(method, Tally()).add(estimate, value)

    for sweep in range(sweeps):
        series = simulate(shape, setting, SHARED[name], rng, asked)
        assert series.start
        curve = Sampled(series, draws(series, b, seed=seed * 1_000_000 + sweep // 10))  # resamples serve ten sweeps
        others = {"points": by_points(series, b, rng), "items": by_items(series, b, rng)}
        for method, drawn in {"ours": curve.draws.scores, **others}.items():
            for low, high, value in zip(*np.quantile(drawn, [0.025, 0.975], axis=0), truth, strict=True):
                add("score", method, Estimate(low=low, high=high), value)
        gains = truth - shape.base
        for n in (100, 1000):
            value = float(np.interp(math.log10(n), np.log10(sizes), gains) / gains[-1])
            add(f"share at {n:,}", "ours", share(curve, n, curve.start()), value)
            i = int(np.flatnonzero(sizes == n)[0])
            for method, drawn in others.items():
                base = series.start.score
                add(f"share at {n:,}", method, Estimate.of(0, (drawn[:, i] - base) / (drawn[:, -1] - base)), value)
        level = shape.base + 0.5 * gains[-1]
        half = 10 ** np.interp(level, truth, np.log10(sizes)) if level > truth[0] else -np.inf
        add("n50", "ours", reached(curve, 0.5, curve.start()), half)
    return table


def jobs(sweeps: int, part: int) -> Iterator[tuple[Shape, Setting, str, int, int]]:
    for setting in (LARGE, SMALL):
        for shape in SHAPES:
            for name in SHARED:
                for i in range(0, sweeps, part):
                    yield shape, setting, name, min(part, sweeps - i), 1 + i


def run(job: tuple[int, int, str, int, int]) -> dict[Row, dict[str, Tally]]:
    shape, setting, name, sweeps, seed = job
    return study(SHAPES[shape], (LARGE, SMALL)[setting], name, sweeps, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    wanted = parser.parse_args()
    began = told = time.monotonic()
    table: dict[Row, dict[str, Tally]] = {}
    with ProcessPoolExecutor(wanted.workers) as pool:
        todo = [
            pool.submit(run, (SHAPES.index(shape), (LARGE, SMALL).index(setting), name, sweeps, seed))
            for shape, setting, name, sweeps, seed in jobs(wanted.sweeps, 100)
        ]
        for number, future in enumerate(as_completed(todo), 1):
            for row, tallies in future.result().items():
                mine = table.setdefault(row, {})
                for method, tally in tallies.items():
                    mine[method] = mine.get(method, Tally()) + tally
            if time.monotonic() > told + 5:
                told = time.monotonic()
                left = (told - began) / number * (len(todo) - number)
                print(f"{number} of {len(todo)} parts, {left:.0f} s left", file=sys.stderr)
    print("| sweep | curve | noise of runs | 95% interval of | covers | width | points alone | items alone |")
    print("|---|---|---|---|---:|---:|---:|---:|")
    for (shape, setting, name, quantity), by in sorted(
        table.items(), key=lambda row: (row[0][1], row[0][0], row[0][2])
    ):
        ours = by["ours"]
        others = " | ".join(f"{100 * by[m].share:.1f}%" if m in by else "" for m in ("points", "items"))
        width = "" if quantity == "n50" else f"{ours.width / max(ours.tries, 1):.3f}"  # some have no upper limit
        print(f"| {setting} | {shape} | {name} | {quantity} | {100 * ours.share:.1f}% | {width} | {others} |")


if __name__ == "__main__":
    main()
