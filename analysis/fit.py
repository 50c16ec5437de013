"""One law through one curve: best values, an interval for each, and what a band needs.

    points = Points(sizes, error_of(score), stderr)        # arrays [S]; refuses what nothing can be concluded from
    fitted = fit(Rectified(), points)                      # analysis.laws has the others
    fitted.values, fitted.loss, fitted.aicc, fitted.cautions
    fitted.intervals()                                     # {parameter: Interval}, by profile likelihood
    fitted.predict(new_sizes)                              # errors; at most one decade outside the sizes
    fitted.refit(draws)                                    # draws [B, S] of the errors -> Refits, a second for 2,000
    fitted.refit(draws).band(grid(points)).low             # 95% band for a figure; .of("E"), .values, .predict(sizes)
    analysis.choice.choose(sizes, error, stderr)           # which law, if any; takes any input and says what is amiss

Size 0 is a reference elsewhere and never comes in here. Weights are 1 / stderr², where a standard error holds the
variance of seeds and of items; the spread of draws is the caller's to make (seeds, items shared by cells), as
`simulate` knows only of independent noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.ndimage import minimum_filter
from scipy.optimize import brentq, least_squares
from scipy.stats import chi2, f

from analysis.laws import Array, Law, Range
from analysis.varpro import Problem, Solution, grid_loss, mesh, refine, solve
from harness.errors import HarnessError

LEVEL = 0.95
DECADE = 10.0  # how far outside the sizes a law may be asked, as a factor
STARTS = 12
MISFIT = 0.01  # residuals less likely than that, were the law true, are told


def error_of(score: Array, chance: float = 0.0) -> Array:
    """1 - score, 1 at chance and 0 at a perfect score; above 1 below chance. `chance`: 1 / choices, 0 if open."""
    if not 0 <= chance < 1:
        raise HarnessError(f"chance={chance} is no share below 1; for four choices it is 0.25")
    return 1 - (np.asarray(score, float) - chance) / (1 - chance)


@dataclass(frozen=True, eq=False)
class Points:
    """The means of a curve, [S] each: sizes > 0, errors (or losses), their standard errors.

    `known`: stderr is a standard error; else only proportional to one, the scale being told by the residuals, as it is
    where stderr is None. `share`: the error is a proportion (1 - score); False for a loss. `bases`: for `Joint`, the
    number that tells each point's base. Raises HarnessError, one line, on anything no law can be fitted to.
    """

    sizes: Array
    error: Array
    stderr: Array | None = None
    bases: Array | None = None
    share: bool = True
    known: bool = True

    def __post_init__(self) -> None:
        for name in ("sizes", "error", "stderr", "bases"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, np.asarray(value, float))
        if why := obstacle(self.sizes, self.error, self.stderr, self.bases):
            raise HarnessError(why)
        if self.stderr is None:
            object.__setattr__(self, "stderr", np.ones_like(self.error))
            object.__setattr__(self, "known", False)

    @property
    def weight(self) -> Array:
        assert self.stderr is not None  # set in __post_init__
        return 1 / self.stderr

    def where(self, keep: np.ndarray) -> "Points":
        """Some of the points, by a mask or indices."""
        bases = None if self.bases is None else self.bases[keep]
        stderr = None if self.stderr is None else self.stderr[keep]
        return replace(self, sizes=self.sizes[keep], error=self.error[keep], stderr=stderr, bases=bases)


def obstacle(sizes: Array, error: Array, stderr: Array | None = None, bases: Array | None = None) -> str:
    """Why no law can be fitted to these, in one sentence; empty if one can."""
    sizes, error = np.asarray(sizes, float), np.asarray(error, float)
    others = [np.asarray(a, float) for a in (stderr, bases) if a is not None]
    if sizes.ndim != 1 or any(a.shape != sizes.shape for a in (error, *others)):
        return "Sizes, errors and standard errors must be lists of the same length, one number a size."
    if len(sizes) == 0:
        return "There is no size to fit a curve to."
    if not np.all(np.isfinite(sizes) & (sizes > 0)):
        return "Every size must be above 0: the untouched base has no place on a logarithmic axis and is a reference."
    if not np.all(np.isfinite(error)):
        missing = _listed(sizes[~np.isfinite(error)])
        return f"There is no score at {missing} examples: run what is missing, or leave the size out."
    if stderr is not None and not np.all(np.isfinite(others[0]) & (others[0] > 0)):
        bad = sizes[~(np.isfinite(others[0]) & (others[0] > 0))]
        return f"The standard error at {_listed(bad)} is not above 0, so nothing says how much that score weighs."
    if bases is not None and not np.all(np.isfinite(others[-1]) & (others[-1] > 0)):
        return "The number that tells the bases apart must be above 0."
    if bases is None and len(np.unique(sizes)) < len(sizes):
        return "A size stands there twice: average its seeds first, or say which base each point belongs to."
    return ""


@dataclass(frozen=True)
class Interval:
    """Low and high end. An open end is where a bound was met before the data spoke against it."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __str__(self) -> str:
        if self.low_open and self.high_open:
            return "not identified"
        if self.low_open:
            return f"below {self.high:.3g}"
        return f"above {self.low:.3g}" if self.high_open else f"{self.low:.3g} to {self.high:.3g}"


@dataclass(frozen=True)
class Band:
    """Errors over sizes, [n] each: the fitted curve, and the low and high end of its interval at each size."""

    sizes: Array
    middle: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Fit:
    """A law's best values for some points. `loss`: sum of squared weighted residuals; `agreed`: (starts that ended in
    the best minimum, starts). `cautions`: what is to be known before it is believed, a clause each."""

    law: Law
    points: Points
    values: dict[str, float]
    loss: float
    converged: bool
    agreed: tuple[int, int]

    @property
    def dof(self) -> int:
        return len(self.points.sizes) - len(self.values)

    @property
    def aicc(self) -> float:
        """Akaike's criterion, corrected for few points (Hurvich & Tsai 1989); infinite where there are too few.

        Counts the scale as one more parameter where the residuals tell it.
        """
        n, k = len(self.points.sizes), len(self.values) + (not self.points.known)
        if n - k - 1 <= 0:
            return np.inf
        fit = self.loss if self.points.known else n * np.log(max(self.loss / n, 1e-300))
        return float(fit + 2 * k + 2 * k * (k + 1) / (n - k - 1))

    @property
    def misfit(self) -> bool:
        """Whether the residuals are larger than the standard errors allow."""
        return self.points.known and self.dof > 0 and bool(chi2.sf(self.loss, self.dof) < MISFIT)

    @cached_property
    def at_bound(self) -> dict[str, float]:
        """Parameters that lie at a bound of what was searched, and the bound."""
        pairs = zip(self.values.items(), bounds(self.law, self.points), strict=True)
        return {name: bound for (name, value), ends in pairs for bound in ends if _meets(value, bound)}

    @property
    def cautions(self) -> tuple[str, ...]:
        words = [f"{name} lies at the bound of its search, {bound:.3g}" for name, bound in self.at_bound.items()]
        if not self.converged:
            words.append("the search did not converge")
        if self.dof <= 0:
            words.append(f"{len(self.values)} parameters fit {len(self.points.sizes)} points whatever these are")
        if self.misfit:
            words.append("the residuals are larger than the noise, so the intervals are widened by their ratio")
        return tuple(words)

    def predict(self, sizes: Array, bases: Array | None = None, *, reach: float = DECADE) -> Array:
        """Errors at sizes, at most a factor `reach` outside those of the points; a share's never below 0."""
        x = reachable(self.points, sizes, bases, reach)
        return curves(self.law, x, np.array([list(self.values.values())]), self.points.share)[0]

    def intervals(self, level: float = LEVEL) -> dict[str, Interval]:
        """Of every parameter, by profile likelihood: the values that the data, the others at their best, do not refuse.

        No normal approximation, which fails for an asymptote that is hardly identified: an end may be open ("E below
        0.31"). With a scale told by the residuals the threshold is F's, else chi-squared's; where the residuals are
        larger than the standard errors allow, it grows by their ratio.
        """
        scale = self.loss / self.dof if self.dof > 0 and (self.misfit or not self.points.known) else 1.0
        if self.points.known:
            allowed = scale * float(chi2.ppf(level, 1))
        else:
            allowed = scale * float(f.ppf(level, 1, self.dof)) if self.dof > 0 else np.inf
        return {name: self._profile(i, self.loss + allowed) for i, name in enumerate(self.values)}

    def _profile(self, i: int, most: float) -> Interval:
        """Walk from the best value of parameter `i` outwards until the loss is above `most`, or to the bound."""
        problem = problem_of(self.law, self.points)
        logarithmic = i >= problem.linear and self.law.logarithmic
        best = list(self.values.values())[i]
        start = np.log(best) if logarithmic else best
        free = replace(problem, lower=problem.lower.copy(), upper=problem.upper.copy())
        ends = problem.lower[i], problem.upper[i]
        limits = np.log(ends) if logarithmic else ends

        def above(place: float) -> float:
            value = np.exp(place) if logarithmic else place
            free.lower[i] = free.upper[i] = np.clip(value, *ends)
            return float(solve(free, self.points.error).loss[0]) - most

        found: list[tuple[float, bool]] = []
        for sign, limit in zip((-1, 1), limits, strict=True):
            step, inside, root = 0.02 if logarithmic else 1e-3 * (abs(best) + 1e-3), start, None
            while inside != limit and abs(inside) < 1e9:
                outside = max(start - step, limit) if sign < 0 else min(start + step, limit)
                if above(outside) > 0:
                    root = brentq(above, inside, outside, xtol=1e-9, rtol=1e-6)
                    break
                inside, step = outside, 2 * step
            end = limit if root is None else root
            found.append((float(np.exp(end)) if logarithmic else float(end), root is None))
        (low, low_open), (high, high_open) = found
        return Interval(low, high, low_open, high_open)

    def refit(self, draws: Array) -> "Refits":
        """The same law fitted to each row of draws [B, S] of the errors, with the same weights."""
        draws = np.atleast_2d(np.asarray(draws, float))
        if draws.shape[1] != len(self.points.sizes) or not np.all(np.isfinite(draws)):
            raise HarnessError(f"draws must be finite, one column for each of the {len(self.points.sizes)} points")
        return Refits(self, solve(problem_of(self.law, self.points), draws))

    def simulate(self, count: int, seed: int = 0) -> Array:
        """A parametric bootstrap: draws [count, S], the curve with independent normal noise of the standard errors.

        It knows of nothing that points have in common. An unknown scale, or a misfit's ratio, is from the residuals.
        """
        scale = self.loss / self.dof if self.dof > 0 and (self.misfit or not self.points.known) else 1.0
        noise = np.random.default_rng(seed).normal(size=(count, len(self.points.sizes)))
        middle = self.predict(self.points.sizes, self.points.bases)
        return middle + noise * np.sqrt(scale) / self.points.weight


@dataclass(frozen=True)
class Refits:
    """A law's values over draws: `solution.values` [B, P], in the order of `fit.values`."""

    fit: Fit
    solution: Solution

    @property
    def values(self) -> Mapping[str, Array]:
        """Each parameter's values [B]."""
        return dict(zip(self.fit.values, self.solution.values.T, strict=True))

    def of(self, name: str, level: float = LEVEL) -> Interval:
        """Percentile interval of a parameter; open where that percentile of the draws lies at a bound."""
        i = list(self.fit.values).index(name)
        low, high = np.quantile(self.values[name], [(1 - level) / 2, (1 + level) / 2])
        ends = zip((low, high), bounds(self.fit.law, self.fit.points)[i], strict=True)
        return Interval(float(low), float(high), *(_meets(value, bound) for value, bound in ends))

    def predict(self, sizes: Array, bases: Array | None = None, *, reach: float = DECADE) -> Array:
        """Errors [B, n] at n sizes."""
        x = reachable(self.fit.points, sizes, bases, reach)
        return curves(self.fit.law, x, self.solution.values, self.fit.points.share)

    def band(self, sizes: Array, bases: Array | None = None, level: float = LEVEL, *, reach: float = DECADE) -> Band:
        """The fitted curve between percentiles of the draws, size by size (not simultaneous)."""
        low, high = np.quantile(self.predict(sizes, bases, reach=reach), [(1 - level) / 2, (1 + level) / 2], axis=0)
        return Band(np.asarray(sizes, float), self.fit.predict(sizes, bases, reach=reach), low, high)


def fit(law: Law, points: Points) -> Fit:
    """The best values of a law's parameters: all minima of the grid are followed down, the best by scipy once more."""
    problem = problem_of(law, points)
    y = points.error[None]
    if not law.nonlinear:
        solution = solve(problem, y)
        return _fitted(law, points, solution, 0, True, (1, 1))
    nodes, shape = mesh(problem)
    losses = grid_loss(problem, y, nodes)[:, 0].reshape(shape)
    minima = np.flatnonzero(losses == minimum_filter(losses, size=3, mode="nearest"))
    starts = minima[np.argsort(losses.ravel()[minima])][:STARTS]
    solution = refine(problem, np.repeat(y, len(starts), axis=0), nodes[starts])
    best = int(np.argmin(solution.loss))
    near = int(np.sum(solution.loss <= solution.loss[best] + 1e-3 * max(1.0, solution.loss[best])))

    low, high = problem.box()
    u = np.clip(problem.working(solution.values[best, problem.linear :]), low + 1e-12, high - 1e-12)
    tight = {"xtol": 1e-12, "ftol": 1e-12, "gtol": 1e-12}
    polished = least_squares(lambda u: problem.residuals(y, u[None])[1][0], u, bounds=(low, high), **tight)
    if 2 * polished.cost < solution.loss[best] * (1 - 1e-9):
        solution, best = refine(problem, y, polished.x[None]), 0
    converged = bool(solution.converged[best]) and bool(polished.success)
    return _fitted(law, points, solution, best, converged, (near, len(starts)))


def _fitted(law: Law, points: Points, solution: Solution, i: int, converged: bool, agreed: tuple[int, int]) -> Fit:
    values = dict(zip((*law.linear, *law.nonlinear), map(float, solution.values[i]), strict=True))
    return Fit(law, points, values, float(solution.loss[i]), converged, agreed)


def grid(points: Points, count: int = 200, *, beyond: float = 1.0) -> Array:
    """Sizes for a smooth line, evenly on a logarithmic axis, up to a factor `beyond` past the largest."""
    return np.geomspace(points.sizes.min(), points.sizes.max() * beyond, count)


def inputs(law: Law, points: Points) -> Array:
    """x [S, inputs] of a law."""
    return _x(law.inputs, points.sizes, points.bases)


def bounds(law: Law, points: Points) -> list[Range]:
    """(lowest, highest) of each parameter for these points."""
    return law.bounds(inputs(law, points), points.error, points.share)


def problem_of(law: Law, points: Points) -> Problem:
    if law.shares_only and not points.share:
        raise HarnessError(f"the {law.name} law is one for shares of right answers; a loss needs another one")
    lower, upper = np.array(bounds(law, points)).T
    return Problem(law, inputs(law, points), points.weight, lower, upper)


def reachable(points: Points, sizes: Array, bases: Array | None, reach: float) -> Array:
    """x [n, inputs] of new sizes; refuses those farther outside the points' than a factor `reach`."""
    sizes = np.atleast_1d(np.asarray(sizes, float))
    low, high = points.sizes.min() / reach, points.sizes.max() * reach
    if outside := [f"{size:,.0f}" for size in sizes if not low * (1 - 1e-9) <= size <= high * (1 + 1e-9)]:
        raise HarnessError(
            f"no law is asked about {', '.join(outside[:3])} examples: sizes reach from {points.sizes.min():,.0f} to "
            f"{points.sizes.max():,.0f}, and a factor {reach:g} outside them is the most"
        )
    return _x(1 if points.bases is None else 2, sizes, bases)


def _x(count: int, sizes: Array, bases: Array | None) -> Array:
    if count == 1:
        return sizes[:, None]
    if bases is None:
        raise HarnessError("the joint law needs `bases`, the number that tells each point's base")
    return np.stack([sizes, np.broadcast_to(np.asarray(bases, float), sizes.shape)], axis=1)


def curves(law: Law, x: Array, values: Array, share: bool) -> Array:
    """Errors [B, n] at x [n, inputs] for values [B, P]."""
    split = len(law.linear)
    error, columns = law.columns(x, values[:, split:])
    for value, column in zip(values[:, :split].T, columns, strict=True):
        error = error + value[:, None] * column
    return np.maximum(error, 0.0) if share else error


def _meets(value: float, bound: float) -> bool:
    return bool(np.isfinite(bound) and np.isclose(value, bound, rtol=1e-4, atol=1e-6))


def _listed(sizes: Array) -> str:
    return ", ".join(f"{size:,.0f}" for size in sizes)
