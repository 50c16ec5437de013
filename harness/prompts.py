"""How this harness speaks to a model, whatever lm-eval backend computes the answers."""

import functools
import sys
from typing import Any, ClassVar

from lm_eval.models.huggingface import HFLM

from harness import ranks
from harness.base import LoadedBase
from harness.cell import Adapted, Message, Shown
from harness.data.chat import end_of_turn
from harness.errors import HarnessError


class Speaks:
    """Mixed into an lm-eval backend: puts the demonstrations before every question and knows what ends a turn.

    `truncated` counts the prompts that did not fit into the model's context and lost their beginning.
    """

    def speak(self, base: LoadedBase, adapted: Adapted) -> None:
        self.truncated = 0
        self.end = end_of_turn(base.tokenizer)
        self.demonstrations = adapted.demonstrations
        self.quiet = not (ranks.first() and sys.stderr.isatty())

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        history = with_demonstrations(chat_history, self.demonstrations)
        return super().apply_chat_template(history, add_generation_prompt)  # type: ignore[misc]

    def count(self, truncated: int) -> None:
        """Hear of prompts that lose their beginning. With demonstrations that is an error: a size would be another."""
        if truncated and self.demonstrations:
            turns = f"{len(self.demonstrations)} turns of " if isinstance(self.demonstrations, list) else ""
            raise HarnessError(
                f"{turns}demonstrations and a question do not fit into the base's context "
                f"of {self.max_length} tokens, and the first ones would be cut silently; choose a smaller size"  # type: ignore[attr-defined]
            )
        self.truncated += truncated


class Prompter:
    """The part of a backend that writes prompts, for looking at one without loading a model."""

    rank, world_size, tokenizer_name = 0, 1, ""
    chat_template_args: ClassVar[dict[str, Any]] = {}

    def __init__(self, tokenizer: Any, demonstrations: Shown) -> None:
        self.tokenizer, self.demonstrations = tokenizer, demonstrations

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        history = with_demonstrations(chat_history, self.demonstrations)
        return HFLM.apply_chat_template(self, history, add_generation_prompt)


def with_demonstrations(history: list[Message], demonstrations: Shown) -> list[Message]:
    """The demonstrations, which may be those of the last question, stand after a system turn and before all else."""
    if callable(demonstrations):
        demonstrations = demonstrations(next(m["content"] for m in reversed(history) if m["role"] == "user"))
    opening = [m for m in history[:1] if m["role"] == "system"]
    if opening and demonstrations and demonstrations[0]["role"] == "system":
        raise HarnessError("the task has a system turn of its own (its description); set method.system=false")
    return opening + demonstrations + history[len(opening) :]


def as_plain_text(demonstrations: Shown) -> str:
    """Demonstrations for a task asked without a chat template: question, answer, blank line, as lm-eval's few-shot."""
    if callable(demonstrations):
        raise HarnessError("method.retrieve works in chat only; set evals.NAME.chat=true")
    text = ""
    for message in demonstrations:
        text += message["content"] + (" " if message["role"] == "user" else "\n\n")
    return text


@functools.cache
def say_once(text: str) -> None:
    """One line on stderr, once a process."""
    if ranks.first():
        print(f"harness: {text}", file=sys.stderr)
