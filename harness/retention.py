"""Which adapters stay once their cells are done: `run.keep`. Checkpoints never do; records, losses and answers always.

A *curve* is all sizes of one base, data, method, variant and seed. Only cells that are done, and that nobody is at work
on, lose an adapter; the largest or best size is looked for among the cells on disk, so a sweep may be extended later.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import lease as leases
from harness.cell import Cell
from harness.errors import HarnessError
from harness.store import RECORD, TRAINED, WEIGHTS, read_result

CHOICES = ("all", "last", "best", "none")


def check_keep(keep: str) -> None:
    if keep not in CHOICES:
        raise HarnessError(f"run.keep={keep!r} is unknown; use one of {', '.join(CHOICES)}")


def was_kept(folder: Path) -> bool:
    """Whether more can be asked of the cell: not so where it was trained and its adapter is gone."""
    trained = folder / TRAINED
    if not trained.exists() or any((folder / name).exists() for name in WEIGHTS):
        return True
    return not {"adapter_sha256", "model_sha256"} & read_result(trained)["training"].keys()


def check_kept(folder: Path) -> None:
    """Raise HarnessError unless `was_kept`."""
    if not was_kept(folder):
        raise HarnessError(
            f"the trained weights of {folder} were not kept (run.keep), or deleted; delete that folder to train again"
        )


def prune(cell: Cell) -> int:
    """Delete the adapters of the cell's curve that need not stay; how many."""
    keep = cell.run.keep
    if keep == "all":
        return 0
    done = [(folder, read_result(folder / RECORD)) for folder in _curve(cell)]
    stays = None
    if keep == "last" and done:
        stays = max(done, key=lambda d: d[1]["row"]["size"])[0]
    elif keep == "best" and done:
        task = next(iter(cell.evals), "")
        stays = max(done, key=lambda d: (_headline(d[0], task), -d[1]["row"]["size"]))[0]  # as good, the smaller one
    gone = 0
    for folder, _ in done:
        there = [folder / name for name in WEIGHTS if (folder / name).exists()]
        if folder != stays and there and (folder == cell.folder() or not leases.owner(folder)):
            gone += len(there)
            for file in there:
                file.unlink(missing_ok=True)
    return gone


def kept(cells: Iterable[Cell]) -> list[Cell]:
    """Of cells that train, those whose adapters stay; where it takes the scores to know (best), one of each curve."""
    last: dict[Any, Cell] = {}
    for cell in (c for c in cells if c.method.trains and c.run.keep != "none"):
        size = cell.size if cell.run.keep == "all" else None
        key = (curve_of(cell), size)
        if key not in last or last[key].size < cell.size:
            last[key] = cell
    return list(last.values())


def curve_of(cell: Cell) -> tuple[Any, ...]:
    """What all sizes of a curve have in common."""
    return (cell.folder().parent, cell.method.variant(), cell.seed, cell.subset_seed)


def _curve(cell: Cell) -> list[Path]:
    """Folders of the done cells of the cell's curve."""
    mine = {"variant": cell.method.variant(), "seed": cell.seed, "subset_seed": cell.subset_seed}
    found = []
    for record in sorted(cell.folder().parent.glob(f"*/{RECORD}")):
        row = read_result(record)["row"]
        if all(row[name] == value for name, value in mine.items()):
            found.append(record.parent)
    return found


def _headline(folder: Path, task: str) -> float:
    """The newest headline score of the task, negated where lower is better; below all others where there is none."""
    scored = [read_result(path) for path in (folder / "evals" / task).glob("*.json")]
    if not scored:
        return float("-inf")
    (lead,) = (s for s in max(scored, key=lambda s: s["finished"])["scores"] if s["headline"])
    return float(lead["score"] if lead["higher_is_better"] else -lead["score"])
