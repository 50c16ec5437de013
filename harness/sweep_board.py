"""A sweep on W&B: one run with its curves over `examples`, its tables, a line plot for each task, and its report.

The run's id is made from the sweep's name, so that a second report replaces it under the same address. It holds

    <task>/<metric>/<filter>/<curve>           history: a row a number of examples, with `examples` as the step metric
    points, conclusions, laws, parameters, fits, pairs   `analysis.sheets.Sheets`, as W&B's own tables
    curves/<task>/<metric>/<filter>            a line plot for each leading score: a line for each curve and each level
    fits/<task>/<metric>/<filter>              the same with the laws that are supported, where there are any
    figure                                     curves.png
    <sweep>-report                             an artifact of type `report`: report.html, curves.png, tables

The axis of the line plots is the logarithm of `examples`: W&B's preset for several lines has a linear axis only, on
which all sizes but the largest would fall on one another. The history's panels have `examples` itself.

The page names the command that made it, versions, and what failed cells said; the other runs send none of this. It is
searched for credentials first, and where one is found nothing of this run is sent.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.points import names, ruler
from analysis.sheets import RULER, Sheets
from harness import board
from harness.board import Told
from harness.cell import LEVELS, Wandb
from harness.identity import fingerprint
from harness.secrets import redacted

log = logging.getLogger(__name__)

FIGURE = "curves.png"
FILES = (
    "report.html",
    FIGURE,
    "points.csv",
    "pairs.csv",
    "course.csv",
)  # those of a report that its artifact holds, where made
NAME = 100  # characters of a sweep's name in its artifact's, of W&B's 128

Line = tuple[str, list[float], list[float]]  # its name, numbers of examples, scores


@dataclass(frozen=True)
class Report:
    """What a sweep's run is told: its sheets, and the folder in which its report was drawn."""

    sweep: str
    sheets: Sheets
    folder: Path

    def told(self) -> Told:
        """The run without its tables and files. Its summary tells these sheets from those of another day."""
        tables = {name: rows(table) for name, table in vars(self.sheets).items()}
        leading = self.sheets.conclusions
        return Told(
            run_id=f"report-{hashlib.sha256(self.sweep.encode()).hexdigest()[:12]}",
            name=f"{self.sweep} report",
            group=self.sweep,
            job_type="report",
            config={"sweep": self.sweep},
            history=history(self.sheets.points),
            summary={f"verdict/{name}": int(n) for name, n in leading["verdict"].value_counts().items()}
            | {"sheets_sha256": fingerprint(tables)},
        )

    def files(self) -> list[Path]:
        return [path for name in FILES if (path := self.folder / name).exists()]

    def credential(self) -> str:
        """Where something that looks like one is in what would be sent, in a sentence; empty where there is none."""
        texts = {"its tables": str([self.told(), *(rows(table) for table in vars(self.sheets).values())])}
        texts |= {path.name: path.read_text(encoding="utf-8") for path in self.files() if path.suffix != ".png"}
        found = [name for name, text in texts.items() if redacted(text) != text]
        where = f"what looks like a credential is in {names(found)} of {self.folder}"
        return f"W&B is not told of this report: {where}" if found else ""


def log_report(settings: Wandb, report: Report) -> None:
    """Tell W&B of a report. Never raises for W&B's sake: what fails is logged once as a warning."""
    if why := report.credential():
        log.warning("%s", why)
        return
    board.tell_of_sweep(settings, report.told(), report.folder, lambda run: write_report(run, report))


def write_report(run: Any, report: Report) -> None:
    """All of the report into a wandb Run, and finish it."""
    import wandb

    told = report.told()
    run.define_metric("examples")
    run.define_metric("*", step_metric="examples")
    tables = {
        name: wandb.Table(columns=list(table.columns), data=rows(table))
        for name, table in vars(report.sheets).items()
        if len(table.columns)
    }
    figure = report.folder / FIGURE
    image = {"figure": wandb.Image(str(figure))} if figure.exists() else {}
    plots = {name: line_series(title, lines) for name, (title, lines) in plotted(report.sheets).items()}
    with staged(report.folder):
        for row in told.history[:-1]:
            run.log(row)
        run.log({**told.history[-1], **tables, **plots, **image})
        artifact = wandb.Artifact(f"{safe(report.sweep)[:NAME]}-report", "report", metadata={"sweep": report.sweep})
        for path in report.files():
            artifact.add_file(str(path))
        run.log_artifact(artifact)
        board.close(run, told.summary, told.status)


def history(points: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each number of examples, ascending: ``{"examples": n, "<task>/<metric>/<filter>/<curve>": score}``.

    What has no size, as the base's own score, is repeated in every row and so shows as the level line it is.
    """
    by_size: dict[int, dict[str, Any]] = {}
    levels: dict[str, float] = {}
    for p in points.dropna(subset=["score"]).to_dict("records"):
        at = levels if p["method"] in LEVELS else by_size.setdefault(int(p["examples"]), {})
        at["/".join(p[part] for part in (*RULER, "curve"))] = float(p["score"])
    return [{"examples": n, **levels, **by_size[n]} for n in sorted(by_size)] or [{"examples": 0, **levels}]


def plotted(sheets: Sheets) -> dict[str, tuple[str, list[Line]]]:
    """By the plot's name its title and lines: measured ones for each leading score, laws where one is supported."""
    plots: dict[str, tuple[str, list[Line]]] = {}
    scored = sheets.points.dropna(subset=["score"])
    for key, group in scored[scored["leading"].astype(bool)].groupby(RULER, sort=True):
        task, metric, filter_ = map(str, key)
        level = group["method"].isin(LEVELS)
        if level.all():
            continue
        ends = [float(group.loc[~level, "examples"].min()), float(group.loc[~level, "examples"].max())]
        lines = _lines(group[~level])
        lines += [(str(p["curve"]), ends, [p["score"]] * 2) for p in group[level].to_dict("records")]
        place, title = "/".join(map(safe, (task, metric, filter_))), f"{task}, {ruler(metric, filter_)}"
        while f"curves/{place}" in plots:  # names that differ in nothing that W&B takes
            place += "-"
        plots[f"curves/{place}"] = title, lines
        laws = sheets.fits[(sheets.fits[RULER] == list(key)).all(axis=1)]
        if len(laws):
            fitted = laws.assign(curve=laws["curve"] + ", its law")
            plots[f"fits/{place}"] = title, _lines(group[~level]) + _lines(fitted)
    return plots


def _lines(table: pd.DataFrame) -> list[Line]:
    ordered = table.sort_values("examples").groupby("curve", sort=True)
    return [(str(name), list(map(float, line["examples"])), list(line["score"])) for name, line in ordered]


def line_series(title: str, lines: list[Line]) -> Any:
    """W&B's chart of several lines over the logarithm of `examples`."""
    import wandb

    keys, xs, ys = zip(*lines, strict=True)
    decades = [np.log10(x).tolist() for x in xs]
    return wandb.plot.line_series(decades, ys, keys, title=title, xname="examples (log10)")


def rows(table: pd.DataFrame) -> list[Any]:
    """The cells of a sheet as plain data, row by row."""
    return [list(row) for row in table.itertuples(index=False, name=None)]


def safe(name: str) -> str:
    """A name of ours as part of W&B's, where they become paths, and a dot would nest them."""
    return re.sub(r"[^\w-]+", "-", name) or "-"


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[None]:
    """W&B copies what goes up later to below `folder`, not into the user's home, unless the user says where."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(Path(folder, "wandb").absolute())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
