"""How far a sweep is, told from its folder alone, by whoever looks and on whatever machine. No torch.

    <sweep>/sweep.json    written before the sweep starts: its command, and its cells with their evaluations

What runs is told by the leases of its cells (`harness.lease`), which carry the phase, step and loss of the last beat.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness import lease, store
from harness.cell import Cell
from harness.errors import HarnessError
from harness.pace import Progress

SWEEP = "sweep.json"
LEAF = re.compile(r"n\d{9}-")  # as `harness.cell.Cell.folder` names a cell's folder


@dataclass
class Standing:
    """The cells by what has become of them, as paths below the folder looked at."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # path -> failed or diverged
    running: dict[str, "Work"] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)  # planned or begun, and nobody is at it
    seconds_left: float | None = None  # for all that runs or is left, at the speed so far

    @property
    def cells(self) -> int:
        return len(self.done) + len(self.failed) + len(self.running) + len(self.left)


@dataclass
class Work:
    """A cell that somebody is at."""

    owner: str
    beat: int  # grows as long as the owner lives
    progress: Progress


def standing(root: Path) -> Standing:
    """What has become of the cells below `root`: those that a sweep has planned, and all others found."""
    if not root.is_dir():
        raise HarnessError(f"{root} is not a folder; give the output of a sweep, e.g. runs/pocket")
    found, planned, began = Standing(), _planned(root), _began(root)
    lately = 0  # cells finished since the sweep began
    for folder in sorted({*planned, *_folders(root)}):
        path = folder.relative_to(root).as_posix()
        if told := lease.holder(folder):
            found.running[path] = Work(f"process {told['pid']} on {told['host']}", told["beat"], told.get("told", {}))
        elif _is_done(folder, planned.get(folder, [])):
            found.done.append(path)
            lately += folder.stat().st_mtime > began
        elif (status := store.last_status(folder)) in store.FAILED:
            found.failed[path] = status
        else:
            found.left.append(path)
    if found.running and lately:
        found.seconds_left = (time.time() - began) / lately * (len(found.running) + len(found.left))
    return found


def _is_done(folder: Path, tasks: list[str]) -> bool:
    return (folder / store.RECORD).exists() and all(any(folder.glob(f"evals/{task}/*.json")) for task in tasks)


def _sweeps(root: Path) -> list[Path]:
    """The folder of one sweep, or of several."""
    return [place for place in (root, *sorted(root.iterdir())) if (place / SWEEP).is_file()]


def _planned(root: Path) -> dict[Path, list[str]]:
    """The folders of the cells that sweeps have said they would run, and the evaluations of each."""
    return {
        sweep / path: tasks
        for sweep in _sweeps(root)
        for path, tasks in store.read_json(sweep / SWEEP).get("cells", {}).items()
    }


def _began(root: Path) -> float:
    """When the newest sweep began, by the clock of the file system."""
    return max(((sweep / SWEEP).stat().st_mtime for sweep in _sweeps(root)), default=float("inf"))


def _folders(root: Path) -> Iterator[Path]:
    for place, names, _ in os.walk(root):
        cells = [name for name in names if LEAF.match(name)]
        yield from (Path(place, name) for name in cells)
        names[:] = [n for n in names if n not in cells and n != "wandb" and not n.startswith(".")]


def plan_of(cells: list[Cell], sweep: Path) -> dict[str, list[str]]:
    """What a sweep says of its cells before it starts."""
    return {cell.folder().relative_to(sweep).as_posix(): sorted(cell.evals) for cell in cells}
