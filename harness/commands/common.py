"""What several commands share: arguments, a sweep's cells, its records, report and figures, and how it ended."""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import ranks
from harness.errors import HarnessError

if TYPE_CHECKING:
    import pandas as pd

    from harness.cell import Cell, Engine, Wandb
    from harness.engines.worker import Outcome


def new_parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(f"harness {command}", description=description, epilog=f"example: {example}")


def sweep_arguments(command: str, arguments: list[str]) -> tuple[argparse.Namespace, "list[Cell]", str]:
    from harness.compose import users_folder
    from harness.sweep import sweep_cells

    parser = new_parser(
        command,
        "NAME is a file in sweeps/ (yours or the project's) or a path. Overrides are Hydra's: key=value, key=a,b or "
        "key=range(0,5) replace that axis in every arm; arms.NAME.key=values in one arm; ~arms.NAME leaves an arm out. "
        "scale=pocket is a trial of it on pocket bases and data.",
        f"harness {command} pocket size=4,16,64 run.workers=2",
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*")
    parser.add_argument("--config-dir", help="your own configuration folder, with sweeps/ in it")
    parser.add_argument("--cfg", action="store_true", help="print the composed cells as YAML and stop")
    parser.add_argument("--price", type=float, help="of a GPU-hour, in any currency: totals show what it costs")
    parser.add_argument(
        "--teraflops", type=float, help="of a large matrix product where the cells will run; else it is measured here"
    )
    if command == "plan":
        parser.add_argument("--json", action="store_true", help="all numbers, for programs")
    if command == "sweep":
        parser.add_argument("--retry-failed", action="store_true", help="run cells again that failed or diverged")
    parsed = parser.parse_intermixed_args(arguments)
    sweep, cells = sweep_cells(parsed.name, parsed.overrides, users_folder(parsed.config_dir))
    return parsed, cells, sweep.hypothesis


def print_cells(cells: "list[Cell]") -> int:
    from omegaconf import OmegaConf

    from harness.run import as_dict

    for cell in cells:
        shown = as_dict(cell) | {"engine": {"name": cell.engine.name, **dataclasses.asdict(cell.engine)}}
        print(f"--- # {cell.folder()}\n{OmegaConf.to_yaml(OmegaConf.create(shown))}", end="")
    return 0


def one_engine(cells: "list[Cell]") -> "Engine":
    """The engine of all these cells; refuses what it could not do."""
    engine = cells[0].engine
    if any(cell.engine != engine for cell in cells):
        raise HarnessError("the arms ask for different engines; one command has one: set engine=... for all of them")
    if ranks.count() > 1 and engine.name != "local":
        raise HarnessError(f"accelerate launch and engine={engine.name} both start processes; leave one of them out")
    return engine


def draw(folder: Path, wandb: "Wandb | None" = None, against: str = "") -> None:
    """Report and figures from the records; with `wandb`, the report goes to W&B as those settings say.

    With `against`, beside what that paper published, and what differs is also printed.
    """
    if not ranks.first():
        return
    from analysis import protocol
    from analysis.conclusions import conclude
    from analysis.instruments import sections
    from analysis.points import alike, own_scores, points
    from analysis.published import compare
    from analysis.report import write_report
    from analysis.section import Evidence
    from harness.board import is_off
    from harness.items import load_items
    from harness.standing import SWEEP
    from harness.store import load_along, provenance, read_json

    about = folder / SWEEP
    scored, unalike = alike(load_frame(folder))
    frame = own_scores(scored)
    table, found = points(frame), protocol.protocols(folder)
    beside = None
    if against:
        beside = compare(against, table.to_dict("records"), protocol.of_point(frame, found))
        print(f"{beside.title}: {beside.summary}", *beside.lines(), sep="\n")
    facts = read_json(about) if about.exists() else {"command": typed("report", [str(folder)]), "hypothesis": ""}
    items = load_items(folder, scored)
    concluded = conclude(frame, items)
    here = {name: value for name, value in provenance().items() if name != "host"}  # the page is there to be shown
    page = write_report(
        frame, folder, along=load_along(folder), sweep=folder.name, provenance=here,
        command=facts["command"], hypothesis=facts["hypothesis"], against=beside, conclusions=concluded,
        sections=sections(Evidence(folder, scored, items)), unalike=unalike,
        fixed=protocol.held_fixed(asked for cell in found.values() for asked in cell.values()),
    )  # fmt: skip
    figure = folder / "curves.png"
    if wandb and not is_off(wandb):
        from analysis.sheets import sheets
        from harness.sweep_board import Report, log_report

        log_report(wandb, Report(group_of(frame, folder), sheets(table, concluded), folder))
    print(page, *([figure] if figure.exists() else []), sep="\n")


def group_of(frame: "pd.DataFrame", folder: Path) -> str:
    """The sweep's name as its cells keep it, which the folder may have been renamed from."""
    kept = frame["sweep"].unique()
    return str(kept[0]) if len(kept) == 1 else folder.name


def kept_wandb(cell: Path) -> "Wandb":
    """The settings for W&B that a cell keeps in its folder, whether it is done or was only tried."""
    from harness.cell import Wandb
    from harness.store import ATTEMPT, RECORD, read_json

    kept = next(cell / name for name in (RECORD, ATTEMPT) if (cell / name).exists())
    return Wandb(**read_json(kept)["cell"]["wandb"])


def load_frame(folder: Path):  # a DataFrame; pandas is imported only when needed
    from harness.store import load

    frame = load(folder)
    if frame.empty:
        raise HarnessError(f"{folder} holds no finished cells; run a sweep first, e.g. harness sweep pocket")
    return frame


def typed(command: str, arguments: list[str]) -> str:
    return shlex.join(["harness", command, *arguments])


def print_failed(failed: "list[Outcome]") -> int:
    """The exit status."""
    for outcome in failed:
        print(f"{outcome.state}: {outcome.cell.folder()}: {outcome.error}", file=sys.stderr)
    return 1 if failed else 0
