"""Token-distribution shift against transformers' own passes, and against what a pocket base knows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import base as bases
from harness import evaluate, store
from harness.cell import Adapted, Base, Cell, Run, Task
from harness.data.subset import Example
from harness.errors import HarnessError
from harness.items import answers
from harness.methods.given import Given
from harness.methods.icl import InContext
from harness.methods.recipe import Recipe, Stage
from harness.methods.sft import Sft
from harness.methods.sft_full import SftFull
from harness.run import run
from harness.tuning import Lora
from tests.conftest import attempt, save_tiny

PROBE = {"_target_": "harness.probes.TokenShift"}
Make = Callable[..., Cell]


@pytest.fixture
def shift_task(generation_task: Callable[..., Task]) -> Callable[..., Task]:
    return lambda **fields: generation_task(**{"headline": None, "probe": PROBE} | fields)


def measured(cell: Cell, task: Task, device: str = "cpu") -> tuple[list[dict[str, Any]], dict[str, Any], Any]:
    """The samples and the whole result of a cell's model, and both its models' logits by plain passes of one row."""
    base = bases.load(cell.method.resident(cell.base), device)
    with cell.method.adapt(base, cell_examples(cell), cell, attempt(cell.folder())) as adapted:
        result = evaluate.evaluate(base, adapted, "quiz", task, cell.run)
    return result


def cell_examples(cell: Cell) -> Any:
    from harness.run import subset_of

    return subset_of(cell)


def test_smoke(make_cell: Make, shift_task: Any) -> None:
    cell = make_cell(Sft(lr=0.02, epochs=3, lora=Lora(rank=4)), size=8)
    result = measured(cell, shift_task())
    print(result["scores"], result["shift"])
    for row in result["samples"]:
        print(row)
