"""Run cells on this machine: in this process, or in several, each with its own resident base."""

import contextlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import hydra.utils
from tqdm import tqdm

from harness import ranks, store
from harness.artifact import Artifact
from harness.cell import Cell, OnStep, fingerprint
from harness.errors import HarnessError
from harness.run import run

_SPAWN = multiprocessing.get_context("spawn")  # not forked: torch's threads do not survive a fork


@dataclass
class Outcome:
    cell: Cell
    error: str = ""  # last line of the traceback; empty: the cell is done


def run_cells(cells: list[Cell], workers: int, threads: int | None) -> list[Outcome]:
    """Run all cells, whatever becomes of each; a failure is recorded in its folder and the others go on.

    Not so where several processes share each cell: one that fails leaves the others waiting, so it ends all.
    """
    outcomes: list[Outcome] = []
    if not cells:
        return outcomes
    if ranks.count() > 1 and workers > 1:
        raise HarnessError("accelerate launch gives all its processes to one cell at a time; set run.workers=1")
    prepare(cells, workers)
    with tqdm(total=len(cells), unit="cell", desc="cells", dynamic_ncols=True) as bar:
        for outcome in _one_by_one(cells, threads) if workers == 1 else _side_by_side(cells, workers, threads):
            outcomes.append(outcome)
            bar.set_postfix_str(_label(outcome.cell))
            bar.update()
            if outcome.error:
                bar.write(f"failed: {outcome.cell.folder()}: {outcome.error}")
    return outcomes


def prepare(cells: list[Cell], workers: int) -> None:
    """Make once what several cells need (a pocket base, generated rows), side by side as the cells will run.

    A failure is left for the cells to meet, so that it is recorded with each of them.
    """
    making = {fingerprint(c.base.make): c.base.make for c in cells if c.base.make}
    if workers == 1 or len(making) == 1:
        return  # the first cell that needs one makes it, in plain sight
    with ProcessPoolExecutor(workers, _SPAWN, initializer=prepare_worker, initargs=(_threads(None, workers),)) as pool:
        for future in [pool.submit(make, description) for description in making.values()]:
            future.exception()


def make(description: dict[str, Any]) -> None:
    artifact: Artifact = hydra.utils.instantiate(description)
    artifact.path()


def _threads(threads: int | None, workers: int) -> int:
    return threads or max(1, (os.cpu_count() or 1) // workers)


def _label(cell: Cell) -> str:
    return f"{cell.base.name} {cell.data.name} {cell.method.name} n={cell.size} s={cell.seed}"


def _one_by_one(cells: list[Cell], threads: int | None) -> Iterator[Outcome]:
    prepare_worker(threads)
    for cell in cells:
        with tqdm(desc=_label(cell), unit="step", leave=False, delay=2, dynamic_ncols=True) as bar:
            yield run_one(cell, _shown_on(bar))


def _shown_on(bar: tqdm) -> OnStep:
    def step(number: int, steps: int, values: dict[str, float]) -> None:
        bar.total = steps
        bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        bar.update()

    return step


def _side_by_side(cells: list[Cell], workers: int, threads: int | None) -> Iterator[Outcome]:
    limit = _threads(threads, workers)
    with _bars_off(), ProcessPoolExecutor(workers, _SPAWN, initializer=prepare_worker, initargs=(limit,)) as pool:
        futures: dict[Future[Outcome], Cell] = {pool.submit(run_one, cell): cell for cell in cells}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool as error:
                yield _failed(futures[future], error)


@contextlib.contextmanager
def _bars_off() -> Iterator[None]:
    """Processes started now draw no progress bars of their own (tqdm reads this when it is imported)."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TQDM_DISABLE") if before is None else os.environ.update(TQDM_DISABLE=before)


def prepare_worker(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def run_one(cell: Cell, on_step: OnStep | None = None) -> Outcome:
    try:
        run(cell, on_step)
    except Exception as error:  # one cell's trouble, of whatever kind, must not cost the others; it is kept and shown
        outcome = _failed(cell, error)
        if ranks.count() == 1:
            return outcome
        ranks.complain(f"failed: {cell.folder()}: {outcome.error}; the same command goes on with the other cells")
        sys.exit(1)
    return Outcome(cell)


def _failed(cell: Cell, error: BaseException) -> Outcome:
    trace = "".join(traceback.format_exception(error))
    row = {**store.row(cell, {}, {}), "fingerprint": ""}
    store.write_json(cell.folder() / store.FAILURE, {"row": row, "traceback": trace})
    return Outcome(cell, f"{type(error).__name__}: {error}")


def failures(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [o for o in outcomes if o.error]
