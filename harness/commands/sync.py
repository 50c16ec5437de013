"""`harness sync`: W&B gets what it lacks."""

import argparse
import os
import sys
from pathlib import Path
from typing import NamedTuple

from harness import lease, mirror, store
from harness.board import Told
from harness.cell import Wandb
from harness.commands.common import kept_wandb, new_parser
from harness.errors import HarnessError
from harness.replay import Replay, SyncError, Write, write_cell

BATCH = 20  # runs sent before W&B is asked whether it has them


class Item(NamedTuple):
    """A run to be told of, where its files go, and how it is written."""

    told: Told
    folder: Path
    write: Write
    in_parts: bool  # whether the scores can be sent without the history


def main(arguments: list[str]) -> int:
    parser = new_parser(
        "sync",
        "Fill in on W&B what an interrupted or offline sweep lacks there: each cell below RUNS that is done or failed "
        "is replayed from its files, history and all, and so is the report. What W&B has already is left alone.",
        "harness sync runs/pocket",
    )
    parser.add_argument("runs", metavar="RUNS", type=Path)
    usual = "offline" if os.environ.get("WANDB_MODE") == "offline" else "online"
    parser.add_argument(
        "--mode", choices=("online", "offline"), default=usual,
        help="offline: into files below each cell, for `wandb sync`; default: online unless $WANDB_MODE says offline",
    )  # fmt: skip
    parser.add_argument("--project", help="default: the sweep's wandb.project")
    parser.add_argument("--entity", help="default: the sweep's wandb.entity")
    parsed = parser.parse_args(arguments)
    cells: dict[Path, list[Path]] = {}  # by their sweep's folder, root/sweep of root/sweep/base/data/method/cell
    for folder in store.records(parsed.runs):
        cells.setdefault(folder.parents[3], []).append(folder)
    if not cells:
        raise HarnessError(f"{parsed.runs} holds no finished cells; run a sweep first")
    try:
        for sweep, folders in cells.items():
            _sync(sweep, folders, parsed)
    except SyncError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 1
    return 0


def _sync(sweep: Path, folders: list[Path], parsed: argparse.Namespace) -> None:
    """Send what W&B lacks of one sweep, and say so."""
    at_rest = [f for f in folders if not lease.holder(f)]  # whoever is at the others is telling of them
    matter = [f for f in at_rest if (f / store.RECORD).exists() or store.last_status(f) in store.FAILED]
    found = {folder: told for folder in matter if (told := mirror.of(folder))}
    if not found:
        print(f"{sweep}: nothing has been done yet that W&B could be told of")
        return
    settings, group = _settings(next(iter(found)), parsed), next(iter(found.values())).group
    replay = Replay(settings)
    items = [Item(told, folder, write_cell, True) for folder, told in found.items()] + _report(sweep, group)
    waiting = [i for i in items if not replay.has_receipt(i.told, i.folder)]
    held = replay.held(group) if waiting else {}
    sent = 0
    for start in range(0, len(waiting), BATCH):
        batch = waiting[start : start + BATCH]
        for item in batch:
            there = held.get(item.told.run_id)
            if not (there and there.is_whole(item.told)):
                replay.send(item.told, item.folder, there if item.in_parts else None, item.write)
                sent += 1
        replay.settle(group, [(item.told, item.folder) for item in batch])
        if len(waiting) > BATCH:
            print(f"{sweep}: {start + len(batch)}/{len(waiting)} runs", file=sys.stderr)
    print(f"{sweep}: {sent} runs sent, {len(items) - sent} were there already; {replay.where(sweep)}")
    if silent := len(matter) - len(found):
        print(f"{sweep}: {silent} cells failed before they began; there is nothing to tell of them")


def _settings(cell: Path, parsed: argparse.Namespace) -> Wandb:
    """Those of the sweep, as one of its cells keeps them, with what the command line says instead."""
    own = kept_wandb(cell)
    return Wandb(parsed.mode, parsed.project or own.project, parsed.entity or own.entity)


def _report(sweep: Path, name: str) -> list[Item]:
    """The run of the sweep's report, where that has been drawn."""
    if not (sweep / "report.html").exists():
        return []
    from analysis.conclusions import conclude
    from analysis.points import alike, own_scores, points
    from analysis.sheets import sheets
    from harness.items import load_items
    from harness.sweep_board import Report, write_report

    frame = own_scores(alike(store.load(sweep))[0])  # as the page has it
    report = Report(name, sheets(points(frame), conclude(frame, load_items(sweep, frame))), sweep)
    if why := report.credential():
        print(why, file=sys.stderr)
        return []
    return [Item(report.told(), sweep, lambda run, *_: write_report(run, report), False)]
