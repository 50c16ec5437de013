"""The page's conclusions: a row for each curve that gains, a law only where one is supported, figures only of those."""

import re
from pathlib import Path

import numpy as np
import pytest

from analysis.conclusions import beyond, conclude, law_of
from analysis.findings import sampled
from tests.sweeps import Sweep

SIZES = (10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
LAW = {0: 0.05} | {n: 1 - (0.20 + 0.7 / (1 + (n / 300) ** 0.6)) for n in SIZES}  # the rectified law
FLAT = {0: 0.30, 10: 0.30, 100: 0.30, 1000: 0.30, 3000: 0.30, 10000: 0.30}
STEP = {0: 0.05, 10: 0.10, 100: 0.10, 300: 0.10, 1000: 0.10, 3000: 0.90, 10000: 0.90}


def test_a_law_is_drawn_as_it_was_before_it_saw_the_largest_sizes(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, n=4000)
    sweep.curve(LAW, noise=0.004)
    found = conclude(sweep.frame, sweep.items())
    assert found.fits is not None
    assert set(found.fits["held_out"]) == {30000.0}, "the top decade"
    at = found.fits.set_index("size")
    for size in SIZES:
        assert at.loc[size, "low"] - 0.02 <= LAW[size] <= at.loc[size, "high"] + 0.02
    (curve,) = [c for c in sampled(sweep.frame, sweep.items()) if c.series.headline]
    law = law_of(curve).supported
    assert law is not None
    truth = 1 - (0.20 + 0.7 / (1 + (1_000_000 / 300) ** 0.6))
    assert law.predict(np.array([1_000_000.0]))[0] == pytest.approx(1 - truth, abs=0.03)
    said = re.fullmatch(
        r"What 1M examples would give, by the laws that agree with all sizes \(.*rectified \d+%.*\): "
        r"0\.\d+ \[(0\.\d+), (0\.\d+)\]; by the .+ law alone, over resamples of the sizes: 0\.\d+ \[0\.\d+, 0\.\d+\]; "
        r"farther nothing is said\.",
        beyond(curve),
    )
    assert said is not None
    assert float(said[1]) - 0.01 <= truth <= float(said[2]) + 0.01


@pytest.mark.parametrize(("shape", "reason"), [(STEP, "No law is supported"), ({0: 0.1, 10: 0.3, 100: 0.6}, "2 sizes")])
def test_no_line_is_drawn_where_no_law_is_supported(shape: dict[int, float], reason: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.curve(shape, noise=0.005)
    found = conclude(sweep.frame, sweep.items())
    assert found.fits is None
    (row,) = found.rows
    assert any(line.startswith(reason) for line in row.lines)
    assert not any("would give" in line for line in row.lines), "nor is anything foretold"


def test_what_does_not_gain_is_no_row_and_has_no_share(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.curve(FLAT, noise=0.005)
    found = conclude(sweep.frame, sweep.items())
    assert found.rows == ()
    assert found.shares is None
    assert len(found.others) == 1


def test_shares_end_at_the_whole_gain(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.curve(LAW, noise=0.004)
    shares = conclude(sweep.frame, sweep.items()).shares
    assert shares is not None
    last = shares[shares["size"] == SIZES[-1]].iloc[0]
    assert (last["share"], last["low"], last["high"]) == pytest.approx((1, 1, 1))
    assert shares["share"].is_monotonic_increasing
