"""Stages of training one after another, each on what the one before left, e.g. midtrain, sft, dpo, grpo.

The *swept* stage takes the cell's data and size, the others have their own. What a stage trained is merged into the
base's weights (rounded to their type) before the next one begins, so that the reference policy of dpo and grpo is the
one that entered the stage, and it is taken out again after the cell. A stage is kept under ``<sweep>/.stages/``, named
by all that it depends on, and made once for all cells that begin alike: what ends after an earlier stage (`until`)
costs no training of its own.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from harness import base as bases
from harness import ranks
from harness.cell import Adapted, Attempt, Cell, Data, Method, Task, screened
from harness.data.subset import NOTHING, Subset, load_dataset, subset_identity
from harness.errors import HarnessError
from harness.identity import fingerprint
from harness.lease import Lease, held
from harness.schedule import Schedule
from harness.shapes import Shapes
from harness.store import LOSSES, TRAINED, read_jsonl, read_result, write_jsonl, write_result

SUMS = ("steps", "tokens", "target_tokens", "flops", "seconds")  # of all stages, in the record


@dataclass
class Stage:
    method: Method = field(default_factory=Method)
    data: Data = field(default_factory=lambda: Data(name="none"))  # the swept stage has the cell's data and size
    size: int = 0


@dataclass
class Recipe(Method):
    name: ClassVar[str] = "recipe"

    stages: dict[str, Stage] = field(default_factory=dict)  # in order
    swept: str = ""  # the stage that has the cell's data and size; the last one if empty
    until: str = ""  # the stage after which it ends and is evaluated; the last one if empty

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.stages[self._swept()].method.needs

    def _swept(self) -> str:
        return self.swept or list(self.stages)[-1]

    def screened(self, evals: dict[str, Task]) -> Method:
        stages = {k: dataclasses.replace(v, data=screened(v.data, evals)) for k, v in self.stages.items()}
        return dataclasses.replace(self, stages=stages)

    def settings(self) -> dict[str, Any]:
        plain = dataclasses.asdict(self)
        for name, stage in self.stages.items():
            method = {"name": stage.method.name, **stage.method.settings()}
            plain["stages"][name] |= {"method": method, "data": stage.data.settings()}
        return plain

    def variant(self) -> str:
        """Its stages up to the last one, each with its size and settings: ``midtrain(2048,lr=0.003)+sft+dpo(64)``."""
        told = []
        for name, stage in self.stages.items():
            within = [*([] if name == self._swept() else [str(stage.size)]), stage.method.variant()]
            told.append(f"{name}({inside})" if (inside := ",".join(filter(None, within))) else name)
            if name == self.until:
                break
        return "+".join(told)

    def identity(self, cell: Cell) -> dict[str, Any]:
        return {"name": self.name, "stages": [_identity(part) for part in self.parts(cell)]}

    def parts(self, cell: Cell) -> list[Cell]:
        self.check()  # before anybody reads data that no stage names
        found = []
        for name, stage in self.stages.items():
            data, size = (cell.data, cell.size) if name == self._swept() else (stage.data, stage.size)
            found.append(dataclasses.replace(cell, method=stage.method, data=data, size=size, evals={}))
            if name == self.until:
                break
        return found

    def check(self) -> None:
        if not self.stages:
            raise HarnessError("method=recipe has no stages; write them into a file conf/method/<name>.yaml")
        for what, name in (("swept", self.swept), ("until", self.until)):
            if name and name not in self.stages:
                raise HarnessError(f"method.{what}={name!r} is no stage; there are {', '.join(self.stages)}")
        order = list(self.stages)
        if self.until and order.index(self.until) < order.index(self._swept()):
            raise HarnessError(
                f"method.until={self.until} ends before the swept stage, {self._swept()}, so that size would mean "
                f"nothing; set method.swept={self.until} with its data and size"
            )
        for number, (name, stage) in enumerate(self.stages.items()):
            place = f"method.stages.{name}"
            if number and getattr(stage.method, "rollouts", "own") == "vllm":
                raise HarnessError(f"{place}.method.rollouts=vllm would ask the raw base, from its files; use own")
            if not (stage.method.name and stage.method.trains) or isinstance(stage.method, Recipe):
                raise HarnessError(f"{place}.method must be one that trains, such as sft or dpo")
            if getattr(getattr(stage.method, "lora", None), "modules_to_save", None):
                raise HarnessError(f"{place}.method.lora.modules_to_save cannot be merged; leave it out of a recipe")
            if isinstance(stage.method, Schedule) and stage.method.trunk:
                raise HarnessError(f"{place}.method.trunk shares a training among sizes; leave it out of a recipe")
            if isinstance(stage.method, Schedule) and (isinstance(stage.method.lr, str) or stage.method.held_out):
                raise HarnessError(
                    f"{place}.method.lr must be a number, without held_out: in a row nothing is searched"
                )
            if name != self._swept() and (stage.size < 1 or not stage.data.sources):
                raise HarnessError(f"{place} needs a size and data of its own, as {self._swept()} is the swept one")
            stage.method.check()

    def trained_parameters(self, shapes: Shapes) -> int:
        return max(stage.method.trained_parameters(shapes) for stage in self.stages.values())

    @contextmanager
    def adapt(self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt) -> Iterator[Adapted]:
        from harness.tuning import lent

        if base.config.quantize or ranks.sharded():
            raise HarnessError("method=recipe merges its stages into whole weights; leave out quantize and --use_fsdp")
        done = attempt.folder / TRAINED
        record = ranks.agree(lambda: read_result(done)["training"] if done.exists() else None)
        marks = [stage["mark"] for stage in record["stages"]] if record else marks_of(cell)
        parts, stages = self.parts(cell), list[dict[str, Any]]()
        before = [(p, p.data) for p in base.model.parameters()]  # the stages' weights stand in their place meanwhile
        with contextlib.ExitStack() as merged:
            for number, (part, mark) in enumerate(zip(parts, marks, strict=True), 1):
                here = _after(attempt, mark, sum(stage["steps"] for stage in stages))
                if not record:
                    stages.append(
                        {"mark": mark, "method": part.method.name, "size": part.size, **_made(base, part, here)}
                    )
                elif not ranks.agree((here.folder / TRAINED).exists):
                    raise HarnessError(f"the stage {here.folder} is gone; delete {attempt.folder} to train it again")
                if number < len(parts):
                    merged.enter_context(_merged(base, part, here))
            if not record:
                record = {"stages": stages, **{name: sum(stage[name] for stage in stages) for name in SUMS}}
                record |= {name: stages[-1][name] for name in ("held", "final_loss", "trained_parameters")}
                ranks.agree(lambda: _write_losses(attempt, marks))
            with parts[-1].method.adapt(base, NOTHING, parts[-1], here) as adapted:
                # Without the last stage the base holds those before it.
                without = base.untouched
                with base.lends(lambda: lent(without(), before)):
                    # Its adapter alone means nothing: it belongs on a base that is in memory only.
                    yield dataclasses.replace(adapted, training=record, adapter=None)


def marks_of(cell: Cell) -> list[str]:
    """For each part of the cell, a hash of all that its result depends on, the parts before it included."""
    mark = fingerprint([bases.identity(cell.base), cell.base.dtype, cell.base.chat_template])
    return [mark := fingerprint([mark, _identity(part)]) for part in cell.method.parts(cell)]


def stage_folder(cell_folder: Path, mark: str) -> Path:
    """Where a stage lies: beside the sweep's cells, wherever the sweep was moved to."""
    return cell_folder.parents[3] / ".stages" / mark[:16]


def _examples(part: Cell) -> Subset:
    return load_dataset(part.data).subset(part.size, part.subset_seed)


def _identity(part: Cell) -> dict[str, Any]:
    """What a stage is, whatever stands before it."""
    what = {"method": part.method.identity(part), "subset": subset_identity(_examples(part)), "size": part.size}
    return {**what, "seed": part.seed, "subset_seed": part.subset_seed}


def _after(attempt: Attempt, mark: str, steps: int) -> Attempt:
    """The same try, for a stage that begins after so many steps of others."""
    place = stage_folder(attempt.folder, mark)
    return dataclasses.replace(
        attempt,
        folder=place,
        checkpoints=place / "checkpoints" / mark[:16],
        on_step=lambda number, of, values: attempt.on_step(steps + number, steps + of, values),
        on_resumed=lambda losses: attempt.on_resumed(_moved(losses, steps)),
        along=lambda *_: None,
    )


def _moved(losses: list[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    return [{**row, "step": steps + row["step"]} for row in losses]


def _made(base: Any, part: Cell, here: Attempt) -> dict[str, Any]:
    """The stage's record; trained first, by one process, if it is not there yet."""
    done = here.folder / TRAINED
    with held(here.folder) if ranks.first() else contextlib.nullcontext() as lease:
        if ranks.agree(done.exists):
            here.on_resumed(read_jsonl(here.folder / LOSSES))
        else:
            with part.method.adapt(base, _examples(part), part, _guarded(here, lease)) as adapted:
                ranks.agree(lambda: write_result(done, {"training": adapted.training}))
            if ranks.first():
                shutil.rmtree(here.folder / "checkpoints", ignore_errors=True)
    return dict(ranks.agree(lambda: read_result(done)["training"]))


def _guarded(here: Attempt, lease: Lease | None) -> Attempt:
    """The same try, which is over once another process has taken over the cell or this stage."""

    def still_ours() -> None:
        here.still_ours()
        if lease:
            lease.check()

    return dataclasses.replace(here, still_ours=still_ours)


@contextmanager
def _merged(base: Any, part: Cell, here: Attempt) -> Iterator[None]:
    """The base with the stage in its weights, for as long as the context lasts.

    They are summed in float32 and rounded once, to the base's type, even where it was loaded in another (for export).
    """
    import torch

    rounded = getattr(torch, part.base.dtype)
    parameters = list(base.model.parameters())
    before = [p.data for p in parameters]
    with part.method.adapt(base, NOTHING, part, here) as adapted:
        for p in parameters:
            p.data = p.data.float()
        assert adapted.merge is not None  # every method that trains has one
        adapted.merge()
        after = [p.data.to(rounded).to(data.dtype) for p, data in zip(parameters, before, strict=True)]
        for p, data in zip(parameters, before, strict=True):
            p.data = data  # what the method gives back must be what it was given
    try:
        for p, data in zip(parameters, after, strict=True):
            p.data = data
        yield
    finally:
        for p, data in zip(parameters, before, strict=True):
            p.data = data


def _write_losses(attempt: Attempt, marks: list[str]) -> None:
    """Those of all stages, one after the other."""
    rows: list[dict[str, Any]] = []
    for mark in marks:
        rows += _moved(read_jsonl(stage_folder(attempt.folder, mark) / LOSSES), len(rows))
    write_jsonl(attempt.folder / LOSSES, rows)
