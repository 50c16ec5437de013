"""A cell as the model sees it, for a person to check: tokens, which of them are learned, and an evaluation prompt."""

import sys

from harness import base as bases
from harness import evaluate
from harness.cell import Cell
from harness.data.chat import tokenize
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
            tokens = tokenize(tokenizer, list(example.messages), getattr(cell.method, "max_length", sys.maxsize))
            print(f"\n## training example {example.id[:12]}: {len(tokens.ids)} tokens, {sum(tokens.learned)} learned")
            for token, learned in zip(tokens.ids, tokens.learned, strict=True):
                print(_line(token, str(tokenizer.decode([token])), learned))
    for name, task in cell.evals.items():
        prompt = evaluate.first_prompt(tokenizer, cell.method.demonstrations(subset), name, task)
        form = "chat template" if task.chat else "plain text"
        print(f"\n## evaluation {name}, first item, {form}\n{prompt}⟨the model goes on here⟩")


def _line(token: int, text: str, learned: bool) -> str:
    line = f"{'*' if learned else ' '} {token:>7} {text!r}"
    return f"{LEARNED if learned else QUIET}{line}{OFF}" if sys.stdout.isatty() else line
