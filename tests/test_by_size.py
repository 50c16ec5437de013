"""Resampling whole sizes: the conservative check on a law's interval."""

import numpy as np
import pytest

from analysis.by_size import by_size, widening
from analysis.fit import Points
from analysis.laws import LogLinear, Rectified
from analysis.sample import Estimate
from tests.coverage_study import LARGE

SIZES = np.array(LARGE.sizes, float)
FAR = SIZES[-1] * 10


def line(n):
    return 0.66 - 0.08 * np.log10(n / 10)


def test_the_point_is_the_plain_fit_and_a_perfect_curve_leaves_no_doubt():
    points = Points(SIZES, line(SIZES), np.full(len(SIZES), 0.01))
    told = by_size(LogLinear(), points, FAR)
    assert [told.value, told.low, told.high] == pytest.approx([line(FAR)] * 3)


def test_its_draws_are_the_textbooks_refits_of_resampled_rows():
    """Against numpy's own weighted least squares over the same resamples."""
    rng = np.random.default_rng(3)
    error, stderr = line(SIZES) + 0.02 * rng.standard_normal(len(SIZES)), 0.01 + 0.02 * rng.random(len(SIZES))
    again, drawn = np.random.default_rng(0), []
    while len(drawn) < 200:
        rows = again.integers(0, len(SIZES), len(SIZES))
        if len(set(rows)) >= 3:
            slope, level = np.polyfit(np.log10(SIZES[rows]), error[rows], 1, w=1 / stderr[rows])
            drawn.append(level + slope * np.log10(FAR))
    told = by_size(LogLinear(), Points(SIZES, error, stderr), FAR)
    known = Estimate.of(told.value, told.value + widening(len(SIZES), 2) * (np.array(drawn) - told.value))
    assert [told.low, told.high] == pytest.approx([known.low, known.high])


def test_noise_that_all_runs_of_a_size_share_is_in_it_whatever_the_standard_errors_say():
    """Standard errors ten times too small: the interval does not care, but for how the sizes are weighed."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(60):
        error = line(SIZES) + 0.02 * rng.standard_normal(len(SIZES))
        hits += by_size(LogLinear(), Points(SIZES, error, np.full(len(SIZES), 0.002)), FAR).holds(line(FAR))
    assert hits >= 53  # of 60: 57 are 95%, and 53 is two standard deviations below; those errors alone give 9 or so


def test_few_sizes_are_widened_as_residuals_and_students_t_are():
    assert widening(11, 2) == pytest.approx(np.sqrt(11 / 9) * 2.2622 / 1.9600, rel=1e-4)
    assert widening(10_000, 2) == pytest.approx(1, abs=1e-3)


def test_too_few_sizes_to_leave_one_out_are_said():
    points = Points(SIZES[:5], line(SIZES[:5]), np.full(5, 0.01))
    assert "5 sizes are too few to leave any out" in by_size(Rectified(), points, 1e4).why
