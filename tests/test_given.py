"""What somebody else has made of a base is evaluated as it is, under its own identity."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis import curves
from analysis.points import has_sizes, points
from analysis.style import svg
from analysis.words import in_words
from harness import base as bases
from harness import store
from harness.cell import Base, Cell, canonical
from harness.compose import compose_cell, from_dict
from harness.errors import HarnessError
from harness.methods.given import Given
from harness.methods.sft import Sft
from harness.plan import check, plan, to_run
from harness.run import as_dict, identity_of, run, subset_of
from harness.sweep import sweep_cells
from harness.tuning import Lora
from tests.conftest import save_tiny

Make = Callable[..., Cell]


@pytest.fixture
def other(tmp_path: Path, tokenizer: Any) -> Base:
    """Another model of the same kind."""
    return Base(name="other", path=str(save_tiny(tmp_path / "other", tokenizer, seed=1)), dtype="float32")


@pytest.fixture
def trained(make_cell: Make, generation_task: Any) -> Cell:
    cell = make_cell(Sft(lr=0.02, epochs=3, lora=Lora(rank=4)), size=8, evals={"quiz": generation_task()})
    run(cell)
    return cell


def answers(cell: Cell) -> list[Any]:
    (file,) = cell.folder().glob("evals/*/*.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in store.read_jsonl(file)]


def test_a_model_stands_in_the_place_of_the_base(make_cell: Make, generation_task: Any, other: Base) -> None:
    evals = {"quiz": generation_task()}
    given, itself = make_cell(Given(model=other), evals=evals), make_cell("base", base=other, evals=evals)
    given, itself, plain = map(canonical, (given, itself, make_cell("base", evals=evals)))
    for cell in (given, itself, plain):
        check(to_run(plan([cell]), retry_failed=False))
        run(cell)
    assert answers(given) == answers(itself) != answers(plain)
    row = store.read_result(given.folder() / store.RECORD)["row"]
    assert (row["base"], row["method"], row["variant"], row["size"]) == ("tiny", "given", "other", 0)


@pytest.mark.parametrize("ours", [True, False])
def test_an_adapter_acts_as_in_the_cell_that_made_it(
    ours: bool, trained: Cell, make_cell: Make, tmp_path: Path
) -> None:
    folder = trained.folder()
    if not ours:
        folder = tmp_path / "somebodys"
        folder.mkdir()
        for name in (store.ADAPTER, "adapter_config.json"):
            shutil.copy(trained.folder() / name, folder)
    before = {n: w.clone() for n, w in bases.load(trained.base, "cpu").model.state_dict().items()}
    cell = make_cell(Given(adapter=str(folder)), evals=trained.evals)
    run(cell)
    assert answers(cell) == answers(trained)
    after = bases.load(trained.base, "cpu").model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_weights_are_its_identity_wherever_they_lie(trained: Cell, make_cell: Make, tmp_path: Path) -> None:
    def identity(folder: Path, **fields: Any) -> Any:
        cell = make_cell(Given(adapter=str(folder), **fields))
        return identity_of(cell, subset_of(cell))["method"]

    moved = shutil.copytree(trained.folder(), tmp_path / "moved")
    assert identity(trained.folder()) == identity(moved)
    file = moved / store.ADAPTER
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert identity(trained.folder()) != identity(moved)


def test_an_adapter_of_another_base_is_refused(trained: Cell, make_cell: Make, other: Base, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="was trained on another base than 'other'"):
        plan([make_cell(Given(adapter=str(trained.folder())), base=other)])
    folder = tmp_path / "somebodys"
    folder.mkdir()
    shutil.copy(trained.folder() / store.ADAPTER, folder)
    config = json.loads((trained.folder() / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/Tiny-1"}))
    with pytest.raises(HarnessError, match=r"was made on 'org/Tiny-1'.*method.made_on='org/Tiny-1'"):
        plan([make_cell(Given(adapter=str(folder)))])
    plan([make_cell(Given(adapter=str(folder), made_on="org/Tiny-1"))])


def test_a_pickled_or_foreign_adapter_is_refused(trained: Cell, make_cell: Make, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.folder(), tmp_path / "pickled")
    (folder / store.ADAPTER).rename(folder / "adapter_model.bin")
    with pytest.raises(HarnessError, match="a pickled adapter is never opened"):
        plan([make_cell(Given(adapter=str(folder)))])
    folder = shutil.copytree(trained.folder(), tmp_path / "other_rank")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    with pytest.raises(HarnessError, match="is no adapter of this method and base"):
        run(make_cell(Given(adapter=str(folder)), evals=trained.evals))


def test_one_of_both_is_named(make_cell: Make, other: Base) -> None:
    for method in (Given(), Given(model=other, adapter="x")):
        with pytest.raises(HarnessError, match="needs either a model"):
            plan([make_cell(method)])


def test_it_composes_with_any_file_of_bases(tmp_path: Path) -> None:
    cell = compose_cell(["base=qwen3_8b", "method=given", "+base@method.model=qwen3_4b"])
    assert isinstance(cell.method, Given)
    assert cell.method.model == dataclasses.replace(compose_cell(["base=qwen3_4b"]).base)
    assert from_dict(as_dict(cell)).folder() == cell.folder()
    file = tmp_path / "lines.yaml"
    file.write_text(
        "arms:\n  tuned: {base: qwen3_8b, data: gsm8k, evals: gsm8k, size: 10}\n"
        "  line: {base: qwen3_8b, evals: gsm8k, method: given, +base@method.model: qwen3_4b}\n"
    )
    _, cells = sweep_cells(str(file), [])
    assert [(c.method.name, c.size) for c in cells] == [("base", 0), ("given", 0), ("sft", 10)]


def test_it_is_drawn_as_a_level_line(trained: Cell, make_cell: Make, other: Base, tmp_path: Path) -> None:
    for method in ("base", Given(model=other)):
        run(make_cell(method, evals=trained.evals))
    frame = store.load(trained.run.root)
    table = points(frame)
    drawn = svg(curves.draw(table))
    assert "given: other" in drawn
    assert list(table[has_sizes(table)]["method"].unique()) == ["sft"]
    said = in_words(table)
    assert sum("given other" in line for line in said) == 2  # strict and flexible
