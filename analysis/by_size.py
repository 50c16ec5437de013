"""The conservative check on a fit: sizes as the unit of the bootstrap, everything that was measured at one together.

The draws of `analysis.sample` rest on estimated components of the variance. Resampling whole sizes rests on nothing but
that these are alike: what all runs of a size share, and where the law bends away from the curve, moves with the size
(a cluster bootstrap, Davison & Hinkley 1997, 3.8). Resamples of few sizes vary too little, though: on a straight line
through eleven, 95% of them hold the truth one decade on in 88%. So their deviations are widened as a residual's are for
the p parameters fitted, by sqrt(S / (S - p)), and by Student's t over the normal quantile.
"""

from dataclasses import replace

import numpy as np
from scipy.special import ndtri, stdtrit

from analysis.fit import Points, curves, problem_of
from analysis.laws import Array, Law
from analysis.points import LEVEL
from analysis.sample import Estimate
from analysis.varpro import solve

RESAMPLES = 200  # each is a fit of its own


def by_size(law: Law, points: Points, size: float, n: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The law's error at `size`, with the 95% interval over `n` resamples of the sizes [S] of `points`.

    A resample must leave the law one size more than it has parameters; others are drawn again.
    """
    count, fitted = len(points.sizes), len(law.linear + law.nonlinear)
    if count < fitted + 2:
        return Estimate(why=f"{count} sizes are too few to leave any out of the {law.name} law")
    rng, at = np.random.default_rng(seed), np.array([[size]])
    told = _told(law, points, np.ones(count, int), at)
    drawn: list[float] = []
    while len(drawn) < n:
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        if np.count_nonzero(times) > fitted:
            drawn.append(_told(law, points, times, at))
    wide = told + widening(count, fitted) * (np.array(drawn) - told)
    return Estimate.of(told, np.maximum(wide, 0.0) if points.share else wide)


def widening(count: int, fitted: int) -> float:
    """By what deviations over resamples of so many sizes are multiplied, where so many parameters are fitted."""
    tail = 0.5 + LEVEL / 2
    return float(np.sqrt(count / (count - fitted)) * stdtrit(count - fitted, tail) / ndtri(tail))


def _told(law: Law, points: Points, times: np.ndarray, at: Array) -> float:
    """The error at `at`, fitted to the sizes that are there, each as often as it was drawn."""
    there = np.flatnonzero(times)
    problem = problem_of(law, points)  # its box is that of all sizes, as is the range in which a law may bend
    some = replace(problem, x=problem.x[there], weight=problem.weight[there] * np.sqrt(times[there]))
    values = solve(some, points.error[there]).values
    return float(curves(law, at, values, points.share)[0, 0])
