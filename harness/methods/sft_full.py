"""Supervised fine-tuning of all weights: the control for what LoRA may not be able to learn."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.cell import Adapted, Attempt, Cell, Method
from harness.data.token_cache import token_sequences
from harness.data.tokens import TokenSequences
from harness.rates import family, published
from harness.shapes import Shapes, parameters
from harness.tuning import Learner, all_weights, check_noise, learning


@dataclass
class SftFull(Learner, Method):
    name: ClassVar[str] = "sft_full"
    flops_a_token: ClassVar[int] = 6
    stored_in_full: ClassVar[bool] = True

    lr: float | str = 2e-5  # a tenth of LoRA's default (thinkingmachines.ai/blog/lora)
    max_length: int = 2048  # tokens of one example; what is longer is cut and counted in the record
    neftune_alpha: float = 0.0  # noise on the embeddings; above 0 it also depends on run.tokens_per_pass

    def check(self) -> None:
        super().check()
        check_noise(self.neftune_alpha)

    def published_lr(self, names: Sequence[str], width: int, steps: int) -> float:
        return published(family(names), width, steps, lora=False)

    def tokens(self, tokenizer: Any, examples: Sequence[Any]) -> TokenSequences:
        return token_sequences(tokenizer, examples, self.max_length)

    def trained_parameters(self, shapes: Shapes) -> int:
        return parameters(shapes)

    def adapt(
        self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt
    ) -> AbstractContextManager[Adapted]:
        return all_weights(base, cell, attempt, learning(base, examples, self, cell, attempt))
