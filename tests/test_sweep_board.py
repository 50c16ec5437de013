"""A sweep's run on W&B, read back from its offline files: curves, tables, line plots, and the report as an artifact."""

import base64
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.conclusions import conclude
from analysis.points import points
from analysis.report import write_report
from analysis.sheets import Sheets, sheets
from harness import board
from harness.cell import Wandb
from harness.sweep_board import Report, history, log_report, plotted
from tests.sweeps import Sweep
from tests.test_board import FAKE_KEY, fresh_line  # noqa: F401  (a fixture)
from tests.wandb_files import read_run, records
from tests.wandb_servers import loopback

OFFLINE = Wandb(mode="offline")
AXIS = {"xname": "examples (log10)"}
HERE = Path(__file__).parent.parent
RULER = {"metric": "exact_match", "filter": "strict"}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Two bases on one task, one of them on another too; drawn."""
    sweep = Sweep(tmp_path / "cells", n=40)
    for base, task in (("b", "t"), ("c", "t"), ("c", "a b.c")):
        sweep.curve({0: 0.1, 10: 0.5, 100: 0.8}, seeds=2, base=base, task=task)
    return drawn(sweep, tmp_path / "s")


def drawn(sweep: Sweep, folder: Path) -> Report:
    found = conclude(sweep.frame, sweep.items())
    write_report(sweep.frame, folder, sweep="s", command="harness sweep s", conclusions=found)
    return Report("s", sheets(points(sweep.frame), found), folder)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/*/*.wandb"))


def table(file: Path, run: dict[str, Any], key: str) -> pd.DataFrame:
    """What lies where the last row of the history says that the table `key` does."""
    kept = json.loads((file.parent / "files" / run["history"][-1][f"{key}/path"]).read_text())
    return pd.DataFrame(kept["data"], columns=kept["columns"])


def test_the_run_holds_curves_tables_plots_and_the_page(report: Report) -> None:
    log_report(OFFLINE, report)
    (file,) = files(report.folder)
    run = read_run(file)
    assert (run["name"], run["group"], run["job_type"], run["exit"]) == ("s report", "s", "report", 0)
    assert run["steps"] == {"examples": "", "*": "examples"}

    told = report.sheets.points.set_index(["task", "filter", "curve", "examples"])["score"]
    assert [row["examples"] for row in run["history"]] == [10, 100]
    for row in run["history"]:
        assert row["t/exact_match/strict/b/sft"] == told["t", "strict", "b/sft", row["examples"]]
        assert row["t/exact_match/strict/c/base"] == told["t", "strict", "c/base", 0]

    for name, sheet in vars(report.sheets).items():
        kept = table(file, run, name)
        assert list(kept.columns) == list(sheet.columns)
        assert kept.astype(object).where(kept.notna(), None).values.tolist() == sheet.values.tolist(), name

    assert run["charts"] == {
        "curves/t/exact_match/strict": ("wandb/lineseries/v0", {"title": "t, exact match (strict)", **AXIS}),
        "curves/a-b-c/exact_match/strict": (
            "wandb/lineseries/v0",
            {"title": "a b.c, exact match (strict)", **AXIS},
        ),
    }
    plot = table(file, run, "curves/t/exact_match/strict_table")
    assert sorted(set(plot["lineKey"])) == ["b/base", "b/sft", "c/base", "c/sft"]
    line = plot[plot["lineKey"] == "c/sft"]
    assert line["step"].tolist() == [1, 2]
    assert line["lineVal"].tolist() == [told["t", "strict", "c/sft", n] for n in (10, 100)]

    kind, held = run["artifacts"]["s-report"]
    assert (kind, sorted(held)) == ("report", ["curves.png", "pairs.csv", "points.csv", "report.html"])
    for name, (digest, copy) in held.items():
        content = (report.folder / name).read_bytes()
        assert base64.b64encode(hashlib.md5(content).digest()).decode() == digest
        assert Path(copy).read_bytes() == content, "kept until it goes up, whatever the next report is"
    verdicts = report.sheets.conclusions["verdict"]
    assert {k: v for k, v in run["summary"].items() if k.startswith("verdict/")} == {
        f"verdict/{name}": int((verdicts == name).sum()) for name in set(verdicts)
    }


def test_nothing_lies_outside_of_the_sweeps_folder(report: Report) -> None:
    log_report(OFFLINE, report)
    (file,) = files(report.folder)
    inside = str(report.folder / "wandb")
    copies = [copy for _, held in read_run(file)["artifacts"].values() for _, copy in held.values()]
    assert copies
    assert all(os.path.realpath(copy).startswith(os.path.realpath(inside)) for copy in copies)
    assert "WANDB_DATA_DIR" not in os.environ


def test_a_second_report_is_the_same_run_and_a_new_version_of_the_page(report: Report) -> None:
    log_report(OFFLINE, report)
    page = report.folder / "report.html"
    page.write_text(page.read_text() + "<!-- drawn again -->")
    log_report(OFFLINE, report)
    first, second = map(read_run, files(report.folder))
    assert first["id"] == second["id"]
    assert first["summary"]["sheets_sha256"] == second["summary"]["sheets_sha256"]
    before, after = (run["artifacts"]["s-report"][1] for run in (first, second))
    assert {name for name in before if before[name][0] != after[name][0]} == {"report.html"}


@pytest.mark.parametrize("where", ["page", "sheet"])
def test_a_credential_in_page_or_sheet_sends_nothing(
    where: str, report: Report, caplog: pytest.LogCaptureFixture
) -> None:
    token = "hf_" + "a1" * 15
    if where == "page":
        (report.folder / "report.html").write_text(f"<p>{token}</p>")
    else:
        report.sheets.conclusions.loc[0, "cautions"] = f"failed: {token}"
    log_report(OFFLINE, report)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "harness.sweep_board"]
    assert ("report.html" if where == "page" else "its tables") in line
    assert token not in line
    assert not files(report.folder)


def test_a_folder_that_cannot_be_written_costs_one_line(report: Report, caplog: pytest.LogCaptureFixture) -> None:
    (report.folder / "wandb").write_text("in the way")
    log_report(OFFLINE, report)
    (line,) = [r.getMessage() for r in caplog.records if r.name == board.__name__]
    assert line.startswith("W&B report failed")
    assert "WANDB_DATA_DIR" not in os.environ


@pytest.mark.parametrize("kind", ["closed", "refusing"])
def test_a_server_that_is_away_costs_one_line_and_the_run_is_kept(kind: str, report: Report) -> None:
    code = "import sys, pickle, logging; logging.basicConfig(); from harness.sweep_board import log_report\n"
    code += "from harness.cell import Wandb; log_report(Wandb('online'), pickle.load(sys.stdin.buffer)); print('done')"
    with loopback(kind) as address:
        environment = {"PYTHONPATH": str(HERE), "WANDB_API_KEY": FAKE_KEY, "WANDB_BASE_URL": address}
        done = subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(report), capture_output=True, check=True, timeout=200,
            cwd=report.folder, env={**os.environ, **environment},
        )  # fmt: skip
    assert done.stdout.strip() == b"done"
    assert [line[:32] for line in done.stderr.decode().splitlines() if "W&B" in line] == [
        "WARNING:harness.board:W&B online"
    ]
    (file,) = report.folder.glob("wandb/offline-run-*/*.wandb")
    assert "s-report" in read_run(file)["artifacts"]
    assert not [p for p in report.folder.rglob("*") if p.is_file() and FAKE_KEY.encode() in p.read_bytes()]


def test_supported_laws_are_drawn_beside_what_was_measured() -> None:
    empty = pd.DataFrame()
    at = {"task": "t", **RULER, "leading": True}
    measured = [{**at, "curve": "b/sft", "method": "sft", "examples": n, "score": n / 1000} for n in (100, 10)]
    law = [{**at, "curve": "b/sft", "examples": n, "score": n / 999} for n in (10.0, 30.0, 100.0)]
    plots = plotted(Sheets(pd.DataFrame(measured), empty, empty, empty, pd.DataFrame(law), empty))
    assert list(plots) == ["curves/t/exact_match/strict", "fits/t/exact_match/strict"]
    assert plots["fits/t/exact_match/strict"][1] == [
        ("b/sft", [10.0, 100.0], [0.01, 0.1]),
        ("b/sft, its law", [10.0, 30.0, 100.0], [10 / 999, 30 / 999, 100 / 999]),
    ]


def test_names_of_plots_stay_inside_and_apart() -> None:
    empty = pd.DataFrame({name: [] for name in ("task", "metric", "filter")})
    shared = {**RULER, "leading": True, "curve": "b/sft", "method": "sft", "examples": 10, "score": 0.5}
    measured = pd.DataFrame([{**shared, "task": task} for task in ("../../x", "-x", "a.b")])
    plots = plotted(Sheets(measured, empty, empty, empty, empty, empty))
    assert sorted(name.split("/")[1] for name in plots) == ["-x", "-x", "a-b"]


def test_series_name_data_and_variant_where_they_differ(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, n=20)
    right = np.arange(20) < 10
    sweep.cell(0, strict=right)
    sweep.cell(10, strict=right)
    sweep.cell(10, strict=right, data="other", variant="lr=0.1")
    sweep.cell(100, strict=right, data="other", variant="lr=0.2")
    told = history(sheets(points(sweep.frame), conclude(sweep.frame, sweep.items())).points)
    head = "t/exact_match/strict/b"
    assert [{k: v for k, v in row.items() if "flexible" not in k} for row in told] == [
        {"examples": 10, f"{head}/base": 0.5, f"{head}/sft/d": 0.5, f"{head}/sft/other/lr=0.1": 0.5},
        {"examples": 100, f"{head}/base": 0.5, f"{head}/sft/other/lr=0.2": 0.5},
    ]


def test_nothing_of_machine_or_environment_is_in_the_run(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_NOTE", "of-the-environment")
    log_report(OFFLINE, report)
    (file,) = files(report.folder)
    kept = [str(record) for record in records(file)]
    kept += [p.read_text() for p in file.parent.glob("files/**/*.json")]
    for secret in ("of-the-environment", str(HERE / "harness"), "site-packages"):
        assert not [text for text in kept if secret in text], secret
