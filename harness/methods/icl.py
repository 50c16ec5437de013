"""In-context learning: the cell's examples stand before every question as earlier turns; nothing is trained.

The demonstrations are the same nested subset that fine-tuning of this size would learn from, not lm-eval's few-shot
pool, so both methods are given the same information. A fixed prompt, as URIAL's (Lin et al. 2023, arXiv 2312.01552), is
a dataset in the order of its file, see conf/data/urial.yaml.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from harness.cell import Adapted, Attempt, Cell, Message, Method, Shown
from harness.errors import HarnessError


@dataclass
class InContext(Method):
    name: ClassVar[str] = "icl"
    trains: ClassVar[bool] = False

    retrieve: int = 0  # show so many of the examples, those nearest to the question (BM25); 0: all of them
    system: bool = False  # open with the system turn that all examples share; else theirs are left out

    def check(self) -> None:
        if self.retrieve < 0:
            raise HarnessError(f"method.retrieve={self.retrieve} must be at least 1, or 0 to show all examples")

    def demonstrations(self, examples: Sequence[Any]) -> Shown:
        opening = self._opening(examples)
        # A system turn may only open a dialogue, so those of demonstrations are left out.
        turns = [[turn for turn in example.messages if turn["role"] != "system"] for example in examples]
        if not self.retrieve:
            return opening + [turn for example in turns for turn in example]
        from harness.data.nearest import Nearest

        nearest = Nearest([" ".join(t["content"] for t in example if t["role"] == "user") for example in turns])

        def shown(question: str) -> list[Message]:
            # The nearest stands last, right before the question.
            found = reversed(nearest(question, self.retrieve))
            return opening + [turn for number in found for turn in turns[number]]

        return shown

    def _opening(self, examples: Sequence[Any]) -> list[Message]:
        if not self.system:
            return []
        first = examples[0].messages[0]
        if any(example.messages[0] != first for example in examples) or first["role"] != "system":
            raise HarnessError("method.system=true needs examples that open with one and the same system turn")
        return [first]

    @contextmanager
    def adapt(self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt) -> Iterator[Adapted]:
        shown = self.demonstrations(examples)
        yield Adapted(base.model, demonstrations=shown, untouched=partial(nullcontext, base.model))
