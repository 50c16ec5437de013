"""`harness judge`: have finished cells' answers compared, or rated, by a language model."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands.common import draw, load_frame, new_parser
from harness.compose import compose_judging, from_dict, users_folder
from harness.errors import HarnessError
from harness.items import load_items
from harness.judge import judging as work
from harness.judge.calls import Caller, Tally
from harness.judge.matches import Field, gather
from harness.judge.settings import Judge, Judging
from harness.store import RECORD, read_result

if TYPE_CHECKING:
    import pandas as pd

    from harness.cell import Run, Task


def main(arguments: list[str]) -> int:
    parser = new_parser(
        "judge",
        "Have the answers of all finished cells below RUNS compared by a language model: with their untouched base or "
        "the reference, and with each other. judge=alpaca_eval, mt_bench or likert is what it is asked (conf/judge/); "
        "judge=errors asks what is wrong with wrong answers. "
        "Its replies are kept in RUNS/.judge; none is asked for twice. After an outage the same command goes on.",
        "harness judge runs/mine --task lima judge.url=http://127.0.0.1:8000/v1 judge.model=name",
    )
    parser.add_argument("runs", metavar="RUNS", type=Path)
    parser.add_argument("--task", required=True, metavar="NAME", help="the evaluation whose kept answers are judged")
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="e.g. judge=mt_bench judge.max_calls=500")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, and stop")
    parser.add_argument("--config-dir", help="your own configuration folder")
    parsed = parser.parse_intermixed_args(arguments)
    folder, frame = users_folder(parsed.config_dir), load_frame(parsed.runs)
    asked = compose_judging(parsed.overrides, folder)
    asked.judge.check()
    task = _task(parsed.runs, frame, parsed.task, asked, folder)
    from harness.asked import questions  # which loads lm-eval's

    field = gather(parsed.runs, frame, parsed.task, questions(parsed.task, task))
    if asked.judge.prompt.sorts:
        field = of_wrong(field, parsed.runs, frame)
    caller = _caller(asked.judge, asked.run)
    planned = work.plan(parsed.runs, field, asked.judge, caller.name)
    print(planned.words(), flush=True)
    if len(planned.waiting) > asked.judge.max_calls:
        raise HarnessError(
            f"{len(planned.waiting):,} calls are more than judge.max_calls={asked.judge.max_calls:,}; raise it, or "
            "lower judge.rounds or the number of items"
        )
    if parsed.dry_run:
        return 0
    try:
        tally, path = work.run(parsed.runs, planned, caller)
    except KeyboardInterrupt:
        print("harness: stopped; what was answered is kept, and the same command goes on", file=sys.stderr)
        return os.EX_TEMPFAIL
    print(f"{tally.made:,} calls made; {path.with_suffix('.jsonl')}")
    draw(parsed.runs)
    return _told(tally, planned.calls - len(tally.replies))


def _told(tally: Tally, left: int) -> int:
    """The exit status, which is 75 where the same command may go on later; and a line for what is left."""
    if tally.stopped or tally.unanswered:
        why = tally.stopped or f"{tally.unanswered:,} calls were tried again in vain"
        print(f"harness: {left:,} calls are left: {why}; the same command goes on", file=sys.stderr)
        return os.EX_TEMPFAIL
    if tally.refused:
        print(f"harness: the judge refused {tally.refused:,} calls, whose matches are left out: {tally.first_refusal}",
              file=sys.stderr)  # fmt: skip
        return 1
    return 0


def of_wrong(field: Field, runs: Path, frame: "pd.DataFrame") -> Field:
    """The same with no more to ask about than the wrong answers that no rule can class."""
    from analysis.anatomy import unclassed
    from analysis.section import Evidence

    left = unclassed(Evidence(runs, frame, load_items(runs, frame)), field.task)
    if not left:
        raise HarnessError(f"no wrong answer to {field.task} is left by the rules, so there is none to ask about")
    names = [f"{task}:{number}" for task, number in field.names]
    only = frozenset((path, i) for path in field.answers for i, name in enumerate(names) if (path, name) in left)
    return replace(field, only=only)


def _caller(judge: Judge, run: "Run") -> Caller:
    if judge.base:
        from harness.judge.local import Local

        return Local(judge.base, run)
    from harness.judge.endpoint import Endpoint

    return Endpoint(judge)


def _task(runs: Path, frame: "pd.DataFrame", name: str, asked: Judging, folder: Path | None) -> "Task":
    """The evaluation as the cells were scored on it: as a cell was to be, else as conf/evals has it."""
    from harness.evaluate import identity
    from harness.identity import fingerprint

    done = frame[(frame["task"] == name) & (frame["status"] == "ok")]
    if done.empty:
        known = ", ".join(sorted(set(frame["task"]) - {""}))
        raise HarnessError(f"no cell below {runs} was scored on {name!r}; they were on {known}")
    marks = set(done["eval_fingerprint"])
    if len(marks) > 1:
        raise HarnessError(f"{name} was scored under {len(marks)} protocols; score all cells again under one")
    if name in asked.evals:
        task = asked.evals[name]
    else:
        recorded = (from_dict(read_result(runs / path / RECORD)["cell"]) for path in done["path"].unique())
        found = next((cell.evals[name] for cell in recorded if name in cell.evals), None)
        task = (
            found
            or compose_judging([f"evals={name}", "judge.url=http://localhost", "judge.model=-"], folder).evals[name]
        )
    if fingerprint(identity(name, task)) not in marks:
        raise HarnessError(
            f"{name} is not what the cells were scored on, so its questions may be others; give the overrides that it "
            f"had, e.g. evals={name} evals.{name}.limit=100"
        )
    return task
