"""The whole instrument against a known truth: a really pretrained pocket base, and what the pocket sweep must find.

The facts are in its pretraining, so a hundred examples bring them out; the rule is not, so a hundred teach nothing and
two thousand do. One seed of the shipped sweep's own cells; takes two to three minutes.
"""

import dataclasses

import pytest

from harness import store
from harness.compose import compose_cell
from harness.engines.local import run_cells
from harness.plan import check, plan, to_run
from harness.sweep import sweep_cells


@pytest.mark.slow
def test_elicited_and_taught_are_told_apart(tmp_path):
    _, cells = sweep_cells("pocket", [f"run.root={tmp_path}", "wandb.mode=disabled", "run.workers=1"])
    wanted = {("base", 0), ("sft", 128), ("sft", 2048)}
    cells = [c for c in cells if c.base.name == "pocket-m" and (c.method.name, c.size) in wanted and c.seed == 0]
    (base,) = [c for c in cells if c.method.name == "base"]
    quiz = compose_cell(["base=pocket_m", "method=base", "evals=pocket_quiz"])
    base.evals |= quiz.evals
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
