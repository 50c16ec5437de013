"""Direct preference optimisation with LoRA (Rafailov et al. 2023, arXiv 2305.18290). An example is a pair of answers.

The reference is the policy that entered, the resident base with the adapter switched off. By the project's own loop, so
that it is packed, resumed bit for bit and spread over processes as any training here; its loss and gradients are those
of TRL's DPOTrainer (tests/test_dpo.py). Defaults are those of Zephyr (Tunstall et al. 2023, arXiv 2310.16944), which
trained all weights, with ten times its learning rate for LoRA (thinkingmachines.ai/blog/lora).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from harness.cell import Adapted, Attempt, Cell, Method
from harness.data.pairs import Pairs, token_pairs
from harness.errors import HarnessError
from harness.shapes import Shapes
from harness.tuning import Learner, Lora, adapter, learning

LOSSES = ("sigmoid", "sigmoid_norm", "ipo")


@dataclass
class Dpo(Learner, Method):
    name: ClassVar[str] = "dpo"
    needs: ClassVar[tuple[str, ...]] = ("pair",)
    flops_a_token: ClassVar[int] = 6  # as sft's 4, and forward once more for the reference

    lr: float | str = 5e-6
    epochs: int = 1
    batch_size: int = 32  # pairs
    beta: float = 0.1  # how dear it is to leave the reference
    loss: str = "sigmoid"  # sigmoid | sigmoid_norm, of means over tokens | ipo
    max_length: int = 2048  # tokens of one answer and its prompt; what is longer is cut and counted in the record
    lora: Lora = field(default_factory=Lora)

    def check(self) -> None:
        super().check()
        if self.loss not in LOSSES:
            raise HarnessError(f"method.loss={self.loss!r} is unknown; use {', '.join(LOSSES)}")
        if self.beta <= 0:
            raise HarnessError(f"method.beta={self.beta} must be above 0; 0.1 is usual")
        self.lora.check_reference()

    def trained_parameters(self, shapes: Shapes) -> int:
        return self.lora.parameters(shapes)

    def adapt(
        self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt
    ) -> AbstractContextManager[Adapted]:
        return adapter(base, self.lora, cell, attempt, learning(base, examples, self, cell, attempt))

    def tokens(self, tokenizer: Any, examples: Sequence[Any]) -> Pairs:
        return token_pairs(tokenizer, examples, self.max_length)

    def objective(self) -> Any:
        from harness.objective import Preference

        return Preference(self.beta, self.loss)
