"""Run cells on this machine, each worker a supervised process of its own: whatever becomes of one, the rest goes on."""

import contextlib
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing.connection import wait

from harness import preempt, ranks
from harness.cell import Cell, fingerprint
from harness.engines.display import Display
from harness.engines.worker import Outcome, Phase, Step, attempt, lost, prepare, serve
from harness.errors import HarnessError
from harness.lease import BEAT
from harness.preempt import PreemptedError

_SPAWN = multiprocessing.get_context("spawn")  # not forked: torch's threads do not survive a fork
LOOK = 0.5  # seconds between two looks at signals and the clock


def run_cells(cells: list[Cell], workers: int, threads: int | None) -> list[Outcome]:
    """Run all cells, whatever becomes of each; a failure is recorded in its folder and the others go on.

    A cell that another sweep has at work is come back to. Raises PreemptedError, all workers at rest, where this
    process was told to stop. Where several processes share each cell, one that fails leaves the others waiting, so it
    ends all.
    """
    outcomes: list[Outcome] = []
    if not cells:
        return outcomes
    if ranks.count() > 1 and workers > 1:
        raise HarnessError("accelerate launch gives all its processes to one cell at a time; set run.workers=1")
    with Display(len(cells), workers) as shown:
        for outcome in (
            _together(cells, threads, shown) if ranks.count() > 1 else _Crew(cells, workers, threads, shown).work()
        ):
            outcomes.append(outcome)
    return outcomes


class _Worker:
    """A process, and the cell it has."""

    def __init__(self, index: int, threads: int | None) -> None:
        self.index, self.threads = index, threads
        self.cell: Cell | None = None
        self.base: str  # that it has resident
        self.start()

    def start(self) -> None:
        """Also in place of the process before."""
        self.base = ""
        self.connection, its = _SPAWN.Pipe()
        arguments = (its, self.index, self.threads)
        self.process = _SPAWN.Process(target=serve, args=arguments, name=f"worker {self.index}")
        self.process.start()
        its.close()

    def give(self, cell: Cell) -> None:
        self.cell, self.base = cell, _base(cell)
        self.connection.send(cell)

    def hear(self) -> Outcome | Step | Phase | None:
        """What the process has to say, if anything; of one that is gone, its cell's end."""
        try:
            if self.connection.poll():
                return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
        if self.process.is_alive() or self.cell is None:
            return None
        if preempt.asked():  # it was told to stop before it listened
            return Outcome(self.cell, "preempted", "told to stop before it began")
        return lost(self.cell, self.process.exitcode)

    def stop(self) -> None:
        self.process.terminate()  # SIGTERM, which it hears as a request


def _base(cell: Cell) -> str:
    return fingerprint([cell.base.name, cell.base.path, cell.base.make])


class _Crew:
    """The workers of one machine and the cells they share."""

    def __init__(self, cells: list[Cell], workers: int, threads: int | None, shown: Display) -> None:
        self.waiting = list(cells)
        self.later: list[tuple[float, Cell]] = []  # cells that somebody else has, and when to look again
        self.shown = shown
        each = threads or (None if workers == 1 else max(1, (os.cpu_count() or 1) // workers))
        with _bars_off():
            self.workers = [_Worker(index, each) for index in range(min(workers, len(cells)))]

    def work(self) -> Iterator[Outcome]:
        try:
            with preempt.ends_by_itself():
                while not preempt.asked() and (self.waiting or self.later or self._busy()):
                    self._give()
                    yield from self._heard()
                yield from self._rest()
        finally:
            self._end()
        if preempt.asked():
            raise PreemptedError("told to stop; the same command goes on")

    def _busy(self) -> list[_Worker]:
        return [w for w in self.workers if w.cell]

    def _give(self) -> None:
        now = time.monotonic()
        self.waiting += [cell for when, cell in self.later if when <= now]
        self.later = [(when, cell) for when, cell in self.later if when > now]
        for worker in self.workers:
            if worker.cell is None and self.waiting:
                if not worker.process.is_alive():
                    with _bars_off():
                        worker.start()
                cell = self._next(worker)
                try:
                    worker.give(cell)
                except BrokenPipeError:  # killed while idle, just now: its successor is given one at the next look
                    worker.cell = None
                    worker.process.join()
                    continue
                self.waiting.remove(cell)
                self.shown.begin(worker.index, cell)

    def _next(self, worker: _Worker) -> Cell:
        """One of the base that the worker has, else of a base that no other has, so that each is loaded seldom."""
        others = {w.base for w in self.workers if w is not worker}
        mine = (cell for cell in self.waiting if _base(cell) == worker.base)
        fresh = (cell for cell in self.waiting if _base(cell) not in others)
        return next(itertools.chain(mine, fresh, self.waiting))

    def _heard(self) -> Iterator[Outcome]:
        wait([x for w in self._busy() for x in (w.connection, w.process.sentinel)], timeout=LOOK)
        for worker in self._busy():
            told = worker.hear()
            if isinstance(told, Step) and worker.cell:
                self.shown.step(worker.index, worker.cell, told)
            elif isinstance(told, Phase) and worker.cell:
                self.shown.phase(worker.index, worker.cell, told)
            elif isinstance(told, Outcome):
                self.shown.end(worker.index, told)
                cell, worker.cell = worker.cell, None
                if told.state == "preempted":  # by somebody who meant this worker alone; it is on its way out
                    worker.process.join()
                if told.state == "elsewhere" and cell:
                    self.later.append((time.monotonic() + BEAT, cell))
                else:
                    yield told

    def _rest(self) -> Iterator[Outcome]:
        """Once told to stop: let everybody keep a checkpoint."""
        for worker in self.workers:
            worker.stop()
        while self._busy():
            yield from self._heard()

    def _end(self) -> None:
        for worker in self.workers:
            if worker.cell is None and worker.process.is_alive():
                try:
                    worker.connection.send(None)
                except BrokenPipeError:
                    continue
        for worker in self.workers:
            worker.process.join(timeout=10 if worker.cell is None else 0)
            worker.process.kill()
            worker.connection.close()


@contextlib.contextmanager
def _bars_off() -> Iterator[None]:
    """Processes started now draw no progress bars of their own (tqdm reads this when it is imported)."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TQDM_DISABLE") if before is None else os.environ.update(TQDM_DISABLE=before)


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
