"""What every cell answered to every item: one vector of scores for each (cell, task, metric, filter).

An average over items hides what two cells have in common, their items. With the vectors, cells can be compared item by
item, and an interval can tell the noise of the items from that between runs. No torch here.
"""

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import HarnessError

INVALID = "[invalid]"  # lm-eval's word for an answer in which a filter found nothing
PATIENCE = 2.0  # seconds before progress is told

Key = tuple[str, str, str, str]  # a cell's path below the root, task, metric, filter


@dataclass(frozen=True)
class Asked:
    """The n items of a task under one protocol, in one order for all cells."""

    names: tuple[str, ...]  # "member task:hash of the item", numbered where an item is asked twice
    clusters: np.ndarray  # [n] whole numbers: items of one number (a passage, say) are resampled together
    targets: tuple[str, ...]
    chance: float  # the score of guessing: 1 / choices, or the best that one fixed answer can have
    choices: bool = False  # answers are chosen, not written


@dataclass
class Items:
    """Scores of items by cell. What is not here was not kept by item, or its score is not the mean over items."""

    asked: dict[tuple[str, str], Asked] = field(default_factory=dict)  # by task and evaluation fingerprint
    protocol: dict[tuple[str, str], str] = field(default_factory=dict)  # by path and task
    scores: dict[Key, np.ndarray] = field(default_factory=dict)  # [n], in the metric's unit
    valid: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)  # [n] by path, task, filter: one answer

    def stack(self, paths: Iterable[str], task: str, metric: str, filter_: str) -> tuple[Asked, np.ndarray] | None:
        """The items and the cells' scores of them, [cells, n]; None unless all of these cells have them.

        Raises HarnessError where the cells were scored under several protocols.
        """
        paths = list(paths)
        if not paths or any((path, task, metric, filter_) not in self.scores for path in paths):
            return None
        protocols = {self.protocol[path, task] for path in paths}
        if len(protocols) > 1:
            raise HarnessError(
                f"{task} was scored under {len(protocols)} protocols ({', '.join(sorted(p[:8] for p in protocols))}), "
                "so its items cannot be paired. Score all cells again under one, or keep the sweeps apart"
            )
        scores = np.stack([self.scores[path, task, metric, filter_] for path in paths])
        return self.asked[task, protocols.pop()], scores


def load_items(root: Path | str, frame: pd.DataFrame, *, subtasks: bool = False) -> Items:
    """The answers kept beside the scores of `frame`, which is `harness.store.load(root)`.

    Items are their own clusters, but for those whose rows name one: `metadata: {cluster: passage_id}` in a task's
    lm-eval configuration makes the column `passage_id` of its items their cluster. With `subtasks`, the parts of a
    group (the subjects of mmlu) are clusters. Tells progress on stderr after two seconds. Raises HarnessError where
    kept answers have changed since they were scored, and where two cells under one protocol were asked other items.
    """
    items, done = Items(), frame[(frame["status"] == "ok") & frame["score"].notna()]
    cells = list(done.groupby(["path", "task", "eval_fingerprint"], sort=False))
    began = told = time.monotonic()
    for number, (key, rows) in enumerate(cells):
        path, task, mark = map(str, key)
        stem = Path(root, path, "evals", task, mark[:8])
        if stem.with_suffix(".jsonl").exists():
            _read(items, root, path, task, mark, rows, subtasks)
        if time.monotonic() > max(began + PATIENCE, told + 1):
            told = time.monotonic()
            print(f"answers to items: {number + 1:,} of {len(cells):,} read", file=sys.stderr)
    return items


def answers(root: Path | str, path: str, task: str, mark: str) -> list[dict[str, Any]]:
    """What was kept of each item that one cell was asked: a mapping a line, see `harness.evaluate.evaluate`.

    `path`, `task` and `mark` (`eval_fingerprint`) as in `harness.store.load(root)`. Raises HarnessError where a byte
    has changed since the answers were scored.
    """
    stem = Path(root, path, "evals", task, mark[:8])
    kept, scores = stem.with_suffix(".jsonl"), stem.with_suffix(".json")
    content = kept.read_bytes()
    if json.loads(scores.read_text(encoding="utf-8")).get("answers_sha256") != hashlib.sha256(content).hexdigest():
        raise HarnessError(f"{kept} does not match its checksum; delete it and {scores} to have them made again")
    return [json.loads(line) for line in content.splitlines()]


def _read(
    items: Items, root: Path | str, path: str, task: str, mark: str, wanted: pd.DataFrame, subtasks: bool
) -> None:
    """Take in the answers of one cell to one task."""
    by_filter: dict[str, list[dict[str, Any]]] = {}
    for row in answers(root, path, task, mark):
        by_filter.setdefault(row["filter"], []).append(row)
    for filter_, rows in by_filter.items():
        rows.sort(key=lambda row: (row["task"], row["item"]))
        names = _names(rows)
        if (task, mark) not in items.asked:
            items.asked[task, mark] = _asked(rows, names, subtasks)
        elif items.asked[task, mark].names != names:
            raise HarnessError(
                f"{path}/evals/{task}/{mark[:8]}.jsonl holds other items than another cell's of the same evaluation; "
                "delete it and the .json beside it to have them made again"
            )
        items.protocol[path, task] = mark
        if not any(len(row["answers"][0]) > 1 for row in rows):  # samples: some may be empty
            items.valid[path, task, filter_] = np.array([not _empty(row["extracted"]) for row in rows])
        for metric, score in wanted.loc[wanted["filter"] == filter_, ["metric", "score"]].itertuples(index=False):
            values = [row.get(metric) for row in rows]
            if all(isinstance(value, int | float) for value in values):  # a bool is an int
                vector = np.array(values, np.float32)
                if np.isclose(vector.mean(dtype=float), score, rtol=1e-5, atol=1e-7):
                    items.scores[path, task, metric, filter_] = vector


def _names(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    names = []
    for row in rows:
        name = f"{row['task']}:{row['item_hash'][:16]}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}:{seen[name]}")
    return tuple(names)


def _asked(rows: list[dict[str, Any]], names: tuple[str, ...], subtasks: bool) -> Asked:
    label = [row["task"] if subtasks else (row["task"], row["cluster"]) if "cluster" in row else i
             for i, row in enumerate(rows)]  # fmt: skip
    numbers = {name: number for number, name in enumerate(dict.fromkeys(label))}
    targets = tuple(str(row["target"]) for row in rows)
    choices = [len(row["answers"]) for row in rows]  # of likelihoods there is one for each choice
    scored = all(len(row["answers"]) > 1 and len(row["answers"][0][0]) == 2 for row in rows)
    chance = float(np.mean([1 / n for n in choices])) if scored else Counter(targets).most_common(1)[0][1] / len(rows)
    return Asked(names, np.array([numbers[name] for name in label]), targets, chance, scored)


def _empty(extracted: Any) -> bool:
    return extracted in (INVALID, [INVALID], [[INVALID]])
