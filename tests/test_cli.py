"""The commands as a person types them, on a tiny real base: sweep, re-run, report, show, eval, and bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import __main__ as cli
from harness import board, store
from tests.test_sweep import config_dir  # noqa: F401  (a fixture)
from tests.wandb_files import read_run


@pytest.fixture
def harness(monkeypatch, capsys, config_dir, tmp_path):  # noqa: F811
    """``harness("plan", "mine")`` -> (exit status, output, errors), with the user's folder set and runs in tmp."""
    monkeypatch.setenv("HARNESS_CONFIG_DIR", str(config_dir))
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return command


SMALL = ["arms.sft.size=4", "arms.sft.seed=0", "base=tiny", "arms.icl.seed=0"]


def test_a_sweep_from_plan_to_report_and_an_eval_added_later(harness, config_dir):  # noqa: F811
    status, out, _ = harness("plan", "mine", *SMALL)
    assert (status, out.count("missing  ")) == (0, 3)
    status, out, err = harness("sweep", "mine", *SMALL)
    assert status == 0, err
    assert "3 cells: 3 missing" in out
    runs = Path("runs/mine")
    for name in ("report.html", "curves.png", "points.csv"):
        assert (runs / name).stat().st_size > 400
    assert "harness sweep mine arms.sft.size=4" in (runs / "report.html").read_text()

    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.name in (store.RECORD, store.TRAINED)}
    status, out, _ = harness("sweep", "mine", *SMALL)
    assert (status, "3 cells: 3 done" in out) == (0, True)

    extra = (config_dir / "evals" / "quiz.yaml").read_text().replace("quiz:", "quiz2:", 1)
    (config_dir / "evals" / "quiz2.yaml").write_text(extra)
    status, out, _ = harness("eval", "runs/mine", "evals=quiz2", "evals.quiz2.elsewhere=true")
    assert (status, "3 cells scored on quiz2" in out) == (0, True)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    frame = store.load(runs)
    assert frame.groupby("task").path.nunique().to_dict() == {"quiz": 3, "quiz2": 3}
    quiz = frame.pivot_table(index="path", columns="task", values="score")
    assert (quiz.quiz == quiz.quiz2).all()  # the same items, asked of the same adapters
    assert frame.groupby("task")["elsewhere"].unique().map(list).to_dict() == {"quiz": [False], "quiz2": [True]}
    assert "changes of tasks elsewhere against the untouched base" in (runs / "report.html").read_text()
    assert (runs / "forgetting.csv").exists()

    status, out, _ = harness("status", "runs/mine")
    assert (status, out.startswith("3 cells done; ")) == (0, True)
    assert harness("status", "runs/mine", "--watch") == (0, "runs/mine: 3/3 cells done, 0 running, 0 left\n", "")
    status, out, _ = harness("report", "runs/mine")
    assert (status, "runs/mine/report.html" in out) == (0, True)


def test_what_a_sweep_takes_is_told_before_and_after(harness):
    given = ["mine", *SMALL, "--price", "3.5"]
    status, out, err = harness("plan", *given, "--teraflops", "0.01", "--json")
    before = json.loads(out)
    assert (status, [cell["state"] for cell in before["cells"]]) == (0, ["missing"] * 3), err
    assert before["to_do"]["examples"] == 6
    assert before["to_do"]["price"] == pytest.approx(3.5 * before["to_do"]["seconds"] / 3600)
    _, out, _ = harness("sweep", *given)
    assert "to do: 6 examples" in out
    assert "at 3.5 per GPU-hour" in out
    assert "stays: 1 adapters" in out
    _, out, _ = harness("plan", *given)
    assert "3 cells: 3 done\ndone: 6 examples" in out


def test_a_sweep_whose_training_fails_says_so_and_still_reports(harness):
    status, out, err = harness("sweep", "mine", "arms.sft.method.lr=1e30", "~arms.again", "~arms.icl", *SMALL[:3])
    assert status == 1
    assert "diverged: runs/mine" in err
    status, _, err = harness("sweep", "mine", "arms.sft.method.lr=1e30", "~arms.again", "~arms.icl", *SMALL[:3])
    assert (status, "diverged before: runs/mine" in err, "--retry-failed runs it again" in err) == (1, True, True)
    assert Path("runs/mine/report.html").exists()
    assert not Path("runs/mine/curves.png").exists()
    assert "curves.png" not in out
    assert "1 cells done, 1 diverged; " in harness("status", "runs/mine")[1]


def test_workers_side_by_side_give_the_same_scores(harness):
    assert harness("sweep", "mine", *SMALL, "run.threads=1")[0] == 0
    status, _, err = harness("sweep", "mine", *SMALL, "run.threads=1", "run.root=two", "run.workers=2")
    assert status == 0, err
    columns = ["path", "task", "filter", "score", "fingerprint"]
    assert store.load("runs/mine")[columns].equals(store.load("two/mine")[columns])
    for adapter in Path("runs/mine").rglob("*.safetensors"):
        assert adapter.read_bytes() == Path("two/mine", adapter.relative_to("runs/mine")).read_bytes()


def test_a_single_cell_that_fails_is_kept_like_one_of_a_sweep(harness):
    cell = ["base=tiny", "data=pairs", "evals=quiz", "size=4", "method=sft", "wandb.mode=disabled", "run.device=cpu"]
    status, _, err = harness("run", *cell, "method.lr=1e30")
    assert status == 1
    assert err.splitlines()[-1].startswith("harness: diverged: runs/single/tiny/pairs/sft/n000000004")
    status, _, err = harness("run", *cell, "method.lora.target_modules=[q_prog]")
    assert (status, "failed: runs/single" in err) == (1, True)
    frame = store.load("runs")
    assert sorted(frame.status) == ["diverged", "failed"]
    traces = [store.read_json(p)["traceback"] for p in Path("runs").rglob(store.FAILURE)]
    assert any("q_prog" in trace for trace in traces)
    assert all("Traceback (most recent call last)" in trace for trace in traces)


def test_show_a_finished_cell_and_one_that_never_ran(harness):
    cell = ["base=tiny", "data=pairs", "evals=quiz", "size=2"]
    status, out, _ = harness("show", *cell, "method=sft")
    assert status == 0
    assert "* " in out
    assert "'<|im_end|>'" in out
    assert "<|im_start|>assistant\n⟨the model goes on here⟩" in out
    status, shown, _ = harness("show", *cell, "method=icl")
    assert shown.count("<|im_start|>user") == 3  # two demonstrations and the question
    status, folder, _ = harness("run", *cell, "method=sft", "wandb.mode=disabled", "run.device=cpu")
    assert status == 0
    assert harness("show", folder.strip().splitlines()[-1])[1].split("\n", 1)[1] == out.split("\n", 1)[1]


def test_run_is_a_hydra_application(config_dir, tmp_path):  # noqa: F811
    """--multirun, --cfg and completion in a process of its own, as Hydra takes hold of the whole program."""

    def harness(*arguments: str, **environment: str) -> str:
        command = [sys.executable, "-m", "harness", *arguments]
        environment = {**os.environ, "HARNESS_CONFIG_DIR": str(config_dir), **environment}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    cell = ["base=tiny", "data=pairs", "evals=quiz", "method=base,icl", "size=2", "wandb.mode=disabled"]
    harness("run", "--multirun", *cell)
    assert sorted(store.load(tmp_path / "runs").method.unique()) == ["base", "icl"]
    assert "rank: 3" in harness("run", "--cfg", "job", *cell[:3], "method=sft", "method.lora.rank=3")
    words = harness("-sc", "query=bash", COMP_LINE="harness run base=ti", COMP_POINT="19").split()
    assert words == ["base=tiny", "base=tiny2"]
    words = harness("-sc", "query=bash", COMP_LINE="harness sweep mine method.lora.ra", COMP_POINT="33").split()
    assert words == ["method.lora.rank="]
    assert harness("-sc", "query=bash", COMP_LINE="harness s").split() == ["show", "status", "sweep", "sync"]
    assert harness("-sc", "query=bash", COMP_LINE="harness plan m").split() == ["mine"]
    assert "hydra_bash_completion" in harness("-sc", "install=bash")


BAD = [
    (["frobnicate"], "no command 'frobnicate'"),
    (["sweep", "nosuch"], "no sweep 'nosuch'"),
    (["run", "base=tiny", "data=pairs", "evals=quiz", "sizee=3"], "did you mean 'size'"),
    (["run", "base=tiny", "data=pairs", "evals=quiz", "size=four"], "'four' of type 'str' could not be converted"),
    (["sweep", "mine", "arms.sft.method.lora.rank=many"], "'many' of type 'str' could not be converted"),
    (["run", "base=tiny", "data=pairs", "evals=quiz", "size=1,2"], "--multirun"),
    (["run", "base=tiny", "data=pairs", "evals=quiz", "size=33"], "has 32 examples"),
    (["run", "base=nosuch", "data=pairs", "evals=quiz"], "Available options in 'base'"),
    (["run", "base=tiny", "data=pairs", "evals=nosuch"], "Available options in 'evals'"),
    (["run", "base=tiny", "base.path=org/nosuch", "data=pairs", "evals=quiz", "size=4"], "hub"),
    (
        ["run", "base=tiny", "data=pairs", "data.sources.pairs.path=none.jsonl", "evals=quiz"],
        "none.jsonl is not a file",
    ),
    (["sweep", "mine", "data.sources.pairs.path=bad.jsonl"], "bad.jsonl:2 is not valid JSON"),
    (["sweep", "mine", "data.sources.pairs.path=empty.jsonl"], "is empty"),
    (["sweep", "mine", "form@data.sources.pairs.form=alpaca"], "needs a column that is missing"),
    (["sweep", "mine", "evals.quiz.task=nosuch_task", "evals.quiz.file=null"], "not an lm-eval task"),
    (["sweep", "mine", "evals.quiz.headline=acc/none"], "none of what the task gives"),
    (["sweep", "mine", "--config-dir", "nowhere"], "does not exist"),
    (["status", "nowhere"], "is not a folder"),
    (["report", "."], "holds no finished cells"),
    (["show", "nowhere"], "holds no record.json"),
    (["eval", ".", "size=3"], "name the evaluation"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a)[:60] for a, _ in BAD])
def test_bad_input_is_one_line_status_2_and_costs_nothing(harness, tmp_path, arguments, message):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    (tmp_path / "empty.jsonl").write_text("")
    if arguments[0] == "run":
        arguments = [*arguments, "wandb.mode=disabled"]
    status, _, err = harness(*arguments)
    line = [text for text in err.splitlines() if text.startswith("harness: ")]
    assert status == 2, err
    assert len(line) == 1
    assert message in line[0]
    assert not list(tmp_path.rglob(store.TRAINED))


def test_the_sweep_is_mirrored_offline_with_its_curve(harness, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    assert harness("sweep", "mine", *SMALL, "wandb.mode=offline")[0] == 0
    board.settle()
    curves = list(Path("runs/mine/wandb").rglob("*.wandb"))
    assert len(curves) == 1
    history = [row for row in read_run(curves[0])["history"] if "examples" in row]
    frame = store.load("runs/mine")
    for cell in frame[(frame.method != "base") & frame.headline].to_dict("records"):
        (row,) = [r for r in history if r["examples"] == cell["size"]]
        assert row[f"quiz/exact_match/strict/tiny/{cell['method']}"] == cell["score"]
    cells = list(Path("runs/mine/tiny").rglob("*.wandb"))
    assert len(cells) == 3
    losses = [row["loss"] for file in cells for row in read_run(file)["history"] if "loss" in row]
    assert len(losses) == 3  # one epoch of one batch, thrice
