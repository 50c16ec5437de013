"""How long to train and how the learning rate moves: the fields every trained method shares. No torch."""

import math
from dataclasses import dataclass

from harness.errors import HarnessError


@dataclass
class Schedule:
    """What is held fixed across sizes is the number of passes over the examples, with a floor on the steps.

    Every size gets `epochs` passes over its examples; small ones go on up to `min_steps` optimizer steps. A batch is
    `batch_size` examples, or all of them where there are fewer.
    """

    lr: float = 2e-4
    epochs: int = 3
    min_steps: int = 0
    batch_size: int = 16
    warmup: float = 0.1  # share of the steps, rising linearly to `lr`
    decay: str = "linear"  # after the warm-up: linear or cosine down to 0, or constant
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def steps(self, examples: int) -> int:
        """Optimizer steps for so many examples."""
        return max(self.min_steps, self.epochs * math.ceil(examples / self.batch_size))

    def drawn(self, examples: int) -> int:
        """Examples gone through, repeats counted."""
        return max(self.epochs * examples, self.min_steps * min(self.batch_size, examples))

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of step 0, 1, ..., steps - 1."""
        warm = round(self.warmup * steps)
        if step < warm:
            return self.lr * (step + 1) / (warm + 1)
        left = (steps - step) / max(1, steps - warm)
        match self.decay:
            case "constant":
                return self.lr
            case "linear":
                return self.lr * left
            case "cosine":
                return self.lr * 0.5 * (1 - math.cos(math.pi * left))
        raise HarnessError(f"method.decay={self.decay!r} is unknown; use linear, cosine or constant")
