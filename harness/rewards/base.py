"""What a reward is."""

import re
from dataclasses import dataclass


@dataclass
class Reward:
    weight: float = 1.0  # in the sum of all terms

    def __call__(self, completion: str, reference: str) -> float:
        """Between 0 and 1. `completion` is what the model said, without its end of turn."""
        raise NotImplementedError

    def check(self, reference: str) -> None:
        """Raise HarnessError if no completion could be compared with this reference; asked before anything trains."""


def found(pattern: str, text: str) -> str:
    """What `pattern` finds last in the text (its first group, if it has one); all of it without a pattern or a find."""
    if not pattern:
        return text
    finds = list(re.finditer(pattern, text))
    return finds[-1][1 if finds[-1].re.groups else 0] or "" if finds else text
