"""How long to train and how the learning rate moves: the fields every trained method shares. No torch."""

import math
from dataclasses import dataclass

from harness.errors import HarnessError

HOLDS = ("epochs", "steps", "tokens", "flops")
DECAYS = ("linear", "cosine", "constant", "wsd")


@dataclass
class Schedule:
    """What is held fixed across sizes, by default the number of passes over the examples with a floor on the steps.

    Every size gets `epochs` passes over its examples; small ones go on up to `min_steps` optimizer steps. Or every size
    gets the same `budget` of steps, tokens or training FLOPs, whatever passes that makes. A batch is `batch_size`
    examples, or all of them where there are fewer.
    """

    lr: float = 2e-4
    hold: str = "epochs"  # epochs | steps | tokens (prompts counted) | flops
    epochs: int = 3
    min_steps: int = 0
    budget: float = 0.0  # so many steps, tokens or FLOPs, where these are held
    batch_size: int = 16
    warmup: float = 0.1  # share of the steps, or from 1 on so many steps, rising linearly to `lr`
    decay: str = "linear"  # after the warm-up: linear or cosine down to 0, constant, or wsd (warm-up, stable, decay)
    decay_share: float = 0.2  # of the steps, at the end, with wsd
    trunk: bool = False  # with wsd: the stable part is shared with the smaller sizes, see harness/trunk.py
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def check(self) -> None:
        """Raise HarnessError where the fields do not go together."""
        if self.hold not in HOLDS:
            raise HarnessError(f"method.hold={self.hold!r} is unknown; use {', '.join(HOLDS)}")
        if self.hold != "epochs" and self.budget <= 0:
            raise HarnessError(f"method.hold={self.hold} needs method.budget, the {self.hold} that every size gets")
        if self.decay not in DECAYS:
            raise HarnessError(f"method.decay={self.decay!r} is unknown; use {', '.join(DECAYS)}")
        once = self.hold == "epochs" and self.epochs == 1 and not self.min_steps
        if self.trunk and not (self.decay == "wsd" and once and (self.warmup >= 1 or not self.warmup)):
            raise HarnessError(
                "method.trunk shares the beginning of a training among sizes, so it must be the same for all: set "
                "method.decay=wsd method.epochs=1 method.min_steps=0 and method.warmup to a number of steps"
            )

    def steps(self, examples: int, example_tokens: float = 0.0, flops_a_token: float = 0.0) -> int:
        """Optimizer steps for so many examples, of so many tokens on average, a token costing so many FLOPs."""
        if self.hold == "epochs":
            return max(self.min_steps, self.epochs * math.ceil(examples / self.batch_size))
        batch_tokens = example_tokens * min(self.batch_size, examples)
        cost = {"steps": 1.0, "tokens": batch_tokens, "flops": batch_tokens * flops_a_token}[self.hold]
        return max(1, round(self.budget / cost))

    def drawn(self, examples: int, steps: int) -> int:
        """Examples that so many steps go through, repeats counted."""
        epochs, rest = divmod(steps, math.ceil(examples / self.batch_size))
        return epochs * examples + min(rest * self.batch_size, examples)

    def decay_from(self, steps: int) -> int:
        """The first step at which the rate is no longer stable."""
        return steps - round(self.decay_share * steps) if self.decay == "wsd" else self._warm(steps)

    def _warm(self, steps: int) -> int:
        return min(steps, round(self.warmup if self.warmup >= 1 else self.warmup * steps))

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of step 0, 1, ..., steps - 1.

        With wsd (Hu et al. 2024, arXiv 2404.06395) it falls as 1 - sqrt of the part gone, which Hägele et al. 2024
        (arXiv 2405.18392) found best.
        """
        warm = self._warm(steps)
        if step < warm:
            return self.lr * (step + 1) / (warm + 1)
        start = max(warm, self.decay_from(steps))
        if step < start or self.decay == "constant":
            return self.lr
        left = (steps - step) / max(1, steps - start)
        match self.decay:
            case "linear":
                return self.lr * left
            case "cosine":
                return self.lr * 0.5 * (1 - math.cos(math.pi * left))
            case "wsd":
                return self.lr * (1 - math.sqrt(1 - left))
        raise HarnessError(f"method.decay={self.decay!r} is unknown; use {', '.join(DECAYS)}")
