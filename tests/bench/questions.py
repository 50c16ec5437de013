"""Invented questions, the same on every machine, as the requests that lm-eval makes of a task.

A request is plain data (context and continuation, or context and generation settings), so that it can be handed to a
peer in another interpreter.
"""

import random
from dataclasses import dataclass
from typing import Any

NAMES = "Ada Bruno Carla Dmitri Elena Farid Greta Hugo Ines Jonas Keiko Lars Mona Nadia Oskar Petra Quinn Rosa".split()
PLACES = "harbour,market,library,station,orchard,bakery,museum,workshop,garden,theatre".split(",")
THINGS = "brass lamps,apple crates,wool blankets,maps,bicycles,clay pots,violins,seed packets,ladders,coins".split(",")
COLOURS = "red blue green yellow white black silver purple".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


@dataclass(frozen=True)
class Question:
    """A question; `choices` are the continuations lm-eval scores, `answer` the right one's place."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Problem:
    """A question to be answered freely; `answer` is the number asked for."""

    context: str
    answer: str


def shared_context(count: int, shots: int = 5, seed: int = 0) -> list[Question]:
    """Multiple choice after `shots` examples that all questions share: some 530 of 589 tokens at five shots."""
    draw = random.Random(seed)
    opening = "".join(_story(draw, solved=True)[0] + "\n\n" for _ in range(shots))
    stories = [_story(draw) for _ in range(count)]
    return [Question(opening + text, choices, answer) for text, choices, answer in stories]


def nothing_shared(count: int, seed: int = 0) -> list[Question]:
    """Multiple choice without examples; contexts differ from their first words on."""
    draw = random.Random(seed)
    return [Question(*_story(draw)) for _ in range(count)]


def letters(questions: list[Question]) -> list[Question]:
    """The same questions answered by a letter. For choices of one token lm-eval's hf asks each context only once."""
    lettered = []
    for q in questions:
        options = "".join(f"\n{letter}.{choice}" for letter, choice in zip("ABCD", q.choices, strict=True))
        lettered.append(Question(q.context + options + "\nLetter:", (" A", " B", " C", " D"), q.answer))
    return lettered


def problems(count: int, shots: int = 8, seed: int = 0, *, own: bool = False) -> list[Problem]:
    """Sums in words after `shots` solved ones that all share, or each after its `own`."""
    draw = random.Random(seed)
    openings = ["".join("{} {}\n\n".format(*_problem(draw)[:2]) for _ in range(shots)) for _ in range(count**own)]
    asked = [_problem(draw) for _ in range(count)]
    return [Problem(openings[i * own] + question, number) for i, (question, _, number) in enumerate(asked)]


def scoring_requests(questions: list[Question]) -> list[tuple[str, str]]:
    """Arguments of lm-eval's log-likelihood requests: every choice of every question."""
    return [(q.context, choice) for q in questions for choice in q.choices]


def generation_requests(asked: list[Problem], tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """Arguments of lm-eval's generation requests: greedy, no stop but the end of text, so all have equal work."""
    return [(p.context, {"until": [], "max_gen_toks": tokens, "do_sample": False}) for p in asked]


def sampling_requests(asked: list[Problem], tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """The same, drawn as in Yue et al. 2025 (arXiv 2504.13837)."""
    how = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 0}
    return [(p.context, {"until": [], "max_gen_toks": tokens, **how}) for p in asked]


def _story(draw: random.Random, *, solved: bool = False) -> tuple[str, tuple[str, ...], int]:
    who, other = draw.sample(NAMES, 2)
    place, elsewhere = draw.sample(PLACES, 2)
    thing, colour, day = draw.choice(THINGS), draw.choice(COLOURS), draw.choice(DAYS)
    count, left = draw.randrange(12, 99), draw.randrange(2, 11)
    text = (
        f"{who} brought {count} {colour} {thing} to the {place} on {day}. {other} carried {left} of them to the "
        f"{elsewhere} before dark, in the pouring rain, and nobody came back for anything before the next morning.\n"
        f"Question: Where were the other {thing} that night?\nAnswer:"
    )
    places = [*draw.sample([p for p in PLACES if p not in (place, elsewhere)], 2), place, elsewhere]
    draw.shuffle(places)
    choices = tuple(f" {p} at the end of {who if p == place else other}'s street" for p in places)
    answer = places.index(place)
    if solved:
        text += f"{choices[answer]}, because {other} carried only {left} of the {count} {thing} away and all the rest "
        text += "stayed there until the people of the town came for it in the evening."
    return text, choices, answer


def _problem(draw: random.Random) -> tuple[str, str, str]:
    who, thing, place = draw.choice(NAMES), draw.choice(THINGS), draw.choice(PLACES)
    have, more, less = draw.randrange(10, 60), draw.randrange(3, 30), draw.randrange(1, 10)
    total = have + more - less
    question = (
        f"Question: {who} has {have} {thing}, buys {more} more at the {place} and gives {less} of them away. "
        f"How many {thing} are left?\nAnswer:"
    )
    solution = f"{have} + {more} = {have + more}, and {have + more} - {less} = {total}. The answer is {total}."
    return question, solution, str(total)


def sums(count: int, seed: int = 0) -> list[list[dict[str, str]]]:
    """Short chat examples to train on: a sum and its answer, as messages."""
    draw = random.Random(seed)
    examples = []
    for _ in range(count):
        first, *rest = (draw.randrange(10, 100) for _ in range(draw.randrange(2, 5)))
        signs = [draw.choice("+-") for _ in rest]
        total = first + sum(n if sign == "+" else -n for sign, n in zip(signs, rest, strict=True))
        term = str(first) + "".join(f" {sign} {n}" for sign, n in zip(signs, rest, strict=True))
        ask = f"State the final answer to the following arithmetic problem: {term} ="
        examples.append([{"role": "user", "content": ask}, {"role": "assistant", "content": str(total)}])
    return examples
