"""How a sweep is getting on: on a terminal one line for all and one for each worker, elsewhere a plain line a cell."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from harness import ranks
from harness.cell import Cell
from harness.engines.worker import Outcome, Step


class Display:
    """``with Display(cells, workers) as shown:`` then tell it what begins, goes on and ends."""

    def __init__(self, cells: int, workers: int) -> None:
        self.cells, self.done = cells, 0
        self.live = ranks.first() and sys.stderr.isatty()
        self.began = time.monotonic()
        self.since: dict[int, float] = {}  # worker -> when its cell began
        self.first: dict[int, tuple[float, Step]] = {}  # worker -> the first step told of, and when
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
        self.since[worker] = time.monotonic()
        self.first.pop(worker, None)
        self.lines[worker].set_description_str(label(cell))

    def step(self, worker: int, cell: Cell, step: Step) -> None:
        text = f"{label(cell)}  step {step.number + 1}/{step.steps}  loss {step.values['loss']:.3f}"
        when, first = self.first.setdefault(worker, (time.monotonic(), step))
        if step.number > first.number:
            seconds = time.monotonic() - when
            rate = (step.values["tokens"] - first.values["tokens"]) / seconds
            left = seconds / (step.number - first.number) * (step.steps - 1 - step.number)
            text += f"  {rate:,.0f} tokens/s  {_clock(left)} of training left"
        self.lines[worker].set_description_str(text)

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
        line = (
            f"{self.done}/{self.cells} {outcome.state} {label(outcome.cell)} in {_clock(seconds)}, {_clock(left)} left"
        )
        print(text or line, file=sys.stderr, flush=True)


def label(cell: Cell) -> str:
    return f"{cell.base.name} {cell.data.name} {cell.method.name} n={cell.size} s={cell.seed}"


def _clock(seconds: float) -> str:
    return tqdm.format_interval(seconds)
