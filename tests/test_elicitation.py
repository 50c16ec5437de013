"""What is said of a curve: known shapes are found, and what cannot be concluded is said with its reason."""

import numpy as np
import pytest

from analysis.elicitation import crossing, end, examples, isotonic, lima_scale, reached, references, share, weights_at
from analysis.findings import Finding, findings, sampled
from analysis.verdict import Rule, Sign, decide
from harness.errors import HarnessError
from harness.items import load_items
from tests.sweeps import Sweep

PLATEAU = {0: 0.10, 10: 0.40, 30: 0.70, 100: 0.80, 300: 0.80, 1000: 0.80, 3000: 0.80, 10000: 0.80}
RISING = {0: 0.10, 10: 0.11, 30: 0.11, 100: 0.12, 300: 0.12, 1000: 0.15, 3000: 0.50, 10000: 0.80}


def found(sweep: Sweep, **settings) -> Finding:
    every = findings(sweep.frame, sweep.items(), **settings)
    (one,) = [f for f in every if (f.curve.series.task, f.curve.series.method) == ("t", "sft")]
    return one


def test_an_early_plateau(tmp_path):
    sweep = Sweep(tmp_path, n=1500)
    sweep.curve(PLATEAU, noise=0.005)
    told = found(sweep, margin=0.03)
    assert told.few == 1000
    assert told.share.holds(1.0)
    assert told.share.low > 0.9
    assert (told.half.low, told.half.high) == pytest.approx((11, 11), rel=0.3)  # 0.45 is a sixth of the way to 30
    assert told.end.state == "saturated"
    assert told.form.finding == "capability"
    said = " ".join(told.words())
    assert "With 1,000 examples, LIMA's scale, 1" in said
    assert "saturated" in said


def test_rising_to_the_end_and_a_margin_of_ones_own(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.curve(RISING, noise=0.01)
    told = found(sweep)
    assert told.share.high < 0.15
    assert told.end.state == "still rising"
    assert told.half.low > 1000
    curve = told.curve
    assert end(curve, margin=1.0).state == "saturated", "within one of the metric a decade"


def test_a_fall_and_a_loss_are_called_so(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.curve({0: 0.8, 10: 0.7, 100: 0.5, 1000: 0.3})
    told = found(sweep)
    assert told.end.state == "falling"
    assert told.share.why == "tuning made it worse"
    assert "is a loss" in told.verdict.why


def test_lower_is_better_is_turned_round(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.curve({0: 0.8, 10: 0.6, 100: 0.5, 1000: 0.3})
    frame = sweep.frame.assign(higher_is_better=False)
    (told,) = findings(frame, sweep.items())
    assert told.gain.value == pytest.approx(0.5, abs=0.06)
    assert told.end.state == "still rising"
    assert told.half.low > 10
    assert told.verdict.verdict == "undecided"


def test_share_is_of_each_reference_and_the_missing_are_named(tmp_path):
    sweep = Sweep(tmp_path, n=1500)
    sweep.curve(PLATEAU)
    for size, score in ((2, 0.3), (8, 0.6)):
        sweep.cell(size, strict=score, method="icl")
    told = found(sweep)
    assert told.missing == ("the base with URIAL's prompt",)
    (fewshot,) = [s for name, s in told.shares.items() if "few-shot" in name]
    assert fewshot.holds(1.0)
    curve = next(c for c in sampled(sweep.frame, sweep.items()) if c.series.method == "sft" and c.series.headline)
    score, _ = references(curve, sampled(sweep.frame, sweep.items()))["the base with few-shot examples"]
    assert score == pytest.approx(0.6, abs=0.04), "the most examples, not the best score"
    early = share(curve, 10, (score, np.full(2000, score)))
    assert early.value == pytest.approx(-1.0, abs=0.25), "ten examples are below eight in context"


def test_sizes_between_are_interpolated_and_none_is_beyond():
    sizes = np.array([10, 100, 1000])
    assert weights_at(sizes, 10**1.5) == pytest.approx([0.5, 0.5, 0])
    with pytest.raises(ValueError, match="not within"):
        weights_at(sizes, 3000)
    assert lima_scale(sizes) == 100
    assert lima_scale(np.array([300, 30000])) == 1000
    assert lima_scale(np.array([128, 512])) is None
    assert [examples(n, sizes) for n in (0.0, 42.4, 1234.0)] == ["<10", "42", ">1k"]


def test_monotone_curves_and_their_crossings():
    rows = np.array([[1.0, 3.0, 2.0, 4.0], [4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    fitted = isotonic(rows)
    assert fitted == pytest.approx(np.array([[1, 2.5, 2.5, 4], [2.5] * 4, [0, 0, 1, 1]]))
    at = crossing(np.arange(4.0), fitted, np.array([3.25, 3.0, 0.0]))
    assert at == pytest.approx([2.5, np.inf, -np.inf])


# ------------------------------------------------------------------------------------------------------- bad input


def test_one_seed_and_two_sizes_are_said(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.curve({0: 0.1, 10: 0.4, 1000: 0.6}, seeds=1)
    said = " ".join(found(sweep).cautions)
    assert "One run a size" in said
    assert "2 sizes give no shape" in said


def test_nothing_known_of_any_noise_is_no_certainty(tmp_path):
    """A score without items, standard error or a second run: no interval, so no conclusion."""
    sweep = Sweep(tmp_path)
    sweep.curve({0: 0.1, 10: 0.4, 100: 0.5}, seeds=1)
    frame = sweep.frame.assign(stderr=np.nan, score=lambda f: f["score"] * 100)
    (told,) = findings(frame, load_items(tmp_path, frame))
    assert np.isnan(told.gain.low)
    assert "nothing is known of the noise" in told.share.why
    assert told.end.state == "cannot tell"
    assert told.verdict.verdict == "undecided"
    assert any("Neither scores by item nor a standard error" in line for line in told.cautions)


def test_one_size_has_no_slope_and_no_few(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.curve({0: 0.1, 1000: 0.6})
    told = found(sweep)
    assert told.end.state == "cannot tell"
    assert "cannot be told" in told.end.words()
    assert told.few is None
    assert "<1k" in " ".join(told.words())


def test_missing_base_and_lost_cells_are_said(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.curve({10: 0.1, 100: 0.4, 1000: 0.6}, seeds=2)
    sweep.failed(1000, 2)
    sweep.failed(3000, 0, "failed")
    told = found(sweep)
    assert told.gain.why
    assert told.share.why
    assert told.half.why
    assert told.verdict.verdict == "undecided"
    said = " ".join(told.cautions)
    assert "With 1,000 examples 1 run(s) diverged; its score is that of the 2 others" in said
    assert "With 3,000 examples 1 run(s) failed; there is no score for this size" in said
    assert "The untouched base was not scored" in said
    assert "cannot be told" in " ".join(told.words())


def test_a_share_outside_the_sizes_is_refused_in_words(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.curve({0: 0.1, 100: 0.4, 1000: 0.6})
    curve = found(sweep).curve
    assert "outside the measured sizes, 100 to 1,000" in share(curve, 10, curve.start()).words()


def test_mixed_protocols_are_refused(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.curve({0: 0.1, 10: 0.4})
    sweep.curve({100: 0.4}, protocol="q")
    with pytest.raises(HarnessError, match="2 protocols"):
        findings(sweep.frame, sweep.items())


# ------------------------------------------------------------------------------------------------- format, verdict


def test_a_gain_of_format_is_told_from_one_of_capability(tmp_path):
    """The base knows 0.6 but says 0.1 of it in the form; tuning teaches the form and nothing else."""
    sweep = Sweep(tmp_path, n=1000)
    for size, rate in ((0, 0.15), (10, 0.6), (100, 0.97), (1000, 0.97)):
        for seed in range(3 if size else 1):
            right, valid = sweep.right(0.6), sweep.rng.random(sweep.n) < rate
            sweep.cell(size, seed, strict=right & valid, flexible=right, valid=valid)
    told = found(sweep).form
    assert told.finding == "format"
    assert told.only_form.value == pytest.approx(0.6 * 0.82, abs=0.05)
    assert told.valid.series.scores == pytest.approx([0.6, 0.97, 0.97], abs=0.03)
    assert told.given_valid.series.scores == pytest.approx([0.6] * 3, abs=0.05)
    assert told.given_valid.draws.scores.std(axis=0).max() < 0.04
    assert "all that is sure of the gain is format" in told.words()


@pytest.mark.parametrize(
    ("quiz", "curve", "expected"),
    [(0.78, PLATEAU, "elicited"), (0.78, RISING, "elicited"), (0.02, RISING, "taught"), (0.02, PLATEAU, "undecided"),
     (0.45, RISING, "both"), (None, PLATEAU, "undecided"), (None, RISING, "undecided")],
)  # fmt: skip
def test_the_verdict_needs_the_shape_and_what_the_base_shows(quiz, curve, expected, tmp_path):
    sweep = Sweep(tmp_path)
    sweep.curve(curve, noise=0.01)
    if quiz is not None:
        sweep.cell(0, strict=quiz, task="quiz")
    other = Sweep(tmp_path, targets=["something else"] * sweep.n)
    other.cell(0, strict=0.9, task="other")  # known by the base, but not the same answers
    sweep.rows += other.rows
    told = found(sweep).verdict
    assert told.verdict == expected, told.evidence()
    assert not any("other" in sign.form for sign in told.signs)
    if expected == "elicited":
        assert "quiz" in told.why
    if quiz is None:
        assert "harness eval" in told.why


def test_guesses_among_choices_show_nothing(tmp_path):
    """Four choices are right a quarter of the time by luck, which is no quarter of a gain; half of them are a third."""
    sweep = Sweep(tmp_path, n=1600)
    sweep.curve(RISING)
    sweep.cell(0, strict=np.arange(1600) % 4 == 0, task="choice", choices=4)
    told = found(sweep).verdict
    assert told.verdict == "taught", told.evidence()
    assert told.signs[-1].score.value == 0.25, "the score is shown as it is"
    known = Sweep(tmp_path / "known", n=1600)
    known.curve(RISING)
    known.cell(0, strict=np.arange(1600) % 5 < 2, task="choice", choices=4)  # knows 0.2
    sign = found(known).verdict.signs[-1]
    start, last = 0.1, max(RISING.values())
    assert sign.part.holds((0.2 - start) / (last - start)), sign.part.words()


def test_what_a_base_cannot_do_in_context_says_nothing(tmp_path):
    """Few-shot answers that are worse than guessing are no sign that it was not there; guesses are."""
    sweep = Sweep(tmp_path, n=1600, targets=["yes", "no"] * 800)
    sweep.curve({size: max(score, 0.5) for size, score in RISING.items()} | {0: 0.3})
    sweep.cell(4, strict=0.02, method="icl")
    told = found(sweep).verdict
    assert told.verdict == "undecided"
    assert told.floor >= 0.5, "guessing counts as nothing"
    sweep.rows = [row for row in sweep.rows if row["method"] != "icl"]
    sweep.cell(8, strict=0.5, method="icl")
    assert found(sweep).verdict.verdict == "taught"


def test_the_rule_is_its_table():
    """Every cell of the table in analysis/verdict.py, by intervals well inside of it."""
    from analysis.sample import Estimate

    def part(value: float) -> Estimate:
        return Estimate(value, value - 0.05, value + 0.05)

    wanted = {
        (0.9, 0.9): "elicited", (0.9, 0.5): "elicited", (0.9, 0.1): "elicited",
        (0.5, 0.9): "elicited", (0.5, 0.5): "both", (0.5, 0.1): "both",
        (0.1, 0.9): "undecided", (0.1, 0.5): "undecided", (0.1, 0.1): "taught",
        (0.25, 0.9): "undecided", (0.75, 0.5): "undecided", (0.1, 0.25): "undecided",
    }  # fmt: skip
    for (shown, early), verdict in wanted.items():
        sign = Sign("quiz", part(shown), part(shown), telling=True)
        assert decide(Rule(), part(early), [sign])[0] == verdict, (shown, early)
    unknown = Estimate(why="no size is small enough")
    assert decide(Rule(), unknown, [Sign("quiz", part(0.1), part(0.1), telling=True)])[0] == "undecided"
    assert decide(Rule(), part(0.1), [Sign("few-shot", part(0.1), part(0.1), telling=False)])[0] == "undecided"


def test_n50_of_a_curve_that_began_above_it(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.curve({0: 0.1, 10: 0.7, 100: 0.8, 1000: 0.8})
    curve = found(sweep).curve
    half = reached(curve, 0.5, curve.start())
    assert half.words(lambda n: examples(n, curve.series.sizes)) == "<10 [<10, <10]"
