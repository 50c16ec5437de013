"""lm-eval's LM interface over a resident model: its own hf backend, told how this harness speaks to a model."""

import sys
from typing import Any

from lm_eval.models.huggingface import HFLM

from harness.base import LoadedBase
from harness.cell import Adapted, Message
from harness.data.chat import render


class Asker(HFLM):
    """Puts the demonstrations before every question and adds no special token to what the chat template has written."""

    def __init__(self, base: LoadedBase, adapted: Adapted, *, chat: bool, batch_size: int) -> None:
        super().__init__(
            pretrained=adapted.model,
            tokenizer=base.tokenizer,
            batch_size=batch_size,
            add_bos_token=False if chat else None,  # None: as the tokenizer does by itself
        )
        self.demonstrations = adapted.demonstrations
        self.quiet = not sys.stderr.isatty()

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        history = with_demonstrations(chat_history, self.demonstrations)
        return super().apply_chat_template(history, add_generation_prompt)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        return super().generate_until(requests, disable_tqdm=disable_tqdm or self.quiet)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or self.quiet)


class Prompter:
    """The part of `Asker` that writes prompts, for looking at one without loading a model."""

    rank, world_size, tokenizer_name = 0, 1, ""

    def __init__(self, tokenizer: Any, demonstrations: list[Message]) -> None:
        self.tokenizer, self.demonstrations = tokenizer, demonstrations

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        return render(self.tokenizer, with_demonstrations(chat_history, self.demonstrations), ask=add_generation_prompt)


def with_demonstrations(history: list[Message], demonstrations: list[Message]) -> list[Message]:
    """The demonstrations stand after a system turn and before everything else."""
    opening = [m for m in history[:1] if m["role"] == "system"]
    return opening + demonstrations + history[len(opening) :]


def as_plain_text(demonstrations: list[Message]) -> str:
    """Demonstrations for a task asked without a chat template: question, answer, blank line, as in lm-eval's few-shot."""
    text = ""
    for message in demonstrations:
        text += message["content"] + ("\n\n" if message["role"] == "assistant" else " ")
    return text
