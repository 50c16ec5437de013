"""Stages in a row do what the same trainings do one by one, each on the exported result of the one before."""

import dataclasses
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import base as bases
from harness import store
from harness.cell import Attempt, Base, Cell, Data, Form, Source, Turn
from harness.compose import compose_cell, from_dict
from harness.cost import Estimator
from harness.errors import HarnessError
from harness.export import export
from harness.methods.dpo import Dpo
from harness.methods.midtrain import Midtrain
from harness.methods.recipe import Recipe, Stage, stage_folder
from harness.methods.sft import Sft
from harness.methods.sft_full import SftFull
from harness.plan import check, plan, to_run
from harness.run import as_dict, run
from harness.tuning import Lora
from tests.children import in_child
from tests.conftest import pairs, write_jsonl
from tests.test_dpo import PAIR
from tests.test_dpo import rows as preferences
from tests.test_grpo import quick

Make = Callable[..., Cell]
FIRST = Sft(lr=0.01, epochs=2, batch_size=3, lora=Lora(rank=4))
SECOND = Sft(lr=0.005, epochs=2, batch_size=4, lora=Lora(rank=2))
TEXT = [Turn("text", "{{ text }}")]


@pytest.fixture
def words(make_data: Callable[..., Data]) -> Data:
    """What the first stage learns from."""
    return make_data([{"prompt": f"Say {i}.", "completion": f"{i} and red."} for i in range(12)], name="words")


@pytest.fixture
def chosen(tmp_path: Path) -> Data:
    file = write_jsonl(tmp_path / "preferences.jsonl", preferences(12))
    return Data(name="preferences", sources={"only": Source(path=str(file), form=PAIR)})


def two(words: Data, **changes: Any) -> Recipe:
    return Recipe({"first": Stage(FIRST, words, 6), "second": Stage(SECOND)}, **changes)


def training(cell: Cell) -> dict[str, Any]:
    return dict(store.read_result(cell.folder() / store.RECORD)["training"])


def answers(cell: Cell) -> list[Any]:
    (file,) = cell.folder().glob("evals/*/*.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in store.read_jsonl(file)]


def exported(cell: Cell, target: Path) -> str:
    folder = run(cell)
    export(folder, store.read_result(folder / store.RECORD), cell, target)
    return str(target)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("first", "dtype"),
    [(FIRST, "float32"), (FIRST, "bfloat16"), (SftFull(lr=1e-3, epochs=2, batch_size=3), "bfloat16")],
)
def test_two_stages_are_two_trainings_with_an_export_between(
    first: Any, dtype: str, make_cell: Make, words: Data, tiny_base: Base, generation_task: Any, tmp_path: Path
) -> None:
    base = dataclasses.replace(tiny_base, dtype=dtype)
    evals = {"quiz": generation_task()}
    recipe = two(words)
    recipe.stages["first"].method = first
    whole = make_cell(recipe, size=8, evals=evals, base=base)
    before = weights(bases.load(whole.base, "cpu").model)
    run(whole)
    assert equal(before, weights(bases.load(whole.base, "cpu").model))  # it leaves as it came

    begun = make_cell(first, data=words, size=6, base=base)
    between = Base("between", exported(begun, tmp_path / "between"), dtype=dtype)
    after = make_cell(SECOND, size=8, evals=evals, base=between)
    run(after)
    stages = training(whole)["stages"]
    name = "adapter_sha256" if first is FIRST else "model_sha256"
    assert stages[0][name] == training(begun)[name]
    assert stages[1]["adapter_sha256"] == training(after)["adapter_sha256"]
    assert answers(whole) == answers(after)
    lines = [store.read_jsonl(cell.folder() / store.LOSSES) for cell in (whole, begun, after)]
    assert [row["step"] for row in lines[0]] == list(range(len(lines[0])))
    assert [row["loss"] for row in lines[0]] == [row["loss"] for row in lines[1] + lines[2]]
    for what in ("steps", "tokens", "target_tokens", "flops"):
        assert training(whole)[what] == training(begun)[what] + training(after)[what]
    ends = [Base("x", exported(c, tmp_path / f"end{n}"), dtype=dtype) for n, c in enumerate((whole, after))]
    assert equal(*(weights(bases.load(end, "cpu").model) for end in ends))


def test_the_reference_of_dpo_is_the_policy_that_entered_the_stage(make_cell: Make, words: Data, chosen: Data) -> None:
    """So its first loss is ln 2, with nothing preferred yet; against the raw base it would not be."""
    dpo = Dpo(lr=0.01, epochs=1, batch_size=4)
    cell = make_cell(Recipe({"sft": Stage(FIRST, words, 6), "dpo": Stage(dpo)}), data=chosen, size=8)
    run(cell)
    sft, dpo_steps = (stage["steps"] for stage in training(cell)["stages"])
    losses = [row["loss"] for row in store.read_jsonl(cell.folder() / store.LOSSES)]
    assert len(losses) == sft + dpo_steps
    assert losses[sft] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[sft + 1] != pytest.approx(math.log(2), abs=1e-6)


def test_four_stages_run_through(make_cell: Make, make_data: Any, words: Data, chosen: Data) -> None:
    text = make_data([{"text": f"{i} and {i} is {2 * i}."} for i in range(9)], name="text", form=Form(TEXT))
    stages = {
        "midtrain": Stage(Midtrain(lr=0.01, epochs=1, batch_size=4), text, 8),
        "sft": Stage(FIRST),
        "dpo": Stage(Dpo(lr=0.01, batch_size=4), chosen, 8),
        "grpo": Stage(quick(hold="steps", budget=2), words, 8),
    }
    cell = make_cell(Recipe(stages, swept="sft"), size=6)
    before = weights(bases.load(cell.base, "cpu").model)
    check(to_run(plan([cell]), retry_failed=False))
    run(cell)
    told = training(cell)
    assert [stage["method"] for stage in told["stages"]] == ["midtrain", "sft", "dpo", "grpo"]
    assert [stage["steps"] for stage in told["stages"]] == [2, 4, 2, 2]
    assert told["steps"] == len(store.read_jsonl(cell.folder() / store.LOSSES)) == 10
    assert all(stage["logit_change"] > 0 for stage in told["stages"])
    assert equal(before, weights(bases.load(cell.base, "cpu").model))


def test_what_begins_alike_is_trained_once(make_cell: Make, words: Data, make_data: Any) -> None:
    heard: list[int] = []
    recipe = Recipe({**two(words).stages, "third": Stage(SECOND, make_data(pairs(9), name="nine"), 5)}, swept="second")
    cells = [make_cell(dataclasses.replace(recipe, until=until), size=8) for until in ("", "second")]
    cells.append(make_cell(recipe, size=4))
    planned = plan(cells)
    estimator = Estimator(planned, speed=1e12)
    tokens = [estimator.cost(p).tokens for p in planned]
    assert tokens[1] == 0
    steps = []
    for cell in cells:
        run(cell, lambda *_: heard.append(1))
        steps.append(len(heard))
        heard.clear()
    made = [[stage["steps"] for stage in training(cell)["stages"]] for cell in cells]
    assert steps == [sum(made[0]), 0, sum(made[2][1:])]
    assert [training(c)["tokens"] for c in cells[:1]] == pytest.approx(tokens[:1], rel=0.1)
    planned = plan(cells)  # from what they measured
    assert Estimator(planned).cost(planned[0]).tokens == training(cells[0])["tokens"]
    # Of the same stages, the third is trained on what came before, so after another size it is another one.
    marks = [[stage["mark"] for stage in training(cell)["stages"]] for cell in cells]
    assert marks[0][:2] == marks[1]
    assert [a == b for a, b in zip(marks[0], marks[2], strict=True)] == [True, False, False]


def test_killed_in_its_second_stage_it_ends_with_the_same_bits(make_cell: Make, words: Data, tmp_path: Path) -> None:
    cell = make_cell(two(words), size=8)
    cell.run.checkpoint_seconds = 0.0
    assert in_child(_die_at, cell, 6) == -signal.SIGKILL
    run(cell)
    other = dataclasses.replace(cell, run=dataclasses.replace(cell.run, root=str(tmp_path / "undisturbed")))
    run(other)
    ends = [[stage["adapter_sha256"] for stage in training(c)["stages"]] for c in (cell, other)]
    assert ends[0] == ends[1]
    assert [stage["resumed"] for stage in training(cell)["stages"]] == [[], [2]]
    texts = [(c.folder() / store.LOSSES).read_text() for c in (cell, other)]
    assert texts[0] == texts[1]


def _die_at(cell: Cell, step: int) -> None:
    run(cell, lambda now, *_: os.kill(os.getpid(), signal.SIGKILL) if now == step else None)


def test_one_that_is_done_is_asked_more_without_its_data(
    make_cell: Make, words: Data, generation_task: Any, tmp_path: Path
) -> None:
    """And wherever its sweep was moved to."""
    cell = make_cell(two(words), size=8)
    run(cell)
    Path(cell.run.root).rename(tmp_path / "moved")
    for source in words.sources.values():
        Path(source.path).unlink()
    folder = tmp_path / "moved" / cell.folder().relative_to(cell.run.root)
    base = bases.load(cell.base, "cpu")
    with cell.method.adapt(base, [], cell, Attempt(folder, folder / "checkpoints")) as adapted:
        ids = torch.tensor([[5, 6, 7]])
        with adapted.model.disable_adapter():
            assert not torch.equal(adapted.model(ids).logits, _fresh(cell.base)(ids).logits)


def test_a_stage_that_was_deleted_is_told(make_cell: Make, words: Data, generation_task: Any) -> None:
    cell = make_cell(two(words), size=8)
    run(cell)
    shutil.rmtree(stage_folder(cell.folder(), training(cell)["stages"][0]["mark"]))
    with pytest.raises(HarnessError, match=r"the stage .* is gone; delete .* to train it again"):
        run(dataclasses.replace(cell, evals={"quiz": generation_task()}))


def _fresh(base: Base) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)


def test_a_record_of_it_makes_the_same_cell_again() -> None:
    cell = compose_cell(["base=pocket_s", "method=pocket_stages", "data=pocket_rule", "size=16"])
    again = from_dict(as_dict(cell))
    assert again == dataclasses.replace(cell, engine=again.engine)
    assert [type(s.method).__name__ for s in again.method.stages.values()] == ["Midtrain", "Sft", "Dpo", "Grpo"]  # type: ignore[attr-defined]
    assert again.folder() == cell.folder()


def test_every_setting_of_a_stage_is_in_identity_and_place(make_cell: Make, words: Data) -> None:
    def facts(recipe: Recipe) -> tuple[Any, ...]:
        cell = make_cell(recipe, size=8)
        return cell.identity("base", "subset")["method"], cell.folder(), recipe.variant()

    plain = two(words)
    changed = two(words)
    changed.stages["first"] = dataclasses.replace(changed.stages["first"], method=dataclasses.replace(FIRST, lr=0.02))
    other = two(words)
    other.stages["first"] = dataclasses.replace(other.stages["first"], size=7)
    for recipe in (changed, other):
        assert all(a != b for a, b in zip(facts(plain), facts(recipe), strict=True))


def test_a_file_of_stages_composes(tmp_path: Path) -> None:
    cell = compose_cell(["base=pocket_s", "method=pocket_stages", "data=pocket_rule", "size=16", "method.until=sft"])
    assert isinstance(cell.method, Recipe)
    assert [(part.method.name, part.data.name, part.size) for part in cell.method.parts(cell)] == [
        ("midtrain", "pocket-rule-text", 2048),
        ("sft", "pocket-rule", 16),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": {}}, "has no stages"),
        ({"swept": "third"}, "'third' is no stage; there are first, second"),
        ({"until": "first"}, "ends before the swept stage, second"),
        ({"swept": "first"}, "second needs a size and data of its own"),
        ({"stages": {"first": Stage(), "second": Stage(SECOND)}}, "first.method must be one that trains"),
        ({"stages": {"only": Stage(Sft(lora=Lora(modules_to_save=["lm_head"])))}}, "cannot be merged"),
        ({"stages": {"only": Stage(Sft(trunk=True))}}, "trunk"),
        ({"stages": {"only": Stage(Sft(decay="cubic"))}}, "decay='cubic'"),
        ({"stages": {"only": Stage(Sft(lr="auto"))}}, "lr must be a number"),
    ],
)
def test_what_does_not_go_together_is_refused(change: Any, message: str, make_cell: Make, words: Data) -> None:
    cell = make_cell(dataclasses.replace(two(words), **change), size=8)
    with pytest.raises(HarnessError, match=message):
        check(to_run(plan([cell]), retry_failed=False))


def test_each_stage_has_its_own_kind_of_examples(make_cell: Make, chosen: Data) -> None:
    cell = make_cell(two(chosen), size=8)
    with pytest.raises(HarnessError, match="method=sft needs dialogue examples, and those of preferences"):
        check(to_run(plan([cell]), retry_failed=False))
