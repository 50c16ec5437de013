"""What can be measured of a model on a task's items beside the task's own scores: the interface of a probe.

A probe is an evaluation like any other: it can be added to finished cells (`harness eval`), has an identity of its own,
leaves scores with standard errors and one line of evidence for each item. It is written down beside a task,

    gsm8k_code: {task: gsm8k, probe: {_target_: harness.probes.CodeLength}}

and is a small class in `harness/probes/`. No torch here.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from harness.cell import Adapted, Run, Task


@dataclass(frozen=True)
class Asking:
    """What a probe has to work with: the resident `base` (a `harness.base.LoadedBase`), what became of it, the task."""

    base: Any
    adapted: Adapted
    name: str
    task: Task  # without the probe, as the probe has it asked
    run: Run
    # lm-eval's whole evaluation of an `Adapted`: scores, samples, seconds ...; with `task=` of another task than this.
    ask: Callable[..., dict[str, Any]]
    read: Callable[[Adapted], dict[tuple[str, int], list[int]]]  # by (task, item), the tokens of what it would be asked
    # The cell's `harness.data.subset.Example`s; None where it learned from more, or has not learned from all of them.
    examples: Sequence[Any] | None = None


@dataclass
class Measured:
    """Values by item, from which scores are made: their mean and its standard error over items."""

    samples: list[dict[str, Any]]  # a line an item: task, item, item_hash, filter, target, answers, extracted, values
    metrics: dict[str, bool]  # name of each value -> whether higher is better; the first is the headline
    filter: str = "none"
    about: dict[str, Any] = field(default_factory=dict)  # kept beside the scores, and nothing else

    def scores(self, headline: str | None = None) -> list[dict[str, Any]]:
        """As `harness.store.load` has them. An item without a value (None) is left out of that metric's mean."""
        return [
            {
                "metric": metric,
                "filter": self.filter,
                "headline": f"{metric}/{self.filter}" == headline if headline else metric == next(iter(self.metrics)),
                **mean([row[metric] for row in self.samples if row[metric] is not None]),
                "higher_is_better": better,
            }
            for metric, better in self.metrics.items()
        ]


def mean(values: list[float]) -> dict[str, Any]:
    """``score``, ``stderr`` (sd / sqrt(n), lm-eval's) and ``n_items`` of values by item; NaN where there is none."""
    n = len(values)
    if not n:
        return {"score": math.nan, "stderr": None, "n_items": 0}
    middle = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (n - 1) / n) if n > 1 else None
    return {"score": middle, "stderr": spread, "n_items": n}


@dataclass
class Probe:
    """Its fields are its settings, and its identity but for those that change no result."""

    for_a_judge: ClassVar[bool] = False  # it keeps answers that say little before `harness judge` has seen them

    def identity(self) -> dict[str, Any]:
        return {"name": type(self).__name__, **dataclasses.asdict(self)}

    def check(self, name: str, task: Task) -> None:
        """Raise HarnessError where it cannot be measured on this task; called before anything runs."""

    def asks(self, task: Task) -> Task:
        """The task as it is asked for this probe, for instance with other generation settings."""
        return task

    def passes(self) -> float:
        """How often it reads all items and answers, as a multiple of one plain evaluation: for the plan."""
        return 1.0

    def examples(self, size: int) -> int:
        """How many of a cell's examples it reads, in one forward pass each: for the plan."""
        return 0

    def measure(self, asking: Asking) -> Measured:
        raise NotImplementedError  # not abstract: a dataclass to start from
