"""Least squares by variable projection, for thousands of data sets at once.

Given a law's nonlinear parameters the linear ones have a closed form, so only the former are searched for: a grid over
their whole box, then Levenberg-Marquardt steps on what the linear ones leave (Golub & Pereyra 1973, SIAM J. Numer.
Anal. 10:413). A grid cannot miss a minimum that is wider than its mesh, and everything is a few array operations for
all data sets together, which is what makes 2,000 bootstrap refits a matter of a second. Losses are sums over the sizes:
a mean would only loosen the tolerances.
"""

from dataclasses import dataclass

import numpy as np

from analysis.laws import Array, Law

MESH = {1: 160, 2: 44}  # nodes along an axis, for one and two nonlinear parameters
COARSE = {1: 60, 2: 22}  # for many data sets: the steps from the best node make up for it
CHUNK = 500  # data sets at a time on the grid, for memory's sake
ROUNDS = 80
NEGLIGIBLE = 1e-9  # of the loss (and of 1): what further steps may still promise when one stops


@dataclass(frozen=True)
class Problem:
    """A law over x [S, inputs] with weights [S] (1 / standard error) and the box [P] of its parameters, linear first.

    Where errors are correlated, `weight` is a matrix [S, S] instead, W with W'W the inverse of their covariance
    (generalised least squares). A parameter is held at a value by a box without width there.
    """

    law: Law
    x: Array
    weight: Array
    lower: Array
    upper: Array

    @property
    def linear(self) -> int:
        return len(self.law.linear)

    def working(self, values: Array) -> Array:
        return np.log(values) if self.law.logarithmic else np.asarray(values, float)

    def natural(self, u: Array) -> Array:
        return np.exp(u) if self.law.logarithmic else u

    def box(self) -> tuple[Array, Array]:
        """Bounds of the nonlinear parameters, as they are searched."""
        return self.working(self.lower[self.linear :]), self.working(self.upper[self.linear :])

    def weighed(self, values: Array) -> Array:
        """[..., S] in units in which the errors are independent and of variance 1."""
        return values * self.weight if self.weight.ndim == 1 else values @ self.weight.T

    def residuals(self, y: Array, u: Array) -> tuple[Array, Array]:
        """The best linear parameters [B, L] and weighted residuals [B, S] for data y [B, S] at u [B, N]."""
        offset, columns = self.law.columns(self.x, self.natural(u))
        rest = self.weighed(y - offset)
        design = [self.weighed(column) for column in columns]
        gram = [[np.sum(a * b, axis=-1) for b in design] for a in design]
        c = _bounded(gram, [np.sum(a * rest, axis=-1) for a in design], self.lower, self.upper)[0]
        for value, column in zip(c, design, strict=True):
            rest = rest - value[:, None] * column
        return np.stack(c, axis=-1) if c else np.empty((len(y), 0)), rest


@dataclass(frozen=True)
class Solution:
    """Parameters [B, P], linear first; losses [B] (sums of squared weighted residuals); whether each converged [B]."""

    values: Array
    loss: Array
    converged: np.ndarray


def solve(problem: Problem, y: Array) -> Solution:
    """The best fit to each data set of y [B, S]."""
    y = np.atleast_2d(np.asarray(y, float))
    if not problem.law.nonlinear:
        return refine(problem, y, np.empty((len(y), 0)))
    nodes, _ = mesh(problem, COARSE)
    best = [grid_loss(problem, y[i : i + CHUNK], nodes).argmin(axis=0) for i in range(0, len(y), CHUNK)]
    return refine(problem, y, nodes[np.concatenate(best)])


def mesh(problem: Problem, nodes: dict[int, int] = MESH) -> tuple[Array, tuple[int, ...]]:
    """Nodes [G, N] over the box of the nonlinear parameters, and how many there are along each."""
    low, high = problem.box()
    count = nodes[len(low)]
    axes = [np.linspace(a, b, count if b > a else 1) for a, b in zip(low, high, strict=True)]
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], -1), tuple(len(a) for a in axes)


def grid_loss(problem: Problem, y: Array, nodes: Array) -> Array:
    """Losses [G, B] of the data sets y [B, S] at the nodes [G, N], the linear parameters at their best."""
    offset, columns = problem.law.columns(problem.x, problem.natural(nodes))
    design = [problem.weighed(column) for column in columns]
    offset = problem.weighed(np.broadcast_to(offset, (len(nodes), len(problem.x))))
    data = problem.weighed(y).T
    loss = np.sum(data**2, axis=0) - 2 * (offset @ data) + np.sum(offset**2, axis=1)[:, None]
    gram = [[np.sum(a * b, axis=1)[:, None] for b in design] for a in design]
    moments = [a @ data - np.sum(a * offset, axis=1)[:, None] for a in design]
    return loss + _bounded(gram, moments, problem.lower, problem.upper)[1]


def refine(problem: Problem, y: Array, u: Array) -> Solution:
    """Levenberg-Marquardt from u [B, N], each data set for itself, inside the box."""
    low, high = problem.box() if u.shape[1] else (u, u)
    c, r = problem.residuals(y, u)
    loss, promise = np.sum(r**2, axis=1), np.zeros(len(y))
    damping, active = np.full(len(y), 1e-3), np.arange(len(y)) if u.shape[1] else np.arange(0)
    u = u.copy()
    for _ in range(ROUNDS):
        if not len(active):
            break
        ya, ua, ra = y[active], u[active], r[active]
        slopes = _slopes(problem, ya, ua, ra, high)
        gradient = np.einsum("bns,bs->bn", slopes, ra)
        stuck = ((ua <= low) & (gradient > 0)) | ((ua >= high) & (gradient < 0)) | (low == high)
        slopes[stuck] = 0.0
        gradient[stuck] = 0.0
        curvature = np.einsum("bns,bms->bnm", slopes, slopes)
        scale = np.einsum("bnn->bn", curvature)
        scale = np.where(scale > 0, scale, 1.0)  # no slope: the parameter says nothing, and stays
        eye = np.eye(u.shape[1])
        promise[active] = np.sum(gradient * _solved(curvature + eye * (1e-12 * scale)[:, None], gradient), axis=1)
        step = _solved(curvature + eye * (damping[active, None] * scale)[:, None], gradient)
        trial = np.clip(ua - step, low, high)
        ct, rt = problem.residuals(ya, trial)
        after = np.sum(rt**2, axis=1)
        better = after <= loss[active]
        done = promise[active] <= NEGLIGIBLE * (1 + loss[active])
        won = active[better]
        c[won], r[won], u[won], loss[won] = ct[better], rt[better], trial[better], after[better]
        damping[active] *= np.where(better, 0.2, 5.0)
        active = active[~done & (damping[active] < 1e12)]
    # A kink, where a linear parameter meets its bound, keeps a gradient: there no step is better, however short.
    converged = (promise <= 1e-4 * (1 + loss)) | (damping >= 1e12)
    return Solution(np.concatenate([c, problem.natural(u)], axis=1), loss, converged)


def _slopes(problem: Problem, y: Array, u: Array, r: Array, high: Array) -> Array:
    """Derivatives [B, N, S] of the residuals, by differences that stay inside the box."""
    slopes = np.empty((*u.shape, y.shape[1]))
    for i in range(u.shape[1]):
        h = np.where(u[:, i] + 1e-6 > high[i], -1e-6, 1e-6)
        near = u.copy()
        near[:, i] += h
        slopes[:, i] = (problem.residuals(y, near)[1] - r) / h[:, None]
    return slopes


def _solved(matrix: Array, vector: Array) -> Array:
    return np.asarray(np.linalg.solve(matrix, vector[..., None])[..., 0], np.float64)


def _bounded(gram: list[list[Array]], moments: list[Array], lower: Array, upper: Array) -> tuple[list[Array], Array]:
    """The c (none, one or two) inside the box that make c'Gc - 2m'c least, and how much that is.

    The problem is convex: a solution inside the box is the solution, and else it lies on an edge.
    """
    if not moments:
        return [], np.zeros(())
    if len(moments) == 1:
        c = np.clip(moments[0] / gram[0][0], lower[0], upper[0])
        return [c], c * c * gram[0][0] - 2 * c * moments[0]
    (aa, ab), (_, bb), (ma, mb) = gram[0], gram[1], moments
    det = np.maximum(aa * bb - ab * ab, 1e-15 * aa * bb)
    a, b = (bb * ma - ab * mb) / det, (aa * mb - ab * ma) / det
    value = -(a * ma + b * mb)
    outside = (a < lower[0]) | (a > upper[0]) | (b < lower[1]) | (b > upper[1])
    value = np.where(outside, np.inf, value)
    edges = [(0, bound) for bound in (lower[0], upper[0])] + [(1, bound) for bound in (lower[1], upper[1])]
    for which, bound in edges if outside.any() else []:
        if not np.isfinite(bound):
            continue
        if which == 0:
            ea, eb = np.full_like(a, bound), np.clip((mb - ab * bound) / bb, lower[1], upper[1])
        else:
            ea, eb = np.clip((ma - ab * bound) / aa, lower[0], upper[0]), np.full_like(b, bound)
        here = ea * ea * aa + 2 * ea * eb * ab + eb * eb * bb - 2 * (ea * ma + eb * mb)
        nearer = here < value
        a, b, value = np.where(nearer, ea, a), np.where(nearer, eb, b), np.where(nearer, here, value)
    return [a, b], value
