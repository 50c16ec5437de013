"""pass@k of base and tuned models: curves, where they cross, who solves what, where the truth is known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import pass_at_k
from analysis.instruments import INSTRUMENTS
from analysis.pass_at_k import Model, Pair, guessing, look, pairs, section
from analysis.section import Evidence
from harness.artifact import sha256_file
from harness.items import Asked, Items, load_items
from harness.samples import curve
from harness.store import COLUMNS, write_jsonl, write_result


def asked(count: int, each: int = 1, targets: int = 50) -> Asked:
    """`count` items, `each` of them a cluster."""
    names = tuple(f"t:{i}" for i in range(count))
    return Asked(names, np.arange(count) // each, tuple(f"answer {i % targets}" for i in range(count)), 1 / targets)


def pair(base: np.ndarray, tuned: np.ndarray, n: int, rng: np.random.Generator, each: int = 1) -> Pair:
    """What n draws show of models whose answers are right with these chances, [items] and [runs, items]."""
    one, other = rng.binomial(n, base)[None], rng.binomial(n, np.atleast_2d(tuned))
    before, after = Model("the untouched base", 0, n, one), Model("sft on d", 10, n, other)
    return Pair("b", "t", "strict", asked(len(base), each), before, after)


@pytest.mark.parametrize("seed", range(3))
def test_a_crossing_that_is_known_is_found(seed: int) -> None:
    """The base is right a fifth of the time on all items, the tuned model nearly always on half of them and never on
    the others: 1 - 0.8^k passes (1 - 0.05^k) / 2 at k = 4, and equals the tuned model's first answer at 3."""
    rng = np.random.default_rng(seed)
    base, tuned = np.full(600, 0.2), np.repeat([0.95, 0.0], 300)
    found = look(pair(base, tuned, 64, rng))
    assert found.crossing.holds(4)
    assert 3 <= found.crossing.value <= 5
    assert found.worth.holds(3)
    assert found.crossing.low > 1
    assert not math.isinf(found.crossing.high)
    assert found.difference.low > 0.4
    said = pass_at_k.words(found)[0]
    assert "the base catches it at k = " in said
    shares = {part: share.value for part, share in found.split.items()}
    assert shares["only base"] == pytest.approx(0.5, abs=0.01)
    assert shares["both"] == pytest.approx(0.5, abs=0.01)
    assert shares["only tuned"] == pytest.approx(0, abs=0.01)
    assert sum(shares.values()) == pytest.approx(1)
    assert found.covered.holds(1)


def test_a_base_that_never_catches_up_is_said_not_to() -> None:
    rng = np.random.default_rng(0)
    base, tuned = np.repeat([0.3, 0.0], 100), np.full(200, 0.9)
    found = look(pair(base, tuned, 32, rng))
    assert math.isinf(found.crossing.value)
    assert found.crossing.low == math.inf
    assert found.difference.holds(-0.5)
    assert found.split["only tuned"].holds(0.5)
    assert "does not catch it within 32 answers" in pass_at_k.words(found)[0]
    assert "more than 32" in pass_at_k.words(found)[0]
    assert found.covered.holds(0.5)
    assert 0.4 < found.covered.low < found.covered.high < 0.6


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_base_that_solves_none_or_all_is_not_known_exactly(chance: float) -> None:
    """Of 60 items: as of a proportion of which none was seen, at most about 3 in 60 may be otherwise."""
    found = look(pair(np.full(60, chance), np.full(60, 0.99), 32, np.random.default_rng(0)))
    (low, high), value = np.quantile(found.before_draws[:, -1], [0.025, 0.975]), found.before[-1]
    for one, lower, upper in ((value, low, high), (found.covered.value, found.covered.low, found.covered.high)):
        assert one == chance
        assert 0 <= lower <= one <= upper <= 1
        assert 0.02 < upper - lower < 0.08
    assert found.split["only tuned"].value == 1 - chance
    assert found.difference.holds(chance - 1)


def test_nothing_is_covered_of_what_is_not_there() -> None:
    found = look(pair(np.full(20, 0.5), np.zeros(20), 4, np.random.default_rng(0)))
    assert "solves none" in found.covered.why
    assert "solves none" in pass_at_k.words(found)[1]


def test_a_base_that_may_be_guessing_is_said_to_be() -> None:
    """Of 50 answers, each right as often: 8 guesses solve 15%."""
    said = {"the base does worse": 0.0, "not known to do better": 0.02, "the base does better": 0.2}
    for words, chance in said.items():
        found = look(pair(np.full(200, chance), np.full(200, 0.9), 8, np.random.default_rng(1)))
        assert words in pass_at_k.words(found)[1]


def test_a_base_that_is_ahead_is_said_to_be() -> None:
    found = look(pair(np.full(100, 0.6), np.full(100, 0.3), 8, np.random.default_rng(0)))
    assert found.crossing.value == found.worth.value == 1
    assert "not behind from the start" in pass_at_k.words(found)[0]


def test_models_that_are_alike_are_level_at_one_answer() -> None:
    """The same answers, so that no rounding of resamples may set one of them behind."""
    right = np.random.default_rng(0).binomial(16, 0.3, (1, 90))
    same = Pair("b", "t", "f", asked(90), Model("", 0, 16, right), Model("x", 1, 16, right))
    assert look(same).crossing == pass_at_k.Estimate(1.0, 1.0, 1.0)


@pytest.mark.parametrize("runs", [1, 3])
def test_intervals_hold_the_truth_as_often_as_they_say(runs: int) -> None:
    """Of curves and differences over fresh items in clusters of three, and fresh runs, in 300 small sweeps."""
    n, items, times, rng = 16, 90, 300, np.random.default_rng(5)
    few = [0, 3, 15]  # k - 1
    grid = np.random.default_rng(6)

    def chances(level: float, size: int) -> np.ndarray:
        return grid.beta(3 * level, 3 * (1 - level), size)

    def truth(level: float, spread: float) -> np.ndarray:
        """By many items: the mean of 1 - (1-p)^k."""
        p = chances(level, 40_000)
        shifted = p[:, None] ** np.exp(spread * grid.standard_normal(40)) if spread else p[:, None]
        return np.array([(1 - (1 - shifted) ** (k + 1)).mean() for k in few])

    spread = 0.2 if runs > 1 else 0.0
    expected = truth(0.5, spread) - truth(0.25, 0.0)
    held = np.zeros(3)
    for _ in range(times):
        base = np.repeat(chances(0.25, items // 3), 3)
        shift = np.exp(spread * grid.standard_normal((runs, 1)))
        tuned = np.repeat(chances(0.5, items // 3), 3)[None] ** shift
        found = look(pair(base, tuned, n, rng, each=3), draws=400)
        drawn = (found.after_draws - found.before_draws)[:, few]
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        held += (low <= expected) & (expected <= high)
    assert (held / times > 0.90).all()
    assert (held / times < 0.99).all()


def test_a_guess_among_equally_many_answers() -> None:
    assert guessing(asked(100, targets=20), 8) == pytest.approx(1 - 0.95 ** np.arange(1, 9))


def test_what_fewer_tries_would_have_shown_is_the_mean_over_all_choices_of_them() -> None:
    """Of 8 answers 2 right: 4 of them hold one with chance 1 - C(6, 4) / C(8, 4)."""
    model = Model("", 0, 8, np.array([[2]]))
    assert model.solved(4)[0, 0] == pytest.approx(1 - 15 / 70)


# --- the section, from files ----------------------------------------------------------------------------------------


class Answers:
    """Records with answers by item, as cells keep them."""

    def __init__(self, root: Path, n: int) -> None:
        self.root, self.n, self.rows = root, n, list[dict[str, Any]]()

    def cell(self, right: np.ndarray, size: int = 0, seed: int = 0, task: str = "t", **fields: Any) -> None:
        method = "sft" if size else "base"
        path, mark = f"b/{method}/n{size}-s{seed}{fields.get('data', '')}", f"{self.n:0>64}"
        ks = [2**i for i in range(self.n.bit_length()) if 2**i < self.n] + [self.n]
        values = {f"pass@{k}": curve(self.n)[right, k - 1] for k in ks}
        kept = [
            {"task": task, "item": i, "filter": "strict", "target": f"answer {i % 7}", "item_hash": f"{i:064}",
             "answers": [["x"] * self.n], "extracted": [["x"] * self.n], **{m: float(v[i]) for m, v in values.items()}}
            for i in range(len(right))
        ]  # fmt: skip
        stem = self.root / path / "evals" / task / mark[:8]
        stem.parent.mkdir(parents=True)
        write_jsonl(stem.with_suffix(".jsonl"), kept)
        write_result(stem.with_suffix(".json"), {"answers_sha256": sha256_file(stem.with_suffix(".jsonl"))})
        shared = {
            "base": "b", "data": "d" if size else "none", "method": method, "variant": "", "size": size, "seed": seed,
            "subset_seed": seed, "status": "ok", "task": task, "filter": "strict", "eval_fingerprint": mark,
            "fingerprint": path, "path": path, "probe": "", "higher_is_better": True, "n_items": len(right), **fields,
        }  # fmt: skip
        self.rows += [{**shared, "metric": m, "score": v.mean(), "headline": m == "pass@1"} for m, v in values.items()]

    def evidence(self) -> Evidence:
        frame = pd.DataFrame(self.rows, columns=COLUMNS)
        return Evidence(self.root, frame, load_items(self.root, frame) if self.rows else Items())


def test_base_and_tuned_models_are_paired_with_all_their_runs(tmp_path: Path) -> None:
    kept, rng = Answers(tmp_path, 8), np.random.default_rng(0)
    counts = {(0, 0): rng.binomial(8, 0.2, 60), (4, 0): rng.binomial(8, 0.3, 60)}
    counts |= {(64, seed): rng.binomial(8, 0.7, 60) for seed in range(3)}
    for (size, seed), right in counts.items():
        kept.cell(right, size, seed)
    few, many = pairs(kept.evidence())
    assert (few.after.size, many.after.size) == (4, 64)
    assert (many.before.right == counts[0, 0]).all()
    assert (many.after.right == np.stack([counts[64, seed] for seed in range(3)])).all()


def test_the_section_has_sentences_tables_a_figure_and_the_numbers(tmp_path: Path) -> None:
    kept, rng = Answers(tmp_path, 8), np.random.default_rng(0)
    kept.cell(rng.binomial(8, 0.2, 60))
    for size, level in ((4, 0.3), (64, 0.9)):
        kept.cell(rng.binomial(8, level, 60), size)
    seen = section(kept.evidence())
    assert not seen.absent
    assert len(seen.lines) == 2  # of the largest size
    assert "64 examples" in seen.lines[0]
    assert [len(table.rows) for table in seen.tables] == [2, 2]
    assert all(len(row) == len(table.columns) for table in seen.tables for row in table.rows)
    curves, numbers = seen.data["pass-at-k"], seen.data["pass-at-k-pairs"]
    assert len(curves) == 2 * 3 * 8
    assert len(numbers) == 2
    first = curves[(curves["model"] == "base") & (curves["k"] == 1)].iloc[0]
    scores = kept.evidence().frame
    assert first["score"] == pytest.approx(
        scores[(scores.method == "base") & (scores.metric == "pass@1")].score.iloc[0]
    )
    assert first["score_low"] < first["score"] < first["score_high"]
    (picture,) = seen.pictures
    (axes,) = picture.figure.axes
    assert {len(line.get_xdata()) for line in axes.lines} <= {1, 8}


def test_without_samples_or_without_their_base_it_is_absent_and_says_how_to_have_it(tmp_path: Path) -> None:
    kept = Answers(tmp_path, 8)
    for why in ("No evaluation drew several answers", "but not of an untouched base"):
        seen = section(kept.evidence())
        assert why in seen.absent
        assert "harness eval" in seen.absent
        assert not seen.lines
        if not kept.rows:
            kept.cell(np.array([1, 2, 3]), 10)  # a tuned model alone
    assert pass_at_k in INSTRUMENTS
