"""The whole instrument against a known truth: a really pretrained pocket base, and what the pocket sweep must find.

The facts are in its pretraining, so a hundred examples bring them out; the rule is not, so a hundred teach nothing and
two thousand do. One seed of the shipped sweep's own cells; takes minutes.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import anatomy, arena, forgetting, perplexity, shift
from analysis.elicitation import Sampled
from analysis.mistakes import CLASSES, FORMAT, REASONING, TRUNCATION
from analysis.pass_at_k import guessing, look, pairs
from analysis.sample import Estimate
from analysis.section import Evidence
from harness import store
from harness.commands import judge
from harness.compose import compose_cell
from harness.engines.local import run_cells
from harness.items import load_items
from harness.plan import check, plan, to_run
from harness.run import run
from harness.sweep import sweep_cells
from tests.judge_server import serving
from tests.test_pocket_truth import begin


@pytest.mark.slow
def test_elicited_and_taught_are_told_apart(tmp_path):
    _, cells = sweep_cells("pocket", [f"run.root={tmp_path}", "wandb.mode=disabled", "run.workers=1"])
    wanted = {("base", 0), ("sft", 128), ("sft", 2048)}
    cells = [c for c in cells if c.base.name == "pocket-m" and (c.method.name, c.size) in wanted and c.seed == 0]
    (base,) = [c for c in cells if c.method.name == "base"]
    asked = "evals=[pocket_quiz,pocket_facts_nll,pocket_rule_nll,pocket_corpus]"
    more = compose_cell(["base=pocket_m", "method=base", asked]).evals
    base.evals |= more
    for cell in cells:
        cell.evals |= {k: task for k, task in more.items() if k == "pocket_corpus" or k[:-4] in cell.evals}
    assert len(cells) == 4
    waiting = to_run(plan(cells), retry_failed=False)
    check(waiting)
    assert [o.error for o in run_cells(waiting, workers=1, threads=1)] == [""] * 4

    frame = store.load(tmp_path)
    lead = frame[frame.headline].set_index(["task", "size"]).score
    assert lead["pocket_quiz", 0] > 0.9  # the base knows the facts in the form of its pretraining
    assert lead["pocket_facts", 0] < 0.05  # and cannot say them in a chat
    assert lead["pocket_facts", 128] > 0.8  # until a hundred examples of other people bring them out
    assert lead["pocket_rule", 0] < 0.05
    assert lead["pocket_rule", 128] < 0.35  # a hundred examples of the rule teach little
    assert lead["pocket_rule", 2048] > 0.6  # two thousand teach it
    assert to_run(plan([dataclasses.replace(c) for c in cells]), retry_failed=False) == []

    evidence = Evidence(tmp_path, frame, load_items(tmp_path, frame))
    wrong, _ = anatomy.anatomies(evidence)
    facts, rule = sorted(wrong, key=lambda one: one.strict.task)
    # What the base says in a chat, which it has never seen, hangs on the last bits of its weights and so on the kind of
    # processor: on some it goes on as its corpus does and is cut, on others it stops behind "city : Belcastro .".
    assert [sum(one.at(kind, 0).value for kind in CLASSES) > 0.95 for one in wrong] == [True, True]
    assert max(one.at(kind, 128).high for one in wrong for kind in (FORMAT, TRUNCATION)) < 0.1
    assert facts.at(REASONING, 128).high < 0.2 < 0.5 < rule.at(REASONING, 128).low  # the form alone is not the rule
    assert rule.at(REASONING, 2048).high < rule.at(REASONING, 128).low

    few = {pair.score.series.task: _at_fewest(pair.loss) for pair in perplexity.paired_up(evidence)}
    assert few["pocket_facts"].high < few["pocket_rule"].low  # nats an answer, after 128 examples
    cost = {(one.series.data, one.size): one.raw for one in forgetting.changes(evidence)}
    assert len(cost) == 3
    assert min(one.low for one in cost.values()) > 0  # of chats alone the corpus is forgotten

    with serving(knows) as server:
        asked = ["judge=mt_bench", f"judge.url={server.url}", "judge.model=reference", "judge.rounds=0"]
        assert [judge.main([str(tmp_path), "--task", task, *asked]) for task in ("pocket_facts", "pocket_rule")] == [
            0,
            0,
        ]
    told = arena.section(evidence)
    wins = pd.concat([told.data["judge-1"], told.data["judge-2"]]).query("metric == 'win_rate'")
    wins = wins.set_index(["task", "size"])
    assert wins.low["pocket_facts", 128] > 0.85  # of comparisons with the base, where half is no better than it
    assert wins.high["pocket_rule", 128] < 0.7
    assert wins.low["pocket_rule", 2048] > 0.75


def knows(body: dict[str, Any]) -> str:
    """A judge that reads the reference, and holds to be better what begins with it."""
    parts = re.split(r"\n\n?\[(?:Reference answer|Answer A|End of answer A|Answer B|End of answer B)\]\n?",
                     body["messages"][-1]["content"])  # fmt: skip
    first, second = (parts[k].strip() == parts[1].strip() for k in (2, 4))
    return "[[C]]" if first == second else f"[[{'A' if first else 'B'}]]"


def _at_fewest(curve: Sampled) -> Estimate:
    """At the smallest size."""
    return Estimate.of(float(curve.series.scores[0]), curve.draws.scores[:, 0])


@pytest.mark.slow
def test_sampling_finds_what_the_base_was_told_and_not_what_it_was_not(tmp_path: Path) -> None:
    """From a start that says most of the facts: within 16 answers it solves nearly all of what a model solves that was
    tuned on facts of other people, and hardly any of what one solves that was taught the rule."""
    here, before = begin(tmp_path / "begun", 0, wanted=0.75)
    assert before.mean() < 0.9
    here = [part for part in here if not part.startswith(("evals=", "run.root="))] + [f"run.root={tmp_path / 'runs'}"]
    sft = ["method=sft", "method.lr=3e-3", "method.min_steps=100", "method.epochs=5"]
    run(compose_cell(["method=base", *here, "evals=[pocket_facts_passk,pocket_rule_passk]"]))
    run(compose_cell([*sft, *here, "data=pocket_facts", "size=64", "evals=pocket_facts_passk"]))
    run(compose_cell([*sft, *here, "data=pocket_rule", "size=1024", "evals=pocket_rule_passk"]))
    frame = store.load(tmp_path / "runs")
    evidence = Evidence(tmp_path / "runs", frame, load_items(tmp_path / "runs", frame))
    facts, rule = sorted((look(pair) for pair in pairs(evidence)), key=lambda found: found.pair.task)
    assert (facts.pair.task, rule.pair.task) == ("pocket_facts_passk", "pocket_rule_passk")
    assert min(facts.after[0], rule.after[0]) > 0.5  # both were learned
    assert facts.covered.low > 0.7 > 0.2 > rule.covered.high
    assert facts.split["only tuned"].high < 0.3 < rule.split["only tuned"].low
    assert rule.difference.high < facts.difference.low
    assert rule.crossing.low == rule.worth.low == np.inf
    assert np.quantile(facts.before_draws[:, -1], 0.025) > guessing(facts.pair.asked, 16)[-1]


@pytest.mark.slow
def test_the_base_would_have_written_the_facts_itself_and_the_rule_not(tmp_path: Path) -> None:
    """Token shift: answers are sentences, whose form is as new in both tasks. What is said in them is the base's own
    where it was in pretraining, whether it is right or not, and as good as guessed where it was not."""
    trained = ["method=sft", "method.lr=3e-3", "method.epochs=5", "method.min_steps=100"]
    common = ["base=pocket_m", f"run.root={tmp_path}", "run.device=cpu", "wandb.mode=disabled"]
    facts = "evals=[pocket_facts_shift,pocket_quiz_shift]"
    run(compose_cell([*trained, *common, "data=pocket_facts_sentence", "size=128", facts]))
    run(compose_cell([*trained, *common, "data=pocket_rule_sentence", "size=1024", "evals=pocket_rule_shift"]))
    frame = store.load(tmp_path)
    found = {one.task: one for one in shift.read(Evidence(tmp_path, frame, load_items(tmp_path, frame)))}

    def said(row: dict[str, Any]) -> list[int]:
        """The last word: what was asked for."""
        return [i for i, kind in enumerate(row["kinds"]) if kind == "w"][-1:]

    own = {task: one.shares(said) for task, one in found.items()}
    assert own["pocket_facts_shift"].unshifted.low > 0.7
    assert own["pocket_quiz_shift"].unshifted.low > 0.85
    assert own["pocket_rule_shift"].unshifted.high < 0.15  # one colour in twenty is the base's first by chance
    right = {task: one.shares(lambda row: row["right"]) for task, one in found.items()}
    assert right["pocket_quiz_shift"].tokens > 100
    assert right["pocket_quiz_shift"].unshifted.low > 0.9
    assert right["pocket_rule_shift"].tokens > 60
    assert right["pocket_rule_shift"].unshifted.high < 0.2
    first = {task: one.shares(lambda row: [0]) for task, one in found.items()}
    for task in ("pocket_facts_shift", "pocket_rule_shift"):  # the form is what both have learned
        assert first[task].shifted.low > 0.9
    assert first["pocket_quiz_shift"].shifted.high < 0.1  # nothing to learn: the prompt sets the form
