"""A training is looked into without being changed, and what is seen is what a shorter one would have come to."""

import dataclasses
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import course, report
from harness import along, store
from harness.cell import Cell, Task
from harness.cost import Estimator
from harness.errors import HarnessError
from harness.methods.dpo import Dpo
from harness.methods.sft import Sft
from harness.methods.sft_full import SftFull
from harness.plan import check, plan, to_run
from harness.run import run
from harness.tuning import Lora
from tests.children import in_child
from tests.test_grpo import quick
from tests.test_recipe import chosen  # noqa: F401  (a fixture)

Make = Callable[..., Cell]
HELD = {"hold": "steps", "budget": 8, "decay": "constant", "warmup": 0.0, "batch_size": 3}
LORA = Lora(rank=4, dropout=0.2)  # dropout: random numbers are drawn in every step


def elsewhere(cell: Cell, root: Path) -> Cell:
    return dataclasses.replace(cell, run=dataclasses.replace(cell.run, root=str(root)))


def kept(cell: Cell) -> tuple[Any, ...]:
    training = store.read_result(cell.folder() / store.RECORD)["training"]
    weights = training.get("adapter_sha256") or training["model_sha256"]
    return weights, (cell.folder() / store.LOSSES).read_text()


def scores(cell: Cell, folder: str = "evals") -> list[Any]:
    (file,) = (cell.folder() / folder).glob("*/*.json")
    return list(store.read_result(file)["scores"])


@pytest.fixture
def asked(choice_task: Any) -> Task:
    """Log-likelihoods, by which each training tells itself from any other."""
    return Task(**{**vars(choice_task()), "task": {**choice_task().task, "metric_list": [{"metric": "brier_score"}]}})


@pytest.mark.parametrize("method", [Sft(lr=0.01, lora=LORA, **HELD), SftFull(lr=1e-3, **HELD)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_leaves_the_training_as_it_is_and_scores_what_a_shorter_one_ends_with(
    method: Any, dtype: str, make_cell: Make, tiny_base: Any, asked: Task, tmp_path: Path
) -> None:
    base = dataclasses.replace(tiny_base, dtype=dtype)
    cell = make_cell(method, base=base, size=8, evals={"quiz": dataclasses.replace(asked, at=[0.5])})
    plain = elsewhere(dataclasses.replace(cell, evals={"quiz": asked}), tmp_path / "plain")
    short = dataclasses.replace(plain, method=dataclasses.replace(method, budget=4))
    for each in (cell, plain, short):
        run(each)
    assert kept(cell) == kept(plain)
    assert scores(cell) == scores(plain)
    assert scores(cell, "along") == scores(short) != scores(plain)


def test_dpo_and_grpo_are_looked_into_as_well(
    make_cell: Make,
    chosen: Any,  # noqa: F811
    asked: Task,
    tmp_path: Path,
) -> None:
    dpo = make_cell(Dpo(lr=0.01, lora=LORA, **HELD), data=chosen, size=8)
    grpo = make_cell(quick(hold="steps", budget=2), size=8)
    for number, cell in enumerate((dpo, grpo)):
        cell = dataclasses.replace(cell, evals={"quiz": dataclasses.replace(asked, at=[0.5])})
        plain = elsewhere(dataclasses.replace(cell, evals={"quiz": asked}), tmp_path / f"plain{number}")
        run(cell)
        run(plain)
        assert kept(cell) == kept(plain)
        assert scores(cell, "along") != scores(cell) == scores(plain)


def test_killed_it_keeps_what_it_saw_and_sees_the_rest(make_cell: Make, asked: Task, tmp_path: Path) -> None:
    task = dataclasses.replace(asked, at=[0.25, 0.5, 0.75])
    cell = make_cell(Sft(lr=0.01, lora=LORA, **HELD), size=8, evals={"quiz": task})
    cell.run.checkpoint_seconds = 0.0
    assert in_child(_die_at, cell, 4) == -signal.SIGKILL  # in the fifth step
    seen = {p: p.stat().st_mtime_ns for p in cell.folder().glob("along/*/*")}
    assert len(seen) == 2
    run(cell)
    other = elsewhere(cell, tmp_path / "undisturbed")
    run(other)
    ours, theirs = store.load_along(cell.run.root), store.load_along(other.run.root)
    assert list(ours["step"]) == [2, 4, 6]
    own = ["train_seconds"]
    pd.testing.assert_frame_equal(ours.drop(columns=own), theirs.drop(columns=own))
    assert all(p.stat().st_mtime_ns == when for p, when in seen.items())


def _die_at(cell: Cell, step: int) -> None:
    run(cell, lambda now, *_: os.kill(os.getpid(), signal.SIGKILL) if now == step else None)


def test_moments_are_the_nearest_steps() -> None:
    assert along.moments([0.001, 0.1, 0.5, 0.999], 20) == {1, 2, 10}
    assert along.moments([0.3, 0.31], 3) == {1}
    assert along.moments([], 20) == set()


@pytest.mark.parametrize(
    ("method", "at", "message"),
    [
        (Sft(), [0.1, 1.0], "between 0 and 1"),
        (Sft(decay="wsd", epochs=1, warmup=0, trunk=True), [0.1], "method.trunk shares it"),
    ],
)
def test_what_cannot_be_looked_into_is_refused(
    method: Any, at: list[float], message: str, make_cell: Make, asked: Task
) -> None:
    cell = make_cell(method, evals={"quiz": dataclasses.replace(asked, at=at)})
    with pytest.raises(HarnessError, match=message):
        check(to_run(plan([cell]), retry_failed=False))


def test_the_plan_counts_it_and_identity_does_not(make_cell: Make, asked: Task) -> None:
    plain = make_cell(size=8, evals={"quiz": asked})
    looked = make_cell(size=8, evals={"quiz": dataclasses.replace(asked, at=[0.1, 0.5])})
    costs = [Estimator(p := plan([c]), speed=1e12).cost(p[0]).eval_flops for c in (plain, looked)]
    assert costs[1] == pytest.approx(3 * costs[0])
    run(plain)
    assert [p.state for p in plan([looked])] == ["done"]


def test_the_report_draws_it_from_the_base_to_the_end(make_cell: Make, generation_task: Any, tmp_path: Path) -> None:
    task = generation_task(at=[0.5])
    cells = [make_cell("base", evals={"quiz": task}), *(make_cell(size=n, evals={"quiz": task}) for n in (4, 8))]
    for cell in cells:
        run(cell)
    frame, seen = store.load(cells[0].run.root), store.load_along(cells[0].run.root)
    table = course.points(frame, seen)
    assert [tuple(row) for row in table[["size", "share"]].to_numpy()] == [
        (4, 0.0), (4, pytest.approx(2 / 3)), (4, 1.0), (8, 0.0), (8, pytest.approx(2 / 3)), (8, 1.0),
    ]  # fmt: skip
    ends = {(row.size_, row.share): row.score for row in table.rename(columns={"size": "size_"}).itertuples()}
    headline = frame[frame["headline"]].set_index(["method", "size"])["score"]
    assert ends[4, 0.0] == headline["base"].iloc[0]
    assert ends[8, 1.0] == headline["sft", 8]
    assert not math.isnan(table["low"].iloc[0])
    page = report.write_report(frame, tmp_path / "page", sweep="s", command="c", along=seen)
    assert "Score in the course of training" in page.read_text()
    assert {p.name for p in page.parent.glob("course.*")} == {"course.csv", "course.png", "course.svg"}
    assert "course" not in report.write_report(frame, tmp_path / "none", sweep="s", command="c").read_text()
