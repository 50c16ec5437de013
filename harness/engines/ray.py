"""`engine=ray`: the cells on a Ray cluster. A slot of the cluster is an actor that supervises one worker process.

So the worker's base stays resident from cell to cell, and its death is told apart from the loss of a node: the one is
the cell's failure, as on one machine; after the other the cell goes to another slot, and on from its last checkpoint.
"""

import contextlib
import importlib
import logging
import os
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness import preempt, store
from harness.cell import Cell, Engine
from harness.engines.crew import Crew
from harness.engines.display import Display
from harness.engines.process import LOOK, Process
from harness.engines.worker import Outcome, Phase, Step, base_of, failed
from harness.errors import HarnessError

log = logging.getLogger(__name__)
PATIENCE = 60.0  # seconds until a place that waits for room on the cluster says so
FAREWELL = 15.0  # seconds for the last words of idle workers, W&B's among them


@dataclass
class RayEngine(Engine):
    """A Ray cluster that runs already. Its nodes have the harness installed, and see the output under the same path."""

    name: ClassVar[str] = "ray"
    address: str = "auto"  # HOST:6379; auto: $RAY_ADDRESS, or the cluster of this machine
    gpus: float | None = None  # of each cell; 0.5 lets two share one. None: 1 where the cluster has any, else 0
    cpus: float = 1
    slots: int | None = None  # at most so many cells at once; None: as the cluster is large when the sweep begins
    retries: int = 2  # of a cell, each time its node is lost

    def run_cells(self, cells: list[Cell]) -> list[Outcome]:
        if not cells:
            return []
        if (self.gpus or 0) > 1:
            raise HarnessError(f"engine.gpus={self.gpus:g}: a cell uses one GPU here, or a part of one")
        with _connected(self.address) as ray, _proof(cells[0]) as proof:
            gpus, room = self._room(ray)
            slots = min(len(cells), self.slots or room)
            remote = ray.remote(num_cpus=self.cpus, num_gpus=gpus, max_concurrency=2, max_restarts=0)(Slot)
            threads = cells[0].run.threads or max(1, int(self.cpus))
            losses: Counter[Path] = Counter()
            places = [
                _Place(index, remote, [threads, os.getcwd(), proof], self.retries, losses) for index in range(slots)
            ]
            with Display(len(cells), slots) as shown:
                return list(Crew(cells, places, _wait_for_word, shown).work())

    def _room(self, ray: Any) -> tuple[float, int]:
        """GPUs of each cell, and how many cells the cluster has room for at once."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = float(any(n.get("GPU") for n in nodes)) if self.gpus is None else self.gpus
        wanted = {"CPU": self.cpus, "GPU": gpus}
        room = sum(int(min(n.get(k, 0) / each for k, each in wanted.items() if each)) for n in nodes)
        if not room and not self.slots:  # asked for slots, an autoscaler may bring nodes
            raise HarnessError(
                f"no node of the Ray cluster has {self.cpus:g} CPUs and {gpus:g} GPUs for a cell; lower engine.cpus or "
                "engine.gpus, or set engine.slots if such nodes come when they are asked for"
            )
        return gpus, room


class Slot:
    """The actor, on a node."""

    def __init__(self, threads: int, folder: str, proof: tuple[str, str]) -> None:
        self.trouble = _trouble(folder, proof)
        self.process = None if self.trouble else Process(0, threads)

    def greet(self) -> str:
        """What is wrong with this node; empty if nothing is."""
        return self.trouble

    def work(self, cell: Cell) -> Iterator[Outcome | Step | Phase]:
        """What the worker says of the cell: at most a step a second, and at last the outcome."""
        assert self.process
        last = 0.0
        for told in self.process.work(cell):
            if not isinstance(told, Step) or time.monotonic() - last >= 1:
                last = time.monotonic()
                yield told

    def stop(self) -> None:
        if self.process:
            self.process.stop()

    def end(self) -> None:
        if self.process:
            self.process.end()


def _trouble(folder: str, proof: tuple[str, str]) -> str:
    node = os.uname().nodename
    try:
        os.chdir(folder)  # relative paths mean what they mean where the command was given
    except OSError:
        return f"node {node} has no folder {folder}; give the command in a folder that all nodes see"
    name, code = proof
    if not Path(name).exists():
        return f"node {node} does not see {Path(name).parent}; put run.root on a file system that all nodes share"
    if _code() != code:
        return f"node {node} has another version of the harness ({_code()}, here {code}); install the same one"
    return ""


def _code() -> str:
    about = store.provenance()
    return f"{about['harness']} {about['git_commit'] or ''}".strip()


class _Place:
    """An actor seen from here, and its successors on other nodes."""

    def __init__(self, index: int, remote: Any, arguments: list[Any], retries: int, losses: "Counter[Path]") -> None:
        self.index, self.remote, self.arguments = index, remote, arguments
        self.retries, self.losses = retries, losses  # by cell, whichever place it was at
        self.cell: Cell | None = None
        self.failed = 0  # how often in a row the actor was gone before it greeted
        self._start()

    def _start(self) -> None:
        self.base = ""
        self.actor = self.remote.remote(*self.arguments)
        self.greeting: Any = self.actor.greet.remote()
        self.say_at = time.monotonic() + PATIENCE

    def ready(self) -> bool:
        import ray

        if self.greeting is None:
            return True
        if not ray.wait([self.greeting], timeout=0)[0]:
            if time.monotonic() > self.say_at:
                log.warning("place %d waits for room on the Ray cluster", self.index)
                self.say_at = float("inf")
            return False
        try:
            trouble = ray.get(self.greeting)
        except ray.exceptions.RayError as error:
            self.failed += 1
            if self.failed > self.retries:
                raise HarnessError(f"no worker starts on the Ray cluster: {_brief(error)}") from error
            self._start()
            return False
        if trouble:
            raise HarnessError(trouble)
        self.failed, self.greeting = 0, None
        return True

    def give(self, cell: Cell) -> bool:
        self.cell, self.base = cell, base_of(cell)
        self.told = self.actor.work.options(num_returns="streaming").remote(cell)
        return True

    def hear(self) -> Outcome | Step | Phase | None:
        import ray

        assert self.cell
        if not ray.wait([self.told], timeout=0)[0]:
            return None
        try:
            told = ray.get(next(self.told))
        except (ray.exceptions.RayError, StopIteration) as error:
            told = self._gone(self.cell, error)
        if isinstance(told, Outcome):
            told.cell, self.cell = self.cell, None  # ours, not the copy that has been to the node and back
        return told

    def _gone(self, cell: Cell, error: Exception) -> Outcome:
        self._start()
        self.losses[cell.folder()] += 1
        if preempt.asked():
            return Outcome(cell, "preempted", "its node is gone")
        if self.losses[cell.folder()] <= self.retries:
            log.warning("%s: its node is gone; it goes elsewhere", cell.folder())
            return Outcome(cell, "elsewhere")
        return failed(cell, f"its node was lost, {self.losses[cell.folder()]} times: {_brief(error)}")

    def stop(self) -> None:
        self.actor.stop.remote()

    def end(self) -> None:
        import ray

        if self.greeting is None and self.cell is None:
            with contextlib.suppress(ray.exceptions.RayError):  # it may be gone already
                ray.get(self.actor.end.remote(), timeout=FAREWELL)
        ray.kill(self.actor)


def _wait_for_word(places: Sequence[_Place]) -> None:
    import ray

    if places:
        ray.wait([place.told for place in places], timeout=LOOK)
    else:
        time.sleep(LOOK)


def _brief(error: BaseException) -> str:
    """The line of Ray's many that says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise HarnessError("engine=ray needs Ray: pip install -c constraints.txt -e '.[ray]'") from error
    heard = {number: signal.getsignal(number) for number in preempt.SIGNALS}
    try:
        host, _, port = (os.environ.get("RAY_ADDRESS", "") if address == "auto" else address).rpartition(":")
        if port.isdigit():  # Ray itself would try for many minutes
            socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise HarnessError(
            f"no Ray cluster answers at {address!r} ({_brief(error)}); start one with `ray start --head`, or set "
            "engine.address"
        ) from error
    for number, handler in heard.items():  # Ray has put its own in their place
        signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _proof(cell: Cell) -> Iterator[tuple[str, str]]:
    """A file in the output that every node must see, and what code runs here."""
    file = cell.folder().parents[3] / f".ray-{secrets.token_hex(8)}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    try:
        yield str(file), _code()
    finally:
        file.unlink(missing_ok=True)
