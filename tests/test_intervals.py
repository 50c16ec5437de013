"""Items in one table, and intervals that know what is shared: known truth, and what is refused or said instead."""

import math
from pathlib import Path

import numpy as np
import pytest

from analysis import base_comparison, paired
from analysis.findings import findings, sampled
from analysis.sample import Estimate, Point, Squares, collect, draws, resample, third_differences
from harness.errors import HarnessError
from harness.items import Asked, load_items
from harness.run import run
from harness.store import load
from tests.sweeps import ITEMS, Sweep

SIZES = {0: 0.10, 10: 0.30, 100: 0.50, 1000: 0.60}


def test_items_of_a_real_cell(make_cell, generation_task, choice_task):
    """Scores by item average to the scores of the table; choices tell their chance, and a column names clusters."""
    task = generation_task()
    task.task["metadata"] = {"cluster": "label"}
    cell = make_cell("base", evals={"quiz": task, "pick": choice_task()})
    run(cell)
    root = Path(cell.run.root)
    frame = load(root)
    items = load_items(root, frame)
    for row in frame.to_dict("records"):
        vector = items.scores[row["path"], row["task"], row["metric"], row["filter"]]
        assert vector.shape == (row["n_items"],)
        assert vector.mean() == pytest.approx(row["score"])
    asked = {task: found for (task, _), found in items.asked.items()}
    assert asked["pick"].chance == pytest.approx(1 / 2)
    assert len(set(asked["pick"].clusters)) == len(asked["pick"].names)
    assert 1 < len(set(asked["quiz"].clusters)) < len(asked["quiz"].names)


def test_items_are_refused_when_changed_or_mixed_and_left_out_where_no_score_is_their_mean(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.cell(0, strict=0.2)
    sweep.cell(10, strict=0.5)
    sweep.cell(20, strict=0.5, protocol="q")
    items = sweep.items()
    paths = [row["path"] for row in sweep.rows[::2]]
    assert items.stack(paths[:2], "t", "exact_match", "strict")[1].shape == (2, ITEMS)
    with pytest.raises(HarnessError, match="t was scored under 2 protocols"):
        items.stack(paths, "t", "exact_match", "strict")
    with pytest.raises(HarnessError, match="under 2 protocols"):
        collect(sweep.frame, items)
    frame = sweep.frame.assign(score=0.123)  # some aggregate that is not the mean
    assert not load_items(tmp_path, frame).scores
    victim = next(tmp_path.rglob("*.jsonl"))
    victim.write_text(victim.read_text().replace('"exact_match": 1.0', '"exact_match": 0.0', 1))
    with pytest.raises(HarnessError, match="does not match its checksum"):
        sweep.items()


def test_aggregates_without_items_give_wider_intervals_and_say_so(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.curve(SIZES)
    with_items = sampled(sweep.frame, sweep.items())[1]
    for path in tmp_path.rglob("*.jsonl"):
        path.unlink()
    without = sampled(sweep.frame, sweep.items())[1]
    assert any("No score by item" in line for line in without.series.cautions())
    assert not any("No score by item" in line for line in with_items.series.cautions())
    gains = [c.draws.scores[:, -1] - c.draws.start for c in (with_items, without)]
    assert gains[0].std() < gains[1].std()


def test_equal_items_are_resampled_alike_and_clusters_together():
    asked = Asked(tuple("abcdef"), np.array([0, 0, 0, 1, 1, 2]), ("",) * 6, 0.0)
    values = np.arange(6.0)[:, None]
    both = resample(asked, np.hstack([values, 3 * values + 1]), 500)
    assert both[:, 1] == pytest.approx(3 * both[:, 0] + 1)
    assert resample(asked, values, 500)[:, 0] == pytest.approx(both[:, 0])
    shift = (both[:, 0] - 2.5) / math.sqrt(3 / 2) + 2.5  # its correction for few clusters taken off
    possible = {(n0 * 3 + n1 * 7 + n2 * 5) / (3 * n0 + 2 * n1 + n2) for n0 in range(4) for n1 in range(4 - n0)
                for n2 in [3 - n0 - n1]}  # fmt: skip
    assert all(min(abs(value - p) for p in possible) < 1e-6 for value in shift)


def test_noise_of_runs_is_what_items_do_not_explain():
    """Runs that are equal but for their answers have none; runs that differ have theirs; known by simulation."""
    rng = np.random.default_rng(0)
    for truth in (0.0, 0.05):
        found = []
        for _ in range(60):
            chance = np.clip(0.5 + truth * rng.standard_normal((8, 3, 1)), 0, 1)
            answers = (rng.random((8, 3, 400)) < chance).astype(float)
            points = [Point(a.mean(axis=1), 0.025, 400, a) for a in answers]
            found.append(Squares.of(points).seed_sd().mean() ** 2)
        assert math.sqrt(np.mean(found)) == pytest.approx(truth, abs=0.012)


def test_noise_of_runs_stays_where_it_is():
    """A plateau does not get the noise of the climb before it; sizes that scatter alike share one estimate."""
    rng = np.random.default_rng(1)
    calm = [Point(0.9 + 0.005 * rng.standard_normal(4), 0.01, 400) for _ in range(8)]
    wild = [Point(0.5 + 0.2 * rng.standard_normal(4), 0.02, 400) for _ in range(3)]
    apart, alike = Squares.of([*wild, *calm]), Squares.of(calm)
    assert not apart.pooled
    assert apart.seed_sd()[:3].min() > 5 * apart.seed_sd()[3:].max()
    assert alike.pooled
    assert (alike.df == 24).all()
    assert Squares.of([Point(np.array([0.5]), 0.02, 400)]) is None


def test_what_runs_of_a_size_share_is_told_from_roughness(tmp_path):
    """With one subset of examples and a jagged curve, intervals are wider than with a subset a run; said if too few."""
    rough = {10: 0.3, 30: 0.5, 100: 0.35, 300: 0.6, 1000: 0.45, 3000: 0.7, 10000: 0.55}
    sweep = Sweep(tmp_path)
    sweep.curve({0: 0.1, **rough}, noise=0.01)
    frame = sweep.frame
    widths = []
    for subset in (frame["subset_seed"], 0):
        (series,) = [s for s in collect(frame.assign(subset_seed=subset), sweep.items()) if s.headline]
        widths.append(draws(series).scores.std(axis=0).mean())
    assert widths[1] > 2 * widths[0]
    few = collect(frame[frame["size"] <= 100].assign(subset_seed=0), sweep.items())[0]
    assert any("for these examples" in line for line in few.cautions())
    x = np.log10(list(rough))
    assert third_differences(x) @ (3 + 2 * x - x**2) == pytest.approx(0, abs=1e-9)


def test_all_equal_scores_keep_width_and_conclude_nothing(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.curve({0: 0.0, 10: 0.0, 100: 0.0})
    (found,) = findings(sweep.frame, sweep.items())
    assert found.share.why.startswith("the gain")
    assert found.verdict.verdict == "undecided"
    assert found.curve.draws.scores.std(axis=0).min() > 0.001
    assert found.gain.holds(0)
    assert found.gain.high > 0


# ------------------------------------------------------------------------------------------------------ comparisons


def test_pairing_sees_what_averages_cannot(tmp_path):
    """Two methods 4 points apart on items of very unequal difficulty: clear item by item, not by their intervals."""
    sweep = Sweep(tmp_path)
    right = sweep.right(0.5)
    better = right.copy()
    better[np.flatnonzero(~right)[:16]] = True
    sweep.cell(10, strict=right)
    sweep.cell(10, strict=better, variant="lr=2")
    (found,) = paired.methods(sampled(sweep.frame, sweep.items()))
    assert found.paired
    assert found.clear
    assert found.difference.value == pytest.approx(-0.04)
    # McNemar's standard error of 16 discordant items of 400, and what is made up for
    assert found.difference.high - found.difference.value == pytest.approx(1.96 * math.sqrt(0.04 * 0.96 / 400), rel=0.1)
    for path in tmp_path.rglob("*.jsonl"):
        path.unlink()
    (found,) = paired.methods(sampled(sweep.frame, sweep.items()))
    assert not found.paired
    assert not found.clear
    assert "not item by item" in found.words()


def test_clusters_widen_a_paired_difference():
    asked = Asked(tuple(map(str, range(200))), np.repeat(np.arange(20), 10), ("",) * 200, 0.0)
    alone = Asked(asked.names, np.arange(200), asked.targets, 0.0)
    together = np.repeat(np.random.default_rng(0).standard_normal(20), 10)
    assert paired.clustered(together, asked) == pytest.approx(10 * paired.clustered(together, alone), rel=0.06)


def test_holm_is_the_textbooks():
    """Holm's step-down on .01, .04, .03, .005: 4 x .005, 3 x .01, 2 x .03, and never less than the one before."""
    named = {"one": "", "other": "", "where": "", "task": "", "ruler": "", "difference": Estimate(0.1), "paired": True}
    found = paired.holm([paired.Comparison(**named, p=p) for p in (0.01, 0.04, 0.03, 0.005, math.nan)])
    assert [c.adjusted for c in found[:4]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(found[4].adjusted)
    assert not found[4].clear


def test_a_better_start_is_told_from_learning_more(tmp_path):
    """One base starts 0.3 ahead and both gain 0.4; another starts level and gains twice as much."""
    truths = {"ahead": (0.4, 0.6, 0.8), "plain": (0.1, 0.3, 0.5), "quick": (0.1, 0.7, 0.9)}
    sweep = Sweep(tmp_path, n=1000)
    for base, scores in truths.items():
        sweep.curve(dict(zip((0, 10, 100), scores, strict=True)), base=base, noise=0.005)
    curves = sampled(sweep.frame, sweep.items())
    (ranking,) = base_comparison.rankings(curves)
    assert [s.base for s in ranking.standings] == ["quick", "ahead", "plain"]
    assert [s.ranks.index(max(s.ranks)) for s in ranking.standings] == [0, 1, 2]
    whole, start, learned = ranking.lead
    assert whole.value == pytest.approx(start.value + learned.value)
    assert start.high < 0 < learned.low, "quick is ahead though it starts behind"
    assert [s.places for s in ranking.standings] == [(1, 1), (2, 2), (3, 3)]
    assert "a worse start -0.3" in ranking.lead_words()
    ahead = ranking.standings[1].head_start  # plain is at 0.4 half way between 10 and 100, on a log axis
    assert ahead.low < 10**1.5 < ahead.high
    assert (ahead.low, ahead.high) == pytest.approx((10**1.5, 10**1.5), rel=0.8)
    assert {c.clear for c in paired.bases(curves)} == {True}


def test_learning_faster_is_told_from_learning_more(tmp_path):
    """The same start and end; one is half way with 10 examples, the other with 100. Who cannot be ranked is said."""
    sweep = Sweep(tmp_path, n=1000)
    sweep.curve({0: 0.1, 1: 0.1, 10: 0.5, 100: 0.8, 1000: 0.9}, base="quick", noise=0.005)
    sweep.curve({0: 0.1, 1: 0.1, 10: 0.1, 100: 0.5, 1000: 0.9}, base="slow", noise=0.005)
    curves = {c.series.base: c for c in sampled(sweep.frame, sweep.items()) if c.series.headline}
    ratio = base_comparison.faster(curves["quick"], curves["slow"])
    assert ratio.low < 10 < ratio.high < 15
    assert ratio.low > 6
    back = base_comparison.faster(curves["slow"], curves["quick"])
    assert back.value == pytest.approx(1 / ratio.value)
    (ranking,) = base_comparison.rankings(list(curves.values()))
    assert ranking.standings[0].places == (1, 2), "level in the end"
    assert ("also learns faster" in ranking.lead_words()) == (ranking.standings[0].base == "quick")
    sweep.curve({0: 0.1, 5: 0.3}, base="elsewhere")
    sweep.curve({100: 0.3}, base="bare")
    curves = sampled(sweep.frame, sweep.items())
    assert base_comparison.rankings(curves) == []
    assert base_comparison.unranked(curves) == [
        "t, sft on d: bare cannot be compared, as no score of it untouched is there.",
        "t, sft on d: elsewhere, quick and slow have no size in common.",
    ]


def test_the_suite_average_weighs_tasks_equally_and_leaves_out_what_a_base_lacks(tmp_path):
    sweep, small = Sweep(tmp_path, n=400), Sweep(tmp_path, n=100, seed=1)
    for base in ("b", "c"):
        sweep.curve({0: 0.2, 10: 0.4, 100: 0.5}, base=base)
        small.curve({0: 0.1, 10: 0.7, 100: 0.9}, base=base, task="u")
    sweep.curve({0: 0.1, 10: 0.2, 100: 0.3}, base="b", task="only b has it")
    sweep.rows += small.rows
    curves = sampled(sweep.frame, sweep.items())
    average = {c.series.base: c for c in base_comparison.suite(curves)}
    assert set(average) == {"b", "c"}
    parts = [c for c in curves if c.series.base == "b" and c.series.headline and c.series.task != "only b has it"]
    assert average["b"].series.scores == pytest.approx(np.mean([c.series.scores for c in parts], axis=0))
    expected = math.sqrt(sum(c.draws.scores[:, -1].var() for c in parts)) / 2
    assert average["b"].draws.scores[:, -1].std() == pytest.approx(expected, rel=0.3)
    assert len(base_comparison.rankings(list(average.values()))) == 1
