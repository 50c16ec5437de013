"""What the one who runs the comparison may set, and where its works run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import models
from tests.bench.peer import AbsentError


@dataclass(frozen=True)
class Knobs:
    repeats: int = 3
    rows: int = 1_000_000  # of the work `data`
    tiny: bool = False  # so little work that it only tries the runner


@dataclass(frozen=True)
class Place:
    """A device and the model that suits it. `suffix` marks the rows in the table."""

    device: str
    model: Callable[[], Path]
    suffix: str

    def check(self) -> None:
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise AbsentError("no CUDA device here")


CPU = Place("cpu", models.smollm, "")
CUDA = Place("cuda", models.llama_1b, " (cuda, Llama 1B random)")
