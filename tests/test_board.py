"""The W&B mirror of a cell: what an offline run holds, read back, and that a broken W&B costs a cell nothing."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from harness import board
from harness.cell import Wandb
from harness.errors import HarnessError
from tests.wandb_files import read_run, records
from tests.wandb_servers import loopback

OFFLINE = Wandb(mode="offline")
FAKE_KEY = "0123456789abcdef0123456789abcdef01234567"
HERE = Path(__file__).parent.parent


def the_run(folder: Path, run_id: str = "cell-1") -> dict[str, Any]:
    (file,) = folder.glob(f"wandb/*-{run_id}/*.wandb")
    return read_run(file)


@pytest.fixture(autouse=True)
def fresh_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each test has its own line (what it warned of, whether the server answered) and no credentials of the user."""
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    board._line.cache_clear()
    yield
    board.settle()
    board._line.cache_clear()


def cell(folder: Path, settings: Wandb = OFFLINE, run_id: str = "cell-1", **config: Any) -> board.CellRun:
    return board.open_cell(settings, board.Told(run_id, "a cell", "pocket", config), folder)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the board told the user; wandb's own debug log is not shown to anyone."""
    return [record.getMessage() for record in caplog.records if record.name == board.__name__]


CELLS = """
import logging, time
from pathlib import Path
import harness.board as board
from harness.cell import Wandb
logging.basicConfig()
board.REACH_SECONDS = 1.0
if "{mode}" != "disabled":
    import wandb  # the one start that is paid in the caller's thread
start = time.monotonic()
for i in range({cells}):
    run = board.open_cell(Wandb("{mode}"), board.Told(f"c{{i}}", "n", "g", {{"i": i}}), Path("."))
    run.log(1, {{"loss": 1.0}})
    run.finish({{"s": 1}})
print("said on the console:", time.monotonic() - start)
"""


def python(code: str, folder: Path, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run `code` as a process of its own in `folder`."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(HERE), **env},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip


def test_offline_cell_holds_config_losses_and_scores(tmp_path: Path) -> None:
    run = cell(tmp_path, base={"name": "pocket-m"}, size=10)
    row = {"loss": 2.0}
    for step in range(1, 4):
        run.log(step, row)
        row["loss"] /= 2  # the board keeps its own copy
    run.finish({"facts/exact_match": 0.25})
    assert board.settle()
    read = the_run(tmp_path)
    assert (read["name"], read["group"], read["host"], read["exit"]) == ("a cell", "pocket", "", 0)
    assert read["config"]["base"] == {"name": "pocket-m"}
    assert read["config"]["size"] == 10
    assert [(h["_step"], h["loss"]) for h in read["history"]] == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert read["summary"]["facts/exact_match"] == 0.25


def test_failed_cell_is_marked_so(tmp_path: Path) -> None:
    run = cell(tmp_path)
    run.finish({}, "diverged")
    assert board.settle()
    read = the_run(tmp_path)
    assert (read["exit"], read["tags"]) == (1, ["diverged"])


def test_settings_are_a_structured_config_and_a_wrong_mode_is_told(tmp_path: Path) -> None:
    assert OmegaConf.structured(Wandb).mode == "auto"
    with pytest.raises(HarnessError, match=r"wandb\.mode='onlin'"):
        cell(tmp_path, Wandb(mode="onlin"))


def test_disabled_writes_nothing_and_imports_nothing(tmp_path: Path) -> None:
    python(CELLS.format(mode="disabled", cells=1) + "import sys; assert 'wandb' not in sys.modules", tmp_path)
    assert not any(tmp_path.iterdir())


def test_auto_without_credentials_is_offline_and_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cell(tmp_path, Wandb()).finish({})
    assert board.settle()
    assert the_run(tmp_path)["exit"] == 0
    assert not said(caplog)


@pytest.mark.parametrize(("kind", "mode"), [("closed", "auto"), ("mute", "online"), ("refusing", "online")])
def test_unreachable_server_costs_no_cell_and_leaks_no_key(kind: str, mode: str, tmp_path: Path) -> None:
    """Cells go on at once, the trouble is told once, the runs are kept offline, and the key stays out of all files."""
    with loopback(kind) as address:
        done = python(CELLS.format(mode=mode, cells=3), tmp_path, WANDB_API_KEY=FAKE_KEY, WANDB_BASE_URL=address)
    assert float(done.stdout.split(":")[1]) < 0.9, "the cells waited for W&B"
    assert done.stderr.count("WARNING") == done.stderr.count("W&B online failed") == 1, done.stderr
    for i in range(3):
        (file,) = tmp_path.glob(f"wandb/offline-run-*-c{i}/*.wandb")
        assert read_run(file)["summary"]["s"] == 1
    (tmp_path / "output.txt").write_text(done.stdout + done.stderr)
    assert all(FAKE_KEY.encode() not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_a_service_of_another_process_is_not_asked(tmp_path: Path) -> None:
    done = python(CELLS.format(mode="offline", cells=1), tmp_path, WANDB_SERVICE="3-1-unix-/no/longer/there")
    assert "W&B" not in done.stderr
    (file,) = tmp_path.glob("wandb/*/*.wandb")
    assert read_run(file)["exit"] == 0


def test_folder_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    for i in range(2):
        run = cell(tmp_path / "file", run_id=f"r{i}")
        run.log(1, {"loss": 1.0})
        run.finish({"s": 1})
    assert board.settle()
    assert [text[:15] for text in said(caplog)] == ["W&B open failed"]


def test_a_cell_costs_little(tmp_path: Path) -> None:
    """No cell waits for W&B's start, flush or finish, of many seconds each; a guard with room, not a benchmark."""
    cell(tmp_path, run_id="warm").finish({})
    assert board.settle()
    start = time.monotonic()
    for i in range(10):
        run = cell(tmp_path, run_id=f"r{i}", i=i)
        for step in range(20):
            run.log(step, {"loss": 1.0})
        run.finish({"s": 1})
    called = time.monotonic() - start
    assert board.settle()
    assert called < 5
    assert time.monotonic() - start < 40


def test_nothing_of_command_or_machine_is_kept(tmp_path: Path) -> None:
    python(CELLS.format(mode="offline", cells=1), tmp_path, "--key=on-the-command-line", MY_TOKEN="of-the-environment")
    (file,) = tmp_path.glob("wandb/*/*.wandb")
    kept = [str(record) for record in records(file)]
    kept += [p.read_text() for p in tmp_path.glob("wandb/*/files/**/*") if p.is_file()]
    for secret in ("on-the-command-line", "of-the-environment", "said on the console", socket.gethostname()):
        # As a word: a machine may be called by two letters that any random run id holds.
        found = [text for text in kept if re.search(rf"\b{re.escape(secret)}\b", text)]
        assert not found, f"{secret}: {found}"
    assert the_run(tmp_path, "c0")["exit"] == 0, "a process that exits waits for its runs"
