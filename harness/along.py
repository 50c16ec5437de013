"""Scores in the course of a training, where an evaluation asks for them (`at`): how early did the gain come?

    <cell>/along/<task>/<8 hex>-000000012.json    after 12 steps; as <cell>/evals/<task>/<8 hex>.json, without answers

They cannot be made afterwards, and leave the training as it would be without them, bit for bit. Of a recipe there are
none: its stages are shared among cells, and scored by cells of their own (`until`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from harness import evaluate, ranks, store
from harness.base import LoadedBase
from harness.cell import Adapted, Cell
from harness.errors import HarnessError
from harness.identity import fingerprint

Commit = Callable[[Path, Callable[[], Any]], None]  # writes a result that is not there yet


class Along:
    """To be called after every step, with how many are done, of how many, and the model as it is then."""

    def __init__(self, base: LoadedBase, cell: Cell, wanted: dict[str, dict[str, Any]], commit: Commit,
                 phase: Callable[[str], None]) -> None:  # fmt: skip
        self.base, self.cell, self.wanted, self.commit, self.phase = base, cell, wanted, commit, phase

    def __call__(self, done: int, steps: int, model: Any) -> None:
        due = [name for name, task in self.cell.evals.items() if done in moments(task.at, steps)]
        paths = {name: store.along_path(self.cell.folder(), name, self.wanted[name], done) for name in due}
        missing = [name for name in due if not ranks.agree(paths[name].exists)]
        if not missing:
            return
        with _set_aside(model, self.base):
            for name in missing:
                self.phase(f"evaluating {name} after {done} of {steps} steps")
                result = evaluate.evaluate(self.base, Adapted(model), name, self.cell.evals[name], self.cell.run)
                del result["samples"]
                told = {**result, "step": done, "steps": steps, "fingerprint": fingerprint(self.wanted[name])}
                self.commit(paths[name], partial(dict, told))
        self.phase("training")


def moments(at: list[float], steps: int) -> set[int]:
    """After how many steps: the nearest to each share of them, at least one; the last is scored anyway."""
    return {max(1, round(share * steps)) for share in at} - {steps}


def check(cell: Cell) -> None:
    """Raise HarnessError for shares that are none, or a training that cannot be looked into."""
    for name, task in cell.evals.items():
        if not task.at or not cell.method.trains:
            continue
        if not all(0 < share < 1 for share in task.at):
            raise HarnessError(f"evals.{name}.at={task.at} must be shares of the training between 0 and 1, e.g. [0.1]")
        if getattr(cell.method, "trunk", False):
            raise HarnessError(f"evals.{name}.at asks for the beginning of each training, and method.trunk shares it")
        if cell.run.eval_backend == "vllm":
            raise HarnessError(f"evals.{name}.at needs the model in training; set run.eval_backend=shared")


@contextmanager
def _set_aside(model: Any, base: LoadedBase) -> Iterator[None]:
    """The model as it would be evaluated if the training ended here; then as it was, random numbers included."""
    import torch

    training, parameters = model.training, list(model.parameters())
    before = [p.data for p in parameters]
    if all(p.requires_grad for p in parameters):  # all weights, in float32; they would be kept in the base's type
        for p in parameters:
            p.data = p.data.to(getattr(torch, base.config.dtype))
    devices = [base.model.device] if base.model.device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for p, data in zip(parameters, before, strict=True):
            p.data = data
        model.train(training)
