"""lm-eval's LM interface over a resident model: its own hf backend, told how this harness speaks to a model."""

import sys
from typing import Any, ClassVar

from lm_eval.models.huggingface import HFLM

from harness.base import LoadedBase
from harness.cell import Adapted, Message
from harness.data.chat import end_of_turn
from harness.errors import HarnessError


class Asker(HFLM):
    """Puts the demonstrations before every question and adds no special token to what the chat template has written.

    `truncated` counts the prompts that did not fit into the model's context and lost their beginning.
    """

    def __init__(self, base: LoadedBase, adapted: Adapted, *, chat: bool, batch_size: int) -> None:
        super().__init__(
            pretrained=adapted.model,
            tokenizer=base.tokenizer,
            batch_size=batch_size,
            add_bos_token=False if chat else None,  # None: as the tokenizer does by itself
        )
        self.truncated = 0
        self.end = end_of_turn(base.tokenizer)
        self.demonstrations = adapted.demonstrations
        self.quiet = not sys.stderr.isatty()

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        history = with_demonstrations(chat_history, self.demonstrations)
        return super().apply_chat_template(history, add_generation_prompt)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        answers = super().generate_until(requests, disable_tqdm=disable_tqdm or self.quiet)
        # What ends a turn is no part of the answer, also where it is ordinary text or a token kept in decoding.
        return [answer.split(self.end)[0] for answer in answers]

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        return super()._model_generate(context, max_length, [*stop, self.end], **generation_kwargs)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or self.quiet)

    def tok_batch_encode(
        self, strings: Any, padding_side: str = "left", left_truncate_len: int | None = None, truncation: bool = False
    ) -> Any:
        ids, mask = super().tok_batch_encode(strings, padding_side, truncation=truncation)
        room = left_truncate_len or ids.shape[1]
        self._count(int((mask.sum(1) > room).sum()))
        return ids[:, -room:], mask[:, -room:]

    def _loglikelihood_tokens(self, requests: Any, *arguments: Any, **named: Any) -> list[tuple[float, bool]]:
        self._count(sum(len(context) + len(answer) > self.max_length + 1 for _, context, answer in requests))
        return super()._loglikelihood_tokens(requests, *arguments, **named)

    def _count(self, truncated: int) -> None:
        if truncated and self.demonstrations:
            raise HarnessError(
                f"{len(self.demonstrations)} turns of demonstrations and a question do not fit into the base's context "
                f"of {self.max_length} tokens, and the first ones would be cut silently; choose a smaller size"
            )
        self.truncated += truncated


class Prompter:
    """The part of `Asker` that writes prompts, for looking at one without loading a model."""

    rank, world_size, tokenizer_name = 0, 1, ""
    chat_template_args: ClassVar[dict[str, Any]] = {}

    def __init__(self, tokenizer: Any, demonstrations: list[Message]) -> None:
        self.tokenizer, self.demonstrations = tokenizer, demonstrations

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        history = with_demonstrations(chat_history, self.demonstrations)
        return HFLM.apply_chat_template(self, history, add_generation_prompt)


def with_demonstrations(history: list[Message], demonstrations: list[Message]) -> list[Message]:
    """The demonstrations stand after a system turn and before everything else."""
    opening = [m for m in history[:1] if m["role"] == "system"]
    return opening + demonstrations + history[len(opening) :]


def as_plain_text(demonstrations: list[Message]) -> str:
    """Demonstrations for a task asked without a chat template: question, answer, blank line, as lm-eval's few-shot."""
    text = ""
    for message in demonstrations:
        text += message["content"] + ("\n\n" if message["role"] == "assistant" else " ")
    return text
