"""What finished cells measured, for the estimates of a plan: tokens an example, seconds, memory. No torch here."""

import functools
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from harness.store import RECORD, read_result

Key = tuple[str, ...]  # from the widest likeness to the narrowest, e.g. (base, method, data)


@dataclass
class Rates:
    """Seconds as a·count + b·FLOPs (a, b ≥ 0, by least squares of relative error), each key learning from its own."""

    samples: dict[Key, list[tuple[float, float, float]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, key: Key, count: float, flops: float, seconds: float) -> None:
        for known in range(len(key) + 1):
            self.samples[key[:known]].append((count, flops, max(seconds, 1e-3)))

    def seconds(self, key: Key, count: float, flops: float) -> float | None:
        """By the narrowest part of the key that was measured; None if not even the widest was."""
        like = next((key[:known] for known in range(len(key), -1, -1) if key[:known] in self.samples), None)
        return None if like is None else float(np.dot(self._fit(like), (count, flops)))

    @functools.cache  # noqa: B019  as many as there are keys, for as long as a plan is made
    def _fit(self, key: Key) -> Any:
        of = np.array(self.samples[key], float)
        scale = np.maximum(of[:, :2].max(axis=0), 1)  # counts and FLOPs lie many orders of magnitude apart
        return nnls(of[:, :2] / scale / of[:, 2:], np.ones(len(of)))[0] / scale

    def __hash__(self) -> int:
        return id(self)


@dataclass
class History:
    cells: int = 0
    device: str = ""  # on which the newest of them ran; the others are not learnt from
    training: Rates = field(default_factory=Rates)  # (base, method and variant, data); steps
    evaluation: Rates = field(default_factory=Rates)  # (base, task, method); items
    _example_tokens: dict[Key, list[float]] = field(default_factory=lambda: defaultdict(list))
    _overhead: dict[Key, list[float]] = field(default_factory=lambda: defaultdict(list))
    _memory: dict[Key, list[float]] = field(default_factory=lambda: defaultdict(list))

    def learn(self, record: dict[str, Any], scored: dict[str, dict[str, Any]], asked: dict[str, float]) -> None:
        """From one record, the score files of its tasks, and the FLOPs by task that these took."""
        self.cells += 1
        row, training = record["row"], record["training"]
        base, how = row["base"], f"{row['method']} {row['variant']}"
        alone = "stages" not in training  # which other cells may have trained
        if alone and "flops" in training:
            each = training["tokens"] / (training["epochs"] * row["size"])
            self._example_tokens[base, row["data"], row["method"]].append(each)
            self.training.add((base, how, row["data"]), training["steps"], training["flops"], training["seconds"])
        for task, scores in scored.items():
            key, items = (base, task, row["method"]), scores["scores"][0]["n_items"]
            self.evaluation.add(key, items, asked[task], scores["seconds"])
        if alone:
            rest = record["wall_seconds"] - training.get("seconds", 0.0) - sum(s["seconds"] for s in scored.values())
            self._overhead[(base,)].append(max(0.0, rest))
        for of in ((base,), (base, row["data"], row["method"])):
            self._memory[of].append(record["peak_memory_bytes"])

    def example_tokens(self, key: Key) -> float | None:
        """Tokens of an example, on average, for (base, data, method)."""
        return _mean(self._example_tokens.get(key))

    def overhead(self, base: str) -> float | None:
        """Seconds of a cell beside training and evaluation."""
        return _mean(self._overhead.get((base,)))

    def memory(self, *key: str) -> float | None:
        """Bytes, the most that was seen of a base, or of (base, data, method)."""
        return max(self._memory.get(key, ()), default=None)


Finished = dict[Path, tuple[dict[str, Any], dict[str, dict[str, Any]]]]


def read_finished(root: Path) -> Finished:
    """By folder: the record and the newest score file of each task, of all cells below `root`, oldest cell first."""
    found = {}
    for path in root.rglob(RECORD) if root.is_dir() else ():
        scored: dict[str, dict[str, Any]] = {}
        for file in path.parent.glob("evals/*/*.json"):
            scores, task = read_result(file), file.parent.name
            if task not in scored or scored[task]["finished"] < scores["finished"]:
                scored[task] = scores
        found[path.parent] = (read_result(path), scored)
    return dict(sorted(found.items(), key=lambda item: item[1][0]["started"]))


def _mean(values: list[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
