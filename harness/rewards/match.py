"""Rewards by comparing texts."""

import re
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.rewards.base import Reward, found


@dataclass
class ExactMatch(Reward):
    """1 where the completion equals the reference, white space around them apart.

    With a `pattern`, e.g. ``(-?[0-9]+)``, what it finds last in each of them is compared.
    """

    pattern: str = ""
    ignore_case: bool = False

    def __post_init__(self) -> None:
        compiled(self.pattern)

    def __call__(self, completion: str, reference: str) -> float:
        said, right = (found(self.pattern, text).strip() for text in (completion, reference))
        return float(said.casefold() == right.casefold() if self.ignore_case else said == right)


@dataclass
class RegexMatch(Reward):
    """1 where the whole completion has this form, whatever it says; ``.`` is any character, line ends too."""

    pattern: str = ""

    def __post_init__(self) -> None:
        if not self.pattern:
            raise HarnessError("RegexMatch needs a pattern, the form that a completion should have")
        compiled(self.pattern)

    def __call__(self, completion: str, reference: str) -> float:
        return float(re.fullmatch(self.pattern, completion, re.DOTALL) is not None)


def compiled(pattern: str) -> None:
    """Raise HarnessError if it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise HarnessError(f"the reward's pattern {pattern!r} is no regular expression: {error}") from error
