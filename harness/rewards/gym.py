"""reasoning-gym's own scorers, one for each of its tasks."""

import importlib.util
import json
from dataclasses import dataclass
from typing import Any

from harness.errors import HarnessError
from harness.rewards.base import Reward, found
from harness.rewards.match import compiled


@dataclass
class ReasoningGym(Reward):
    """The task's score of the completion, or of what `pattern` finds last in it; some give parts of 1.

    The reference is the column `entry` of `harness.data.gym.GymRows` with ``entries: true``.
    """

    pattern: str = ""

    def __post_init__(self) -> None:
        if not importlib.util.find_spec("reasoning_gym"):
            raise HarnessError("reasoning-gym is not installed; pip install -c constraints.txt -e '.[tasks]'")
        compiled(self.pattern)

    def __call__(self, completion: str, reference: str) -> float:
        try:
            return self._score(found(self.pattern, completion).strip(), json.loads(reference))
        except Exception:  # whatever a task's scorer raises on an answer that it cannot read, e.g. int("seven")
            return 0.0

    def check(self, reference: str) -> None:
        try:
            entry = json.loads(reference)
            best = self._score(entry["answer"], entry)
        except Exception as error:
            raise HarnessError(
                f"no entry of a reasoning-gym task: {reference!r:.80} ({type(error).__name__}); make the rows with "
                "`entries: true` and give the reference turn the column `entry`"
            ) from error
        if best <= 0:
            raise HarnessError(f"reasoning-gym's own answer gets no score in {reference!r:.80}; remove the row")

    def _score(self, answer: str, entry: dict[str, Any]) -> float:
        from reasoning_gym import get_score_answer_fn

        return float(get_score_answer_fn(entry["metadata"]["source_dataset"])(answer, entry))
