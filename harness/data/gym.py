"""Generated, verifiable rows from reasoning-gym (Apache-2.0), an Artifact like any other."""

import importlib.metadata
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.artifact import build_once, cache_dir
from harness.cell import fingerprint
from harness.errors import HarnessError


@dataclass
class GymRows:
    """`rows` items of one reasoning-gym task, as JSONL with the columns question, answer, task and seed.

    Splits are kept apart by their seeds and their ranges of items never meet: item i of seed s is drawn from its own
    generator (s + i), so give splits seeds further apart than their numbers of rows. `config` goes to the task.
    """

    task: str
    rows: int
    seed: int
    config: dict[str, Any] = field(default_factory=dict)

    def identity(self) -> str:
        try:
            version = importlib.metadata.version("reasoning-gym")
        except importlib.metadata.PackageNotFoundError as error:
            raise HarnessError(
                "reasoning-gym is not installed; pip install 'superficial-alignment-harness[smol]'"
            ) from error
        return fingerprint(["reasoning-gym", version, self.task, self.rows, self.seed, dict(self.config)])

    def path(self) -> Path:
        folder = cache_dir() / "gym" / f"{self.task}-{self.rows}-{self.identity()[:12]}"
        return build_once(folder, self._build) / "rows.jsonl"

    def _build(self, folder: Path) -> None:
        import reasoning_gym

        dataset = reasoning_gym.create_dataset(self.task, size=self.rows, seed=self.seed, **self.config)
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            for i in range(self.rows):
                item = dataset[i]
                row = {"question": item["question"], "answer": item["answer"], "task": self.task, "item": i}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
