"""The command line: a file of `harness/commands/` for each command, where harness/ and analysis/ meet.

Only the one that is called is imported, so that a quick command pays for nothing heavy.
"""

import importlib
import os
import sys
import traceback

from harness import preempt, ranks, secrets
from harness.errors import HarnessError

TRY_AGAIN = 75  # the exit status of a process that was told to stop, EX_TEMPFAIL of sysexits.h
COMMANDS = ("sweep", "plan", "run", "status", "report", "show", "eval", "sync", "export", "judge")
TRAIN = ("run", "sweep", "eval")  # these listen to signals and may be started by accelerate launch

HELP = """\
usage: harness COMMAND ...

Data-scaling sweeps that tell eliciting what a base model knows from teaching it something new.

  sweep NAME [overrides]     run a sweep, then draw its curves      harness sweep pocket run.workers=2
  plan NAME [overrides]      what it would run, and what is done    harness plan pocket size=4,16,64
  run [overrides]            one cell, a plain Hydra application    harness run base=pocket_m method=sft size=64
  status RUNS [--watch]      what finished, and what runs           harness status runs/pocket
  report RUNS [--against X]  the page; beside published values     harness report runs/pocket
  show CELL | overrides      tokens, loss mask, prompt, as seen     harness show data=pocket_facts size=2
  sync RUNS                  fill in on W&B what it lacks           harness sync runs/pocket
  export CELL FOLDER         base and adapter merged, as a model    harness export runs/pocket/.../n000000064-... mine
  eval RUNS evals=NAME       score finished cells on more tasks     harness eval runs/pocket evals=pocket_quiz
  judge RUNS --task NAME     have answers compared by a model       harness judge runs/mine --task lima judge.url=...

`harness COMMAND --help` says more. Tab completion: eval "$(harness -sc install=bash)"
"""


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        sys.exit(0 if arguments else 2)
    try:
        code = _run(*arguments)
        ranks.leave(code)
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
    except Exception:  # not foreseen, so all of it is told, less what nobody may read
        print(secrets.redacted(traceback.format_exc()), file=sys.stderr)
        sys.exit(1)


def _run(command: str, *arguments: str) -> int:
    """The exit status."""
    if command in ("-sc", "--shell-completion"):
        importlib.import_module("harness.app").complete([command, *arguments], sorted(COMMANDS))
        return 0
    if command not in COMMANDS:
        raise HarnessError(f"no command {command!r}; known: {', '.join(COMMANDS)}")
    secrets.refuse(arguments, "the command line")
    if ranks.count() > 1 and command not in TRAIN:
        raise HarnessError(f"harness {command} is the work of one process; start it without accelerate launch")
    if command in TRAIN:
        preempt.listen()
    ranks.join()
    return importlib.import_module(f"harness.commands.{command}").main(list(arguments)) or 0


if __name__ == "__main__":
    main()
