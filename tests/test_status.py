"""What another shell sees of a sweep at work: from its folder, its leases and nothing else."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import lease as leases
from harness import store, watch
from harness.cell import Cell
from harness.engines import display
from harness.engines.local import run_cells
from harness.pace import Pace, clock, in_words
from harness.run import run
from harness.standing import SWEEP, plan_of, standing
from tests.children import SERVER
from tests.test_lease import as_if_of_another_machine

Make = Callable[..., Any]
COMMAND = [sys.executable, "-m", "harness", "status"]


@pytest.fixture
def cells(make_cell: Make, choice_task: Make) -> list[Cell]:
    """Two of one sweep, the first of which trains until it is killed; announced as by `harness sweep`."""
    cells = [make_cell("sft", size=4), make_cell("sft", size=5, evals={"choice": choice_task()})]
    cells[1].data = cells[0].data
    cells[0].method.min_steps = 10**6
    announce(cells)
    return cells


def announce(cells: list[Cell]) -> None:
    about = {"command": "", "hypothesis": "", "cells": plan_of(cells, root(cells))}
    store.write_json(root(cells) / SWEEP, about)


def root(cells: list[Cell]) -> Path:
    return Path(cells[0].run.root, cells[0].sweep)


def quickly_told(cell: Cell) -> None:
    leases.BEAT = 0.05
    run(cell)


@contextmanager
def at_work(cell: Cell) -> Iterator[Any]:
    """A process that trains, and has said so."""
    process = SERVER.Process(target=quickly_told, args=(cell,))
    process.start()
    path = cell.folder().relative_to(root([cell])).as_posix()
    wait_for(lambda: "seconds_left" in getattr(standing(root([cell])).running.get(path), "progress", {}))
    try:
        yield process
    finally:
        process.kill()
        process.join()


def wait_for(what: Callable[[], Any]) -> None:
    patience = time.monotonic() + 60
    while not what():
        assert time.monotonic() < patience
        time.sleep(0.05)


def status(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_running_done_failed_and_left_are_told_apart(cells: list[Cell]) -> None:
    assert len(standing(root(cells)).left) == 2
    with at_work(cells[0]) as process:
        run(cells[1])
        now = standing(root(cells))
        ((path, work),) = now.running.items()
        assert (len(now.done), len(now.left), now.cells) == (1, 0, 2)
        assert work.owner.startswith(f"process {process.pid} on ")
        assert (work.progress["phase"], work.progress["steps"]) == ("training", 10**6)
        assert now.seconds_left is not None
        code, out, _ = status(root(cells))
        assert (code, out.startswith("1 cells done, 1 running; ")) == (0, True)
        assert f"running: {path}  process {process.pid} on " in out
        assert "/1000000  loss " in out
        assert " of training left" in out
    now = standing(root(cells))
    assert (len(now.running), now.left) == (0, [path])  # its process is gone, and all it told with it
    store.write_failure(cells[0], "failed", "")
    assert standing(root(cells)).failed == {path: "failed"}
    assert standing(root(cells).parent).failed == {f"{root(cells).name}/{path}": "failed"}


def test_a_planned_evaluation_that_lacks_is_not_done(cells: list[Cell]) -> None:
    folder = run(cells[1])
    about = store.read_json(root(cells) / SWEEP)
    about["cells"][folder.relative_to(root(cells)).as_posix()].append("another")
    store.write_json(root(cells) / SWEEP, about)
    assert not standing(root(cells)).done


def test_watched_from_a_pipe_it_prints_what_changes_and_ends_with_the_sweep(cells: list[Cell]) -> None:
    cells[0].method.min_steps = 400
    announce(cells)
    watcher = subprocess.Popen([*COMMAND, root(cells), "--watch", "0.02"], stdout=subprocess.PIPE, text=True)
    try:
        assert watcher.stdout
        first = watcher.stdout.readline()
        for cell in cells:
            process = SERVER.Process(target=quickly_told, args=(cell,))
            process.start()
            process.join()
        out = watcher.communicate(timeout=60)[0]
    finally:
        watcher.kill()
    assert first == f"{root(cells)}: 0/2 cells done, 0 running, 2 left; nobody is at work, the same command goes on\n"
    assert watcher.returncode == 0
    assert out.count("/400  loss ") <= 2  # steps alone are no news
    assert out.rstrip().endswith(f"{root(cells)}: 2/2 cells done, 0 running, 0 left")


def test_ctrl_c_ends_the_watching_quietly_and_a_terminal_is_drawn_anew(cells: list[Cell]) -> None:
    with at_work(cells[0]):
        ours, its = pty.openpty()
        environment = {**os.environ, "COLUMNS": "200", "LINES": "30"}
        # A process inherits that Ctrl-C is ignored, e.g. from tests that were started in the background.
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)
        watcher = subprocess.Popen(
            [*COMMAND, root(cells), "--watch", "0.1"], stdout=its, stderr=subprocess.PIPE, env=environment
        )
        signal.signal(signal.SIGINT, heard)
        seen = b""
        while seen.count(b"\033[2A\033[J") < 2:  # two lines up, and what was there is gone
            seen += os.read(ours, 1000)
        watcher.send_signal(signal.SIGINT)
        assert (watcher.wait(timeout=20), watcher.stderr.read() if watcher.stderr else None) == (0, b"")
        os.close(its)
        os.close(ours)
    assert b"1 running, 1 left" in seen
    assert b"  step " in seen
    assert b"/1000000  loss " in seen


def test_an_owner_elsewhere_that_shows_no_beat_is_called_silent(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_work(cells[0]):
        pass
    as_if_of_another_machine(cells[0].folder())
    now, heard = standing(root(cells)), {}
    assert not watch._silent(now, heard)
    monkeypatch.setattr(leases, "LIFETIME", 0.2)
    time.sleep(0.3)
    assert "on far  no sign of life for 00:00" in watch.in_lines(root(cells), now, watch._silent(now, heard))[1]
    (file,) = cells[0].folder().glob(".lease-*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "beat": 10**6}))
    assert not watch._silent(standing(root(cells)), heard)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    for arguments, why in [((tmp_path / "none", "--watch"), "is not a folder"), ((tmp_path, "--watch=0"), "more than")]:
        code, _, err = status(*arguments)
        assert (code, len(err.splitlines()), why in err) == (2, 1, True), err


def test_watching_needs_no_torch(cells: list[Cell]) -> None:
    code = "import sys, pathlib, harness.commands.status as s; s.standing(pathlib.Path(sys.argv[1]))\n"
    code += "assert not {'torch', 'transformers', 'hydra', 'wandb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(root(cells))], check=True)


def test_the_display_of_a_sweep_tells_every_phase(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "SAY", 0.0)
    run_cells(cells[1:], workers=1, threads=1)
    lines = capsys.readouterr().err.splitlines()
    told = [line.removeprefix("at work: tiny pairs sft n=5 s=0").strip() for line in lines if "at work" in line]
    assert told[1] == "loading the base"
    assert told.index("training") < told.index("evaluating choice")
    assert any(line.startswith("step 1/") for line in told)
    assert lines[-1].startswith("1/1 ok tiny pairs sft n=5 s=0 in ")


def test_pace_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 110.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    pace = Pace()
    assert in_words(pace.step(3, 104, {"loss": 2.0, "tokens": 1000})) == "step 4/104  loss 2.000"
    told = pace.step(13, 104, {"loss": 1.5, "tokens": 51_000})
    assert in_words(told) == "step 14/104  loss 1.500  5,000 tokens/s  01:30 of training left"
    assert in_words({"phase": "evaluating gsm8k"}) == "evaluating gsm8k"
    assert in_words({}) == ""
    assert [clock(s) for s in (0, 59.6, 3599, 3600, 90_061)] == ["00:00", "01:00", "59:59", "1:00:00", "25:01:01"]
