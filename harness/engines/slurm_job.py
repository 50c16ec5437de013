"""What runs in the jobs of an array: each takes cell after cell of those they share, until none is left.

    <submission>/cells.pickle        the cells, in order
    <submission>/claims/000012       exclusively linked: the number of the job that has the cell
    <submission>/outcomes/000012.json

A claim only spares a job the cells of another one; that a cell is run once, whoever else is at it, is its lease's work.
"""

import itertools
import logging
import os
import pickle
import signal
import subprocess
import time
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from harness import preempt
from harness.cell import Cell
from harness.engines.crew import fitting
from harness.engines.process import Process
from harness.engines.worker import Outcome, base_of, failed
from harness.files import whole
from harness.store import FAILURE, read_json, write_json

log = logging.getLogger(__name__)


class Share:
    """The cells of one submission, by number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells: list[Cell] = pickle.loads((folder / "cells.pickle").read_bytes())
        self._claims: dict[int, int] = {}
        self._outcomes: dict[int, Outcome] = {}  # neither changes once it is there, and each is read once

    @classmethod
    def of(cls, folder: Path, cells: list[Cell]) -> "Share":
        for name in ("claims", "outcomes"):
            (folder / name).mkdir(parents=True)
        with whole(folder / "cells.pickle") as scratch:
            scratch.write_bytes(pickle.dumps(cells))
        return cls(folder)

    def claims(self) -> dict[int, int]:
        """The number of the job that took a cell, by the cell's."""
        for path in (self.folder / "claims").glob("[0-9]*"):
            if (number := int(path.name)) not in self._claims:
                self._claims[number] = int(path.read_text())
        return self._claims

    def outcomes(self) -> dict[int, Outcome]:
        for path in (self.folder / "outcomes").glob("[0-9]*.json"):
            if (number := int(path.stem)) not in self._outcomes:
                self._outcomes[number] = Outcome(self.cells[number], **read_json(path))
        return self._outcomes

    def claim(self, job: int, resident: str) -> int | None:
        """A cell for this job: one that it had before it was requeued, else one that suits the base it has resident."""
        claims, told = self.claims(), self.outcomes()
        for number, owner in claims.items():
            if owner == job and number not in told:
                return number
        others = {base_of(self.cells[number]) for number in claims.keys() - told.keys()}
        waiting = {number: cell for number, cell in enumerate(self.cells) if number not in claims}
        while waiting:
            cell = fitting(list(waiting.values()), resident, others)
            number = next(n for n, c in waiting.items() if c is cell)
            try:
                with whole(self.folder / "claims" / f"{number:06d}", once=True) as scratch:
                    scratch.write_text(str(job))
            except FileExistsError:
                del waiting[number]
                continue
            return number
        return None

    def tell(self, number: int, outcome: Outcome) -> None:
        write_json(self.folder / "outcomes" / f"{number:06d}.json", {"state": outcome.state, "error": outcome.error})


@dataclass
class Job:
    """What submitit calls, and queues again if it was told to stop while Slurm still wants it to run."""

    share: Path
    threads: int
    minutes: int
    folder: str  # in which the command was given, and relative paths mean what they mean there

    def __call__(self, number: int) -> None:
        theirs = {heard: signal.getsignal(heard) for heard in preempt.SIGNALS}
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # and so, for good, by the helper of Python's that starts now
        resource_tracker.ensure_running()
        preempt.listen()
        with preempt.ends_by_itself():
            again = self._work(number)
        for heard, handler in theirs.items():
            signal.signal(heard, handler)
        if again:
            signal.raise_signal(signal.SIGUSR2)  # submitit's handler queues the job again, and ends the process

    def checkpoint(self, number: int) -> Any:
        """For submitit: what runs when the job does again. All that it needs is on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, number)

    def _work(self, job: int) -> bool:
        """Whether there is more to do, after this job was told to stop."""
        os.chdir(self.folder)
        began, share, process = time.time(), Share(self.share), Process(0, self.threads)
        try:
            while not preempt.asked() and (number := share.claim(job, process.base)) is not None:
                *_, outcome = process.work(share.cells[number])
                assert isinstance(outcome, Outcome)
                again = outcome.state == "preempted" and preempt.asked() and _is_wanted()
                if again and time.time() - began > 0.8 * 60 * self.minutes and not _grew(outcome.cell, began):
                    outcome = failed(outcome.cell, f"engine.minutes={self.minutes} were too few to get any further")
                elif again:
                    return True
                share.tell(number, outcome)
                print(outcome.state, outcome.cell.folder(), outcome.error, flush=True)  # into the job's log
        finally:
            process.end()
        return preempt.asked() and _is_wanted()


def _is_wanted() -> bool:
    """Whether the job still runs, as far as Slurm is concerned: told to stop by `scancel`, it does not."""
    from submitit import JobEnvironment

    asked = ["squeue", "--noheader", "--format=%T", f"--jobs={JobEnvironment().job_id}"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        log.warning("squeue does not answer (%s); the job is not queued again", done.stderr.strip())
    return done.stdout.strip() == "RUNNING"


def _grew(cell: Cell, since: float) -> bool:
    """Whether the cell has got a checkpoint, an adapter or scores."""
    return any(
        path.stat().st_mtime > since
        for path in itertools.chain(cell.folder().glob("[!.]*"), cell.folder().glob("*/*/*"))
        if path.is_file() and path.name != FAILURE
    )
