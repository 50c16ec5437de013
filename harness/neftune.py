"""NEFTune: noise on the embeddings while training (Jain et al. 2023, arXiv 2310.05914), never while evaluating.

A sequence of L tokens has on each of the d numbers of each of its tokens its own noise, uniform between -1 and 1 times
alpha / sqrt(L d). L is the sequence's own length. transformers and TRL take that of the padded batch, or of the pack,
so that what a sequence gets depends on its neighbours: with them the noise of short ones is weaker.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from harness.objective import Objective


class Noisy:
    """An `Objective` under noise."""

    def __init__(self, objective: Objective, alpha: float) -> None:
        self.objective, self.alpha, self.names = objective, alpha, objective.names

    def divisor(self, batch: list[Any]) -> int:
        return self.objective.divisor(batch)

    def __call__(self, model: Any, examples: list[Any], together: bool) -> Tensor:
        lengths = [len(sequence.ids) for example in examples for sequence in example.parts]
        with noise(model, lengths, self.alpha):
            return self.objective(model, examples, together)


@contextmanager
def noise(model: Any, lengths: list[int], alpha: float) -> Iterator[None]:
    """Passes inside are over sequences of these lengths laid end to end, and their embeddings are noisy."""

    def add(_: Any, __: Any, embedded: Tensor) -> Tensor:
        width = embedded.shape[-1]
        most = torch.tensor([alpha / math.sqrt(length * width) for length in lengths for _ in range(length)])
        drawn = torch.empty(embedded.shape, device=embedded.device).uniform_(-1, 1)
        return embedded + (drawn * most.to(drawn.device)[:, None]).to(embedded.dtype)

    hook = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()
