"""`harness sweep`: plan, run what is not done, draw."""

import sys
from pathlib import Path

from harness import plan as plans
from harness import ranks, retention
from harness.commands.common import draw, one_engine, print_cells, print_failed, sweep_arguments, typed
from harness.commands.plan import totals
from harness.engines.local import not_done
from harness.standing import SWEEP, plan_of
from harness.store import write_json


def main(arguments: list[str]) -> int:
    parsed, cells, hypothesis = sweep_arguments("sweep", arguments)
    if parsed.cfg:
        return print_cells(cells)
    engine = one_engine(cells)
    planned = ranks.agree(lambda: plans.plan(cells))
    waiting = plans.to_run(planned, retry_failed=parsed.retry_failed)
    plans.check(waiting)
    if ranks.first():
        print("\n".join(totals(planned, parsed)), flush=True)
    run, name = cells[0].run, cells[0].sweep
    folder = Path(run.root, name)
    about = {"command": typed("sweep", [parsed.name, *parsed.overrides]), "hypothesis": hypothesis}
    ranks.agree(lambda: write_json(folder / SWEEP, {**about, "cells": plan_of(cells, folder)}))
    outcomes = engine.run_cells(waiting)
    ranks.agree(lambda: [retention.prune(cell) for cell in cells])
    draw(folder, wandb=cells[0].wandb if outcomes else None)
    left = [p for p in planned if p.state in plans.FAILED and p.cell not in waiting]
    for p in left:
        print(f"{p.state} before: {p.cell.folder()}; --retry-failed runs it again", file=sys.stderr)
    return print_failed(not_done(outcomes)) or int(bool(left))
