"""Laws, their fitter and the choice among them: against known truth, scipy's own fitter, and others' losses."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.special import expit

from analysis import flan
from analysis.choice import LAST, choose, dropped, held_out, influence, training
from analysis.fit import Interval, Points, error_of, fit, grid, problem_of
from analysis.laws import CANDIDATES, Constant, Joint, Law, LogitLinear, LogLinear, Power, Rectified, ScorePower
from analysis.varpro import Problem, solve
from harness.errors import HarnessError

SIZES = np.array([10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6])
NOISE = np.full(len(SIZES), 0.01)
TRUTHS: list[tuple[Law, dict[str, float]]] = [
    (Constant(), {"E": 0.4}),
    (LogLinear(), {"a": 0.5, "b": -0.08}),
    (LogitLinear(), {"a": 0.3, "b": -0.7}),
    (ScorePower(), {"a": 0.1947, "b": 9.66}),
    (Power(), {"E": 0.2, "B": 1.2, "beta": 0.25}),
    (Rectified(), {"E": 0.3, "A": 0.75, "beta": 0.45, "knee": 101.6}),
]


def curve(law: Law, values: dict[str, float], x: np.ndarray) -> np.ndarray:
    """The formula as it is written, evaluated by Python: what the fitter's own algebra is checked against."""
    names = {"D": x, **values} if x.ndim == 1 else {"D": x[:, 0], "X": x[:, 1], **values}
    text = law.formula.replace(" D^", " * D^").replace("A X^", "A * X^").replace("b log", "b * log").replace("^", "**")
    return eval(text, {"log10": np.log10, "exp": np.exp}, names) + np.zeros(len(x))


def rectified(sizes: np.ndarray) -> np.ndarray:
    return 0.3 + 6 / (8 + sizes**0.45)


# ----------------------------------------------------------------------------------------------------------- one law


@pytest.mark.parametrize(("law", "values"), TRUTHS[1:], ids=[law.name for law, _ in TRUTHS[1:]])
def test_a_law_without_noise_is_recovered(law: Law, values: dict[str, float]) -> None:
    fitted = fit(law, Points(SIZES, curve(law, values, SIZES), NOISE))
    assert fitted.values == pytest.approx(values, rel=1e-5)
    assert fitted.converged
    assert not fitted.cautions
    far = np.array([3e6, 1e7])
    assert fitted.predict(far) == pytest.approx(np.maximum(curve(law, values, far), 0), rel=1e-5)


def test_every_candidate_has_a_known_truth_here() -> None:
    assert [type(law) for law, _ in TRUTHS] == [type(law) for law in CANDIDATES]


def test_the_joint_law_is_recovered_over_several_bases() -> None:
    truth = {"E": 0.15, "A": 60.0, "alpha": 0.2, "beta": 0.12}
    x = np.array([(size, base) for base in (1.35e8, 3.6e8, 1.7e9, 8e9) for size in SIZES])
    points = Points(x[:, 0], curve(Joint(), truth, x), np.full(len(x), 0.01), bases=x[:, 1], share=False)
    assert fit(Joint(), points).values == pytest.approx(truth, rel=1e-4)
    noisy = Points(
        points.sizes, points.error + np.random.default_rng(0).normal(0, 0.01, len(x)), points.stderr, x[:, 1]
    )
    fitted = fit(Joint(), noisy)
    for name, interval in fitted.intervals().items():
        assert interval.low < truth[name] < interval.high, name
    assert fitted.predict(1e7, 8e9) == pytest.approx(curve(Joint(), truth, np.array([[1e7, 8e9]])), abs=0.01)
    with pytest.raises(HarnessError, match="needs `bases`"):
        fit(Joint(), Points(SIZES, rectified(SIZES), NOISE))


def test_the_rectified_law_is_the_published_one() -> None:
    fitted = fit(Rectified(), Points(SIZES, rectified(SIZES), NOISE))
    assert Rectified.published(fitted.values) == pytest.approx({"B": 6, "D_l": 8, "beta": 0.45, "E": 0.3}, rel=1e-5)


def test_values_and_intervals_are_scipys_where_its_normal_approximation_holds() -> None:
    rng = np.random.default_rng(1)
    sizes = np.geomspace(10, 1e6, 40)
    stderr = rng.uniform(0.002, 0.006, 40)
    error = 0.2 + 1.2 * sizes**-0.25 + rng.normal(0, stderr)
    best, cov = curve_fit(lambda d, e, b, p: e + b * d**-p, sizes, error, (0.1, 1, 0.3), stderr, absolute_sigma=True)
    fitted = fit(Power(), Points(sizes, error, stderr))
    assert list(fitted.values.values()) == pytest.approx(best, rel=1e-5)
    for sigma, interval in zip(np.sqrt(np.diag(cov)), fitted.intervals().values(), strict=True):
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * sigma, rel=0.1)


def test_another_unit_of_size_changes_nothing_but_the_unit() -> None:
    error = rectified(SIZES) + np.random.default_rng(3).normal(0, 0.01, 11)
    for law in (Power(), Rectified(), LogLinear(), LogitLinear(), ScorePower()):
        one, other = (fit(law, Points(SIZES * unit, error, NOISE)) for unit in (1, 120))
        assert other.loss == pytest.approx(one.loss, rel=1e-6)
        assert other.predict(SIZES * 120) == pytest.approx(one.predict(SIZES), abs=1e-6)
        if "knee" in one.values:
            assert other.values["knee"] == pytest.approx(120 * one.values["knee"], rel=1e-3)


def test_weights_are_standard_errors() -> None:
    error = rectified(SIZES)
    error[4] += 0.2
    stderr = NOISE.copy()
    stderr[4] = 100.0  # says nothing
    assert fit(Rectified(), Points(SIZES, error, stderr)).values["E"] == pytest.approx(0.3, abs=1e-4)


# --------------------------------------------------------------------------------------------------------- intervals


def test_profile_intervals_cover_and_their_ends_are_where_the_likelihood_says() -> None:
    law, truth = TRUTHS[-1]
    draws = curve(law, truth, SIZES) + np.random.default_rng(0).normal(0, 0.01, (1000, 11))
    problem = problem_of(law, Points(SIZES, draws[0], NOISE))
    best = solve(problem, draws).loss

    def pinned(name: str, value: float, y: np.ndarray) -> np.ndarray:
        i = (*law.linear, *law.nonlinear).index(name)
        lower, upper = problem.lower.copy(), problem.upper.copy()
        lower[i] = upper[i] = value
        return solve(Problem(law, problem.x, problem.weight, lower, upper), y).loss

    for name, value in truth.items():
        covered = np.mean(pinned(name, value, draws) - best <= 3.8415)
        assert 0.93 <= covered <= 0.975, f"{name}: {covered}"  # 95% nominal, 0.7% noise
    for name, interval in fit(law, Points(SIZES, draws[0], NOISE)).intervals().items():
        for end in (interval.low, interval.high):
            assert pinned(name, end, draws[:1])[0] - best[0] == pytest.approx(3.8415, abs=0.01), name


def test_bootstrap_bands_cover_one_decade_on() -> None:
    rng, far = np.random.default_rng(0), np.array([1e7])
    inside = 0
    for seed in range(40):
        fitted = fit(Rectified(), Points(SIZES, rectified(SIZES) + rng.normal(0, 0.01, 11), NOISE))
        band = fitted.refit(fitted.simulate(300, seed)).band(far)
        inside += bool(band.low[0] <= rectified(far)[0] <= band.high[0])
    assert inside >= 34  # 95% nominal


def test_a_refit_is_the_fit_of_each_draw() -> None:
    fitted = fit(Rectified(), Points(SIZES, rectified(SIZES), NOISE))
    draws = fitted.simulate(2000)
    refits = fitted.refit(draws)
    assert refits.solution.converged.mean() > 0.99
    for i in range(0, 2000, 100):
        alone = fit(Rectified(), Points(SIZES, draws[i], NOISE))
        assert refits.solution.loss[i] == pytest.approx(alone.loss, abs=1e-4)
    band = refits.band(grid(fitted.points, 50, beyond=10))
    assert band.sizes[-1] == pytest.approx(1e7)
    assert np.all((band.low < band.middle) & (band.middle < band.high))
    profile = fitted.intervals()
    for name in fitted.values:  # two roads to the same interval
        assert refits.of(name).low == pytest.approx(profile[name].low, rel=0.15)
        assert refits.of(name).high == pytest.approx(profile[name].high, rel=0.15)


def test_what_is_not_identified_is_said_to_be() -> None:
    short = SIZES[:6]  # up to 3,000: where the curve ends is not in the data
    fitted = fit(Power(), Points(short, 0.1 + 0.9 * short**-0.1, np.full(6, 0.01)))
    asymptote = fitted.intervals()["E"]
    assert asymptote.low_open
    assert str(asymptote).startswith("below")
    assert str(fitted.refit(fitted.simulate(500)).of("E")).startswith("below")
    assert str(Interval(0, 1, True, True)) == "not identified"
    assert str(Interval(0.25, 1, False, True)) == "above 0.25"
    assert str(Interval(0.25, 0.5)) == "0.25 to 0.5"


@pytest.mark.parametrize(
    ("error", "name"), [(SIZES**-0.2, "E"), (0.4 + 0.01 * np.log10(SIZES), "B")], ids=["to zero", "rising"]
)
def test_a_parameter_at_its_bound_is_flagged(error: np.ndarray, name: str) -> None:
    fitted = fit(Power(), Points(SIZES, error - 0.001 * np.sqrt(SIZES / 1e6), NOISE))
    assert fitted.at_bound[name] == 0
    assert f"{name} lies at the bound of its search, 0" in fitted.cautions


def test_an_unknown_scale_is_told_by_the_residuals() -> None:
    error = rectified(SIZES) + np.random.default_rng(0).normal(0, 0.01, 11)
    unknown = [fit(Power(), Points(SIZES, error, scale, known=False)) for scale in (NOISE, 70 * NOISE)]
    one, other = (f.intervals()["E"] for f in unknown)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-3)
    assert not unknown[0].misfit
    known = fit(Power(), Points(SIZES, error, NOISE / 4))
    assert "residuals are larger than the noise" in known.cautions[-1]
    wide, narrow = known.intervals()["E"], fit(Power(), Points(SIZES, error, NOISE / 4)).loss
    assert narrow > 100
    assert wide.high - wide.low > 0.8 * (one.high - one.low) * np.sqrt(3.84 / 5.32)  # chi-squared, F(1, 8)


# ------------------------------------------------------------------------------------------------------------ choice


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("rectified", rectified),
        ("power", lambda d: 0.2 + 1.2 * d**-0.25),
        ("power", lambda d: 0.3 + 2 * d**-0.8),
        ("log-linear", lambda d: 0.9 - 0.09 * np.log10(d)),
        ("logit-linear", lambda d: expit(1.2 - 0.5 * np.log10(d))),
    ],
    ids=["rectified", "power", "saturating", "log-linear", "logit-linear"],
)
def test_the_generating_law_is_mostly_the_one_supported(name: str, truth) -> None:
    rng = np.random.default_rng(0)
    found = [choose(SIZES, truth(SIZES) + rng.normal(0, 0.01, 11), NOISE).supported for _ in range(12)]
    names = [f.law.name if f else "none" for f in found]
    assert names.count(name) >= 7, names
    assert sum(n not in (name, "none") for n in names) <= 3, names


def test_noise_around_a_constant_supports_no_law() -> None:
    rng = np.random.default_rng(0)
    found = [choose(SIZES, 0.5 + rng.normal(0, 0.01, 11), NOISE) for _ in range(24)]
    assert sum(c.supported is not None for c in found) <= 1
    assert sum("No trend" in c.why for c in found) >= 18
    assert "no evidence that there is none" in found[0].why


@pytest.mark.parametrize(
    "truth",
    [
        lambda d: 0.3 + 0.4 / (1 + d / 50) + 0.05 * np.maximum(np.log10(d / 1e4), 0),  # gets worse again
        lambda d: 0.3 + 0.3 / (1 + d / 50) + 0.2 / (1 + (d / 3e5) ** 2),  # a second fall at the very end
    ],
    ids=["worse again", "two falls"],
)
def test_a_curve_of_no_candidate_supports_none(truth) -> None:
    rng = np.random.default_rng(0)
    found = [choose(SIZES, truth(SIZES) + rng.normal(0, 0.01, 11), NOISE) for _ in range(12)]
    assert sum(c.supported is not None for c in found) <= 1
    assert all(c.why.startswith("No law is supported") for c in found if c.supported is None)


def test_a_choice_shows_its_reasons() -> None:
    error = rectified(SIZES) + np.random.default_rng(0).normal(0, 0.01, 11)
    choice = choose(SIZES[::-1], error[::-1], NOISE)  # in any order
    assert choice.supported is not None
    assert choice.supported.law == Rectified()
    assert choice.why.startswith("The rectified law is supported: without having seen 30,000, 100,000, 300,000")
    rows = choice.rows()
    assert rows[0]["above_best"] == 0
    assert [row["law"] for row in rows if row["supported"]] == ["rectified"]
    assert len(rows) == len(CANDIDATES)
    one, two = choice.splits
    assert list(SIZES[one.held]) == [3e5, 1e6]
    assert list(SIZES[two.held]) == [3e4, 1e5, 3e5, 1e6]
    assert one.predicted[LAST] == pytest.approx([error[8]] * 2)
    pooled = np.sqrt((2 * one.errors[LAST] ** 2 + 4 * two.errors[LAST] ** 2) / 6)
    assert held_out(choice.splits, LAST) == pytest.approx(pooled)
    assert held_out(choice.splits, "rectified") < min(pooled, held_out(choice.splits, "log-linear"))


def test_short_ranges_hold_out_their_last_sizes() -> None:
    masks = training(np.array([4, 16, 32, 64, 128, 512.0]))
    assert [list(np.flatnonzero(~mask)) for mask in masks] == [[5], [4, 5]]
    assert [mask.sum() for mask in training(np.arange(1, 6.0))] == [4]


@pytest.mark.parametrize(
    ("sizes", "error", "stderr", "why"),
    [
        (SIZES[:2], [0.5, 0.4], NOISE[:2], "2 sizes make no curve: at least 5"),
        (SIZES[:1], [0.5], NOISE[:1], "One size makes no curve"),
        ([], [], [], "There is no size"),
        (SIZES[:5], [0.5] * 5, NOISE[:5], "same at all 5 sizes"),
        (SIZES[:5], [0.5, 0.4, np.nan, 0.3, 0.2], NOISE[:5], "no score at 100 examples"),
        (
            SIZES[:5],
            [0.5, 0.4, 0.35, 0.3, 0.2],
            [0.01, 0, 0.01, np.nan, 0.01],
            "standard error at 30, 300 is not above",
        ),
        ([0, 10, 30, 100, 300], [0.5, 0.4, 0.35, 0.3, 0.2], NOISE[:5], "above 0: the untouched base"),
        ([10, 10, 30, 100, 300], [0.5, 0.4, 0.35, 0.3, 0.2], NOISE[:5], "twice"),
        (SIZES[:5], [0.5, 0.4], NOISE[:5], "same length"),
    ],
)
def test_what_cannot_be_concluded_is_one_sentence(sizes, error, stderr, why: str) -> None:
    choice = choose(np.array(sizes), np.array(error), np.array(stderr))
    assert choice.supported is None
    assert why in choice.why
    assert choice.why.endswith(".")
    assert choice.rows() == []
    if "make" not in why and "same" not in why.replace("same length", ""):
        with pytest.raises(HarnessError, match=why):
            Points(np.array(sizes), np.array(error), np.array(stderr))


def test_a_curve_that_lies_on_its_floor_at_first_is_no_error() -> None:
    floor = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0.9, 0.5, 0.05])  # all equal where the top two decades are held out
    choice = choose(SIZES, floor, NOISE)
    assert choice.supported is None
    assert choice.splits[1].predicted["rectified"] == pytest.approx([1, 1, 1, 1], abs=1e-6)


def test_five_sizes_support_only_laws_with_fewer_parameters() -> None:
    choice = choose(SIZES[:5], 0.9 - 0.1 * np.log10(SIZES[:5]) + 0.002 * np.array([1, -1, 0, 1, -1]), NOISE[:5])
    assert choice.supported is not None
    assert choice.supported.law == LogLinear()
    assert np.isnan(choice.splits[0].errors["rectified"])


def test_nothing_is_asked_beyond_a_decade() -> None:
    fitted = fit(Power(), Points(SIZES, rectified(SIZES), NOISE))
    fitted.predict(np.array([1.0, 1e7]))
    for call in (fitted.predict, fitted.refit(fitted.simulate(5)).predict):
        with pytest.raises(HarnessError, match="no law is asked about 20,000,000 examples"):
            call(2e7)


def test_the_size_that_decides_is_named() -> None:
    error = rectified(SIZES)
    error[-1] -= 0.05
    whole = fit(Rectified(), Points(SIZES, error, NOISE))
    assert [d.size for d in dropped(whole)] == list(SIZES)
    assert dropped(whole)[-1].values["E"] == pytest.approx(0.3, abs=1e-3)
    assert influence(whole).startswith(
        "Without the score at 1,000,000 the rectified law puts the error at 10,000,000 examples at 0.304"
    )
    with pytest.raises(HarnessError, match="would fit whatever they say"):
        dropped(fit(Rectified(), Points(SIZES[:5], error[:5], NOISE[:5])))


def test_error_is_one_at_chance_and_a_loss_has_no_share_laws() -> None:
    assert error_of(np.array([0.25, 1.0, 0.1]), 0.25) == pytest.approx([1, 0, 1.2])
    assert error_of(0.3) == pytest.approx(0.7)
    with pytest.raises(HarnessError, match=r"for four choices it is 0\.25"):
        error_of(0.5, chance=4)
    loss = 1.5 + 30 * SIZES**-0.4
    assert fit(Power(), Points(SIZES, loss, NOISE, share=False)).values["E"] == pytest.approx(1.5)  # above 1
    with pytest.raises(HarnessError, match="is one for shares"):
        fit(LogitLinear(), Points(SIZES, loss, NOISE, share=False))
    chosen = choose(SIZES, loss, NOISE, share=False)
    assert chosen.supported is not None
    assert chosen.supported.law == Power()


# -------------------------------------------------------------------------------------------------- others' losses


@pytest.mark.skipif("FLAN_CSV" not in os.environ, reason="FLAN_CSV names no flan.csv of Fine-tuning-Scaling-Law")
def test_on_flan_the_rectified_law_beats_the_power_law_and_the_last_value() -> None:
    sizes, loss = flan.losses(Path(os.environ["FLAN_CSV"]))
    assert loss.shape == (30, 14)
    for part in flan.PARTS:
        miss = {name: np.median(values) for name, values in flan.misses(sizes, loss, part).items()}
        assert miss["rectified"] < min(miss["power"], miss[LAST]), part
    assert np.median(flan.residuals(sizes, loss)["rectified"]) == pytest.approx(0.0062, abs=0.0005)  # as published


def test_the_flan_command_reads_such_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = 200 * 2 ** np.arange(14)
    rows = [1.2 + 3 / (1 + (sizes / knee) ** 0.5) for knee in (5e3, 5e4)]
    lines = [",".join(["config name", "0", *map(str, sizes), "size", "family"])]
    lines += [",".join([f"m{i}", "9.9", *(f"{v:.9f}" for v in row), "1", "f"]) for i, row in enumerate(rows)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert flan.main([str(tmp_path / "t.csv")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("| predicted by | up to 1/8")
    assert next(line for line in printed if "rectified" in line).split(" | ")[1:3] == ["0.000", "0.000"]
    assert flan.main([str(tmp_path / "none.csv")]) == 1
    assert "download benchmark/flan.csv" in capsys.readouterr().err
