"""Generated, verifiable rows from reasoning-gym (Apache-2.0), an Artifact like any other."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness.artifact import build_once, cache_dir
from harness.errors import HarnessError
from harness.identity import fingerprint

# Tenths of all questions, by hash. Small tasks have few questions, and a test needs items: hence its large share.
SPLITS = {"train": range(0, 3), "dev": range(3, 4), "test": range(4, 10)}
PATIENCE = 1000  # draws in a row without a new question, after which a task is taken to have no more


@dataclass
class GymRows:
    """`rows` distinct questions of one reasoning-gym task, as JSONL with the columns question, answer and task.

    A question belongs to one split by its own hash, so none that is trained on is ever asked: other seeds alone would
    not do, since all 200 sums of two one-digit numbers come up under any seed. Without `split` all questions are drawn
    from, for configurations that have none in common. `config` goes to the task. With `entries` a column `entry` holds,
    as JSON, what the task's scorer compares answers with.
    """

    task: str
    rows: int
    split: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    entries: bool = False

    def __post_init__(self) -> None:
        if self.split is not None and self.split not in SPLITS:
            raise HarnessError(f"reasoning-gym split {self.split!r} is unknown; use {', '.join(SPLITS)}")

    def identity(self) -> str:
        try:
            version = importlib.metadata.version("reasoning-gym")
        except importlib.metadata.PackageNotFoundError as error:
            raise HarnessError(
                "reasoning-gym is not installed; pip install -c constraints.txt -e '.[tasks]'"
            ) from error
        shares = [len(share) for share in SPLITS.values()]
        what = [version, shares, self.task, self.split, self.rows, dict(self.config)]
        return fingerprint([*what, "entries"] if self.entries else what)

    def path(self) -> Path:
        folder = cache_dir() / "gym" / f"{self.task}-{self.split or 'all'}-{self.rows}-{self.identity()[:12]}"
        return build_once(folder, self._build) / "rows.jsonl"

    def _build(self, folder: Path) -> None:
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            rows = tqdm(self._distinct(), f"rows of {self.task}", self.rows, unit="row", delay=2, disable=None)
            for item in rows:
                row = {"question": item["question"], "answer": item["answer"], "task": self.task}
                file.write(json.dumps({**row, "entry": self._entry(item)} if self.entries else row) + "\n")

    def _entry(self, item: dict[str, Any]) -> str:
        """The item as JSON, from which its own answer must still get the score that it gets from the item itself."""
        from reasoning_gym import get_score_answer_fn

        score = get_score_answer_fn(self.task)
        try:
            text = json.dumps(item)
            whole = score(item["answer"], json.loads(text)) == score(item["answer"], item)
        except (TypeError, ValueError, KeyError):
            whole = False
        if not whole:
            raise HarnessError(
                f"reasoning-gym's {self.task} scores with more than JSON can hold; leave out `entries` and compare "
                "answers with harness.rewards.ExactMatch"
            )
        return text

    def _items(self) -> Iterator[dict[str, Any]]:
        """Items without end. Item i of a task is the same at any size, and some tasks take memory for all of them."""
        import reasoning_gym

        start, size = 0, 1024
        while True:
            try:
                dataset = reasoning_gym.create_dataset(self.task, size=size, seed=0, **self.config)
            except (ValueError, TypeError, AssertionError) as error:
                raise HarnessError(f"reasoning-gym has no task {self.task!r} with {self.config}: {error}") from error
            yield from (dataset[index] for index in range(start, size))
            start, size = size, 2 * size

    def _distinct(self) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        fruitless = 0
        items = self._items()
        while len(seen) < self.rows:
            item = next(items)
            fruitless += 1
            if fruitless > PATIENCE:
                raise HarnessError(
                    f"reasoning-gym's {self.task} has only {len(seen)} such questions with {self.config}; "
                    "ask for fewer rows or a wider config"
                )
            question = item["question"]
            tenth = int(hashlib.sha256(question.encode()).hexdigest(), 16) % 10
            if question not in seen and (self.split is None or tenth in SPLITS[self.split]):
                seen.add(question)
                fruitless = 0
                yield item
