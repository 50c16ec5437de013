"""One decade beyond the largest size: how often does the 95% interval of a law hold the truth?

``python -m tests.extrapolation_study`` prints the table, part of make coverage. Sweeps are those of
tests/coverage_study.py, at its large setting. The law that made the curve, fitted to it, is the best case; *supported*
is what a report would say: `analysis.choice`'s law, where there is one. The last curve is of no law here.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from analysis.conclusions import law_of
from analysis.elicitation import Sampled
from analysis.fit import DECADE, Fit, Points, error_of, fit
from analysis.laws import Law, LogLinear, Rectified
from analysis.sample import Estimate, draws
from harness.items import Asked
from tests.coverage_study import LARGE, SHAPES, SHARED, Shape, Tally, simulate

TWO_RISES = Shape("two rises", 0.10, lambda n: 0.70 - 0.25 / (1 + (n / 100) ** 1.5) - 0.25 / (1 + (n / 60_000) ** 1.5))
LAWS: tuple[tuple[Shape, Law], ...] = (
    (SHAPES[0], Rectified()),
    (SHAPES[1], LogLinear()),
    (SHAPES[2], Rectified()),
    (TWO_RISES, Rectified()),  # of no law
)


@dataclass
class Row:
    """`own`: by the law that made the curve. `chosen`: by the supported law, in `chosen.tries` of `sweeps`."""

    own: Tally
    chosen: Tally
    sweeps: int = 0

    def words(self) -> str:
        told = self.chosen.tries / max(self.sweeps, 1)
        widths = [t.width / max(t.tries, 1) for t in (self.own, self.chosen)]
        chosen = f"{self.chosen.share:.1%} | {widths[1]:.3f}" if self.chosen.tries else " | "
        return f"{self.own.share:.1%} | {widths[0]:.3f} | {told:.0%} | {chosen}"


def study(which: int, name: str, sweeps: int, seed: int, b: int = 500) -> Row:
    """So many sweeps of one curve; `name` is one of `SHARED`."""
    shape, law = LAWS[which]
    rng = np.random.default_rng([seed, which, sweeps])
    asked = Asked(tuple(map(str, range(LARGE.n))), np.arange(LARGE.n), ("",) * LARGE.n, 0.0)
    far = np.array([LARGE.sizes[-1] * DECADE])
    truth = float(shape.score(far)[0])
    row = Row(Tally(), Tally(), sweeps)
    for sweep in range(sweeps):
        series = simulate(shape, LARGE, SHARED[name], rng, asked)
        curve = Sampled(series, draws(series, b, seed=seed * 1_000_000 + sweep))
        drawn = error_of(curve.draws.scores)
        points = Points(series.sizes, error_of(series.scores), drawn.std(axis=0))
        row.own.add(_told(fit(law, points), drawn, far), truth)
        if supported := law_of(curve).supported:
            row.chosen.add(_told(supported, drawn, far), truth)
    return row


def _told(law: Fit, drawn: np.ndarray, far: np.ndarray) -> Estimate:
    return Estimate.of(1 - float(law.predict(far)[0]), 1 - law.refit(drawn).predict(far)[:, 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=400)
    wanted = parser.parse_args()
    print("| curve | noise of runs | own law covers | width | a law supported | it covers | width |")
    print("|---|---|---:|---:|---:|---:|---:|")
    with ProcessPoolExecutor(os.cpu_count() or 1) as pool:
        jobs = [(which, name) for which in range(len(LAWS)) for name in SHARED]
        rows = [pool.submit(study, which, name, wanted.sweeps, 1) for which, name in jobs]
        for (which, name), row in zip(jobs, rows, strict=True):
            print(f"| {LAWS[which][0].name} | {name} | {row.result().words()} |", flush=True)


if __name__ == "__main__":
    main()
