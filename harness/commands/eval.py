"""`harness eval`: score finished cells on more tasks."""

import dataclasses
import sys
from pathlib import Path

from harness import ranks
from harness.commands.common import draw, new_parser, one_engine, print_failed
from harness.compose import composed, from_dict, hydra_ready, to_cell, users_folder
from harness.engines.local import not_done
from harness.errors import HarnessError
from harness.plan import check, plan, to_run
from harness.retention import was_kept
from harness.store import RECORD, read_result, records


def main(arguments: list[str]) -> int:
    parser = new_parser(
        "eval",
        "Score all finished cells below RUNS on further tasks; nothing is trained again.",
        "harness eval runs/pocket evals=pocket_quiz",
    )
    parser.add_argument("runs", metavar="RUNS", type=Path)
    parser.add_argument(
        "overrides", metavar="OVERRIDE", nargs="+", help="evals=NAME, and e.g. evals.NAME.limit=100 run.workers=2"
    )
    parser.add_argument("--config-dir", help="your own configuration folder")
    parsed = parser.parse_intermixed_args(arguments)
    if not any(o.startswith("evals=") for o in parsed.overrides):
        raise HarnessError("name the evaluation to add: harness eval RUNS evals=NAME")
    folder = users_folder(parsed.config_dir)
    with hydra_ready(folder):
        asked = to_cell(composed([*parsed.overrides, "method=base"], folder))
    engine = one_engine([asked])
    cells = []
    for place in records(parsed.runs):
        if (place / RECORD).exists():
            cell = from_dict(read_result(place / RECORD)["cell"])
            # Where the records lie now, also if the root was renamed.
            cell.run = dataclasses.replace(asked.run, root=str(place.parents[4]))
            cell.evals, cell.wandb = asked.evals, asked.wandb
            cells.append(cell)
    if not cells:
        raise HarnessError(f"{parsed.runs} holds no finished cells; run a sweep first")
    asked_of = [cell for cell in cells if was_kept(cell.folder())]
    if gone := len(cells) - len(asked_of):
        print(f"{gone} cells left out: their adapters were not kept (run.keep)", file=sys.stderr)
    waiting = to_run(ranks.agree(lambda: plan(asked_of)), retry_failed=True)
    check(waiting)
    failed = not_done(engine.run_cells(waiting))
    scored, before = len(waiting) - len(failed), len(asked_of) - len(waiting)
    print(f"{scored} cells scored on {', '.join(asked.evals)}, {before} had been before")
    draw(parsed.runs, wandb=cells[0].wandb if waiting else None)
    return print_failed(failed)
