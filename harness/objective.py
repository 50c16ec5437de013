"""What is minimised over a batch: -log p of the learned tokens, or a preference between two answers (DPO)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from harness.data.chat import Tokens
from harness.data.pairs import Pair


class Objective(Protocol):
    names: tuple[str, ...]  # of what a call gives; the first is the loss

    def divisor(self, batch: list[Any]) -> int:
        """By what sums over a batch are divided."""
        ...

    def __call__(self, model: Any, examples: list[Any], together: bool) -> torch.Tensor:
        """Sums over some examples of a batch [names]; the first has gradients.

        `together` says whether their sequences may be laid end to end, being kept apart; else there is one example.
        """
        ...


class Likelihood:
    """-log p (nats), the mean over the learned tokens."""

    names: tuple[str, ...] = ("loss",)

    def divisor(self, batch: list[Tokens]) -> int:
        return sum(map(targets, batch))

    def __call__(self, model: Any, examples: list[Tokens], together: bool) -> torch.Tensor:
        return loss_sum(model, examples)[None]


LIKELIHOOD = Likelihood()


class Preference:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290), the mean over the pairs.

    The reference is the model with its adapter switched off, without dropout. An answer's implicit reward is `beta`
    times log p / p of the reference, in nats. `loss`: sigmoid, as published; sigmoid_norm, the same of the answers'
    means over their tokens (Tülu 3, arXiv 2411.15124); ipo (Azar et al. 2023, arXiv 2310.12036), also of means, as its
    authors compute it.
    """

    names: tuple[str, ...] = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")

    def __init__(self, beta: float, loss: str) -> None:
        self.beta, self.loss = beta, loss

    def divisor(self, batch: list[Pair]) -> int:
        return len(batch)

    def __call__(self, model: Any, examples: list[Pair], together: bool) -> torch.Tensor:
        answers = [answer for pair in examples for answer in pair.parts]
        with reference(model):
            before = log_probs(model, answers, together)
        gained = log_probs(model, answers, together) - before
        lengths = gained.new_tensor([max(1, targets(answer)) for answer in answers])
        chosen, rejected = (self.beta * gained).detach().view(-1, 2).unbind(1)
        sums = [self._losses(gained, lengths), chosen > rejected, chosen - rejected, chosen, rejected]
        # A pair of which nothing is learned only fills up, see `harness.train`.
        real = gained.new_tensor([targets(pair) > 0 for pair in examples])
        return torch.stack([(values * real).sum() for values in sums])

    def _losses(self, gained: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Of each pair; `gained` is log p / p of the reference [answers]."""
        means = self.loss in ("ipo", "sigmoid_norm")
        chosen, rejected = (gained / lengths if means else gained).view(-1, 2).unbind(1)
        if self.loss == "ipo":
            return (chosen - rejected - 1 / (2 * self.beta)) ** 2
        return -logsigmoid(self.beta * (chosen - rejected))


@contextmanager
def reference(model: Any) -> Iterator[None]:
    """The policy that the training began with: a peft model with its adapter switched off."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            yield
    finally:
        model.train(training)


def targets(example: Tokens | Pair) -> int:
    """Its learned tokens that have one before them."""
    return sum(sum(sequence.learned[1:]) for sequence in example.parts)


def log_probs(model: Any, sequences: list[Tokens], together: bool) -> torch.Tensor:
    """log p (nats) of the learned tokens of each sequence [sequences]; `together` as in `Objective`."""
    if not together:
        return torch.stack([-loss_sum(model, [sequence]) for sequence in sequences])
    each = token_losses(model, sequences).split([targets(sequence) for sequence in sequences])
    return torch.stack([-losses.sum() for losses in each])


def loss_sum(model: Any, sequences: list[Tokens]) -> torch.Tensor:
    """Sum of -log p (nats) over the learned tokens of sequences laid end to end, as `token_losses` gives them."""
    return token_losses(model, sequences, "sum")


def token_losses(model: Any, sequences: list[Tokens], reduction: str = "none") -> torch.Tensor:
    """-log p (nats) of the learned tokens of sequences laid end to end, in order. Only their logits are computed.

    Several sequences must be kept apart (`harness.train.kept_apart`), or they read each other.
    """
    device = model.device
    ids = torch.tensor([t for s in sequences for t in s.ids], device=device)
    positions = torch.cat([torch.arange(len(s.ids)) for s in sequences]).to(device)
    learned = torch.tensor([flag and i > 0 for s in sequences for i, flag in enumerate(s.learned)], device=device)
    where = learned.nonzero().squeeze(1)
    # The token at t is predicted from t - 1; the first token of a sequence is never predicted, so t - 1 is its own.
    before = where - 1
    logits = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=before).logits[0]
    return cross_entropy(logits.float(), ids[where], reduction=reduction)
