"""One training for many sizes: the stable part of a warm-up-stable-decay schedule, branched off at each smaller size.

    <method>/.trunk/<16 hex>/step000000120-<16 hex>.safetensors    the state after 120 steps

With one epoch, and batches in the subset's own order, the first k examples of every size are the same, and so is the
training on them while the learning rate is stable (Hägele et al. 2024, arXiv 2405.18392, branch their decays so). A
size therefore begins at the last state that a smaller one left, leaves its own where its decay begins, and ends with
the bits that it would have had alone. The folder's name covers all that the state depends on, the examples included.
"""

import contextlib
from pathlib import Path
from typing import Any

from harness import lease as leases
from harness import ranks
from harness.cell import Attempt
from harness.checkpoint import Checkpoints
from harness.schedule import Schedule


class Trunk:
    """``with Trunk(...) as trunk``: held until this size's own state is saved, so that no stretch is trained twice."""

    def __init__(self, attempt: Attempt, schedule: Schedule, steps: int) -> None:
        self.at = schedule.decay_from(steps)
        self._attempt, self._batch_size = attempt, schedule.batch_size
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Trunk":
        if ranks.first():
            self._held.enter_context(leases.held(self._attempt.trunk(0)))
        ranks.settle()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def load(self, model: Any, optimizer: Any) -> tuple[int, dict[str, Any]]:
        """Put the latest state back that this size has in common with another; its step and `told`, or 0 and {}."""
        for step in ranks.agree(self._left):
            done, told = self._state(step).load(model, optimizer)
            if done:
                return done, told
        return 0, {}

    def save(self, step: int, model: Any, optimizer: Any, told: dict[str, Any]) -> None:
        """To be called after every step; keeps the state if it is the one that larger sizes begin with."""
        if step == self.at:
            self._state(step).save(step, model, optimizer, told)
        if step >= self.at:
            self._held.close()

    def _left(self) -> list[int]:
        """The steps after which some size left a state, latest first, none after this size's own."""
        files = self._place(0).parent.glob("*/step*.safetensors")
        steps = {int(file.stem.removeprefix("step").partition("-")[0]) for file in files}
        return sorted((step for step in steps if step <= self.at and self._place(step).is_dir()), reverse=True)

    def _place(self, step: int) -> Path:
        return self._attempt.trunk(step * self._batch_size)

    def _state(self, step: int) -> Checkpoints:
        return Checkpoints(self._place(step), seconds=0.0)
