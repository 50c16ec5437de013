"""One cell at a time, in a process of its own that keeps its base resident; what goes wrong stays with the cell."""

import contextlib
import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Literal

from harness import preempt, store
from harness.cell import Cell, OnPhase, OnStep
from harness.errors import DivergedError
from harness.identity import fingerprint
from harness.lease import BusyError, LostError
from harness.run import run
from harness.secrets import redacted

State = Literal["ok", "failed", "diverged", "preempted", "elsewhere"]
TELL = 0.2  # seconds between two steps told of


@dataclass
class Outcome:
    cell: Cell
    state: State
    error: str = ""  # one line; empty where the cell is done


@dataclass
class Step:
    """Where the cell at work is."""

    number: int
    steps: int
    values: dict[str, float]


@dataclass
class Phase:
    """What the cell at work goes over to."""

    name: str


def base_of(cell: Cell) -> str:
    """Names the base that a process has resident after this cell."""
    return fingerprint([cell.base.name, cell.base.path, cell.base.make])


def serve(connection: Connection, leash: Connection, index: int, threads: int | None) -> None:
    """The worker process: a cell comes in, steps and its outcome go out, until nothing more comes."""
    preempt.listen()
    threading.Thread(target=_end_when_let_go, args=(leash,), daemon=True).start()
    try:
        prepare(threads, index)
        while not preempt.asked() and (cell := connection.recv()) is not None:
            connection.send(attempt(cell, _teller(connection), lambda name: _say(connection, Phase(name))))
    except (preempt.PreemptedError, EOFError, BrokenPipeError):  # told to stop between two cells, or nobody is left
        return


def _end_when_let_go(leash: Connection) -> None:
    """The supervisor asks, or is gone and nobody would hear of what this process does on: keep a checkpoint and end.

    Ctrl-C and Slurm signal all processes at once; then this one was asked already, and once more would be for good.
    """
    wait([leash])
    if not preempt.asked():
        os.kill(os.getpid(), signal.SIGTERM)


def prepare(threads: int | None, index: int = 0) -> None:
    """CPU threads, and the accelerator of this worker's number where there are several."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(index % torch.cuda.device_count())


def _teller(connection: Connection) -> OnStep:
    last = 0.0

    def tell(number: int, steps: int, values: dict[str, float]) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL or number == steps - 1:
            _say(connection, Step(number, steps, values))
            last = time.monotonic()

    return tell


def _say(connection: Connection, what: Step | Phase) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is left to hear: no fault of the cell's, see `_end_with_parent`
        connection.send(what)


def attempt(cell: Cell, on_step: OnStep | None = None, on_phase: OnPhase | None = None) -> Outcome:
    """Try the cell. Whatever becomes of it is an outcome, and one that matters is kept in the cell's folder."""
    try:
        run(cell, on_step, on_phase)
    except (BusyError, LostError) as error:  # whoever has it now tells what becomes of it
        return Outcome(cell, "elsewhere", str(error))
    except preempt.PreemptedError as error:
        return _kept(Outcome(cell, "preempted", str(error) or "told to stop"), _trace(error))
    except DivergedError as error:
        return _kept(Outcome(cell, "diverged", str(error)), _trace(error))
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # one cell's trouble must not cost the others
        return _kept(Outcome(cell, "failed", traceback.format_exception_only(error)[-1].strip()), _trace(error))
    return Outcome(cell, "ok")


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _kept(outcome: Outcome, trace: str) -> Outcome:
    outcome.error = redacted(outcome.error)
    try:
        store.write_failure(outcome.cell, outcome.state, redacted(trace))
    except OSError as error:  # a full disk, say, which may be what ended the cell
        outcome.error += f" (which could not be kept: {error})"
    return outcome


def lost(cell: Cell, exit_code: int | None) -> Outcome:
    """The outcome of a cell whose process is gone without a word."""
    if exit_code is not None and exit_code < 0:
        how = f"was ended by {signal.Signals(-exit_code).name}"
        how += ", as the system does when memory runs out" if exit_code == -signal.SIGKILL else ""
    else:
        how = f"ended with exit status {exit_code}"
    return failed(cell, f"its process {how}")


def failed(cell: Cell, error: str) -> Outcome:
    """The outcome of a cell whose end only others saw."""
    return _kept(Outcome(cell, "failed", error), f"{error}\n")
