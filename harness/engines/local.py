"""Run cells on this machine, each worker a supervised process of its own: whatever becomes of one, the rest goes on."""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from harness import ranks
from harness.cell import Cell, Engine
from harness.engines.crew import Crew
from harness.engines.display import Display
from harness.engines.process import Process, wait_for_word
from harness.engines.worker import Outcome, Phase, Step, attempt, prepare
from harness.errors import HarnessError
from harness.preempt import PreemptedError


@dataclass
class LocalEngine(Engine):
    """This machine, with `run.workers` and `run.threads`."""

    name: ClassVar[str] = "local"

    def run_cells(self, cells: list[Cell]) -> list[Outcome]:
        return run_cells(cells, cells[0].run.workers, cells[0].run.threads) if cells else []


def run_cells(cells: list[Cell], workers: int, threads: int | None) -> list[Outcome]:
    """Run all cells, whatever becomes of each; a failure is recorded in its folder and the others go on.

    A cell that another sweep has at work is come back to. Raises PreemptedError, all workers at rest, where this
    process was told to stop. Where several processes share each cell, one that fails leaves the others waiting, so it
    ends all.
    """
    if not cells:
        return []
    if ranks.count() > 1 and workers > 1:
        raise HarnessError("accelerate launch gives all its processes to one cell at a time; set run.workers=1")
    with Display(len(cells), workers) as shown:
        if ranks.count() > 1:
            return list(_together(cells, threads, shown))
        each = threads or (None if workers == 1 else max(1, (os.cpu_count() or 1) // workers))
        crew = [Process(index, each) for index in range(min(workers, len(cells)))]
        return list(Crew(cells, crew, wait_for_word, shown).work())


def _together(cells: list[Cell], threads: int | None, shown: Display) -> Iterator[Outcome]:
    """In this process, which is one of several that share each cell."""
    prepare(threads)
    for cell in cells:
        shown.begin(0, cell)
        outcome = attempt(cell, partial(_show_step, shown, cell), partial(_show_phase, shown, cell))
        if outcome.state == "preempted":
            raise PreemptedError(outcome.error)
        if outcome.error:
            ranks.complain(
                f"{outcome.state}: {cell.folder()}: {outcome.error}; the same command goes on with the other cells"
            )
            sys.exit(1)
        shown.end(0, outcome)
        yield outcome


def _show_step(shown: Display, cell: Cell, number: int, steps: int, values: dict[str, float]) -> None:
    shown.step(0, cell, Step(number, steps, values))


def _show_phase(shown: Display, cell: Cell, name: str) -> None:
    shown.phase(0, cell, Phase(name))


def not_done(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.state != "ok"]
