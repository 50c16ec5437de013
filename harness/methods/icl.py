"""In-context learning: the cell's examples stand before every question as earlier turns; nothing is trained.

The demonstrations are the same nested subset that fine-tuning of this size would learn from, not lm-eval's few-shot
pool, so both methods are given the same information.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.cell import Adapted, Attempt, Cell, Message, Method


@dataclass
class InContext(Method):
    name: ClassVar[str] = "icl"
    trains: ClassVar[bool] = False

    def demonstrations(self, examples: Sequence[Any]) -> list[Message]:
        # A system turn may only open a dialogue, so those of demonstrations are left out.
        return [turn for example in examples for turn in example.messages if turn["role"] != "system"]

    @contextmanager
    def adapt(self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt) -> Iterator[Adapted]:
        yield Adapted(base.model, demonstrations=self.demonstrations(examples))
