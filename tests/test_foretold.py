"""What is foretold one decade on: laws that the data refute say nothing, those that they do not are heard each, and
where those part too far nothing is said. Coverage in small; `python -m tests.extrapolation_study` has the table."""

import numpy as np
import pytest

from analysis.foretold import Foretold, Said, foretell, neumann, whitening
from analysis.laws import LogitLinear, LogLinear, Power, Rectified
from analysis.varpro import Problem, solve
from harness.errors import HarnessError
from tests.coverage_study import LARGE
from tests.extrapolation_study import study

SIZES = np.array(LARGE.sizes, float)
FAR = SIZES[-1] * 10


def rectified(n):
    return 0.30 + 6 / (8 + n**0.45)


def line(n):
    return 0.66 - 0.08 * np.log10(n / 10)


def two_rises(n):
    return 0.30 + 0.25 / (1 + (n / 100) ** 1.5) + 0.25 / (1 + (n / 60_000) ** 1.5)


def told_of(curve, sd=0.01, common=0.01, seed=3, sizes=SIZES) -> Foretold:
    """One sample of a curve and 500 draws around it: noise of each size, and noise that all sizes have in common."""
    rng = np.random.default_rng(seed)

    def noise(n):
        return sd * rng.standard_normal((n, len(sizes))) + common * rng.standard_normal((n, 1))

    error = curve(sizes) + noise(1)[0]
    return foretell(sizes, error, error + noise(500))


def test_the_interval_holds_the_truth_and_every_law_that_is_not_refuted():
    told = told_of(line)
    assert told.size == FAR
    assert told.error.holds(line(FAR))
    assert {"log-linear", "rectified"} <= set(told.weights), "which of them is true nothing here tells"
    assert sum(told.weights.values()) == pytest.approx(1)
    assert list(told.weights.values()) == sorted(told.weights.values(), reverse=True)
    by = {said.law: said for said in told.said}
    own = np.quantile(by[LogLinear()].drawn, [0.025, 0.975])
    assert own[1] - own[0] < told.error.high - told.error.low < 4 * (own[1] - own[0])


def test_a_law_that_the_data_refute_says_nothing():
    told = told_of(rectified)
    assert told.error.holds(rectified(FAR))
    assert "log-linear" not in told.weights
    (straight,) = [said for said in told.said if said.law == LogLinear()]
    assert straight.large < 0.005, "its residuals are larger than noise"
    assert told.error.low > straight.value + 0.05, "a straight line would have foretold far more"


def test_of_a_curve_that_no_law_has_nothing_is_foretold():
    told = told_of(two_rises, sd=0.006)
    assert told.weights == {}
    assert told.error.words() == "cannot be told (no law agrees with all sizes within the noise)"


def straight_of(curve, sd, seed) -> Said:
    """What is said of a straight line by data that are 0.002 off `curve`, with draws that say `sd`."""
    rng = np.random.default_rng(seed)
    error = curve(SIZES) + 0.002 * rng.standard_normal(len(SIZES))
    (said,) = foretell(SIZES, error, error + sd * rng.standard_normal((500, len(SIZES))), laws=(LogLinear(),)).said
    return said


@pytest.mark.parametrize("sd", [0.05, 0.2], ids=lambda sd: f"{sd / 0.002:.0f} times too much noise")
def test_a_smooth_misfit_is_refuted_whatever_the_scale_of_the_noise(sd):
    """No residual is large beside such noise, but they hang together."""
    for seed in range(3):
        straight = straight_of(rectified, sd, seed)
        assert straight.large > 0.05
        assert straight.smooth == pytest.approx(1 / 501), "no draw is as smooth"
        assert straight.refuted


def test_how_often_noise_is_as_smooth_is_what_least_squares_of_white_noise_says():
    """Two rises leave a straight line a residual that changes its sign five times: too seldom for noise at 5%, not at
    half a percent. The reference: residuals of ordinary least squares, whose law no draws and no whitening blur."""
    x = np.stack([np.ones_like(SIZES), np.log10(SIZES)], axis=1)
    off = np.eye(len(SIZES)) - x @ np.linalg.pinv(x)
    noise = neumann(np.random.default_rng(5).standard_normal((100_000, len(SIZES))) @ off)
    exact = (noise <= neumann(off @ two_rises(SIZES))).mean()
    assert exact == pytest.approx(0.029, abs=0.003)
    said = [straight_of(two_rises, 0.05, seed) for seed in range(20)]
    assert np.mean([one.smooth for one in said]) == pytest.approx(exact, abs=0.007)
    assert not any(one.refuted for one in said)


def test_where_laws_part_by_more_than_half_of_the_gain_nothing_is_told():
    told = told_of(line, sd=0.05, common=0.02)
    assert told.weights
    assert told.error.words().startswith("cannot be told (laws that agree with all sizes part by more than half")
    assert np.isnan(told.error.value)


def test_without_known_noise_nothing_is_told_and_a_hole_is_refused():
    error = line(SIZES)
    for drawn in (np.full((50, len(SIZES)), np.nan), np.tile(error, (50, 1))):
        assert foretell(SIZES, error, drawn).error.why == "nothing is known of the noise"
    error[3] = np.nan
    with pytest.raises(HarnessError, match="There is no score at 316 examples"):
        foretell(SIZES, error, 0.01 * np.random.default_rng(0).standard_normal((50, len(SIZES))))


def test_a_loss_is_foretold_by_laws_of_losses_and_few_sizes_by_those_with_fewer_parameters():
    rng = np.random.default_rng(1)
    loss = 1.5 + 3 * SIZES**-0.3 + 0.01 * rng.standard_normal(len(SIZES))
    told = foretell(SIZES, loss, loss + 0.01 * rng.standard_normal((500, len(SIZES))), share=False)
    assert {said.law for said in told.said} == {LogLinear(), Power(), Rectified()}
    assert told.error.holds(1.5 + 3 * FAR**-0.3)
    few = told_of(line, sizes=SIZES[:4])
    assert {said.law for said in few.said} >= {LogLinear(), LogitLinear(), Power()}
    assert Rectified() not in {said.law for said in few.said}


def test_correlated_errors_are_fitted_by_generalised_least_squares():
    """Against the textbook's (X'V^-1 X)^-1 X'V^-1 y."""
    rng = np.random.default_rng(2)
    root = rng.standard_normal((len(SIZES), len(SIZES)))
    covariance = root @ root.T + np.eye(len(SIZES))
    y, x = rng.standard_normal(len(SIZES)), np.stack([np.ones_like(SIZES), np.log10(SIZES / 1000)], axis=1)
    inverse = np.linalg.inv(covariance + 1e-3 * np.diag(np.diag(covariance)))
    free = np.array([np.inf, np.inf])
    found = solve(Problem(LogLinear(), SIZES[:, None], whitening(covariance), -free, free), y)
    best = np.linalg.solve(x.T @ inverse @ x, x.T @ inverse @ y)
    assert found.values[0] == pytest.approx(best)
    rest = y - x @ best
    assert found.loss[0] == pytest.approx(rest @ inverse @ rest)


def test_von_neumanns_ratio_is_two_for_noise_and_small_for_a_bend():
    noise = np.random.default_rng(4).standard_normal((4000, 11))
    assert neumann(noise).mean() == pytest.approx(20 / 11, abs=0.03)  # 2 (S - 1) / S without a mean taken off
    assert neumann(np.sin(np.linspace(0, np.pi, 11))) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("which", [1, 2], ids=["a straight line, at which the chosen law failed", "rectified"])
def test_as_chosen_the_interval_holds_the_truth(which):
    row = study(which, LARGE, "own", 30, seed=50_000, b=300)
    assert row.foretold.tries >= 20
    assert row.foretold.share >= 0.9 - 2 * np.sqrt(0.09 / row.foretold.tries)
    assert row.foretold.width / row.foretold.tries < 4 * row.own.width / row.own.tries


@pytest.mark.slow
def test_of_two_rises_nothing_is_foretold():
    assert study(6, LARGE, "own", 15, seed=50_000, b=300).foretold.tries == 0
