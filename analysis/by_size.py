"""The conservative check on a fit: sizes as the unit of the bootstrap, everything that was measured at one together.

The draws of `analysis.sample` rest on estimated components of the variance. Resampling whole sizes rests on nothing but
that these are alike: what all runs of a size share, and where the law bends away from the curve, moves with the size
(a cluster bootstrap, Davison & Hinkley 1997, 3.8).
"""

from dataclasses import replace

import numpy as np

from analysis.fit import Points, curves, problem_of
from analysis.laws import Array, Law
from analysis.sample import Estimate
from analysis.varpro import solve

RESAMPLES = 200  # each is a fit of its own


def by_size(law: Law, points: Points, size: float, n: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The law's error at `size`, with the 95% interval over `n` resamples of the sizes [S] of `points`.

    A resample must leave the law one size more than it has parameters; others are drawn again.
    """
    needed = len(law.linear + law.nonlinear) + 1
    if len(points.sizes) < needed + 1:
        return Estimate(why=f"{len(points.sizes)} sizes are too few to leave any out of the {law.name} law")
    rng, at = np.random.default_rng(seed), np.array([[size]])
    whole = np.ones(len(points.sizes), int)
    drawn: list[float] = []
    while len(drawn) < n:
        times = np.bincount(rng.integers(0, len(points.sizes), len(points.sizes)), minlength=len(points.sizes))
        if np.count_nonzero(times) >= needed:
            drawn.append(_told(law, points, times, at))
    return Estimate.of(_told(law, points, whole, at), np.array(drawn))


def _told(law: Law, points: Points, times: np.ndarray, at: Array) -> float:
    """The error at `at`, fitted to the sizes that are there, each as often as it was drawn."""
    there = np.flatnonzero(times)
    problem = problem_of(law, points)  # its box is that of all sizes, as is the range in which a law may bend
    some = replace(problem, x=problem.x[there], weight=problem.weight[there] * np.sqrt(times[there]))
    values = solve(some, points.error[there]).values
    return float(curves(law, at, values, points.share)[0, 0])
