"""`engine=slurm`: the cells in an array of Slurm jobs, submitted by submitit, which this process watches.

The jobs need this process no more: if it is killed they go on, and the same command again watches on.
"""

import contextlib
import importlib
import os
import secrets
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from harness import lease as leases
from harness import preempt, store
from harness.cell import Cell, Engine
from harness.engines.display import Display
from harness.engines.slurm_job import Job, Share
from harness.engines.worker import Outcome, failed
from harness.errors import HarnessError
from harness.run import is_done

LOOK = 1.0  # seconds between two looks at the jobs' files
ASK = 10.0  # seconds between two questions to Slurm, which serves many
SETTLE = 30.0  # seconds in which a network file system shows what a job that is gone wrote last


@dataclass
class SlurmEngine(Engine):
    """A Slurm cluster. Its nodes see the output, the working directory and this Python under the same paths."""

    name: ClassVar[str] = "slurm"
    partition: str | None = None
    jobs: int = 4  # in the array, so at most so many cells at once; each takes cell after cell
    minutes: int = 240  # of each job; over these it keeps a checkpoint, is queued again, and goes on
    grace_seconds: int = 120  # before that, to keep the checkpoint
    gpus: int | None = None  # of each job. None: 1 where the cluster has any, else 0
    cpus: int = 2
    memory_gb: int | None = None  # None: what the cluster gives
    setup: list[str] = field(default_factory=list)  # shell lines before Python starts, e.g. module load cuda
    sbatch: dict[str, Any] = field(default_factory=dict)  # further options, e.g. {account: mine, constraint: a100}

    def run_cells(self, cells: list[Cell]) -> list[Outcome]:
        if not cells:
            return []
        if (self.gpus or 0) > 1:
            raise HarnessError(f"engine.gpus={self.gpus}: a cell uses one GPU here; raise engine.jobs instead")
        for command in ("sbatch", "srun", "squeue", "scancel"):
            if not shutil.which(command):
                raise HarnessError(f"engine=slurm needs Slurm, but there is no {command} here; is this a login node?")
        left, outcomes = {cell.folder(): cell for cell in cells}, list[Outcome]()
        with Display(len(cells), self.jobs) as shown:
            while left:
                if not (share := _alive(left)):
                    for folder in [f for f, cell in left.items() if is_done(cell)]:  # by jobs that ended just now
                        outcomes.append(Outcome(left.pop(folder), "ok"))
                    if not left:
                        break
                    share = self._submit(list(left.values()))
                shown.say(f"Slurm jobs {share.folder.name}; logs in {share.folder / 'log'}")
                try:
                    for outcome in _Watch(share, shown, left, self.jobs).outcomes():
                        cell = outcome.cell = left[outcome.cell.folder()]
                        if outcome.state == "elsewhere":
                            if not _done_elsewhere(cell):
                                continue
                            outcome = Outcome(cell, "ok")
                        outcomes.append(outcome)
                        del left[cell.folder()]
                except preempt.PreemptedError as error:
                    raise preempt.PreemptedError(
                        f"no longer watching; the Slurm jobs go on: `squeue --name={share.folder.name}` lists them, "
                        f"`scancel --name={share.folder.name}` ends them with checkpoints kept, the same command "
                        "watches on"
                    ) from error
        return outcomes

    def _submit(self, cells: list[Cell]) -> Share:
        try:
            submitit = importlib.import_module("submitit")
        except ImportError as error:
            raise HarnessError("engine=slurm needs submitit: pip install -c constraints.txt -e '.[slurm]'") from error
        folder = (_submissions(cells[0]) / f"harness-{cells[0].sweep}-{secrets.token_hex(4)}").absolute()
        gpus = int(_has_gpus(self.partition)) if self.gpus is None else self.gpus
        given = {
            "job_name": folder.name,
            "partition": self.partition,
            "time": self.minutes,
            "signal_delay_s": self.grace_seconds,
            "gpus_per_node": gpus or None,
            "cpus_per_task": self.cpus,
            "mem": f"{self.memory_gb}GB" if self.memory_gb else None,
            "setup": list(self.setup) or None,
            "srun_args": [f"--cpus-per-task={self.cpus}"],  # which Slurm no longer passes on to srun
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **self.sbatch},  # also when a node is lost
        }
        job = Job(folder, cells[0].run.threads or self.cpus, self.minutes, os.getcwd())
        with preempt.ends_by_itself():
            share = Share.of(folder, cells)
            executor = submitit.SlurmExecutor(folder / "log", max_num_timeout=10**6)
            executor.update_parameters(**{k: v for k, v in given.items() if v is not None})
            try:
                executor.map_array(job, range(min(self.jobs, len(cells))))
            except submitit.core.utils.FailedJobError as error:
                shutil.rmtree(folder)
                said = [line.strip() for line in str(error).splitlines() if line.strip().startswith("sbatch:")]
                why = said[-1] if said else str(error).splitlines()[-1]
                raise HarnessError(f"Slurm refused the jobs: {why}; see the settings under engine") from error
        return share


class _Watch:
    """One submission, and the cells of it that this command waits for."""

    def __init__(self, share: Share, shown: Display, left: Collection[Path], lines: int) -> None:
        self.share, self.name, self.shown, self.lines = share, share.folder.name, shown, lines
        self.wanted = _open(share, left)
        self.begun: set[int] = set()
        self.told: set[int] = set()
        self.state = ""

    def outcomes(self) -> Iterator[Outcome]:
        """Until each wanted cell has one, or all jobs are gone."""
        asked, gone = 0.0, 0.0
        while self.wanted - self.told:
            yield from self._news()
            if time.monotonic() - asked > ASK:
                asked = time.monotonic()
                gone = 0.0 if self._ask() else gone or asked
            if gone and time.monotonic() - gone > SETTLE:
                break
            time.sleep(LOOK)
        if len(self.share.outcomes()) == len(self.share.cells):  # to the jobs that did not start, nothing is left
            _ask_slurm("scancel", "--state=PENDING", f"--name={self.name}")
        yield from self._rest()

    def _news(self) -> Iterator[Outcome]:
        outcomes, claims = self.share.outcomes(), self.share.claims()
        for number in sorted(self.wanted & claims.keys() - self.begun):
            self.begun.add(number)
            self.shown.begin(claims[number] % self.lines, self.share.cells[number])
        for number in sorted(self.wanted & outcomes.keys() - self.told):
            self.told.add(number)
            self.shown.end(claims.get(number, 0) % self.lines, outcomes[number])
            yield outcomes[number]

    def _ask(self) -> bool:
        """Whether Slurm has any of the jobs, or does not say."""
        lines = _ask_slurm("squeue", "--noheader", "--array", "--format=%T (%r)", f"--name={self.name}")
        if lines is None:
            return True
        counts = Counter(line.removesuffix(" (None)").lower() for line in lines)
        state = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        if state != self.state:
            self.state = state
            self.shown.say(f"Slurm jobs: {state or 'none left'}")
        return bool(lines)

    def _rest(self) -> Iterator[Outcome]:
        """The cells whose jobs are gone without a word."""
        claims = self.share.claims()
        if not claims:
            raise HarnessError(f"the Slurm jobs ended before they began a cell: {self._last_words()}")
        for number in sorted(self.wanted - self.told):
            cell = self.share.cells[number]
            if number not in claims:
                outcome = Outcome(cell, "preempted", f"its Slurm job ended before it was begun: {self._last_words()}")
            elif is_done(cell):
                outcome = Outcome(cell, "ok")
            elif store.last_status(cell.folder()) == "preempted":
                outcome = Outcome(cell, "preempted", "its Slurm job did not come back; the same command goes on")
            else:
                outcome = failed(cell, f"its Slurm job is gone, killed or with its node: {self._last_words()}")
            self.shown.end(claims.get(number, 0) % self.lines, outcome)
            yield outcome

    def _last_words(self) -> str:
        logs = sorted((self.share.folder / "log").glob("*.out"), key=lambda p: p.stat().st_mtime)
        if not logs:
            return (
                f"not even a log is in {self.share.folder / 'log'}; is run.root on a file system that all nodes share?"
            )
        lines = [line.strip() for line in logs[-1].read_text(errors="replace").splitlines() if line.strip()]
        return f"{logs[-1]} ends with {lines[-1] if lines else 'nothing'!r}"


def _submissions(cell: Cell) -> Path:
    return Path(cell.run.root, cell.sweep, ".slurm")


def _open(share: Share, left: Collection[Path]) -> set[int]:
    """Which of its cells are among those left and have no outcome yet."""
    told = share.outcomes()
    return {n for n, cell in enumerate(share.cells) if n not in told and cell.folder() in left}


def _alive(left: dict[Path, Cell]) -> Share | None:
    """What an earlier command has submitted of these cells, where jobs of it are still there."""
    place = _submissions(next(iter(left.values())))
    made = [folder.name for folder in place.glob("harness-*")]
    if not made:
        return None
    names = _ask_slurm("squeue", "--noheader", "--format=%j", f"--name={','.join(made)}")
    if names is None:
        raise HarnessError("Slurm does not say whether jobs of this sweep are there; try again when squeue answers")
    shares = [Share((place / name).absolute()) for name in sorted(set(names))]
    return next((share for share in shares if _open(share, left)), None)


def _done_elsewhere(cell: Cell) -> bool:
    """Wait for whoever works on the cell; whether it is done then."""
    while (lease := leases.take(cell.folder())) is None:
        time.sleep(leases.BEAT)
    lease.release()
    return is_done(cell)


def _has_gpus(partition: str | None) -> bool:
    lines = _ask_slurm("sinfo", "--noheader", "--format=%G", *([f"--partition={partition}"] if partition else []))
    return any("gpu" in line for line in lines or [])


def _ask_slurm(*command: str) -> list[str] | None:
    """Its answer by line; None where it gives none, e.g. while it is started anew."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return done.stdout.splitlines()
    return None
