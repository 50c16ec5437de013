"""`harness sync`: W&B gets what it lacks, once, and then holds what an undisturbed sweep would have sent."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import __main__ as cli
from harness import board, evaluate, mirror, store
from harness import lease as leases
from harness.cell import Cell, Wandb
from harness.commands.common import draw
from harness.engines.worker import attempt
from harness.replay import RECEIPT
from harness.run import run
from tests.children import in_child
from tests.test_board import FAKE_KEY, fresh_line  # noqa: F401  (a fixture)
from tests.wandb_files import read_run, records
from tests.wandb_servers import accepting, loopback

Make = Callable[..., Any]
Harness = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cell(make_cell: Make, choice_task: Make) -> Cell:
    """Eight steps, and a task."""
    cell = make_cell("sft", evals={"choice": choice_task()}, wandb=Wandb("disabled", project="mine"))
    cell.method.min_steps = 8
    cell.run.checkpoint_seconds = 0.0
    return cell


@pytest.fixture
def sync(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Harness:
    """``sync(runs, "--mode=offline")`` -> (exit status, output, errors)."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness", "sync", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return command


def die_at_step_5(cell: Cell) -> None:
    def die(number: int, *_: Any) -> None:
        if number == 5:
            board.settle()  # W&B has what it was told so far
            os.kill(os.getpid(), signal.SIGKILL)

    run(cell, die)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/*/*.wandb"))


OWN = ("_timestamp", "_runtime", "_wandb/runtime")  # of each run


def without_times(held: dict[str, Any]) -> dict[str, Any]:
    for row in (*held["history"], held["summary"]):
        for own in [n for n in row if n in OWN or n.endswith(("/artifact_path", "/_latest_artifact_path"))]:
            del row[own]
    for _, kept in held["artifacts"].values():
        kept.update({name: digest for name, (digest, _) in kept.items()})
    held["config"].pop("_wandb", None)
    return held


def content(file: Path) -> dict[str, Any]:
    """All that a run holds but for times and the number of the try."""
    held = without_times(read_run(file))
    del held["config"]["attempt"]
    fingerprint, _, number = held.pop("id").rpartition("-")
    assert held["config"]["fingerprint"]
    return {**held, "run": fingerprint, "attempts": int(number)}


def test_a_killed_and_resumed_cell_is_told_whole_and_once(cell: Cell, sync: Harness, tmp_path: Path) -> None:
    undisturbed = dataclasses.replace(cell, wandb=Wandb("offline", project="mine"))
    undisturbed.run = dataclasses.replace(cell.run, root=str(tmp_path / "undisturbed"))
    (live,) = files(run(undisturbed)) or files(undisturbed.folder())
    assert board.settle()
    assert in_child(die_at_step_5, cell) == -signal.SIGKILL
    folder = run(cell)
    resumed = store.read_json(folder / store.RECORD)["training"]["resumed"]
    assert resumed
    assert 0 < resumed[0] <= 5
    assert not files(folder)

    status, out, err = sync(cell.run.root, "--mode=offline")
    assert (status, "1 runs sent, 0 were there already" in out) == (0, True), err
    (replayed,) = files(folder)
    told, wanted = content(replayed), content(live)
    assert [row["_step"] for row in told["history"]] == list(range(8))
    assert (told.pop("attempts"), wanted.pop("attempts")) == (2, 1)
    assert told == wanted

    status, out, _ = sync(cell.run.root, "--mode=offline")
    assert (status, "0 runs sent, 1 were there already" in out) == (0, True)
    assert files(folder) == [replayed]


def test_the_live_run_of_a_resumed_try_is_whole_too(cell: Cell) -> None:
    """And it is another one than the killed try's."""
    cell.wandb = Wandb("offline")
    assert in_child(die_at_step_5, cell) == -signal.SIGKILL
    folder = run(cell)
    assert board.settle()
    (whole,) = folder.glob("wandb/*-2/*.wandb")
    assert [row["_step"] for row in read_run(whole)["history"]] == list(range(8))
    (broken,) = folder.glob("wandb/*-1/*.wandb")
    assert broken.stem.removesuffix("-1") == whole.stem.removesuffix("-2")


def test_an_evaluation_added_later_is_told_too(cell: Cell, sync: Harness, generation_task: Make) -> None:
    folder = run(cell)
    assert sync(cell.run.root, "--mode=offline")[0] == 0
    run(dataclasses.replace(cell, evals={"quiz": generation_task()}))
    status, out, _ = sync(cell.run.root, "--mode=offline")
    assert (status, "1 runs sent" in out) == (0, True)
    first, second = map(read_run, files(folder))
    assert first["id"] == second["id"]  # the try that trained it, whoever scored it
    assert first["history"]
    assert set(second["summary"]) - set(first["summary"]) == {"quiz/exact_match/strict", "quiz/exact_match/flexible"}
    assert "0 runs sent" in sync(cell.run.root, "--mode=offline")[1]


def test_the_report_is_told_as_it_was_and_names_no_host(
    cell: Cell, make_cell: Make, sync: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = run(cell).parents[3]
    run(make_cell("base", data=cell.data, evals=cell.evals))
    draw(sweep, cell.wandb)
    assert not files(sweep), "as the sweep's mode says"
    monkeypatch.setattr(sys, "argv", ["harness", "report", str(sweep), "--wandb=offline"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    (live,) = files(sweep)
    assert not re.search(rf"(?<!\w){re.escape(socket.gethostname())}\b", (sweep / "report.html").read_text())
    status, out, err = sync(sweep, "--mode=offline")
    assert (status, "3 runs sent, 0 were there already" in out) == (0, True), err
    (replayed,) = set(files(sweep)) - {live}
    first, second = (without_times(read_run(file)) for file in (live, replayed))
    assert sorted(first["artifacts"][f"{cell.sweep}-report"][1]) == ["curves.png", "points.csv", "report.html"]
    for told in (first, second):
        assert [row["examples"] for row in told["history"]] == [4]
    assert first == second
    assert "0 runs sent, 3 were there already" in sync(sweep, "--mode=offline")[1]


def test_another_project_is_another_place(cell: Cell, sync: Harness) -> None:
    run(cell)
    assert "1 runs sent" in sync(cell.run.root, "--mode=offline")[1]
    assert "1 runs sent" in sync(cell.run.root, "--mode=offline", "--project=other")[1]
    assert "0 runs sent, 1 were there already" in sync(cell.run.root, "--mode=offline", "--project=other")[1]


def test_failed_and_diverged_cells_are_marked_so(make_cell: Make, sync: Harness) -> None:
    diverged, unbegun = make_cell("sft"), make_cell("sft", size=5)
    diverged.method.lr = 1e30
    diverged.method.min_steps = 8
    unbegun.base = dataclasses.replace(unbegun.base, path="nowhere/at-all")
    assert attempt(diverged).state == "diverged"
    assert attempt(unbegun).state == "failed"
    status, out, err = sync(diverged.run.root, "--mode=offline")
    assert (status, "1 runs sent" in out) == (0, True), err
    assert "1 cells failed before they began" in out
    (file,) = files(diverged.folder())
    told = read_run(file)
    assert (told["exit"], told["history"], "diverged" in told["tags"]) == (1, [], True)
    assert told["config"]["method"]["lr"] == 1e30
    assert "0 runs sent, 1 were there already" in sync(diverged.run.root, "--mode=offline")[1]


def test_a_failed_try_and_the_one_after_it_are_two_runs(cell: Cell, sync: Harness, monkeypatch: Any) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "evaluate", lambda *_: 1 / 0)
        assert attempt(cell).state == "failed"
    assert "1 runs sent" in sync(cell.run.root, "--mode=offline")[1]
    assert attempt(cell).state == "ok"
    assert "1 runs sent" in sync(cell.run.root, "--mode=offline")[1]
    failed, done = map(read_run, files(cell.folder()))
    assert (failed["id"], failed["exit"]) == (done["id"].removesuffix("-2") + "-1", 1)
    assert (len(done["history"]), done["exit"]) == (8, 0)  # trained in the first try, told of in the second one's run


def test_a_cell_at_work_is_left_to_who_is_at_it(cell: Cell, sync: Harness) -> None:
    held = leases.take(run(cell))
    assert held
    assert "nothing has been done yet" in sync(cell.run.root, "--mode=offline")[1]
    held.release()
    assert "1 runs sent" in sync(cell.run.root, "--mode=offline")[1]


def test_scores_that_are_no_finite_numbers_are_left_out() -> None:
    rows = [{"metric": m, "filter": "f", "score": s} for m, s in [("a", 0.5), ("b", float("nan")), ("c", None)]]
    assert mirror.summary(3, {"t": rows}) == {"examples": 3, "t/a/f": 0.5}


def test_nothing_of_command_or_machine_is_sent(cell: Cell, sync: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "of-the-environment")
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    folder = run(cell)
    status, out, err = sync(cell.run.root, "--mode=offline", "--project=mine")
    assert status == 0
    kept = [str(record) for record in records(files(folder)[0])] + [out, err]
    kept += [p.read_text() for p in folder.glob("wandb/**/*") if p.is_file() and p.suffix != ".wandb"]
    for secret in ("of-the-environment", FAKE_KEY, "--project=mine", socket.gethostname()):
        assert not [text for text in kept if re.search(rf"(?<!\w){re.escape(secret)}\b", text)], secret


def as_a_process(address: str, *arguments: str, key: bool = True, before: str = "") -> tuple[int, str, str]:
    """`harness sync`, whose end is bounded too; (exit status, output, errors)."""
    code = f"{before}\nimport sys, harness.__main__ as cli\nsys.argv = ['harness', 'sync', *sys.argv[1:]]\ncli.main()"
    environment = {**os.environ, "WANDB_BASE_URL": address, **({"WANDB_API_KEY": FAKE_KEY} if key else {})}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=100)
    assert FAKE_KEY not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("closed", "refused"),
        ("mute", "timed out"),
        ("refusing", "credentials"),
        ("stalling", "did not respond"),
        ("no key", "has no credentials"),
    ],
)
def test_without_a_server_that_takes_it_there_is_one_line_and_no_receipt(cell: Cell, kind: str, why: str) -> None:
    folder = run(cell)
    with loopback(kind) as address:
        before = "import harness.board\nharness.board.INIT_SECONDS = 4"
        status, _, err = as_a_process(address, cell.run.root, "--mode=online", key=kind != "no key", before=before)
    (line,) = err.splitlines()
    assert (status, line.startswith("harness: W&B"), why in line) == (1, True, True), line
    assert not (folder / RECEIPT).exists()


def test_online_it_goes_up_once(cell: Cell, make_cell: Make, generation_task: Make) -> None:
    """Whole, once; with and without receipts; of what broke off all again, of an added evaluation only the scores."""
    folder = run(cell)
    failing = make_cell("sft", size=5, data=cell.data)
    failing.method.lr, failing.method.min_steps = 1e30, 8
    assert attempt(failing).state == "diverged"
    with accepting() as held:

        def sync() -> str:
            status, out, err = as_a_process(held.address, cell.run.root, "--mode=online")
            assert status == 0, err
            return out

        def rows_sent() -> int:
            return sum(there["sent"] for there in held.runs.values())

        assert "2 runs sent, 0 were there already" in sync()
        record = store.read_json(folder / store.RECORD)
        name = next(name for name, there in held.runs.items() if there["state"] == "finished")
        there = held.runs[name]
        assert [row["_step"] for row in there["history"]] == list(range(8))
        assert there["config"]["fingerprint"]["value"] == record["fingerprint"]
        assert "choice/acc/none" in there["summary"]
        assert [r["state"] for n, r in held.runs.items() if n != name] == ["failed"]
        assert rows_sent() == 8

        assert "0 runs sent, 2 were there already" in sync()
        for receipt in Path(cell.run.root).rglob(RECEIPT.name):
            receipt.unlink()
        assert "0 runs sent, 2 were there already" in sync()
        assert rows_sent() == 8

        run(dataclasses.replace(cell, evals={"quiz": generation_task()}))
        assert "1 runs sent, 1 were there already" in sync()
        assert {"choice/acc/none", "quiz/exact_match/strict"} <= set(there["summary"])
        assert (rows_sent(), len(there["history"])) == (8, 8)

        del there["history"][5:]
        there["state"] = "crashed"
        (folder / RECEIPT).unlink()
        assert "1 runs sent, 1 were there already" in sync()
        assert [row["_step"] for row in there["history"]] == list(range(8))
        programs = {
            asked["variables"].get("program") for asked in held.asked if "program" in asked.get("variables", {})
        }
        assert programs == {"harness", None}  # not the path of the script

        held.deaf = True
        (folder / RECEIPT).unlink()
        there["state"] = "crashed"
        before = "import harness.replay\nharness.replay.CONFIRM_SECONDS = 3"
        status, _, err = as_a_process(held.address, cell.run.root, "--mode=online", before=before)
        (line,) = err.splitlines()
        assert (status, "does not show" in line) == (1, True)
        assert not (folder / RECEIPT).exists()
