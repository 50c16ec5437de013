"""Whatever becomes of one cell or its process, the others are done, and what happened is told.

Sweeps that run in a process of their own spawn their workers, as outside of tests.
"""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from harness import lease as leases
from harness import preempt, store
from harness.cell import Adapted, Attempt, Cell, Method
from harness.engines.local import run_cells
from tests.children import SERVER


@dataclass
class Faulty(Method):
    """Trains nothing; does what is asked for instead."""

    name: ClassVar[str] = "faulty"
    fault: str = ""

    @contextmanager
    def adapt(self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt) -> Iterator[Adapted]:
        match self.fault:
            case "raise":
                raise RuntimeError("as asked")
            case "exit":
                sys.exit("leaving")
            case "gone":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "count":
                with Path(cell.run.root, "tally").open("a") as tally:
                    tally.write(f"{cell.folder()}\n")
                time.sleep(0.3)
            case "linger":  # a step that takes long to end
                with preempt.ends_by_itself():
                    (attempt.folder / "begun").touch()
                    while not preempt.asked():
                        time.sleep(0.05)
                    time.sleep(2)
                    (attempt.folder / "begun").write_text("ended")
                raise preempt.PreemptedError
            case "memory":  # the system's own answer to a process that asks for too much, as far as one may try it
                import resource

                resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
                bytearray(2**33)
        yield Adapted(base.model)


FAULTS = {
    "raise": "RuntimeError: as asked",
    "exit": "SystemExit: leaving",
    "gone": "its process ended with exit status 3",
    "kill": "its process was ended by SIGKILL, as the system does when memory runs out",
    "memory": "MemoryError",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_fault_stays_with_its_cell(make_cell: Callable[..., Cell], workers: int) -> None:
    bad = [make_cell(Faulty(fault=fault)) for fault in FAULTS]
    good = [make_cell("base"), make_cell("sft"), make_cell(Faulty())]
    cells = [cell for pair in zip(bad, [*good, None, None], strict=True) for cell in pair if cell]
    outcomes = {o.cell.folder(): o for o in run_cells(cells, workers, threads=1)}
    for cell, error in zip(bad, FAULTS.values(), strict=True):
        outcome = outcomes[cell.folder()]
        assert (outcome.state, outcome.error) == ("failed", error)
        assert error in store.read_json(cell.folder() / store.FAILURE)["traceback"]
        assert store.last_status(cell.folder()) == "failed"
    for cell in good:
        assert outcomes[cell.folder()].state == "ok"
        assert (cell.folder() / store.RECORD).exists()
    frame = store.load(bad[0].run.root)
    assert (frame.status == "failed").sum() == len(bad)


def share(cells: list[Cell]) -> None:
    states = {o.state for o in run_cells(cells, workers=1, threads=1)}
    sys.exit(0 if states == {"ok"} else 1)


def test_two_sweeps_over_one_folder_share_the_work(make_cell: Callable[..., Cell]) -> None:
    cells = [make_cell(Faulty(fault="count"), seed=seed) for seed in range(6)]
    cells = [dataclasses.replace(cell, size=2 + n) for n, cell in enumerate(cells)]
    sweeps = [SERVER.Process(target=share, args=(cells,)) for _ in range(2)]
    for sweep in sweeps:
        sweep.start()
    for sweep in sweeps:
        sweep.join(timeout=120)
        assert sweep.exitcode == 0  # both saw all of it done
    tally = Path(cells[0].run.root, "tally").read_text().splitlines()
    assert sorted(tally) == sorted(str(cell.folder()) for cell in cells)
    for cell in cells:
        assert len(list(cell.folder().glob("record.json"))) == 1


def wait_for_checkpoint(cell: Cell) -> None:
    patience = time.monotonic() + 60
    while not list(cell.folder().glob("checkpoints/*/step*")):
        assert time.monotonic() < patience
        time.sleep(0.05)


def test_a_sweep_that_is_told_to_stop_keeps_checkpoints_and_goes_on(make_cell: Callable[..., Cell]) -> None:
    """SIGTERM to the sweep's own process reaches its workers; each ends its step, keeps a state, and says so."""
    cell = make_cell("sft", size=8)
    cell.method.min_steps = 1000
    cell.run.checkpoint_seconds = 0.5
    sweep = SERVER.Process(target=stop_when_told, args=(cell,))
    sweep.start()
    wait_for_checkpoint(cell)
    os.kill(sweep.pid, signal.SIGTERM)
    sweep.join(timeout=30)
    assert sweep.exitcode == 75
    assert store.last_status(cell.folder()) == "preempted"
    (outcome,) = run_cells([cell], workers=1, threads=1)
    assert outcome.state == "ok"
    assert len(store.read_json(cell.folder() / store.RECORD)["training"]["resumed"]) == 1


def stop_when_told(cell: Cell) -> None:
    os.setpgid(0, 0)  # a group of their own, as a terminal gives to a command
    preempt.listen()
    try:
        run_cells([cell], workers=1, threads=1)
    except preempt.PreemptedError:
        sys.exit(75)


def test_a_signal_to_all_processes_at_once_is_no_impatience(make_cell: Callable[..., Cell]) -> None:
    """Ctrl-C and Slurm reach a worker directly, and its supervisor asks it once more: its step still ends."""
    cell = make_cell(Faulty(fault="linger"))
    sweep = SERVER.Process(target=stop_when_told, args=(cell,))
    sweep.start()
    patience = time.monotonic() + 60
    while not (begun := list(cell.folder().glob("begun"))):
        assert time.monotonic() < patience
        time.sleep(0.05)
    os.killpg(sweep.pid, signal.SIGINT)
    sweep.join(timeout=30)
    assert sweep.exitcode == 75
    assert begun[0].read_text() == "ended"


def test_workers_end_with_the_sweep(make_cell: Callable[..., Cell]) -> None:
    """Nobody waits for them then: they keep a checkpoint and are gone."""
    cell = make_cell("sft", size=8)
    cell.method.min_steps = 100_000
    cell.run.checkpoint_seconds = 0.5
    sweep = SERVER.Process(target=share, args=([cell],))
    sweep.start()
    wait_for_checkpoint(cell)
    sweep.kill()
    patience = time.monotonic() + 20
    while store.last_status(cell.folder()) != "preempted":
        assert time.monotonic() < patience
        time.sleep(0.1)
    assert not leases.owner(cell.folder())
