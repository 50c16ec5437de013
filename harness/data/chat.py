"""Chat examples to tokens, with the mask of what is learned. The place where a silent error would cost the most.

The rule: the model is trained on exactly the token sequence it will see and must produce when it is asked. So the
prompt is tokenised as evaluation tokenises it, and the completion continues from there, up to and with the end-of-turn
token.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jinja2

from harness.cell import Message
from harness.errors import HarnessError


@dataclass(frozen=True)
class Tokens:
    """One training sequence. `learned[i]` says whether token i is learned (an assistant's token or its end of turn)."""

    ids: list[int]
    learned: list[bool]
    truncated: bool = False


def render(tokenizer: Any, messages: list[Message], *, ask: bool) -> str:
    """The text of the turns in the tokenizer's chat template; with `ask`, up to where the assistant begins to speak."""
    if not tokenizer.chat_template:
        raise HarnessError("this base has no chat template; give it one in base.chat_template (Jinja text)")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except jinja2.TemplateError as error:
        roles = ", ".join(m["role"] for m in messages)
        raise HarnessError(f"the base's chat template refuses turns of {roles}: {error}") from error


@functools.lru_cache(maxsize=8)
def _ending(tokenizer: Any) -> tuple[str, str]:
    """What the template writes after the assistant's last words, and what of it is learned: up to the end of the turn.

    Phi-3 writes ``<|end|>`` and then, if nobody is to speak next, ``<|endoftext|>``: only the first ends the turn.
    """
    marker = "\u2603ANSWER\u2603"
    text = render(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": marker}], ask=False)
    written = text.rpartition(marker)[2]
    first = (token for token in tokenizer.get_added_vocab() if written.strip().startswith(token))
    end = max(first, key=len, default=written.strip()) or tokenizer.eos_token
    if not end:
        raise HarnessError(
            "neither the chat template nor the tokenizer has an end-of-turn token; the end cannot be learned"
        )
    before, found, _ = written.partition(end)
    return written, before + end if found else end


def end_of_turn(tokenizer: Any) -> str:
    """What ends the assistant's turn, e.g. ``<|im_end|>``; the eos token where the template writes nothing."""
    return _ending(tokenizer)[1].strip()


def stop_ids(tokenizer: Any) -> list[int]:
    """Token ids at which generation ends: eos, and the end of turn where it is one token of its own."""
    end = encode(tokenizer, end_of_turn(tokenizer))
    return sorted({tokenizer.eos_token_id, *(end if len(end) == 1 else [])} - {None})


def encode(tokenizer: Any, text: str) -> list[int]:
    """Chat text to ids. Nothing is added: the template has written all special tokens, BOS included."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def tokenize(tokenizer: Any, messages: list[Message], max_length: int) -> Tokens:
    """Tokens of a dialogue; all assistant turns are learned, each with its end of turn, and nothing else is.

    A sequence longer than `max_length` tokens loses its end and is marked `truncated`.
    """
    written, learned_end = _ending(tokenizer)
    ids: list[int] = []
    learned: list[bool] = []
    done = ""  # the text that `ids` stands for
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:i], ask=True)
        full = render(tokenizer, messages[: i + 1], ask=False)
        if not full.startswith(prompt) or not full.endswith(written) or not prompt.startswith(done):
            raise HarnessError(
                "the chat template rewrites earlier turns when later ones are added, so what is learned would not be "
                "what is asked; give a plain template in base.chat_template"
            )
        # What follows the end of turn ("\n" after <|im_end|>) belongs to the next prompt and is not learned.
        full = full.removesuffix(written) + learned_end
        asked = _continue(tokenizer, ids, done, prompt)
        whole = _continue(tokenizer, asked, prompt, full)
        learned += [False] * (len(asked) - len(ids)) + [True] * (len(whole) - len(asked))
        ids, done = whole, full
    return Tokens(ids[:max_length], learned[:max_length], truncated=len(ids) > max_length)


def _continue(tokenizer: Any, ids: list[int], done: str, text: str) -> list[int]:
    """Ids of `text`, which begins with `done`, whose ids are `ids`, and these are kept.

    Where a token would straddle the border, the text is cut there, as it is when a model generates the rest.
    """
    whole = encode(tokenizer, text)
    return whole if whole[: len(ids)] == ids else ids + encode(tokenizer, text[len(done) :])
