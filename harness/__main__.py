"""The command line, the only place where harness/ and analysis/ meet. Heavy imports wait until a command needs them."""

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness import preempt, ranks
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.cell import Cell
    from harness.engines.worker import Outcome
    from harness.plan import Planned

TRY_AGAIN = 75  # the exit status of a process that was told to stop, EX_TEMPFAIL of sysexits.h

HELP = """\
usage: harness COMMAND ...

Data-scaling sweeps that tell eliciting what a base model knows from teaching it something new.

  sweep NAME [overrides]     run a sweep, then draw its curves      harness sweep pocket run.workers=2
  plan NAME [overrides]      what it would run, and what is done    harness plan pocket size=4,16,64
  run [overrides]            one cell, a plain Hydra application    harness run base=pocket_m method=sft size=64
  status RUNS                what finished, with its scores         harness status runs/pocket
  report RUNS                report.html, curves.png, points.csv    harness report runs/pocket
  show CELL | overrides      tokens, loss mask, prompt, as seen     harness show data=pocket_facts size=2
  eval RUNS evals=NAME       score finished cells on more tasks     harness eval runs/pocket evals=pocket_quiz

`harness COMMAND --help` says more. Tab completion: eval "$(harness -sc install=bash)"
"""


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        sys.exit(0 if arguments else 2)
    commands: dict[str, Callable[[list[str]], int | None]] = {
        "sweep": sweep,
        "plan": plan,
        "run": run,
        "status": status,
        "report": report,
        "show": show,
        "eval": evaluate,
        "-sc": complete,
        "--shell-completion": complete,
    }
    try:
        if arguments[0] not in commands:
            raise HarnessError(f"no command {arguments[0]!r}; known: sweep, plan, run, status, report, show, eval")
        if ranks.count() > 1 and arguments[0] not in ("run", "sweep", "eval"):
            raise HarnessError(f"harness {arguments[0]} is the work of one process; start it without accelerate launch")
        if arguments[0] in ("run", "sweep", "eval"):
            preempt.listen()
        ranks.join()
        code = commands[arguments[0]](arguments[1:] if arguments[0][0] != "-" else arguments)
        ranks.leave(code or 0)
        sys.exit(code)
    except HarnessError as error:
        ranks.complain(str(error))
        sys.exit(2)
    except preempt.PreemptedError as error:
        ranks.complain(str(error) or "told to stop; the same command goes on")
        sys.exit(TRY_AGAIN)
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def sweep(arguments: list[str]) -> int:
    from harness import plan as plans
    from harness.engines.local import not_done, run_cells
    from harness.store import write_json

    parsed, cells, hypothesis = _sweep_arguments("sweep", arguments)
    if parsed.cfg:
        return _print_cells(cells)
    planned = ranks.agree(lambda: plans.plan(cells))
    waiting = plans.to_run(planned, retry_failed=parsed.retry_failed)
    print(_summary(planned))
    plans.check(waiting)
    run, name = cells[0].run, cells[0].sweep
    outcomes = run_cells(waiting, run.workers, run.threads)
    folder = Path(run.root, name)
    about = {"command": _typed("sweep", [parsed.name, *parsed.overrides]), "hypothesis": hypothesis}
    ranks.agree(lambda: write_json(folder / "sweep.json", about))
    _draw(folder, mirror=cells[0] if outcomes else None)
    left = [p for p in planned if p.state in plans.FAILED and p.cell not in waiting]
    for p in left:
        print(f"{p.state} before: {p.cell.folder()}; --retry-failed runs it again", file=sys.stderr)
    return _print_failed(not_done(outcomes)) or int(bool(left))


def plan(arguments: list[str]) -> int:
    from harness import plan as plans

    parsed, cells, _ = _sweep_arguments("plan", arguments)
    if parsed.cfg:
        return _print_cells(cells)
    planned = plans.plan(cells)
    for p in planned:
        print(f"{p.state:8} {p.cell.folder()}  [{', '.join(p.cell.evals)}]")
    print(_summary(planned))
    plans.check(plans.to_run(planned, retry_failed=True))
    return 0


def run(arguments: list[str]) -> None:
    from harness.app import run_app

    run_app(arguments)


def complete(arguments: list[str]) -> None:
    from harness.app import complete as complete_line

    complete_line(arguments, ["eval", "plan", "report", "run", "show", "status", "sweep"])


def status(arguments: list[str]) -> int:
    parser = _parser("status", "What finished below RUNS, with its headline scores.", "harness status runs/pocket")
    parser.add_argument("runs", metavar="RUNS", type=Path)
    frame = _load(parser.parse_args(arguments).runs)
    done, left = frame[frame.status == "ok"], frame[frame.status != "ok"]
    seconds = done.drop_duplicates("path").train_seconds.sum()
    others = "".join(f", {count} {status}" for status, count in left.status.value_counts().items())
    print(f"{done.path.nunique()} cells done{others}; {seconds:.0f} s of training")
    lead = done[done.headline.astype(bool)]
    if len(lead):
        keys = ["task", "base", "data", "method", "variant", "size"]
        table = lead.groupby(keys, dropna=False).score.agg(["mean", "min", "max", "count"])
        print(table.rename(columns={"count": "seeds"}).round(3).to_string())
    for row in left.itertuples():
        print(f"{row.status}: {row.path}")
    return 1 if len(left) else 0


def report(arguments: list[str]) -> int:
    parser = _parser(
        "report", "Draw report.html, curves.png, curves.svg and points.csv in RUNS.", "harness report runs/pocket"
    )
    parser.add_argument("runs", metavar="RUNS", type=Path)
    _draw(parser.parse_args(arguments).runs)
    return 0


def show(arguments: list[str]) -> int:
    from harness.compose import compose_cell, from_dict, users_folder
    from harness.show import show_cell
    from harness.store import RECORD, read_json

    parser = _parser(
        "show",
        "A cell as the model sees it: rendered turns with their tokens and loss mask, and one evaluation prompt. "
        "CELL is a finished cell's folder; instead, overrides describe a cell that has not run.",
        "harness show data=pocket_facts size=2",
    )
    parser.add_argument("cell", metavar="CELL|OVERRIDE", nargs="+")
    parser.add_argument("--config-dir", help="your own configuration folder")
    parsed = parser.parse_intermixed_args(arguments)
    record = Path(parsed.cell[0], RECORD)
    if record.is_file():
        cell = from_dict(read_json(record)["cell"])
    elif len(parsed.cell) == 1 and "=" not in Path(parsed.cell[0]).name:
        raise HarnessError(
            f"{parsed.cell[0]} holds no {RECORD}; give a finished cell's folder, or overrides such as size=2"
        )
    else:
        cell = compose_cell(parsed.cell, users_folder(parsed.config_dir))
    show_cell(cell)
    return 0


def evaluate(arguments: list[str]) -> int:
    from harness.compose import composed, from_dict, hydra_ready, to_cell, users_folder
    from harness.engines.local import not_done, run_cells
    from harness.plan import check, plan, to_run
    from harness.store import RECORD, read_json, records

    parser = _parser(
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
    cells = []
    for place in records(parsed.runs):
        if (place / RECORD).exists():
            cell = from_dict(read_json(place / RECORD)["cell"])
            # Where the records lie now, also if the root was renamed.
            cell.run = dataclasses.replace(asked.run, root=str(place.parents[4]))
            cell.evals, cell.wandb = asked.evals, asked.wandb
            cells.append(cell)
    if not cells:
        raise HarnessError(f"{parsed.runs} holds no finished cells; run a sweep first")
    waiting = to_run(ranks.agree(lambda: plan(cells)), retry_failed=True)
    check(waiting)
    failed = not_done(run_cells(waiting, asked.run.workers, asked.run.threads))
    scored, before = len(waiting) - len(failed), len(cells) - len(waiting)
    print(f"{scored} cells scored on {', '.join(asked.evals)}, {before} had been before")
    _draw(parsed.runs, mirror=cells[0] if waiting else None)
    return _print_failed(failed)


def _parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(f"harness {command}", description=description, epilog=f"example: {example}")


def _sweep_arguments(command: str, arguments: list[str]) -> tuple[argparse.Namespace, "list[Cell]", str]:
    from harness.compose import users_folder
    from harness.sweep import sweep_cells

    parser = _parser(
        command,
        "NAME is a file in sweeps/ (yours or the project's) or a path. Overrides are Hydra's: key=value, key=a,b or "
        "key=range(0,5) replace that axis in every arm; arms.NAME.key=values in one arm; ~arms.NAME leaves an arm out.",
        f"harness {command} pocket size=4,16,64 run.workers=2",
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*")
    parser.add_argument("--config-dir", help="your own configuration folder, with sweeps/ in it")
    parser.add_argument("--cfg", action="store_true", help="print the composed cells as YAML and stop")
    if command == "sweep":
        parser.add_argument("--retry-failed", action="store_true", help="run cells again that failed or diverged")
    parsed = parser.parse_intermixed_args(arguments)
    sweep, cells = sweep_cells(parsed.name, parsed.overrides, users_folder(parsed.config_dir))
    return parsed, cells, sweep.hypothesis


def _print_cells(cells: "list[Cell]") -> int:
    from omegaconf import OmegaConf

    from harness.run import as_dict

    for cell in cells:
        print(f"--- # {cell.folder()}\n{OmegaConf.to_yaml(OmegaConf.create(as_dict(cell)))}", end="")
    return 0


def _summary(planned: "list[Planned]") -> str:
    states = [p.state for p in planned]
    counts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
    return f"{len(planned)} cells: {counts}"


def _draw(folder: Path, mirror: "Cell | None" = None) -> None:
    """Report and figures from the records; with `mirror`, the sweep's curves go to W&B as that cell's settings say."""
    if not ranks.first():
        return
    from analysis.curves import points, telling
    from analysis.report import write_report
    from harness import board
    from harness.store import provenance, read_json

    about = folder / "sweep.json"
    frame = _load(folder)
    facts = read_json(about) if about.exists() else {"command": _typed("report", [str(folder)]), "hypothesis": ""}
    page = write_report(frame, folder, sweep=folder.name, provenance=provenance(), **facts)
    figure = folder / "curves.png"
    if mirror and figure.exists():
        table = telling(points(frame))
        board.log_curves(mirror.wandb, sweep=mirror.sweep, points=table, figure=figure, folder=folder)
    print(page, *([figure] if figure.exists() else []), sep="\n")


def _load(folder: Path):  # a DataFrame; pandas is imported only when needed
    from harness.store import load

    frame = load(folder)
    if frame.empty:
        raise HarnessError(f"{folder} holds no finished cells; run a sweep first, e.g. harness sweep pocket")
    return frame


def _typed(command: str, arguments: list[str]) -> str:
    return shlex.join(["harness", command, *arguments])


def _print_failed(failed: "list[Outcome]") -> int:
    """The exit status."""
    for outcome in failed:
        print(f"{outcome.state}: {outcome.cell.folder()}: {outcome.error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    main()
