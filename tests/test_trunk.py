"""Sizes that share the stable part of their training end as they would have ended alone, bit for bit, for less."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from harness import preempt
from harness.cost import Estimator
from harness.methods.sft import Sft
from harness.plan import plan
from harness.run import run
from harness.store import ADAPTER, RECORD, read_json
from harness.tuning import Lora
from tests.children import in_child
from tests.conftest import pairs

SIZES = (6, 12, 24)
WSD = {"lr": 5e-3, "epochs": 1, "batch_size": 2, "warmup": 2, "decay": "wsd", "decay_share": 0.5, "trunk": True}


def cells(make_cell: Any, root: Path, **changes: Any) -> list[Any]:
    """One size each, below a root of its own."""
    # Dropout and noise: the state of the generator is shared, too.
    method = Sft(**WSD, neftune_alpha=5.0, lora=Lora(rank=4, dropout=0.2))
    made = [make_cell(method, size=size, **changes) for size in SIZES]
    return [dataclasses.replace(c, run=dataclasses.replace(c.run, root=str(root))) for c in made]


def results(of: list[Any]) -> list[Any]:
    """What must not depend on what was shared."""
    kept = []
    for cell in of:
        training = read_json(cell.folder() / RECORD)["training"]
        losses = (cell.folder() / "losses.jsonl").read_text()
        kept.append((training["adapter_sha256"], training["tokens"], training["steps"], losses))
    return kept


@pytest.fixture
def alone(make_cell: Any, tmp_path: Path) -> list[Any]:
    """Each size by itself."""
    found = []
    for number, cell in enumerate(cells(make_cell, tmp_path)):
        cell.run.root = str(tmp_path / f"alone{number}")
        run(cell)
        found += results([cell])
    return found


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shared_or_alone_the_bits_are_the_same(make_cell: Any, tmp_path: Path, alone: Any, order: Any) -> None:
    together = cells(make_cell, tmp_path / "together")
    for number in order:
        run(together[number])
    assert results(together) == alone
    branched = [read_json(c.folder() / RECORD)["training"]["branched_at"] for c in together]
    assert branched == ([0, 1, 3] if order == (0, 1, 2) else [0, 1, 0])  # decays begin after 1, 3 and 6 of 3, 6, 12


def test_killed_in_the_trunk_or_in_the_decay_it_goes_on(make_cell: Any, tmp_path: Path, alone: Any) -> None:
    together = cells(make_cell, tmp_path / "together")
    for cell in together:
        cell.run.checkpoint_seconds = 0.0
    run(together[0])
    for step in (4, 9):
        assert in_child(_die_at, together[2], step) == -signal.SIGKILL
    run(together[2])
    run(together[1])
    assert results(together) == alone


def _die_at(cell: Any, step: int) -> None:
    preempt.listen()
    run(cell, lambda now, *_: os.kill(os.getpid(), signal.SIGKILL) if now == step else None)


def test_the_plan_counts_what_is_shared_once(make_cell: Any, tmp_path: Path) -> None:
    planned = plan(cells(make_cell, tmp_path))
    each = [Estimator(planned, speed=1e12).cost(p).tokens for p in planned]
    for p in planned:
        run(p.cell)
    own = [record["tokens"] * (1 - record["branched_at"] / record["steps"]) for record in map(_training, planned)]
    assert each == pytest.approx(own, rel=0.1)  # of examples of about the same length
    again = plan([p.cell for p in planned])
    assert [Estimator(again).cost(p).tokens for p in again] == pytest.approx(own)
    spent = sum(read_json(p.cell.folder() / RECORD)["row"]["train_seconds"] for p in again)
    assert spent < sum(_training(p)["seconds"] for p in again)


def _training(planned: Any) -> Any:
    return read_json(planned.cell.folder() / RECORD)["training"]


def test_other_examples_share_nothing(make_cell: Any, make_data: Any, tmp_path: Path) -> None:
    """Rows added at the end of the file come anywhere in the order: with them the first examples are others."""
    _, first, _ = cells(make_cell, tmp_path)
    run(first)
    *_, last = cells(make_cell, tmp_path, data=make_data(pairs(80), name="more"))
    last.data.name = first.data.name
    assert last.folder().parent == first.folder().parent
    run(last)
    assert read_json(last.folder() / RECORD)["training"]["branched_at"] == 0
    assert (last.folder() / ADAPTER).exists()
