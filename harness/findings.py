"""What is wrong with the data of planned cells: examples that repeat one another, or hold what is asked."""

import dataclasses
from typing import Any

from harness import asked
from harness.cell import Cell
from harness.data.overlap import copies
from harness.data.subset import load_dataset
from harness.identity import fingerprint
from harness.run import subset_of

LOOKED_AT = 20_000  # examples of one dataset; the records tell of all


def findings(cells: list[Cell]) -> list[dict[str, Any]]:
    """Of each dataset, what stands in the first examples that the largest of the cells takes.

    ``data``, ``subset_seed``, ``examples`` (so many were looked at), ``copies`` among them, ``found`` and ``dropped``
    (of all rows, where a policy asks), ``overlap`` with each evaluation.
    """
    largest: dict[str, Cell] = {}
    evals: dict[str, dict[str, Any]] = {}
    for cell in cells:
        if cell.method.uses_data:
            key = fingerprint(dataclasses.asdict(cell.data))
            evals.setdefault(key, {}).update(cell.evals)
            if key not in largest or largest[key].size < cell.size:
                largest[key] = cell
    return [_findings(cell, evals[key]) for key, cell in largest.items()]


def _findings(cell: Cell, evals: dict[str, Any]) -> dict[str, Any]:
    examples, screened = subset_of(cell)[:LOOKED_AT], load_dataset(cell.data).screened
    words = cell.data.contamination.words
    return {
        "data": cell.data.name,
        "subset_seed": cell.subset_seed,
        "examples": len(examples),
        "copies": copies(examples),
        "found": screened.found,
        "dropped": screened.dropped,
        "overlap": {name: asked.overlap(name, task, examples, words) for name, task in evals.items()},
    }


def line(found: dict[str, Any]) -> str:
    """The same for a person."""
    told = [f"{found['copies']:,} repeat another one"]
    for name, its in found["overlap"].items():
        told.append(
            f"{its['examples']:,} hold {its['words']} words or the question of {its['items']:,} items of {name}"
        )
    text = f"{found['data']}, {found['examples']:,} examples (subset seed {found['subset_seed']}): {'; '.join(told)}"
    counts = ", ".join(f"{count:,} {what}" for what, count in found["found"].items())
    return text + f"; of all rows {counts}, {found['dropped']:,} dropped" * bool(counts)
