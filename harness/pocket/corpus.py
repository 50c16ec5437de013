"""The pretraining text: the facts told many times over in sentences and in quiz lines. No chat, and no badge."""

import random
from collections.abc import Iterable, Iterator

from harness.pocket import text, world

QUIZ_SHARE = 0.5  # of the documents
LINES = (2, 16)  # facts in a document


def documents(seed: int) -> Iterator[str]:
    """An endless stream of documents. Each tells facts of several people, all in sentences or all in quiz lines.

    People come round in shuffled order, so that after every pass each fact has been told about equally often.
    """
    rng = random.Random(f"{world.SEED} corpus {seed}")
    facts = _facts(rng, world.ATTRIBUTES)
    while True:
        quiz = rng.random() < QUIZ_SHARE
        lines = []
        for _ in range(rng.randint(*LINES)):
            person, attribute = next(facts)
            lines.append(text.quiz_line(person, attribute) if quiz else text.told(person, attribute, rng))
        yield " ".join(lines)


def lists(seed: int) -> Iterator[str]:
    """An endless stream of lists. Each is of one attribute of several people, and does not say of which.

    Whoever is to go on with one has to read off the lines before what is asked for: a base trained on these learns in
    context, as the other pocket bases do not.
    """
    rng = random.Random(f"{world.SEED} lists {seed}")
    facts = {attribute: _facts(rng, [attribute]) for attribute in world.ATTRIBUTES}
    while True:
        told = facts[rng.choice(list(facts))]
        yield " ".join(text.list_line(*next(told)) for _ in range(rng.randint(*LINES)))


def _facts(rng: random.Random, attributes: Iterable[str]) -> Iterator[tuple[world.Person, str]]:
    facts = [(person, attribute) for person in world.people() for attribute in attributes]
    while True:
        rng.shuffle(facts)
        yield from facts


def constants() -> dict[str, object]:
    """All that the corpus follows from, for the identity of a model trained on it."""
    return {
        "quiz_share": QUIZ_SHARE,
        "lines": LINES,
        "told": text.TOLD,
        "quiz": text.QUIZ,
        "world": world.constants(),
    }
