"""Supervised fine-tuning with LoRA on the resident base.

Defaults follow LoRA Without Regret (thinkingmachines.ai/blog/lora): all linear layers, alpha 32, a learning rate about
ten times that of full fine-tuning.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from harness.cell import Adapted, Attempt, Cell, Method
from harness.data.token_cache import token_sequences
from harness.data.tokens import TokenSequences
from harness.rates import family, published
from harness.shapes import Shapes
from harness.tuning import Learner, Lora, adapter, check_noise, learning


@dataclass
class Sft(Learner, Method):
    name: ClassVar[str] = "sft"
    all_weights: ClassVar[str] = "method=sft_full"
    flops_a_token: ClassVar[int] = 4  # forward, and backward through the frozen weights, whose gradients nobody needs

    max_length: int = 2048  # tokens of one example; what is longer is cut and counted in the record
    neftune_alpha: float = 0.0  # noise on the embeddings; above 0 it also depends on run.tokens_per_pass, as dropout
    lora: Lora = field(default_factory=Lora)

    def check(self) -> None:
        super().check()
        check_noise(self.neftune_alpha)

    def published_lr(self, names: Sequence[str], width: int, steps: int) -> float:
        self.lora.check_published()
        return published(family(names), width, steps, lora=True)

    def tokens(self, tokenizer: Any, examples: Sequence[Any]) -> TokenSequences:
        return token_sequences(tokenizer, examples, self.max_length)

    def trained_parameters(self, shapes: Shapes) -> int:
        return self.lora.parameters(shapes)

    def adapt(
        self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt
    ) -> AbstractContextManager[Adapted]:
        return adapter(base, self.lora, cell, attempt, learning(base, examples, self, cell, attempt))
