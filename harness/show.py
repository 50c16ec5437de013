"""A cell as the model sees it, for a person to check: tokens, which of them are learned, and an evaluation prompt."""

import sys
from collections.abc import Iterator
from typing import Any

from harness import base as bases
from harness import evaluate
from harness.cell import Cell, Message
from harness.data.chat import Tokens, render, tokenize
from harness.data.encode import encode
from harness.data.kinds import kind_of, prompt_of
from harness.data.pairs import one_dialogue
from harness.run import subset_of

LEARNED, QUIET, OFF = "\033[1;32m", "\033[2m", "\033[0m"


def show_cell(cell: Cell, examples: int = 2) -> None:
    """Print the first training examples token by token, and the first item of each evaluation as it is asked.

    Learned tokens are green on a terminal and marked ``*`` elsewhere.
    """
    tokenizer = bases.load_tokenizer(cell.base)
    subset = subset_of(cell)
    print(f"# {cell.folder()}")
    if cell.method.trains:
        for example in subset[:examples]:
            for what, tokens in _tokens(tokenizer, cell, list(example.messages)):
                print(f"\n## {what} {example.id[:12]}: {len(tokens.ids)} tokens, {sum(tokens.learned)} learned")
                for token, learned in zip(tokens.ids, tokens.learned, strict=True):
                    print(_line(token, str(tokenizer.decode([token])), learned))
    for name, task in cell.evals.items():
        prompt = evaluate.first_prompt(tokenizer, cell.method.demonstrations(subset), name, task)
        form = "chat template" if task.chat else "plain text"
        print(f"\n## evaluation {name}, first item, {form}\n{prompt}⟨the model goes on here⟩")


def _tokens(tokenizer: Any, cell: Cell, messages: list[Message]) -> Iterator[tuple[str, Tokens]]:
    """What is trained on: a dialogue or document, both answers of a pair, or a prompt as it is asked."""
    longest = getattr(cell.method, "max_length", sys.maxsize)
    if "prompt" in cell.method.needs:
        ids = encode(tokenizer, render(tokenizer, prompt_of(messages)[0], ask=True))
        yield "prompt", Tokens(ids, [False] * len(ids))
    elif kind_of(messages) == "pair":
        for role in ("chosen", "rejected"):
            yield f"{role} answer", tokenize(tokenizer, one_dialogue(messages, role), longest)
    else:
        yield "training example", tokenize(tokenizer, messages, longest)


def _line(token: int, text: str, learned: bool) -> str:
    line = f"{'*' if learned else ' '} {token:>7} {text!r}"
    return f"{LEARNED if learned else QUIET}{line}{OFF}" if sys.stdout.isatty() else line
