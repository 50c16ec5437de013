"""Mathematical equality, by math-verify."""

import importlib.util
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.rewards.base import Reward, found
from harness.rewards.match import compiled


@dataclass
class MathVerify(Reward):
    """1 where the completion's answer, in LaTeX or plain, equals the reference: 1/2, 0.5 and ``\\frac{1}{2}`` do.

    The answer is the boxed one, else the last expression. The reference is LaTeX, or what `reference_pattern` finds
    last in it, e.g. ``#### (.+)``. What takes longer than `seconds` to read or to compare is not equal; so it needs the
    process's main thread, whose alarm it uses.
    """

    reference_pattern: str = ""
    seconds: int = 5

    def __post_init__(self) -> None:
        if not importlib.util.find_spec("math_verify"):
            raise HarnessError("math-verify is not installed; pip install -c constraints.txt -e '.[rl]'")
        compiled(self.reference_pattern)

    def __call__(self, completion: str, reference: str) -> float:
        from math_verify import verify

        answer = self._read(completion)
        return float(bool(answer) and verify(self._right(reference), answer, timeout_seconds=self.seconds))

    def check(self, reference: str) -> None:
        if not self._right(reference):
            raise HarnessError(
                f"math-verify reads no answer in the reference {reference!r:.80}; mend or remove the row"
            )

    def _right(self, reference: str) -> list[object]:
        text = found(self.reference_pattern, reference).strip()
        marked = "$" in text or "\\boxed" in text or "\\(" in text or "\\[" in text
        return self._read(text if marked else f"${text}$")

    def _read(self, text: str) -> list[object]:
        from math_verify import parse

        return list(parse(text, parsing_timeout=self.seconds))
