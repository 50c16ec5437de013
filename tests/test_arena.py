"""Win rates and strengths where the truth is known: biased judges, planted lengths, given strengths; and the page."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from analysis import arena, win_rate
from analysis.bradley_terry import PRIOR, rank, strengths
from analysis.section import Evidence
from harness import verdicts
from harness.judge.calls import Reply
from harness.judge.matches import gather, line, matches, said
from tests.sweeps import Sweep
from tests.test_judge import settings

# ------------------------------------------------------------------------------------------------------- Bradley-Terry


def contest(rng, true, items, rounds=1):
    """Matches in circles, as `harness.judge.matches` draws them: one, other, won, item."""
    rows = []
    for item in range(items):
        for _ in range(rounds):
            circle = rng.permutation(len(true))
            for a, b in zip(circle, np.roll(circle, -1), strict=True):
                rows.append((f"p{a}", f"p{b}", float(rng.random() < expit(true[a] - true[b])), item))
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_known_strengths_come_back():
    true = np.array([-1.2, -0.4, 0.0, 0.5, 1.1])
    ranking = rank(*contest(np.random.default_rng(0), true, 3000), n=200)
    assert ranking.players == ("p4", "p3", "p2", "p1", "p0")
    assert ranking.joined
    found = np.array([e.value for e in ranking.strengths])
    assert np.abs(found - (true - true.mean())[::-1]).max() < 0.08
    assert all(e.low < e.value < e.high and e.high - e.low < 0.25 for e in ranking.strengths)


def test_strengths_are_those_of_an_independent_optimiser():
    rng = np.random.default_rng(1)
    wins = rng.integers(0, 9, (6, 6)).astype(float)
    wins[:, 5] = wins[0, 1] = 0  # one wins everything, two have not met one way
    np.fill_diagonal(wins, 0)

    def against(s):
        chance = expit(s[:, None] - s[None, :])
        return -(wins * np.log(chance)).sum() - PRIOR / 2 * (np.log(expit(s)) + np.log(expit(-s))).sum()

    best = minimize(against, np.zeros(6), method="BFGS", options={"gtol": 1e-9}).x
    assert strengths(wins) == pytest.approx(best - best.mean(), abs=1e-5)
    several = strengths(np.stack([wins, wins.T]))
    assert several[0] == pytest.approx(strengths(wins), abs=1e-7)
    assert several[1] == pytest.approx(strengths(wins.T), abs=1e-7)


def test_without_the_prior_a_pair_has_the_log_odds_of_its_wins():
    """Closed form, up to the prior's two half matches of thousands."""
    apart = np.diff(strengths(np.array([[0.0, 3000.0], [1000.0, 0.0]])))
    assert -apart[0] == pytest.approx(np.log(3), abs=2e-3)


def test_players_that_nothing_joins_are_not_compared():
    one, other = np.array(["a", "c"] * 5), np.array(["b", "d"] * 5)
    assert not rank(one, other, np.ones(10), np.arange(10), n=20).joined


def test_intervals_of_strengths_hold_the_truth():
    rng, true = np.random.default_rng(2), np.array([-0.8, 0.0, 0.3, 0.5])
    held = []
    for _ in range(60):
        ranking = rank(*contest(rng, true, 60), n=200)
        held += [
            e.holds(true[int(p[1])] - true.mean()) for p, e in zip(ranking.players, ranking.strengths, strict=True)
        ]
    assert 0.88 <= np.mean(held) <= 1


# ----------------------------------------------------------------------------------------------------------- win rates


def judged(rng, chance, place=0.0):
    """Verdicts in both orders on items where `one` is better with this `chance`; `place` is for the first."""
    lean = rng.normal(size=len(chance)) * 0.5 + np.log(chance / (1 - chance))
    first = rng.random(len(chance)) < expit(lean + place)
    second = rng.random(len(chance)) < expit(lean - place)
    return [[float(a), float(b)] for a, b in zip(first, second, strict=True)]


def test_a_match_is_won_in_both_orders_or_it_is_a_tie():
    told = {(1, 1): 1, (0, 0): 0, (0.5, 0.5): 0.5, (1, 0): 0.5, (0, 1): 0.5, (1, 0.5): 0.5, (0.5, 0): 0.5}
    assert {verdicts: win_rate.outcome(list(verdicts)) for verdicts in told} == told
    assert win_rate.outcome([1, None]) is win_rate.outcome([None, None]) is None


@pytest.mark.parametrize("place", [0.0, 1.5, -1.5, 20.0])
def test_the_place_cancels_in_both_orders(place):
    both = judged(np.random.default_rng(3), np.full(4000, 0.5), place)
    assert np.mean([v[0] for v in both]) == pytest.approx(expit(place), abs=0.08), "one order is biased"
    rate = win_rate.mean(np.array([win_rate.outcome(v) for v in both]), np.arange(4000))
    assert abs(rate.value - 0.5) <= 4 * rate.stderr + 1e-9


def test_intervals_of_win_rates_hold_the_truth_where_items_hang_together():
    rng, held, narrow = np.random.default_rng(4), [], []
    for _ in range(400):
        passage = np.repeat(rng.normal(size=40), 5)  # five items each
        values = (rng.random(200) < expit(0.6 + passage)).astype(float)
        rates = [win_rate.mean(values, clusters) for clusters in (np.arange(200) // 5, np.arange(200))]
        for rate, list_ in zip(rates, (held, narrow), strict=True):
            list_.append(abs(rate.value - TRUE) < 1.96 * rate.stderr)
    assert 0.92 <= np.mean(held) <= 0.98
    assert np.mean(narrow) < np.mean(held) - 0.02, "which items taken one by one do not"


TRUE = float(np.mean(expit(0.6 + np.random.default_rng(5).normal(size=1_000_000))))


def lengths(rng, n, bias, gain=0.0):
    """Wins of a model that is better by `gain` log-odds, longer on most items, before a judge that likes length."""
    longer = rng.normal(40, 60, n)
    won = rng.random(n) < expit(gain + bias * np.tanh(longer / 60))
    return won.astype(float), longer


@pytest.mark.parametrize("gain", [-0.7, 0.0, 0.7])
def test_a_planted_liking_for_length_is_taken_off(gain):
    won, longer = lengths(np.random.default_rng(6), 20_000, bias=1.5, gain=gain)
    raw, even = win_rate.mean(won, np.arange(20_000)), win_rate.at_equal_length(won, longer, np.arange(20_000))
    assert raw.value > expit(gain) + 0.08
    assert even.value == pytest.approx(expit(gain), abs=0.015)


def test_where_length_does_not_count_nothing_is_taken_off():
    won, longer = lengths(np.random.default_rng(7), 20_000, bias=0.0, gain=0.7)
    raw, even = win_rate.mean(won, np.arange(20_000)), win_rate.at_equal_length(won, longer, np.arange(20_000))
    assert even.value == pytest.approx(raw.value, abs=0.01)
    assert win_rate.at_equal_length(won, np.zeros(20_000), np.arange(20_000)).value == pytest.approx(
        raw.value, abs=1e-4
    )


def test_intervals_at_equal_length_hold_the_truth():
    rng, held = np.random.default_rng(8), []
    for _ in range(400):
        rate = win_rate.at_equal_length(*lengths(rng, 250, bias=1.0, gain=0.5), np.arange(250))
        held.append(abs(rate.value - expit(0.5)) < 1.96 * rate.stderr)
    assert 0.92 <= np.mean(held) <= 0.985


def test_where_few_answers_are_of_equal_length_it_is_said_how_little_is_known():
    rng, held, widths = np.random.default_rng(10), [], []
    for _ in range(200):
        longer = rng.normal(-40, 16, 120)
        won = (rng.random(120) < expit(1.5)).astype(float)  # of a judge that does not look at length
        if longer.max() > 0 and won.min() < won.max():
            rate = win_rate.at_equal_length(won, longer, np.arange(120))
            held.append(abs(rate.value - expit(1.5)) < 1.96 * rate.stderr)
            widths.append(rate.stderr)
    assert len(held) > 40
    assert np.mean(held) >= 0.92
    assert np.median(widths) > 0.15, "far from every match"
    assert win_rate.at_equal_length(won, -1 - np.abs(longer), np.arange(120)) is None


def test_the_fit_is_that_of_an_independent_optimiser_and_stays_finite():
    won, longer = lengths(np.random.default_rng(9), 60, bias=1.0, gain=0.5)
    won[::7] = 0.5  # ties

    def against(b):
        p = expit(b[0] + b[1] * np.tanh(longer / longer.std()))
        return -(won * np.log(p) + (1 - won) * np.log(1 - p)).sum() + (b @ b) / (2 * win_rate.WIDE**2)

    best = minimize(against, np.zeros(2), method="BFGS", options={"gtol": 1e-9}).x
    assert win_rate.at_equal_length(won, longer, np.arange(60)).value == pytest.approx(expit(best[0]), abs=1e-6)
    apart = win_rate.at_equal_length((longer > 0).astype(float), longer, np.arange(60))
    assert 0 < apart.value < 1
    assert np.isfinite(apart.stderr)
    assert win_rate.at_equal_length(np.ones(60), longer, np.arange(60)) == win_rate.Rate(1.0, 0.0, 60)


# ------------------------------------------------------------------------------------------------------------ the page


def sweep_judged(root, reply, style="alpaca_eval", against="base", rounds=1):
    """An invented sweep whose answers are "right" or "wrong"; `reply(messages)` is the judge."""
    made = Sweep(root, n=150)
    made.cell(0, strict=0.2)
    for size, score in ((10, 0.3), (100, 0.6), (1000, 0.9)):
        for seed in (0, 1):
            made.cell(size, seed, strict=score)
    frame = made.frame.assign(probe="")
    for path in frame["path"].unique():
        rewrite(root, path, frame)
    questions = {("t", i): (f"question {i}", f"{i:064}") for i in range(150)}
    field = gather(root, frame, "t", questions)
    judge = settings(style, against=against, rounds=rounds)
    lines = []
    for match in matches(field, judge):
        one, other = (said(field, player, match.item) if player else "" for player in (match.one, match.other))
        shown = [(one, other), (other, one)] if match.other else [(one, "")]
        replies = [Reply(reply(*pair)) for pair in shown] if one != other else []
        lines.append(line(field, match, judge, replies))
    who = {"task": "t", "mark": field.mark, "against": against, "judge": judge.identity("wise")}
    about = {"name": "wise <b>", "items": 150, "matches": len(lines), "calls": 2 * len(lines), "left": 0, "refused": 0}
    verdicts.write(verdicts.place(root, "t", who), who | about, lines)
    return Evidence(root, frame, made.items())


def rewrite(root, path, frame):
    """Answers in words, as long as they are right or wrong."""
    import json

    from harness.artifact import sha256_file
    from harness.store import write_json

    (kept,) = (root / path / "evals" / "t").glob("*.jsonl")
    rows = [json.loads(text) for text in kept.read_text().splitlines()]
    right = {row["item"]: row["exact_match"] for row in rows if row["filter"] == "strict"}
    for row in rows:
        row["answers"] = [["right" if right[row["item"]] else f"wrong in the way of {path}"]]
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept.with_suffix(".json").unlink()
    write_json(kept.with_suffix(".json"), {"answers_sha256": sha256_file(kept)})


def knows(first, second):
    """Prefers what is right; of two wrong ones the first."""
    return "B" if "right" in second and "right" not in first else "A"


def test_a_judge_that_knows_ranks_by_what_is_right_beside_the_score(tmp_path):
    found = arena.section(sweep_judged(tmp_path, knows))
    table = next(t for t in found.tables if "beside the score" in t.title)
    assert table.columns == ("cells", "examples", "wins against its untouched base", "at equal length", "longer, words",
                             "exact match (strict)")  # fmt: skip
    rates = [float(row[2].split()[0]) for row in table.rows]
    limits = found.data["judge-1"].query("metric != 'exact_match'")[["low", "high"]]
    assert ((limits >= 0) & (limits <= 1)).all(axis=None)
    assert rates == sorted(rates)
    assert rates[-1] > 0.75
    everybody = next(t for t in found.tables if "all against all" in t.title)
    assert everybody.columns == ("player", "strength, log-odds", "exact match (strict)")
    assert len(everybody.rows) == 7
    shown = [float(row[2]) for row in everybody.rows]
    assert shown == pytest.approx(sorted(shown, reverse=True), abs=0.05), "the ranking has the score beside it, too"
    assert [row[1] for row in table.rows] == ["10", "100", "1,000"]
    scores = [float(row[5].split()[0]) for row in table.rows]
    assert scores == pytest.approx([0.3, 0.6, 0.9], abs=0.1), "always beside exact match"
    ranking = found.data["judge-1-ranking"]
    sizes = [int(name.split(", ")[1].replace(",", "")) if "," in name else 0 for name in ranking["name"]
             if "untouched" not in name]  # fmt: skip
    assert sizes == [1000, 1000, 100, 100, 10, 10]
    assert ranking["name"].iloc[-1] == "b, untouched"
    assert (ranking["low"] < ranking["strength"]).all()
    text = " ".join(found.lines)
    assert "were told otherwise once the answers changed places" in text, "of two wrong answers it takes the first"
    assert "84.4% of comparisons on GSM8K at 14.7%" in text
    assert len(found.pictures) == 2


def test_a_judge_that_looks_at_the_place_wins_nothing_for_anybody_and_is_said_so(tmp_path):
    found = arena.section(sweep_judged(tmp_path, lambda first, second: "A"))
    table = next(t for t in found.tables if "beside the score" in t.title)
    assert {row[2].split()[0] for row in table.rows} == {"0.50"}
    low, high = map(float, table.rows[0][2].split("[")[1].strip("]").split(", "))
    assert low < 0.5 < high, "which is no certainty"
    text = " ".join(found.lines)
    assert "100% were told otherwise" in text
    assert "shown first won 100% of verdicts" in text
    assert "follows the place more than the answers" in text
    assert "No match was decided, so nobody is ranked." in text
    assert len(found.pictures) == 1


def test_replies_that_say_nothing_are_counted_and_left_out(tmp_path):
    found = arena.section(
        sweep_judged(tmp_path, lambda first, second: "well ..." if "right" in first else knows(first, second))
    )
    asked = found.data["judge-1-matches"]
    lost = int(asked["won"].isna().sum())
    assert lost > 20
    assert f"{lost:,} had a reply that says neither and are left out" in " ".join(found.lines)


def test_a_longer_answer_that_is_liked_for_its_length_alone_is_told(tmp_path):
    found = arena.section(sweep_judged(tmp_path, lambda first, second: "A" if len(first) >= len(second) else "B"))
    table = next(t for t in found.tables if "beside the score" in t.title)
    raw, even = (float(table.rows[-1][k].split()[0]) for k in (2, 3))
    assert raw < 0.25, "right answers are the shorter ones here"
    assert even > raw + 0.15


def test_ratings_against_references_and_what_is_stale(tmp_path):
    evidence = sweep_judged(tmp_path, lambda answer, _: "5" if answer == "right" else "2", style="likert")
    found = arena.section(evidence)
    (table,) = found.tables
    assert table.columns == ("cells", "examples", "rating", "exact match (strict)")
    ratings = [float(row[2].split()[0]) for row in table.rows]
    assert ratings == pytest.approx([2 + 3 * s for s in (0.2, 0.3, 0.6, 0.9)], abs=0.3)
    assert table.rows[0][0] == "b untouched"
    assert "Of 1,050 answers rated 0 had a reply without a rating" in " ".join(found.lines)
    assert ", 0 examples" not in " ".join(found.lines)
    stale = arena.section(Evidence(tmp_path, evidence.frame.assign(eval_fingerprint="q" * 64), evidence.items))
    assert "scored anew since" in stale.lines[0]
    assert not stale.tables
    new = evidence.frame["path"] == evidence.frame["path"].iloc[-1]
    mixed = evidence.frame.assign(eval_fingerprint=evidence.frame["eval_fingerprint"].mask(new, "q" * 64))
    told = arena.section(Evidence(tmp_path, mixed, evidence.items))
    assert len(told.data["judge-1"]) < len(found.data["judge-1"]) or told.data["judge-1"]["n_seeds"].min() == 1
    late = evidence.frame[new].assign(path="later", seed=7, fingerprint="f" * 64)
    told = arena.section(Evidence(tmp_path, pd.concat([evidence.frame, late]), evidence.items))
    assert "The answers of 1 of 8 cells were not judged; the same command has them judged." in told.lines
    other = arena.section(sweep_judged(tmp_path / "other", lambda a, b: f"[[{knows(a, b)}]]", "mt_bench", "reference"))
    assert "wins against the reference" in other.tables[0].columns


def test_ratings_that_never_differ_are_no_certainty(tmp_path):
    found = arena.section(sweep_judged(tmp_path, lambda answer, _: "5" if answer == "right" else "hm", style="likert"))
    lost = int(found.data["judge-1-matches"]["won"].isna().sum())
    assert lost > 300
    text = " ".join(found.lines)
    assert f"Of 1,050 answers rated {lost:,} had a reply without a rating" in text
    assert "All others were rated 5, so this judge tells no answer from another." in text
    assert found.tables[0].rows[0][2] == "5.00", "without an interval"


def test_without_a_judge_the_page_says_how_to_ask_one(tmp_path):
    found = arena.section(Evidence(tmp_path, pd.DataFrame(), None))
    assert found.absent.startswith("No answers were judged. harness judge RUNS --task NAME")
    assert not found.lines
