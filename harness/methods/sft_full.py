"""Supervised fine-tuning of all weights: the control for what LoRA may not be able to learn."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from harness.cell import Adapted, Attempt, Cell, Method
from harness.data.token_cache import token_sequences
from harness.schedule import Schedule
from harness.shapes import Shapes, parameters
from harness.tuning import all_weights, learning


@dataclass
class SftFull(Schedule, Method):
    name: ClassVar[str] = "sft_full"
    flops_a_token: ClassVar[int] = 6
    stored_in_full: ClassVar[bool] = True

    lr: float = 2e-5  # a tenth of LoRA's default (thinkingmachines.ai/blog/lora)
    max_length: int = 2048  # tokens of one example; what is longer is cut and counted in the record

    def trained_parameters(self, shapes: Shapes) -> int:
        return parameters(shapes)

    def adapt(
        self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt
    ) -> AbstractContextManager[Adapted]:
        sequences = partial(token_sequences, base.tokenizer, examples, self.max_length)
        return all_weights(base, cell, attempt, learning(base, sequences, self, cell, attempt))
