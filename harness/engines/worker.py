"""One cell at a time, in a process of its own that keeps its base resident; what goes wrong stays with the cell."""

import contextlib
import multiprocessing
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


def serve(connection: Connection, index: int, threads: int | None) -> None:
    """The worker process: a cell comes in, steps and its outcome go out, until nothing more comes."""
    preempt.listen()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(threads, index)
    try:
        while not preempt.asked() and (cell := connection.recv()) is not None:
            connection.send(attempt(cell, _teller(connection), lambda name: _say(connection, Phase(name))))
    except (preempt.PreemptedError, EOFError, BrokenPipeError):  # told to stop between two cells, or nobody is left
        return


def _end_with_parent() -> None:
    """Nobody would hear of what this process does on: let it keep a checkpoint and end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
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
    error = f"its process {how}"
    return _kept(Outcome(cell, "failed", error), f"{error}\n")
