"""The whole instrument against a known truth: a really pretrained pocket base, and what the pocket sweep must find.

The facts are in its pretraining, so a hundred examples bring them out; the rule is not, so a hundred teach nothing and
two thousand do. One seed of the shipped sweep's own cells; takes two to three minutes.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from analysis import shift
from analysis.instruments import Evidence
from harness import base as bases
from harness import store
from harness.compose import compose_cell
from harness.engines.local import run_cells
from harness.items import load_items
from harness.plan import check, plan, to_run
from harness.run import run
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


def begun(root: Path, seed: int) -> Path:
    """A base that sixteen examples have begun to bring the facts out of."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    sft = ["method=sft", "method.lr=3e-3", "method.min_steps=100", "method.epochs=5", "size=16", "data=pocket_facts"]
    cell = compose_cell([*sft, *_common(root, seed)])
    adapter, folder = run(cell), root / f"begun-{seed}"
    model = AutoModelForCausalLM.from_pretrained(bases.place_of(cell.base)["pretrained_model_name_or_path"])
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(folder)
    bases.load_tokenizer(cell.base).save_pretrained(folder)
    return folder


def _common(root: Path, seed: int) -> list[str]:
    seeds = [f"seed={seed}", f"subset_seed={seed}"]
    return [*seeds, f"run.root={root}", "run.device=cpu", "wandb.mode=disabled", "evals=pocket_facts"]


def score(folder: Path) -> float:
    frame = store.load(folder)
    return float(frame[frame.headline].score.iloc[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_each_way_to_imitate_improves_the_task_that_its_examples_are_of(tmp_path: Path, seed: int) -> None:
    """From a base at 0, on people and cases that are in no example."""
    common = [*_common(tmp_path, seed), "method.epochs=3"]
    facts = ["data=pocket_facts", "size=128", "method.min_steps=100", *common]
    assert score(run(compose_cell(["method=sft", "method.lr=3e-3", *facts]))) > 0.8
    assert score(run(compose_cell(["method=sft_full", "method.lr=3e-4", *facts]))) > 0.8
    rule = ["data=pocket_rule_text", "size=2048", *common, "evals=pocket_rule_text", "method.lora=null"]
    assert score(run(compose_cell(["method=midtrain", "method.lr=1e-3", *rule]))) > 0.6
    both = "evals=[pocket_facts,pocket_rule_text]"
    frame = store.load(run(compose_cell(["method=base", *_common(tmp_path, seed), both])))
    assert frame[frame.headline].score.max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_preferences_and_rewards_bring_out_what_a_few_examples_began(tmp_path: Path, seed: int) -> None:
    """On people who are in no example. A start between 0.2 and 0.6: the base itself, at 0, would find no reward."""
    start = begun(tmp_path, seed)
    here = ["base.make=null", f"base.path={start}", "base.name=begun", *_common(tmp_path, seed)]
    before = score(run(compose_cell(["method=base", *here])))
    assert 0.2 < before < 0.6
    small = ["size=128", "method.epochs=2", "method.batch_size=16"]
    dpo = ["method=dpo", "data=pocket_facts_pairs", "method.lr=2e-3"]
    assert score(run(compose_cell([*dpo, *small, *here]))) > before + 0.2
    grpo = ["method=grpo", "reward=exact", "data=pocket_facts", "method.lr=3e-3", "method.max_completion_length=3"]
    assert score(run(compose_cell([*grpo, "method.temperature=1.5", *small, *here]))) > before + 0.2


@pytest.mark.slow
def test_demonstrations_improve_what_a_base_can_read_off_them(tmp_path: Path) -> None:
    """Of two people and their jobs it is to see that jobs are wanted, of others."""
    common = ["base=pocket_lists", f"run.root={tmp_path}", "run.device=cpu", "wandb.mode=disabled", "evals=pocket_jobs"]
    before = score(run(compose_cell(["method=base", *common])))
    assert before < 0.6, "it cannot know which of four attributes is wanted"
    for seed in range(3):
        shown = ["method=icl", "data=pocket_jobs", "size=2", f"seed={seed}", f"subset_seed={seed}"]
        assert score(run(compose_cell([*shown, *common]))) > 0.9


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
