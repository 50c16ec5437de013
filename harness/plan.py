"""What a sweep needs: each cell's state, and every check that can fail before anything trains."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import along, evaluate, retention, search, store
from harness import base as bases
from harness import lease as leases
from harness.cell import Base, Cell, Task
from harness.data.kinds import kind_of
from harness.data.subset import load_dataset, subset_identity
from harness.errors import HarnessError
from harness.identity import fingerprint
from harness.run import subset_of

DONE, RUNNING, MISSING, PARTLY, DRIFTED = "done", "running", "missing", "partly", "drifted"
FAILED = store.FAILED  # their last try's status; such a cell waits for somebody to look at it


@dataclass
class Planned:
    cell: Cell
    state: str
    why: str = ""  # what differs, for a drifted cell; who is at it, for a running one
    unscored: list[str] = field(default_factory=list)  # evaluations that are still to be made
    candidates: list[Cell] = field(default_factory=list)  # among which its learning rate is chosen


def plan(cells: list[Cell]) -> list[Planned]:
    """The state of each cell. Reads data and asks for the bases' identities; loads and builds no model."""
    known: dict[str, Any] = {}  # a thousand cells have few bases and tasks, and each is asked for its identity once

    def base_identity(base: Base) -> Any:
        key = fingerprint(["base", dataclasses.asdict(base)])
        return known[key] if key in known else known.setdefault(key, bases.identity(base))

    def eval_identity(name: str, task: Task) -> Any:
        key = fingerprint(["eval", name, dataclasses.asdict(task)])
        return known[key] if key in known else known.setdefault(key, evaluate.identity(name, task))

    planned = []
    for cell in cells:
        resting_on = search.rule(cell, eval_identity)
        identity = cell.identity(base_identity(cell.base), subset_identity(subset_of(cell)), resting_on)
        wanted = {name: eval_identity(name, task) for name, task in cell.evals.items()}
        planned.append(_state(cell, identity, wanted))
        planned[-1].candidates = search.candidates(cell, identity)
    return planned


def searches(planned: list[Planned]) -> list[Planned]:
    """The candidates for the learning rates of these cells, each once, as far as they were run or are to be."""
    found: dict[Path, Cell] = {}
    needed: set[Path] = set()
    for p in planned:
        found |= {c.folder(): c for c in p.candidates}
        if not (p.cell.folder() / store.TRAINED).exists():
            needed |= {c.folder() for c in p.candidates}
    states = plan(list(found.values()))
    return [p for p in states if p.state == DONE or (p.cell.folder() in needed and p.state != "diverged")]


def _state(cell: Cell, identity: dict[str, Any], wanted: dict[str, Any]) -> Planned:
    folder = cell.folder()
    try:
        store.check_drift(folder, identity)
    except HarnessError as error:
        return Planned(cell, DRIFTED, str(error))
    if store.is_done(cell, wanted):
        return Planned(cell, DONE)
    unscored = [name for name, its in wanted.items() if not store.score_path(folder, name, its).exists()]
    if owner := leases.owner(folder):
        return Planned(cell, RUNNING, owner, unscored)
    if (status := store.last_status(folder)) in FAILED:
        return Planned(cell, status, unscored=unscored)
    begun = (folder / store.TRAINED).exists() or any(folder.glob("checkpoints/*/step*"))
    return Planned(cell, PARTLY if begun else MISSING, unscored=unscored)


def to_run(planned: list[Planned], *, retry_failed: bool) -> list[Cell]:
    """The cells that are not done, of those that failed only if asked for, and last: one can end several processes.

    Refuses if any has drifted: nothing runs beside results that mean something else.
    """
    drifted = [p for p in planned if p.state == DRIFTED]
    if drifted:
        more = f" (and {len(drifted) - 1} more cells)" if len(drifted) > 1 else ""
        raise HarnessError(drifted[0].why + more)
    wanted = [p for p in planned if p.state != DONE and (retry_failed or p.state not in FAILED)]
    return [p.cell for p in sorted(wanted, key=lambda p: p.state in FAILED)]


def _spoken_to(base: Base) -> tuple[Any, ...]:
    return base.path, base.revision, base.chat_template, base.trust_remote_code


def check(cells: list[Cell]) -> None:
    """Raise HarnessError if any of these cells could not run: a base without template, a task that does not build."""
    if not cells:
        return
    seen: set[str] = set()

    def new(*what: Any) -> bool:
        key = fingerprint(what)
        return key not in seen and not seen.add(key)  # type: ignore[func-returns-value]

    for cell in cells:
        cell.method.check()
        if new("rate", dataclasses.asdict(cell.method), dataclasses.asdict(cell.base), sorted(cell.evals)):
            search.check(cell)
        evaluate.check_backend(cell.run)
        along.check(cell)
        for part in cell.method.parts(cell):
            if part.method.uses_data and new("data", part.method.name, dataclasses.asdict(part.data)):
                _check_kind(part)
        base = cell.method.resident(cell.base)
        bases.check_quantize(base)
        retention.check_keep(cell.run.keep)
        retention.check_kept(cell.folder())
        # A base that is made (pocket) may not exist yet; it is ours and has a template.
        if not base.make and _speaks(cell) and new("base", *_spoken_to(base)):
            bases.check_chat(base)
        for name, task in cell.evals.items():
            if new("eval", evaluate.identity(name, task)):
                evaluate.check(name, task)


def _speaks(cell: Cell) -> bool:
    """Whether the base's chat template is needed: raw text is learned, and plain text asked, without."""
    parts = cell.method.parts(cell)
    learned = any(part.method.uses_data and "text" not in part.method.needs for part in parts)
    return learned or any(task.chat for task in cell.evals.values())


def _check_kind(cell: Cell) -> None:
    """Every source must have what the method learns from; a source's rows are all of one form."""
    for name, table in load_dataset(cell.data).tables.items():
        if (kind := kind_of(table.messages(0))) not in cell.method.needs:
            raise HarnessError(
                f"method={cell.method.name} needs {' or '.join(cell.method.needs)} examples, and those of "
                f"{cell.data.name}'s source {name} are {kind}; choose another form (form@data.sources.{name}.form), "
                "data or method"
            )
