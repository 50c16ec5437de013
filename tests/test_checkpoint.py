"""A training that is killed goes on to the same bits; what a fault leaves on disk is told apart from what is whole."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import files, preempt, store
from harness.cell import Cell, Method
from harness.checkpoint import Checkpoints
from harness.errors import HarnessError
from harness.methods.sft import Sft
from harness.methods.sft_full import SftFull
from harness.run import run
from harness.store import ADAPTER, MODEL
from harness.tuning import Lora
from tests.children import in_child


def training(**changes: Any) -> Method:
    """Six steps over two epochs, with all that has a state of its own: dropout, warm-up, decay."""
    return Sft(lr=0.01, epochs=2, batch_size=3, warmup=0.3, decay="cosine", lora=Lora(rank=4, dropout=0.2), **changes)


@pytest.fixture
def cell(make_cell: Callable[..., Cell]) -> Cell:
    made = make_cell(training(), size=8)
    made.run.checkpoint_seconds = 0.0  # after every step
    return made


def elsewhere(cell: Cell, root: Path) -> Cell:
    """The same cell with nothing done yet."""
    import copy

    other = copy.deepcopy(cell)
    other.run.root = str(root)
    return other


def run_and_die_at(cell: Cell, step: int, number: int) -> None:
    preempt.listen()

    def watch(now: int, steps: int, values: dict[str, float]) -> None:
        if now == step:
            os.kill(os.getpid(), number)

    run(cell, watch)


def run_and_die_in_write(cell: Cell, number: int, named: bool) -> None:
    """SIGKILL in the making of checkpoint `number`: all written but without its name yet, or just named."""
    real, calls = files.sync, iter(range(1000))

    def sync(path: Path) -> None:  # of the file, before it is named, then of its folder
        if "checkpoints" in str(path) and path.is_dir() == named and next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path)

    files.sync = sync
    run(cell)


def outcome(folder: Path, weights: str = ADAPTER) -> tuple[bytes, str, Any]:
    """What must not depend on how often a training was begun."""
    record = store.read_json(folder / store.RECORD)
    kept = {k: v for k, v in record["training"].items() if k not in ("seconds", "resumed")}
    return (folder / weights).read_bytes(), (folder / "losses.jsonl").read_text(), kept


@pytest.fixture
def undisturbed(cell: Cell, tmp_path: Path) -> tuple[bytes, str, Any]:
    return outcome(run(elsewhere(cell, tmp_path / "undisturbed")))


@pytest.mark.parametrize("step", [0, 2, 4, 5])
def test_killed_at_any_step_it_ends_with_the_same_bits(cell: Cell, undisturbed: Any, step: int) -> None:
    assert in_child(run_and_die_at, cell, step, signal.SIGKILL) == -signal.SIGKILL
    assert not (cell.folder() / store.RECORD).exists()
    folder = run(cell)
    assert outcome(folder) == undisturbed
    assert store.read_json(folder / store.RECORD)["training"]["resumed"] == ([step] if step else [])
    assert not (folder / "checkpoints").exists()


def test_training_of_all_weights_goes_on_too(make_cell: Callable[..., Cell], tmp_path: Path) -> None:
    cell = make_cell(SftFull(lr=1e-3, epochs=2, batch_size=3, decay="cosine"), size=8)
    cell.run.checkpoint_seconds = 0.0
    assert in_child(run_and_die_at, cell, 3, signal.SIGKILL) == -signal.SIGKILL
    assert outcome(run(cell), MODEL) == outcome(run(elsewhere(cell, tmp_path / "undisturbed")), MODEL)
    assert store.read_json(cell.folder() / store.RECORD)["training"]["resumed"] == [3]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("number", [0, 2])
def test_killed_while_a_checkpoint_is_written(cell: Cell, undisturbed: Any, number: int, named: bool) -> None:
    assert in_child(run_and_die_in_write, cell, number, named) == -signal.SIGKILL
    folder = run(cell)
    assert outcome(folder) == undisturbed
    step = number + 1 if named else number
    assert store.read_json(folder / store.RECORD)["training"]["resumed"] == ([step] if step else [])


def test_told_to_stop_five_times_it_still_ends_the_same(cell: Cell, undisturbed: Any) -> None:
    cell.run.checkpoint_seconds = 1e9  # only when told
    for step in range(5):
        number = signal.SIGUSR2 if step % 2 else signal.SIGTERM
        assert in_child(run_and_stop_at, cell, step, number) == 75
    folder = run(cell)
    assert outcome(folder) == undisturbed
    assert store.read_json(folder / store.RECORD)["training"]["resumed"] == [1, 2, 3, 4, 5]


def run_and_stop_at(cell: Cell, step: int, number: int) -> None:
    try:
        run_and_die_at(cell, step, number)
    except preempt.PreemptedError:
        os._exit(75)


def states(cell: Cell) -> list[Path]:
    return sorted(cell.folder().glob("checkpoints/*/step*"))


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_passed_over(
    cell: Cell, undisturbed: Any, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    in_child(run_and_die_at, cell, 4, signal.SIGKILL)
    older, newest = states(cell)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content if harm == "flipped" else content[:1000])
    folder = run(cell)
    assert f"{newest} is damaged" in caplog.text
    assert outcome(folder) == undisturbed
    assert store.read_json(folder / store.RECORD)["training"]["resumed"] == [int(older.name[4:13])] == [3]


def test_a_full_disk_keeps_the_checkpoint_before(cell: Cell, undisturbed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "step000000003" in path.name:
            whole(path, content[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(HarnessError, match="No space left on device; the one before it is kept"):
            run(cell)
    assert [p.name[:13] for p in states(cell)] == ["step000000001", "step000000002"]
    assert not [p for p in states(cell)[0].parent.iterdir() if p.name.startswith(".")]
    folder = run(cell)
    assert outcome(folder) == undisturbed


def test_another_training_in_the_folder_is_not_gone_on_with(cell: Cell, tmp_path: Path) -> None:
    """As where the data behind a name has changed before the cell was done."""
    in_child(run_and_die_at, cell, 4, signal.SIGKILL)
    changed = elsewhere(cell, Path(cell.run.root))
    file = Path(changed.data.sources["pairs"].path)
    file.write_text(file.read_text().replace("It is", "That is"))
    folder = run(changed)
    assert store.read_json(folder / store.RECORD)["training"]["resumed"] == []
    assert outcome(folder) == outcome(run(elsewhere(changed, tmp_path / "fresh")))


def test_two_are_kept(cell: Cell) -> None:
    in_child(run_and_die_at, cell, 5, signal.SIGKILL)
    assert [p.name[:13] for p in states(cell)] == ["step000000004", "step000000005"]


def test_a_state_of_other_processes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    from harness import ranks

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints = Checkpoints(tmp_path, 0.0)
    monkeypatch.setattr(ranks, "gather", lambda own: [own, {name: state.clone() for name, state in own.items()}])
    checkpoints.save(3, model, optimizer, {})
    assert checkpoints.load(model, optimizer) == (0, {})
    assert "of 2 processes; begun anew" in caplog.text
