"""A worker process and the cell it has, seen from the process that supervises it."""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait

from harness import preempt
from harness.cell import Cell
from harness.engines.worker import Outcome, Phase, Step, base_of, lost, serve

_SPAWN = multiprocessing.get_context("spawn")  # not forked: torch's threads do not survive a fork
LOOK = 0.5  # seconds between two looks at signals and the clock


class Process:
    """One worker, and its successors where it dies."""

    def __init__(self, index: int, threads: int | None) -> None:
        self.index, self.threads = index, threads
        self.cell: Cell | None = None
        self.stopped = False
        self._start()

    def _start(self) -> None:
        self.base = ""  # that it has resident
        self.connection, its = _SPAWN.Pipe()
        self._leash, end = _SPAWN.Pipe()  # only this process holds it: let go, or dead, the worker is to end
        arguments = (its, end, self.index, self.threads)
        self.process = _SPAWN.Process(target=serve, args=arguments, name=f"worker {self.index}")
        with _bars_off():
            self.process.start()
        its.close()
        end.close()

    def ready(self) -> bool:
        if not self.process.is_alive():
            self._start()
        return True

    def give(self, cell: Cell) -> bool:
        """Whether the process has the cell; if not, it was killed while idle, just now."""
        try:
            self.connection.send(cell)
        except BrokenPipeError:
            self.process.join()
            return False
        self.cell, self.base = cell, base_of(cell)
        return True

    def hear(self) -> Outcome | Step | Phase | None:
        """What the process has to say, if anything; of one that is gone, its cell's end. An outcome leaves it idle."""
        told = self._hear()
        if isinstance(told, Outcome):
            self.cell = None
            if told.state == "preempted":  # perhaps by somebody who meant this worker alone; it is on its way out
                self.process.join()
        return told

    def _hear(self) -> Outcome | Step | Phase | None:
        try:
            if self.connection.poll():
                return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
        if self.process.is_alive() or self.cell is None:
            return None
        if self.stopped or preempt.asked():  # it was told to stop before it listened
            return Outcome(self.cell, "preempted", "told to stop before it began")
        return lost(self.cell, self.process.exitcode)

    def work(self, cell: Cell) -> Iterator[Outcome | Step | Phase]:
        """All that the process has to say about one cell, the outcome last."""
        if self.stopped:
            yield Outcome(cell, "preempted", "told to stop before it began")
            return
        while not (self.ready() and self.give(cell)):
            pass
        while self.cell:
            if preempt.asked():
                self.stop()
            wait_for_word([self])
            if told := self.hear():
                yield told

    def stop(self) -> None:
        """Let it keep a checkpoint and end."""
        self.stopped = True
        self._leash.close()

    def end(self) -> None:
        """An idle process ends in good order, one at work at once."""
        if self.cell is None and self.process.is_alive():
            with contextlib.suppress(BrokenPipeError):
                self.connection.send(None)
        self.process.join(timeout=10 if self.cell is None else 0)
        self.process.kill()
        self.connection.close()


def wait_for_word(processes: Sequence[Process]) -> None:
    """Wait until one has something to say, or it is time to look at signals and the clock."""
    wait([x for p in processes for x in (p.connection, p.process.sentinel)], timeout=LOOK)


@contextlib.contextmanager
def _bars_off() -> Iterator[None]:
    """Processes started now draw no progress bars of their own (tqdm reads this when it is imported)."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TQDM_DISABLE") if before is None else os.environ.update(TQDM_DISABLE=before)
