"""Reinforcement learning from verifiable rewards with LoRA: GRPO (Shao et al. 2024, arXiv 2402.03300) by TRL.

An example is a prompt, and what its answers are compared with: the reference turn, or the assistant's last one, which
is never learned from directly. The reference policy, where `beta` asks for one, is the resident base. The learning rate
is ten times TRL's, which is for all weights (thinkingmachines.ai/blog/lora); all else is as TRL has it.
"""

import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import hydra.utils
from hydra.errors import InstantiationException

from harness.cell import Adapted, Attempt, Cell, Method
from harness.data.kinds import prompt_of
from harness.errors import HarnessError
from harness.rewards import Reward
from harness.schedule import Schedule
from harness.shapes import Shapes
from harness.tuning import Lora, adapter

LOSSES, SCALES, ROLLOUTS = ("dapo", "grpo", "dr_grpo"), ("group", "batch", "none"), ("own", "vllm")


@dataclass
class Grpo(Schedule, Method):
    name: ClassVar[str] = "grpo"
    needs: ClassVar[tuple[str, ...]] = ("prompt", "dialogue")

    lr: float | str = 1e-5
    epochs: int = 1
    batch_size: int = 8  # prompts of one step
    rewards: dict[str, Any] = field(default_factory=dict)  # by name: `_target_`s of harness.rewards, summed by weight
    generations: int = 8  # answers to each prompt; sampled in an order that run.kv_cache_gib can change
    max_completion_length: int = 256  # tokens
    temperature: float = 1.0
    rollouts: str = "own"  # who samples: own, as evaluation asks | vllm, where it is installed; other random numbers
    beta: float = 0.0  # how dear it is to leave the base; above 0 also costs a forward pass of it
    loss: str = "dapo"  # TRL's loss_type: dapo | grpo | dr_grpo
    scale_rewards: str = "group"  # rewards are divided by their spread in the group of one prompt | batch | none
    lora: Lora = field(default_factory=Lora)

    @property
    def flops_a_token(self) -> int:  # type: ignore[override]
        """Forward to sample, forward and backward to learn, forward once more for the reference."""
        return 8 if self.beta else 6

    def check(self) -> None:
        super().check()
        if not importlib.util.find_spec("trl"):
            raise HarnessError("TRL is not installed; pip install -c constraints.txt -e '.[rl]'")
        if not any(term.weight for term in self.terms().values()):
            raise HarnessError("method=grpo needs a reward; choose one, e.g. reward=exact, or set method.rewards")
        if self.hold not in ("epochs", "steps") or self.trunk:
            raise HarnessError(
                "method=grpo cannot know how many tokens its answers will have, nor share a beginning; use "
                "method.hold=epochs or steps, and method.trunk=false"
            )
        if self.held_out:
            raise HarnessError(
                "method=grpo has no loss on examples held out; set method.held_out=0, and method.search.evals to a "
                "development evaluation where its learning rate is searched"
            )
        for name, known in (("loss", LOSSES), ("scale_rewards", SCALES), ("rollouts", ROLLOUTS)):
            if getattr(self, name) not in known:
                raise HarnessError(f"method.{name}={getattr(self, name)!r} is unknown; use {', '.join(known)}")
        if self.rollouts == "vllm" and (self.lora.dora or self.lora.modules_to_save or self.lora.rewrites_base):
            raise HarnessError("method.rollouts=vllm serves plain LoRA beside the base's own weights; use rollouts=own")
        if self.rollouts == "vllm" and not importlib.util.find_spec("vllm"):
            raise HarnessError("method.rollouts=vllm needs vLLM installed beside the harness; use rollouts=own")
        if self.generations < 2 or self.temperature <= 0 or self.beta < 0:
            raise HarnessError(
                "method.generations must be 2 or more, method.temperature above 0, method.beta 0 or more"
            )
        if self.beta:
            self.lora.check_reference()

    def terms(self) -> dict[str, Reward]:
        """The rewards, by name."""
        found = {}
        for name, config in self.rewards.items():
            try:
                found[name] = hydra.utils.instantiate(config)
            except InstantiationException as error:
                cause = error.__cause__
                what = cause if isinstance(cause, HarnessError) else " ".join(str(cause or error).split())
                raise HarnessError(f"method.rewards.{name}: {what}") from error
            if not isinstance(found[name], Reward):
                raise HarnessError(f"method.rewards.{name} is no reward; name one of harness.rewards as its _target_")
        return found

    def drawn(self, examples: int, steps: int) -> int:
        return steps * min(self.batch_size, examples)  # all batches are of one size, across the ends of epochs

    def tokens_of(self, tokens: float) -> float:
        return self.generations * (tokens + self.max_completion_length)  # at most

    def trained_parameters(self, shapes: Shapes) -> int:
        return self.lora.parameters(shapes)

    def adapt(
        self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt
    ) -> AbstractContextManager[Adapted]:
        flops_a_token = self.flops_a_token * base.model.num_parameters()

        def train(model: Any) -> dict[str, Any]:
            from harness.rl import reinforce

            prompts = [prompt_of(example.messages) for example in examples]
            record = reinforce(base, model, prompts, self.terms(), self, cell, attempt)
            return {**record, "held": self.hold, "flops": flops_a_token * record["tokens"]}

        return adapter(base, self.lora, cell, attempt, train)
