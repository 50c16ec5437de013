"""A peer in an interpreter of its own: started once, asked as often as wanted, its start-up kept apart."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "peers"
# No peer is to tell anyone that it ran.
QUIET = {"DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class AbsentError(Exception):
    """The row cannot be measured here; the message says what to do about it."""


def version(package: str) -> str:
    """The installed version of a peer in this environment."""
    if importlib.util.find_spec(package) is None:
        raise AbsentError(f"{package} is not installed; pip install -c constraints.txt -e '.[bench]'")
    return importlib.metadata.version(package)


def interpreter(environment: str) -> Path:
    """The python of a peer's own environment: `.venv-<name>` in the clone, or where $BENCH_VENV_<NAME> says."""
    given = os.environ.get(f"BENCH_VENV_{environment.upper()}")
    python = Path(given or ROOT / f".venv-{environment}") / "bin" / "python"
    if not python.exists():
        raise AbsentError(f"no environment for {environment}; make .venv-{environment}/ready")
    return python


class Peer:
    """``with Peer(script, job) as peer: seconds, answers = peer()``. `startup` is the seconds until it was ready."""

    def __init__(
        self,
        script: str,
        job: dict[str, Any],
        python: Path | None = None,
        environment: dict[str, str] | None = None,
        watch_memory: bool = False,  # costs a little time
    ) -> None:
        self._command = [str(python or sys.executable), str(SCRIPTS / script)]
        self._job = job
        self._environment = {**os.environ, **QUIET, **(environment or {})}
        self._watch_memory = watch_memory
        self.startup = 0.0

    def __enter__(self) -> Self:
        self._files = tempfile.TemporaryDirectory(prefix="bench-")
        job, log = Path(self._files.name, "job.json"), Path(self._files.name, "log")
        job.write_text(json.dumps(self._job))
        self._log = log.open("w+")
        self._process = subprocess.Popen(
            [*self._command, str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=self._environment,
            start_new_session=True,  # so that its own children can be ended with it
        )
        self._watch = PeakMemory(self._process.pid)
        if self._watch_memory:
            self._watch.start()
        try:
            self.startup = float(self._answer()["seconds"])
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __call__(self) -> tuple[float, dict[str, Any]]:
        assert self._process.stdin
        print(file=self._process.stdin, flush=True)
        answer = self._answer()
        return float(answer["seconds"]), answer

    def peak_memory(self) -> float:
        """GiB: the most that the process and its children held together so far."""
        return round(self._watch.peak / 2**30, 2)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        tail = "".join(self._log.readlines()[-30:])
        raise RuntimeError(f"{' '.join(self._command)} ended with {self._process.returncode}:\n{tail}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()  # the end of its work
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()
        self._files.cleanup()


class PeakMemory(threading.Thread):
    """The most memory that a process and its children held together, looked at four times a second until it ends.

    What several share (a mapped file, a fork's pages) counts once, divided among them, where the system tells.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.peak = 0

    def run(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):  # the end
            while self.process.status() != psutil.STATUS_ZOMBIE:
                family = [self.process, *self.process.children(recursive=True)]
                self.peak = max(self.peak, sum(map(_held, family)))
                time.sleep(0.25)


def _held(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except psutil.NoSuchProcess:  # a child that has just ended
        return 0
    return getattr(memory, "pss", memory.rss)
