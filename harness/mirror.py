"""What W&B is told of a cell: the same whether it is told while the cell runs or afterwards from its files.

A *run* there is one try at a cell: its id is the cell's fingerprint and the number of the try, so that a try which
goes on after a killed one leaves that one's half-written run alone. Every try tells of the steps done before it too.
"""

import math
from pathlib import Path
from typing import Any

from harness import store
from harness.board import Told
from harness.identity import fingerprint

TAG = 64  # characters, W&B's limit


def begun(folder: Path, cell: dict[str, Any], identity: dict[str, Any], attempt: int) -> Told:
    """What is known when try number `attempt` begins; `cell` is a cell as plain data, as its record keeps it."""
    left_out = ("run", "wandb", "evals")
    names = [cell[part]["name"] for part in ("base", "data", "method")]
    return Told(
        run_id=f"{fingerprint([cell['sweep'], identity])[:16]}-{attempt}",
        name="/".join([*names, folder.name]),
        group=cell["sweep"],
        config={k: v for k, v in cell.items() if k not in left_out}
        | {"evals": sorted(cell["evals"]), "fingerprint": fingerprint(identity), "attempt": attempt},
        tags=[name[:TAG] for name in dict.fromkeys(names)],
    )


def of(folder: Path) -> Told | None:
    """What the files of a cell that is done or failed tell; None where it failed before it began."""
    done = (folder / store.RECORD).exists()
    if not done and not (folder / store.ATTEMPT).exists():
        return None
    kept = store.read_result(folder / store.RECORD) if done else store.read_json(folder / store.ATTEMPT)
    attempt = kept.get("attempt", 0)  # 0: recorded before tries were counted
    told = begun(folder, kept["cell"], kept["identity"], attempt)
    if done:
        told.history = history(folder)
        told.summary = summary(kept["cell"]["size"], store.newest_scores(folder))
    else:
        told.status = store.last_status(folder)
    return told


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows of a training that is through, in order; none for a method that does not train."""
    return store.read_jsonl(folder / store.LOSSES) if (folder / store.LOSSES).exists() else []


def summary(size: int, scores: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """``{"examples": size, "<task>/<metric>/<filter>": score, ...}`` of the scores by task that are finite numbers."""
    values: dict[str, Any] = {"examples": size}
    for task, rows in scores.items():
        for row in rows:
            if row["score"] is not None and math.isfinite(row["score"]):
                values[f"{task}/{row['metric']}/{row['filter']}"] = row["score"]
    return values
