"""One decade beyond the largest size: how often does the interval that a report foretells hold the truth?

``python -m tests.extrapolation_study`` prints the table, part of make coverage. Sweeps are those of
tests/coverage_study.py. *Foretold* is what a report says: `analysis.foretold`, where `analysis.choice` supports a law.
Its interval stands beside that of the law that made the curve, named beforehand and fitted alone (at the same nominal
95%), and of the law that the rule chose, taken for the truth; in every tenth sweep also beside the conservative check,
the law that made the curve over resamples of the sizes (`analysis.by_size`). `OUTSIDE` are curves that no law has.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit

from analysis.by_size import by_size
from analysis.conclusions import law_of
from analysis.elicitation import Sampled
from analysis.fit import DECADE, Points, error_of
from analysis.foretold import foretell
from analysis.laws import Law, LogitLinear, LogLinear, Power, Rectified, ScorePower
from analysis.sample import Estimate, draws
from harness.items import Asked
from tests.coverage_study import LARGE, SHAPES, SHARED, SMALL, Setting, Shape, Tally, simulate

FAMILY: tuple[tuple[Shape, Law], ...] = (
    (SHAPES[0], Rectified()),
    (SHAPES[1], LogLinear()),
    (SHAPES[2], Rectified()),
    (Shape("line in log-odds", 0.25, lambda n: expit(-0.9 + 0.5 * np.log10(n / 10))), LogitLinear()),
    (Shape("power of the score", 0.25, lambda n: 0.30 * (n / 10) ** 0.07), ScorePower()),
    (Shape("power law", 0.20, lambda n: 0.75 - 0.5 * (n / 10) ** -0.25), Power()),
)
OUTSIDE = (
    Shape("two rises", 0.10, lambda n: 0.70 - 0.25 / (1 + (n / 100) ** 1.5) - 0.25 / (1 + (n / 60_000) ** 1.5)),
    Shape("broken line", 0.30, lambda n: 0.32 + 0.02 * np.log10(n) + 0.11 * np.log10(n / 10_000).clip(0)),
    Shape("Gompertz's sigmoid", 0.20, lambda n: 0.2 + 0.6 * np.exp(-np.exp(5.775 - 1.65 * np.log10(n)))),
    Shape(
        "rise and fall", 0.30, lambda n: 0.6 - 0.3 / (1 + (n / 300) ** 0.8) - 0.04 * np.log10(n / 3e4).clip(0) ** 1.5
    ),
)
CURVES: tuple[tuple[Shape, Law | None], ...] = (*FAMILY, *((shape, None) for shape in OUTSIDE))


@dataclass
class Row:
    """`own`: by the law that made the curve, in all `sweeps`; `sizes`: in every tenth. In those where a law is
    `supported`, `chosen`: by that one; where besides something is `foretold`, that."""

    sweeps: int = 0
    supported: int = 0
    own: Tally = field(default_factory=Tally)
    chosen: Tally = field(default_factory=Tally)
    foretold: Tally = field(default_factory=Tally)
    sizes: Tally = field(default_factory=Tally)

    def __add__(self, other: "Row") -> "Row":
        return Row(
            self.sweeps + other.sweeps,
            self.supported + other.supported,
            self.own + other.own,
            self.chosen + other.chosen,
            self.foretold + other.foretold,
            self.sizes + other.sizes,
        )

    def words(self) -> str:
        parts = [f"{self.supported / self.sweeps:.0%}", f"{self.foretold.tries / self.sweeps:.0%}"]
        for tally in (self.foretold, self.own, self.sizes, self.chosen):
            parts += [f"{tally.share:.1%}", f"{tally.width / tally.tries:.3f}"] if tally.tries else ["", ""]
        return " | ".join(parts)


def study(which: int, setting: Setting, name: str, sweeps: int, seed: int, b: int = 500) -> Row:
    """So many sweeps of one of `CURVES`; `name` is one of `SHARED`."""
    shape, law = CURVES[which]
    rng = np.random.default_rng([seed, which, setting.n, len(name)])
    asked = Asked(tuple(map(str, range(setting.n))), np.arange(setting.n), ("",) * setting.n, 0.0)
    truth = 1 - float(shape.score(np.array([setting.sizes[-1] * DECADE]))[0])
    row = Row(sweeps)
    for sweep in range(sweeps):
        series = simulate(shape, setting, SHARED[name], rng, asked)
        curve = Sampled(series, draws(series, b, seed=seed * 1_000_000 + sweep // 10))  # resamples serve ten sweeps
        told = foretell(series.sizes, error_of(series.scores), error_of(curve.draws.scores))
        by_law = {said.law: Estimate.of(said.value, said.drawn) for said in told.said}
        if law is not None:
            row.own.add(by_law[law], truth)
        if law is not None and sweep % 10 == 0:
            points = Points(series.sizes, error_of(series.scores), error_of(curve.draws.scores).std(axis=0))
            row.sizes.add(by_size(law, points, series.sizes[-1] * DECADE), truth)
        if supported := law_of(curve).supported:
            row.supported += 1
            row.chosen.add(by_law[supported.law], truth)
            row.foretold.add(told.error, truth)
    return row


def jobs(sweeps: int, part: int) -> Iterator[tuple[int, int, str, int, int]]:
    for i in range(0, sweeps, part):
        for setting in range(2):
            for which in range(len(CURVES)):
                for name in SHARED:
                    yield which, setting, name, min(part, sweeps - i), 1 + i


def run(job: tuple[int, int, str, int, int]) -> Row:
    which, setting, name, sweeps, seed = job
    return study(which, (LARGE, SMALL)[setting], name, sweeps, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    wanted = parser.parse_args()
    table: dict[tuple[int, int, str], Row] = {}
    with ProcessPoolExecutor(wanted.workers) as pool:
        todo = {pool.submit(run, job): job for job in jobs(wanted.sweeps, 50)}
        for number, future in enumerate(as_completed(todo), 1):
            which, setting, name, *_ = todo[future]
            table[setting, which, name] = table.get((setting, which, name), Row()) + future.result()
            print(f"{number} of {len(todo)} parts", file=sys.stderr)
    print("| sweep | curve | noise of runs | a law supported | foretold | it covers | width | own law | width ", end="")
    print("| by size | width | chosen law | width |\n|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for (setting, which, name), row in sorted(table.items(), key=lambda entry: (entry[0][0], entry[0][1])):
        print(f"| {(LARGE, SMALL)[setting].name} | {CURVES[which][0].name} | {name} | {row.words()} |")


if __name__ == "__main__":
    main()
