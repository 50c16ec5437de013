"""How a sweep is getting on: on a terminal one line for all and one for each worker, elsewhere a plain line a cell."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from harness import ranks
from harness.cell import Cell
from harness.engines.worker import Outcome, Phase, Step
from harness.pace import Pace, clock, in_words

SAY = 60.0  # seconds after which a cell that is still at work gets a plain line


class Display:
    """``with Display(cells, workers) as shown:`` then tell it what begins, goes on and ends."""

    def __init__(self, cells: int, workers: int) -> None:
        self.cells, self.done = cells, 0
        self.live = ranks.first() and sys.stderr.isatty()
        self.began = time.monotonic()
        self.since: dict[int, float] = {}  # worker -> when its cell began
        self.pace: dict[int, Pace] = {}  # of the worker's cell
        self.said: dict[int, float] = {}  # worker -> when a plain line was last printed of it
        off = not self.live
        self.whole = tqdm(total=cells, unit="cell", desc="cells", dynamic_ncols=True, disable=off)
        self.lines = [tqdm(bar_format="  {desc}", position=n + 1, leave=False, disable=off) for n in range(workers)]

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for line in (*self.lines, self.whole):
            line.close()

    def say(self, text: str) -> None:
        if self.live:
            self.whole.write(text, file=sys.stderr)
        elif ranks.first():
            print(text, file=sys.stderr, flush=True)

    def begin(self, worker: int, cell: Cell) -> None:
        self.since[worker] = self.said[worker] = time.monotonic()
        self.pace[worker] = Pace()
        self._show(worker, cell, "")

    def step(self, worker: int, cell: Cell, step: Step) -> None:
        self._show(worker, cell, in_words(self.pace[worker].step(step.number, step.steps, step.values)))

    def phase(self, worker: int, cell: Cell, phase: Phase) -> None:
        self._show(worker, cell, phase.name)

    def _show(self, worker: int, cell: Cell, text: str) -> None:
        line = f"{label(cell)}  {text}".rstrip()
        self.lines[worker].set_description_str(line)
        if not self.live and ranks.first() and time.monotonic() - self.said[worker] >= SAY:
            self.said[worker] = time.monotonic()
            print(f"at work: {line}", file=sys.stderr, flush=True)

    def end(self, worker: int, outcome: Outcome) -> None:
        self.lines[worker].set_description_str("")
        if outcome.state == "elsewhere":
            return
        self.done += 1
        self.whole.update()
        seconds = time.monotonic() - self.since.get(worker, self.began)
        text = f"{outcome.state}: {outcome.cell.folder()}: {outcome.error}" if outcome.error else ""
        if self.live and text:
            self.whole.write(text, file=sys.stderr)
        if self.live or not ranks.first():
            return
        left = (time.monotonic() - self.began) / self.done * (self.cells - self.done)
        line = f"{self.done}/{self.cells} {outcome.state} {label(outcome.cell)} in {clock(seconds)}, {clock(left)} left"
        print(text or line, file=sys.stderr, flush=True)


def label(cell: Cell) -> str:
    return f"{cell.base.name} {cell.data.name} {cell.method.name} n={cell.size} s={cell.seed}"
