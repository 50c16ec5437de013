"""Chat examples to tokens, with the mask of what is learned. The place where a silent error would cost the most.

The rule: the model is trained on exactly the token sequence it will see and must produce when it is asked. So the
prompt is tokenised as evaluation tokenises it, and the completion continues from there, up to and with the end-of-turn
token.
"""

import functools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2

from harness.cell import Message
from harness.data.documents import document_ids
from harness.data.encode import Encoder, encode
from harness.data.kinds import kind_of
from harness.errors import HarnessError


@dataclass(frozen=True)
class Tokens:
    """One training sequence. `learned[i]` says whether token i is learned (an assistant's token or its end of turn)."""

    ids: list[int]
    learned: list[bool]
    truncated: bool = False

    @property
    def parts(self) -> "tuple[Tokens]":
        """The sequences of one example: just this one."""
        return (self,)


class Dialogue(NamedTuple):
    """All tokens of a dialogue, and the places [start, end) of those that are learned: one for each answer."""

    ids: list[int]
    learned: list[tuple[int, int]]


def render(tokenizer: Any, messages: list[Message], *, ask: bool) -> str:
    """The text of the turns in the tokenizer's chat template; with `ask`, up to where the assistant begins to speak."""
    return _render_all(tokenizer, [messages], ask=ask)[0]


def _render_all(tokenizer: Any, dialogues: list[list[Message]], *, ask: bool) -> list[str]:
    if not tokenizer.chat_template:
        raise HarnessError("this base has no chat template; give it one in base.chat_template (Jinja text)")
    try:
        return tokenizer.apply_chat_template(dialogues, tokenize=False, add_generation_prompt=ask)
    except jinja2.TemplateError as error:
        if len(dialogues) > 1:  # alone, the one it is will say so with its own turns
            return [render(tokenizer, messages, ask=ask) for messages in dialogues]
        roles = ", ".join(m["role"] for m in dialogues[0])
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
    """What ends the assistant's turn, e.g. ``<|im_end|>``; the eos token where the template writes nothing, or is none.

    Without a template only documents can be learned and plain text be asked, and these end with eos.
    """
    if not tokenizer.chat_template and tokenizer.eos_token:
        return str(tokenizer.eos_token)
    return _ending(tokenizer)[1].strip()


def stop_ids(tokenizer: Any) -> list[int]:
    """Token ids at which generation ends: eos, and the end of turn where it is one token of its own."""
    end = encode(tokenizer, end_of_turn(tokenizer))
    return sorted({tokenizer.eos_token_id, *(end if len(end) == 1 else [])} - {None})


def tokenize(tokenizer: Any, messages: list[Message], max_length: int) -> Tokens:
    """Tokens of a dialogue; all assistant turns are learned, each with its end of turn, and nothing else is.

    A sequence longer than `max_length` tokens loses its end and is marked `truncated`.
    """
    (whole,) = tokenize_all(tokenizer, [messages])
    learned = [False] * len(whole.ids)
    for start, end in whole.learned:
        learned[start:end] = [True] * (end - start)
    return Tokens(whole.ids[:max_length], learned[:max_length], truncated=len(whole.ids) > max_length)


def tokenize_all(tokenizer: Any, dialogues: Sequence[list[Message]]) -> list[Dialogue]:
    """The tokens of each dialogue, uncut. Many at once take few calls of the tokenizer, and so a fraction of the time.

    Documents, of which all tokens are learned, are tokenised among themselves, not beside dialogues.
    Raises HarnessError where the chat template refuses one of them or rewrites its earlier turns.
    """
    if dialogues and kind_of(dialogues[0]) == "text":
        documents = document_ids(tokenizer, [messages[0]["content"] for messages in dialogues])
        return [Dialogue(ids, [(0, len(ids))]) for ids in documents]
    written, learned_end = _ending(tokenizer)
    answers = [
        (number, turn)
        for number, messages in enumerate(dialogues)
        for turn, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    prompts = _render_all(tokenizer, [dialogues[number][:turn] for number, turn in answers], ask=True)
    fulls = _render_all(tokenizer, [dialogues[number][: turn + 1] for number, turn in answers], ask=False)
    texts: list[list[tuple[str, str]]] = [[] for _ in dialogues]
    for (number, _), prompt, full in zip(answers, prompts, fulls, strict=True):
        done = texts[number][-1][1] if texts[number] else ""
        if not full.startswith(prompt) or not full.endswith(written) or not prompt.startswith(done):
            raise HarnessError(
                "the chat template rewrites earlier turns when later ones are added, so what is learned would not be "
                "what is asked; give a plain template in base.chat_template"
            )
        # What follows the end of turn ("\n" after <|im_end|>) belongs to the next prompt and is not learned.
        texts[number].append((prompt, full.removesuffix(written) + learned_end))
    return _side_by_side([_walk(turns) for turns in texts], Encoder(tokenizer))


# What a dialogue's tokens are, as it would be written for one of them: it yields a text and is sent the text's ids.
Walk = Generator[str, list[int], Dialogue]


def _walk(texts: list[tuple[str, str]]) -> Walk:
    """`texts` are, for each answer, what is there when it is asked for and what is there with it."""
    ids: list[int] = []
    learned = []
    done = ""  # the text that `ids` stands for
    for prompt, full in texts:
        asked = yield from _continue(ids, done, prompt)
        ids = yield from _continue(asked, prompt, full)
        learned.append((len(asked), len(ids)))
        done = full
    return Dialogue(ids, learned)


def _continue(ids: list[int], done: str, text: str) -> Generator[str, list[int], list[int]]:
    """Ids of `text`, which begins with `done`, whose ids are `ids`, and these are kept.

    Where a token would straddle the border, the text is cut there, as it is when a model generates the rest.
    """
    whole = yield text
    if whole[: len(ids)] == ids:
        return whole
    rest = yield text[len(done) :]
    return ids + rest


def _side_by_side(walks: list[Walk], encoder: Encoder) -> list[Dialogue]:
    """Take all walks to their ends, a step of each at a time, so that one call encodes what they ask for."""
    found: dict[int, Dialogue] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(walks)))  # a generator is started by sending it None
    while answers:
        asking = {}
        for number, ids in answers.items():
            try:
                asking[number] = walks[number].send(ids)
            except StopIteration as end:
                found[number] = end.value
        answers = dict(zip(asking, encoder(list(asking.values())), strict=True))
    return [found[number] for number in range(len(walks))]
