"""Workers, wherever they are, and the cells that they share."""

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from harness import preempt
from harness.cell import Cell
from harness.engines.display import Display
from harness.engines.worker import Outcome, Phase, Step, base_of
from harness.lease import BEAT
from harness.preempt import PreemptedError


class Worker(Protocol):
    """Has one cell at a time, and a base resident."""

    index: int
    cell: Cell | None
    base: str

    def ready(self) -> bool:
        """Whether it can be given a cell now; what died is started anew."""
        ...

    def give(self, cell: Cell) -> bool:
        """Whether it has the cell then; False if it died just now."""
        ...

    def hear(self) -> Outcome | Step | Phase | None:
        """What it has to say, if anything. With an outcome, `elsewhere` for a cell to come back to, it is idle."""
        ...

    def stop(self) -> None:
        """Keep a checkpoint and end."""
        ...

    def end(self) -> None: ...


W = TypeVar("W", bound=Worker)


class Crew(Generic[W]):
    def __init__(
        self, cells: Iterable[Cell], workers: Sequence[W], wait_for_word: Callable[[list[W]], None], shown: Display
    ) -> None:
        """`wait_for_word` waits until a busy worker of those given has something to say, at most a second or so."""
        self.waiting = list(cells)
        self.later: list[tuple[float, Cell]] = []  # cells that somebody else has, and when to look again
        self.workers, self.wait_for_word, self.shown = workers, wait_for_word, shown

    def work(self) -> Iterator[Outcome]:
        """Raises PreemptedError, all workers at rest, where this process was told to stop."""
        try:
            with preempt.ends_by_itself():
                while not preempt.asked() and (self.waiting or self.later or self._busy()):
                    self._give()
                    yield from self._heard()
                yield from self._rest()
        finally:
            for worker in self.workers:
                worker.end()
        if preempt.asked():
            raise PreemptedError("told to stop; the same command goes on")

    def _busy(self) -> list[W]:
        return [w for w in self.workers if w.cell]

    def _give(self) -> None:
        now = time.monotonic()
        self.waiting += [cell for when, cell in self.later if when <= now]
        self.later = [(when, cell) for when, cell in self.later if when > now]
        for worker in self.workers:
            if worker.cell is None and self.waiting and worker.ready():
                cell = fitting(self.waiting, worker.base, {w.base for w in self.workers if w is not worker})
                if worker.give(cell):
                    self.waiting.remove(cell)
                    self.shown.begin(worker.index, cell)

    def _heard(self) -> Iterator[Outcome]:
        self.wait_for_word(self._busy())
        for worker in self._busy():
            told, cell = worker.hear(), worker.cell
            if isinstance(told, Step) and cell:
                self.shown.step(worker.index, cell, told)
            elif isinstance(told, Phase) and cell:
                self.shown.phase(worker.index, cell, told)
            elif isinstance(told, Outcome):
                self.shown.end(worker.index, told)
                if told.state == "elsewhere":
                    self.later.append((time.monotonic() + BEAT, told.cell))
                else:
                    yield told

    def _rest(self) -> Iterator[Outcome]:
        """Once told to stop: let everybody keep a checkpoint."""
        if preempt.asked():
            for worker in self.workers:
                worker.stop()
        while self._busy():
            yield from self._heard()


def fitting(waiting: Sequence[Cell], resident: str, others: Collection[str]) -> Cell:
    """One of the base that a worker has, else of a base that no other has, so that each is loaded seldom."""
    mine = (cell for cell in waiting if base_of(cell) == resident)
    fresh = (cell for cell in waiting if base_of(cell) not in others)
    return next(itertools.chain(mine, fresh, waiting))
