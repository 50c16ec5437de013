"""`harness run`: one cell as a plain Hydra application, so --multirun, --cfg, sweepers, launchers, completion work."""

import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from harness import ranks
from harness.cell import Cell
from harness.compose import compose_cell, register, shipped, to_cell, users_folder
from harness.errors import HarnessError
from harness.preempt import PreemptedError
from harness.secrets import redacted
from harness.store import load
from harness.sweep import known_sweeps, parse


@hydra.main(config_path=str(shipped("conf").resolve()), config_name="cell", version_base="1.3")
def hydra_app(config: DictConfig) -> float | None:
    """Returns the headline score of the first evaluation, so that a Hydra sweeper can optimise it."""
    from harness.engines.worker import attempt, prepare
    from harness.plan import check, plan, to_run

    try:
        cell = to_cell(config)
        if cell.engine.name != "local":
            raise HarnessError(f"harness run runs one cell, here; engine={cell.engine.name} is for sweep and eval")
        prepare(cell.run.threads)
        check(to_run(plan([cell]), retry_failed=True))
        outcome = attempt(cell)
    except HarnessError as error:
        _end(str(error), 2)
    except Exception as error:
        print(redacted(traceback.format_exc()), file=sys.stderr)
        _end(f"not foreseen: {error}", 1)
    folder = cell.folder()
    if outcome.state == "preempted":
        raise PreemptedError(outcome.error)
    if outcome.state != "ok":
        _end(f"{outcome.state}: {folder}: {outcome.error}", 1)
    print(folder)
    return ranks.agree(lambda: headline(cell, folder))


def _end(text: str, status: int) -> NoReturn:
    """Complain and exit; in a multirun that would take the other jobs along: Hydra catches exceptions, not SystemExit.

    Several ranks exit in any case: Hydra would go on to the next job on one, while the others still wait for it.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN and ranks.count() == 1:
        raise HarnessError(redacted(text)) from None
    ranks.complain(text)
    sys.exit(status)


def headline(cell: Cell, folder: Path) -> float | None:
    frame = load(folder)
    first = frame[frame.headline & (frame.task == next(iter(cell.evals), ""))]
    return float(first.score.iloc[0]) if len(first) else None


def run_app(arguments: list[str]) -> None:
    """`harness run ARGUMENTS`: check the overrides first, as Hydra's own errors are many lines long, then hand over."""
    flags = get_args_parser().parse_args(arguments)
    folder = users_folder(flags.config_dir)
    register()
    if not (flags.help or flags.hydra_help or flags.shell_completion):
        compose_cell(first_of_each(flags.overrides, flags.multirun), folder)
    if folder and not flags.config_dir:
        arguments = ["--config-dir", str(folder), *arguments]
    sys.argv = ["harness run", *arguments]
    hydra_app()


def first_of_each(overrides: list[str], multirun: bool) -> list[str]:
    """One cell of a multirun: the first value of each axis. What only another sweeper understands is left to it."""
    chosen = []
    for override in parse(overrides):
        line = override.input_line or ""
        if override.is_hydra_override() or override.is_interval_sweep():
            continue
        if override.is_sweep_override():
            if not multirun:
                raise HarnessError(
                    f"{line} gives several values; add --multirun, or write a sweep and use harness sweep"
                )
            line = line.partition("=")[0] + "=" + next(iter(override.sweep_string_iterator()))
        chosen.append(line)
    return chosen


def complete(arguments: list[str], commands: list[str]) -> None:
    """`harness -sc install=bash` and what the shell calls back: our command words, then Hydra's completion."""
    register()
    folder = users_folder(None)
    words = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) == 2:
        print(*(c for c in commands if c.startswith(words[1])))
        return
    if len(words) == 3 and words[1] in ("sweep", "plan"):
        print(*(s for s in known_sweeps(folder) if s.startswith(words[2])))
        return
    if len(words) > 2 and words[1] in ("run", "sweep", "plan", "show", "eval"):
        skip = 2 if words[1] in ("run", "show") else 3  # harness sweep NAME overrides
        os.environ["COMP_LINE"] = " ".join(["harness", *words[skip:]])
    sys.argv = ["harness", *(["--config-dir", str(folder)] if folder else []), *arguments]
    hydra_app()
