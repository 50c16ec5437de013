"""Faults beside the training: a cell that dies while it is scored or written down, harmed files, a full disk."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import files, lm, store
from harness.cell import Cell
from harness.errors import HarnessError
from harness.run import run
from harness.store import ADAPTER
from tests.children import in_child

Make = Callable[..., Any]


@pytest.fixture
def cell(make_cell: Make, generation_task: Make, choice_task: Make) -> Cell:
    return make_cell("sft", evals={"quiz": generation_task(), "choice": choice_task()})


@pytest.fixture
def undisturbed(cell: Cell, tmp_path: Path) -> dict[str, Any]:
    import copy

    other = copy.deepcopy(cell)
    other.run.root = str(tmp_path / "undisturbed")
    return outcome(run(other))


def outcome(folder: Path) -> dict[str, Any]:
    """What must not depend on how often the cell was begun."""
    frame = store.load(folder).drop(columns=["path", "train_seconds", "eval_seconds"])
    answers = {p.parent.name: p.read_text() for p in sorted(folder.glob("evals/*/*.jsonl"))}
    return {"scores": frame.to_dict("records"), "answers": answers, "adapter": (folder / ADAPTER).read_bytes()}


def die_when_asked(cell: Cell, task: str) -> None:
    """SIGKILL at the first answer that this task wants of the model."""

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(lm.Asker, {"quiz": "generate_until", "choice": "loglikelihood"}[task], die)
    run(cell)


@pytest.mark.parametrize("task", ["quiz", "choice"])
def test_killed_while_it_is_scored(cell: Cell, undisturbed: dict[str, Any], task: str) -> None:
    assert in_child(die_when_asked, cell, task) == -signal.SIGKILL
    trained = (cell.folder() / ADAPTER).stat().st_mtime_ns
    folder = run(cell)
    assert (folder / ADAPTER).stat().st_mtime_ns == trained  # not trained again
    assert outcome(folder) == undisturbed


def die_when_written(cell: Cell, name: str, named: bool) -> None:
    """SIGKILL when this file is on disk but has no name yet, or when it was just named."""
    real = files.sync

    def sync(path: Path) -> None:
        reached = path.is_dir() and (path / name).exists() if named else path.name.startswith(f".{name}-")
        if reached:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path)

    files.sync = sync
    run(cell)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", [ADAPTER, "losses.jsonl", store.TRAINED, store.RECORD])
def test_killed_while_a_file_is_written(cell: Cell, undisturbed: dict[str, Any], name: str, named: bool) -> None:
    assert in_child(die_when_written, cell, name, named) == -signal.SIGKILL
    assert (cell.folder() / name).exists() == named
    folder = run(cell)
    assert outcome(folder) == undisturbed
    assert not list(folder.rglob(f"*{files.UNFINISHED}"))


def test_a_flipped_byte_in_an_adapter_is_refused(cell: Cell, make_cell: Make) -> None:
    folder = run(make_cell("sft", data=cell.data, base=cell.base))
    content = bytearray((folder / ADAPTER).read_bytes())
    content[-5] ^= 1
    (folder / ADAPTER).write_bytes(content)
    with pytest.raises(HarnessError, match="does not match its checksum"):
        run(cell)
    assert not list(folder.glob("evals/*/*"))


def run_in_little_room(cell: Cell, room: int) -> None:
    """The system refuses to let any file grow beyond `room` bytes, as a disk that is full at that point."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        run(cell)
    except (OSError, HarnessError):
        os._exit(7)


@pytest.mark.parametrize("room", [600, 3_000, 20_000])
def test_no_room_is_no_result(cell: Cell, undisturbed: dict[str, Any], room: int) -> None:
    """For the lease and the adapter, for the record, ...: the cell ends, nothing half is taken for whole."""
    assert in_child(run_in_little_room, cell, room) == 7
    assert not (cell.folder() / store.RECORD).exists()
    assert outcome(run(cell)) == undisturbed
