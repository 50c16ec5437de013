"""Going on with pretraining: documents of raw text, all of whose tokens are learned, while the learning rate anneals.

A document longer than `max_length` becomes several sequences; none sees its neighbours. What counts as one example is a
document. By LoRA, or, with ``method.lora=null``, by all weights.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from harness.cell import Adapted, Attempt, Cell, Method
from harness.data.token_cache import token_sequences
from harness.data.tokens import TokenSequences
from harness.shapes import Shapes, parameters
from harness.tuning import Learner, Lora, adapter, all_weights, learning


@dataclass
class Midtrain(Learner, Method):
    name: ClassVar[str] = "midtrain"
    all_weights: ClassVar[str] = "method=midtrain method.lora=null"
    needs: ClassVar[tuple[str, ...]] = ("text",)

    epochs: int = 1
    max_length: int = 1024  # tokens
    lora: Lora | None = field(default_factory=Lora)

    @property
    def flops_a_token(self) -> int:  # type: ignore[override]
        return 4 if self.lora else 6

    @property
    def stored_in_full(self) -> bool:  # type: ignore[override]
        return self.lora is None

    def tokens(self, tokenizer: Any, examples: Sequence[Any]) -> TokenSequences:
        return token_sequences(tokenizer, examples, self.max_length, windows=True)

    def trained_parameters(self, shapes: Shapes) -> int:
        return self.lora.parameters(shapes) if self.lora else parameters(shapes)

    def adapt(
        self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt
    ) -> AbstractContextManager[Adapted]:
        train = learning(base, examples, self, cell, attempt)
        if self.lora:
            return adapter(base, self.lora, cell, attempt, train)
        return all_weights(base, cell, attempt, train)
