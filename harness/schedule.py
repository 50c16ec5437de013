"""How long to train and how the learning rate moves: the fields every trained method shares. No torch."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.cell import Task
from harness.errors import HarnessError
from harness.identity import fingerprint

HOLDS = ("epochs", "steps", "tokens", "flops")
DECAYS = ("linear", "cosine", "constant", "wsd")
SETTLED = ("auto", "search")  # values of `lr` that stand for a number


@dataclass
class Search:
    """A grid of learning rates, of which the best is chosen for each base, data, method and size: harness/search.py."""

    lrs: list[float] = field(default_factory=list)
    evals: dict[str, Task] = field(default_factory=dict)  # the development evaluation; none: by the loss on `held_out`


@dataclass
class Schedule:
    """What is held fixed across sizes, by default the number of passes over the examples with a floor on the steps.

    Every size gets `epochs` passes over its examples; small ones go on up to `min_steps` optimizer steps. Or every size
    gets the same `budget` of steps, tokens or training FLOPs, whatever passes that makes. A batch is `batch_size`
    examples, or all of them where there are fewer.
    """

    lr: float | str = 2e-4  # a value | auto, as published: harness/rates.py | search, the best of `search`
    search: Search = field(default_factory=Search)
    held_out: int = 0  # examples that no size learns from, the last in the order; the loss on them is in the record
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
        self._check_rate()
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

    def _check_rate(self) -> None:
        rates, evals = self.search.lrs, self.search.evals
        if isinstance(self.lr, str) and self.lr not in SETTLED:
            raise HarnessError(f"method.lr={self.lr!r} is no number; use one, or {' or '.join(SETTLED)}")
        if self.lr != "search" and (rates or evals):
            raise HarnessError(f"method.search has no effect with method.lr={self.lr}; set method.lr=search")
        if self.lr == "search":
            if len(set(rates)) < 2 or min(rates) <= 0:
                raise HarnessError("method.lr=search needs two rates or more, e.g. method.search.lrs=[1e-4,3e-4,1e-3]")
            if len(evals) > 1 or not (evals or self.held_out):
                raise HarnessError(
                    "method.lr=search chooses by one development evaluation, evals@method.search.evals=NAME, or by the "
                    "loss on examples held out, method.held_out=200"
                )
        if self.held_out < 0:
            raise HarnessError(f"method.held_out={self.held_out} must be a number of examples, or 0")
        if self.trunk and isinstance(self.lr, str):
            raise HarnessError(f"method.trunk needs one rate for all sizes, and method.lr={self.lr} may give several")

    @property
    def rate(self) -> float:
        """The learning rate as a number."""
        if isinstance(self.lr, str):
            raise HarnessError(f"method.lr={self.lr} was not settled before the training; give a number here")
        return self.lr

    def published_lr(self, names: Sequence[str], width: int, steps: int) -> float:
        """`lr=auto` for a model of one of these names and this width; raises HarnessError where there is no rule."""
        raise HarnessError(
            "method.lr=auto is published for supervised fine-tuning only; give this method a number or method.lr=search"
        )

    def shown(self) -> dict[str, Any]:
        """The settings, a search as one of them: what was asked of the candidates may be a page of text."""
        settings = dataclasses.asdict(self)
        search = settings.pop("search")
        if self.lr == "search":
            by = [f"{name}~{fingerprint(task)[:4]}" for name, task in search["evals"].items()] or ["held-out loss"]
            settings["lr"] = f"best of {' '.join(f'{lr:g}' for lr in sorted(search['lrs']))} by {by[0]}"
        return settings

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
            return self.rate * (step + 1) / (warm + 1)
        start = max(warm, self.decay_from(steps))
        if step < start or self.decay == "constant":
            return self.rate
        left = (steps - step) / max(1, steps - start)
        match self.decay:
            case "linear":
                return self.rate * left
            case "cosine":
                return self.rate * 0.5 * (1 - math.cos(math.pi * left))
            case "wsd":
                return self.rate * (1 - math.sqrt(1 - left))
        raise HarnessError(f"method.decay={self.decay!r} is unknown; use {', '.join(DECAYS)}")
