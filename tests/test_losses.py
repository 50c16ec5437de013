"""Losses in nats item by item, loss beside score, and what a tuning cost elsewhere, on sweeps whose truth is given."""

import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from analysis import forgetting, perplexity
from analysis.findings import findings
from analysis.losses import in_nats
from analysis.section import Evidence
from harness.artifact import sha256_file
from harness.items import load_items
from harness.store import COLUMNS, write_jsonl, write_result

N = 200


class Losses:
    """Cells with a right-or-wrong task `t`, a loss of the same items `t_nll`, and a task elsewhere."""

    def __init__(self, root, seed: int = 0) -> None:
        self.root, self.rows, self.rng = root, list[dict[str, Any]](), np.random.default_rng(seed)
        self.hard = self.rng.standard_normal(N)

    def cell(self, size: int, seed: int = 0, *, score: float, loss: float, other: float = 0.8, **fields: Any) -> None:
        """`loss` is the mean of items' losses in nats, `other` the share of right answers elsewhere."""
        cell = {
            "base": "b",
            "data": "d" if size else "none",
            "method": "sft" if size else "base",
            "variant": "",
        } | fields
        path = f"{cell['base']}/{cell['data']}/{cell['method']}{cell['variant']}/n{size}-s{seed}"
        noise = self.rng.standard_normal(N)
        lost = -(loss + 0.5 * (self.hard - self.hard.mean()) + 0.2 * (noise - noise.mean()))
        right = self._right(score)
        kept = {
            "t": ("exact_match", right, float(right.mean()), True, False),
            "t_nll": ("perplexity", lost, math.exp(-lost.mean()), False, False),
            "quiz": ("exact_match", self._right(other), None, True, True),
        }
        for task, (metric, values, whole, better, elsewhere) in kept.items():
            mark = (task[0] * 64)[:64]
            stem = self.root / path / "evals" / task / mark[:8]
            stem.parent.mkdir(parents=True)
            lines = [
                {"task": task, "item": i, "filter": "none", "target": str(i), "answers": [["x"]], "extracted": ["x"],
                 metric: float(v), "item_hash": f"{task[:1]}{i:063}"}
                for i, v in enumerate(values)
            ]  # fmt: skip
            write_jsonl(stem.with_suffix(".jsonl"), lines)
            write_result(stem.with_suffix(".json"), {"answers_sha256": sha256_file(stem.with_suffix(".jsonl"))})
            whole = float(np.mean(values)) if whole is None else whole
            self.rows.append(
                {"sweep": "s", "size": size, "seed": seed, "subset_seed": seed, "n_items": N, "status": "ok",
                 "fingerprint": path, "path": path, **cell, "task": task, "metric": metric, "filter": "none",
                 "score": whole, "stderr": float(np.std(values, ddof=1) / math.sqrt(N)), "headline": True, "probe": "",
                 "higher_is_better": better, "eval_fingerprint": mark, "elsewhere": elsewhere, "steps": 10 * size}
            )  # fmt: skip

    def _right(self, score: float) -> np.ndarray:
        from scipy.special import ndtri

        latent = math.sqrt(0.7) * self.hard + math.sqrt(0.3) * self.rng.standard_normal(N)
        return latent < ndtri(np.clip(score, 1e-9, 1 - 1e-9))

    @property
    def evidence(self) -> Evidence:
        frame = pd.DataFrame(self.rows, columns=COLUMNS)
        return Evidence(self.root, frame, load_items(self.root, frame))


# ------------------------------------------------------------------------------------------------------ what is kept


def test_a_perplexity_becomes_a_loss_by_item(tmp_path):
    sweep = Losses(tmp_path)
    sweep.cell(0, score=0.1, loss=3.0)
    made = in_nats(sweep.evidence)
    (row,) = made.frame[made.frame["task"] == "t_nll"].to_dict("records")
    kept = [json.loads(line) for line in next(tmp_path.rglob("t_nll/*.jsonl")).read_text().splitlines()]
    by_hand = np.array([-line["perplexity"] for line in kept])
    assert row["metric"] == "loss, nats per answer"
    assert row["score"] == pytest.approx(3.0)
    assert row["stderr"] == pytest.approx(by_hand.std(ddof=1) / math.sqrt(N))
    vector = made.items.scores[row["path"], "t_nll", row["metric"], "none"]
    assert vector == pytest.approx(by_hand.astype(np.float32))
    untouched = made.frame[made.frame["task"] != "t_nll"]
    assert untouched["score"].tolist() == [r["score"] for r in sweep.rows if r["task"] != "t_nll"]


@pytest.mark.parametrize(
    ("metric", "whole"),
    [
        ("word_perplexity", lambda rate: math.exp(rate)),
        ("byte_perplexity", lambda rate: math.exp(rate)),
        ("bits_per_byte", lambda rate: rate / math.log(2)),
    ],
)
def test_a_loss_by_word_or_byte_is_a_ratio_of_sums(tmp_path, metric, whole):
    """As lm-eval has it: documents weigh by their length. The spread is that of the ratio under resampling."""
    rng = np.random.default_rng(0)
    words = rng.integers(5, 200, N)
    likelihoods = -words * rng.normal(3.0, 0.4, N)
    rate = -likelihoods.sum() / words.sum()
    stem = tmp_path / "c" / "evals" / "w" / "wwwwwwww"
    stem.parent.mkdir(parents=True)
    lines = [
        {"task": "w", "item": i, "filter": "none", "target": "", "answers": [[a]], "extracted": [a],
         metric: [a, int(b)], "item_hash": f"{i:064}"}
        for i, (a, b) in enumerate(zip(likelihoods.tolist(), words, strict=True))
    ]  # fmt: skip
    write_jsonl(stem.with_suffix(".jsonl"), lines)
    write_result(stem.with_suffix(".json"), {"answers_sha256": sha256_file(stem.with_suffix(".jsonl"))})
    row = {"path": "c", "task": "w", "metric": metric, "filter": "none", "score": whole(rate), "status": "ok",
           "probe": "", "eval_fingerprint": "w" * 64, "headline": True, "higher_is_better": False}  # fmt: skip
    frame = pd.DataFrame([row], columns=COLUMNS)
    made = in_nats(Evidence(tmp_path, frame, load_items(tmp_path, frame)))
    (row,) = made.frame.to_dict("records")
    assert row["score"] == pytest.approx(rate)
    picked = rng.integers(0, N, (4000, N))
    resampled = -likelihoods[picked].sum(axis=1) / words[picked].sum(axis=1)
    assert row["stderr"] == pytest.approx(resampled.std(), rel=0.1)


# ---------------------------------------------------------------------------------------------------- loss and score


def elicited(root) -> Losses:
    sweep = Losses(root)
    sweep.cell(0, score=0.02, loss=8.0)
    for size, score, loss in ((10, 0.3, 3.0), (100, 0.6, 2.0), (1000, 0.85, 1.2)):
        for seed in range(3):
            sweep.cell(size, seed, score=score, loss=loss + 0.02 * seed)
    return sweep


def test_loss_and_score_that_move_together(tmp_path):
    found = elicited(tmp_path).evidence
    (pair,) = perplexity.paired_up(found)
    assert [move.kind for move in perplexity.moves(pair)] == ["together", "together"]
    rank = pair.rank()
    assert rank.value == -1
    assert rank.high < 0
    smoother = pair.smoother()
    assert smoother.low > 1  # items' losses of a half nat, a change of two, against the noise of right and wrong
    text = " ".join(perplexity.section(found).lines)
    assert re.search(
        r"from 10 examples to 1k, the loss falls \(-1\.8\d+ \[-1\.\d+, -1\.\d+\] nats\) while the score rises", text
    )
    assert "of 3 sizes the ranks agree or oppose wholly by chance in 33% of all orders" in text


def test_loss_and_score_that_move_apart(tmp_path):
    sweep = Losses(tmp_path)
    for size, score, loss in ((10, 0.3, 2.0), (100, 0.6, 2.5), (1000, 0.8, 3.0)):
        for seed in range(3):
            sweep.cell(size, seed, score=score, loss=loss + 0.02 * seed)
    (pair,) = perplexity.paired_up(sweep.evidence)
    (move,) = perplexity.moves(pair)
    assert move.kind == "apart"
    assert "they move apart, as LIMA saw" in move.words()
    assert pair.rank().value == 1


def test_settings_that_wear_the_examples_out(tmp_path):
    """More steps on the same examples: the loss rises, the score holds."""
    sweep = Losses(tmp_path)
    for seed in range(3):
        sweep.cell(100, seed, score=0.6, loss=2.0 + 0.02 * seed, variant="epochs=9", steps=900)
        sweep.cell(100, seed, score=0.6, loss=4.0 + 0.02 * seed, variant="epochs=50", steps=5000)
    for row in sweep.rows:
        row["steps"] = 900 if row["variant"] == "epochs=9" else 5000
    (move,) = perplexity.by_setting(perplexity.paired_up(sweep.evidence))
    assert move.where.endswith("from b sft epochs=9 on d to b sft epochs=50 on d")  # by steps, not by the alphabet
    assert move.kind == "loss alone"
    assert re.search(r"the loss rises \(\+2\.0\d+ \[\+1\.\d+, \+2\.\d+\] nats\) while the score holds", move.words())


def test_ranks_are_spearmans():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (50, 7)).astype(float), rng.standard_normal((50, 7))
    theirs = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert perplexity._spearman(a, b) == pytest.approx(theirs)


def test_a_loss_is_set_beside_the_scores_of_its_own_items_only(tmp_path):
    sweep = elicited(tmp_path)
    for row in [r for r in sweep.rows if r["task"] == "quiz"]:
        row["elsewhere"] = False  # a second task that the tuning is for, of other items
    assert [pair.score.series.task for pair in perplexity.paired_up(sweep.evidence)] == ["t"]


def test_the_loss_by_which_a_rate_was_chosen_stands_beside_every_score(tmp_path):
    sweep = elicited(tmp_path)
    for row in sweep.rows:
        row["held_out_loss"] = 3.0 / math.log10(row["size"]) + 0.01 * row["seed"] if row["size"] else math.nan
    pairs = perplexity.paired_up(sweep.evidence)
    held = next(pair for pair in pairs if pair.loss.series.task == "held-out loss")
    assert held.loss.series.scores == pytest.approx([3.01, 1.51, 1.01])
    assert held.rank().value == -1


def test_no_interval_of_a_loss_goes_below_none(tmp_path):
    sweep = Losses(tmp_path)
    sweep.cell(0, score=0.0, loss=9.0)
    for seed, (few, many) in enumerate(((2.0, 0.1), (9.0, 0.3))):  # two runs that differ much
        sweep.cell(10, seed, score=0.5, loss=few)
        sweep.cell(100, seed, score=0.9, loss=many)
    numbers = perplexity.section(sweep.evidence).data["perplexity"]
    assert (numbers["loss_low"] >= 0).all()
    assert (numbers["loss_low"] == 0).any()
    assert (numbers["loss_low"] <= numbers["loss_value"]).all()


def test_without_a_loss_the_section_says_how_to_have_one(tmp_path):
    sweep = elicited(tmp_path)
    sweep.rows = [row for row in sweep.rows if row["task"] != "t_nll"]
    made = perplexity.section(sweep.evidence)
    assert "evals=gsm8k_nll" in made.absent


# ---------------------------------------------------------------------------------------------------------- elsewhere


def forgetful(root) -> Losses:
    sweep = Losses(root)
    sweep.cell(0, score=0.02, loss=8.0, other=0.9)
    for size, other in ((10, 0.9), (100, 0.8), (1000, 0.5)):
        for seed in range(3):
            sweep.cell(size, seed, score=0.3 + 0.0005 * size, loss=2.0 + 0.02 * seed, other=other)
    return sweep


def test_a_planted_cost_is_found_and_grows(tmp_path):
    found = forgetting.changes(forgetful(tmp_path).evidence)
    assert [one.size for one in found] == [10, 100, 1000]
    assert [one.stands for one in found[1:]] == ["worse", "worse"]
    assert found[0].raw.holds(0)
    assert found[2].raw.low < -0.4 < found[2].raw.high
    text = " ".join(forgetting.section(forgetful(tmp_path / "again").evidence).lines)
    assert "Of 3 changes of tasks elsewhere against the untouched base, 2 stand as costs and 0 as gains" in text
    assert "Dearer the more examples: quiz after b sft on d" in text


def test_of_tasks_that_keep_their_level_nothing_stands(tmp_path):
    """Forty sweeps with no cost at all: Holm's promise is one false cost in twenty of them."""
    false = 0
    for number in range(40):
        sweep = Losses(tmp_path / str(number), seed=number)
        sweep.cell(0, score=0.02, loss=8.0)
        for size in (10, 100, 1000):
            sweep.cell(size, score=0.5, loss=2.0)
        false += any(one.stands for one in forgetting.changes(sweep.evidence))
    assert false <= 6  # 99% of the binomial of 40 with 5%


def test_a_loss_elsewhere_is_worse_where_it_rises(tmp_path):
    sweep = forgetful(tmp_path)
    for row in sweep.rows:
        row["elsewhere"] = row["task"] == "t_nll"
    found = forgetting.changes(sweep.evidence)
    assert {one.series.task for one in found} == {"t_nll"}
    assert all(one.stands == "better" and one.raw.value < 0 for one in found)  # it fell from 8 to 2 nats


def test_a_task_elsewhere_is_nothing_to_gain(tmp_path):
    made = forgetful(tmp_path).evidence
    assert {one.curve.series.task for one in findings(made.frame, made.items)} == {"t", "t_nll"}


def test_a_mark_on_one_arm_only_leaves_the_other_its_curve(tmp_path):
    """The same quiz may be what one tuning is for and elsewhere for another; the untouched base serves both."""
    sweep = forgetful(tmp_path)
    for seed in range(3):
        sweep.cell(1000, seed, score=0.5, loss=2.0, other=0.95, data="quizzes")
    for row in sweep.rows:
        if row["data"] == "quizzes":
            row["elsewhere"] = False
    made = sweep.evidence
    assert {one.series.data for one in forgetting.changes(made)} == {"d"}
    assert {(o.curve.series.data, o.curve.series.task) for o in findings(made.frame, made.items)} >= {
        ("quizzes", "quiz")
    }


def test_nothing_is_marked(tmp_path):
    sweep = forgetful(tmp_path)
    for row in sweep.rows:
        row["elsewhere"] = False
    assert "evals=corpus" in forgetting.section(sweep.evidence).absent
