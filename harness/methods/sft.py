"""Supervised fine-tuning with LoRA on the resident base.

Defaults follow LoRA Without Regret (thinkingmachines.ai/blog/lora): all linear layers, alpha 32, a learning rate about
ten times that of full fine-tuning.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from harness.cell import Adapted, Attempt, Cell, Method
from harness.data.token_cache import token_sequences
from harness.schedule import Schedule
from harness.shapes import Shapes
from harness.tuning import Lora, adapter, learning


@dataclass
class Sft(Schedule, Method):
    name: ClassVar[str] = "sft"
    flops_a_token: ClassVar[int] = 4  # forward, and backward through the frozen weights, whose gradients nobody needs

    max_length: int = 2048  # tokens of one example; what is longer is cut and counted in the record
    lora: Lora = field(default_factory=Lora)

    def trained_parameters(self, shapes: Shapes) -> int:
        return self.lora.parameters(shapes)

    def adapt(
        self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt
    ) -> AbstractContextManager[Adapted]:
        sequences = partial(token_sequences, base.tokenizer, examples, self.max_length)
        return adapter(base, self.lora, cell, attempt, learning(base, sequences, self, cell, attempt))
