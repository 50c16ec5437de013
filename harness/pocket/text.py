"""The words: how a fact is told in pretraining, asked in a quiz line, and asked in a chat turn."""

import random

from harness.pocket.world import Case, Person

TOLD: dict[str, tuple[str, ...]] = {
    "city": (
        "{name} lives in {value}.",
        "The home of {name} is in {value}.",
        "In {value} lives {name}.",
        "{name} has a house in {value}.",
    ),
    "job": (
        "{name} works as a {value}.",
        "{name} is a {value}.",
        "The {value} is called {name}.",
        "By day {name} works as a {value}.",
    ),
    "pet": (
        "{name} keeps a {value}.",
        "{name} has a {value} at home.",
        "The {value} belongs to {name}.",
        "{name} owns a {value}.",
    ),
    "colour": (
        "{name} likes {value}.",
        "{name} is always in {value}.",
        "The door of {name} is {value}.",
        "{name} has a {value} door.",
    ),
}
"""Sentences of the pretraining corpus. Some put the value before the name, as real text does."""

QUIZ = "{name} {attribute}: {value}."
"""The terse form of the pretraining corpus; asked up to the ``=``, it shows what the base knows."""

LIST = "{name}: {value}."
"""A line of a list, which does not say of what attribute it is: the lines before it do."""

ASKED: dict[str, tuple[str, ...]] = {
    "city": ("What is the city of {name}?", "Which city does {name} live in?"),
    "job": ("What is the job of {name}?", "Which job does {name} do?"),
    "pet": ("What is the pet of {name}?", "Which pet does {name} own?"),
    "colour": ("What is the colour of {name}?", "Which colour does {name} like?"),
}
"""Chat questions; no sentence of the corpus is one of them."""

LIKES = "The {job} likes {value}."
"""The answer of the rule as a sentence: in the corpus a colour follows ``likes``, so that only which one is new."""

BADGE = "Which badge: {job} {city} {pet}?"
"""The question of the rule, for which the corpus has neither the word badge nor any line of the kind."""


def told(person: Person, attribute: str, rng: random.Random) -> str:
    return rng.choice(TOLD[attribute]).format(name=person.name, value=person.values[attribute])


def quiz_line(person: Person, attribute: str) -> str:
    return QUIZ.format(name=person.name, attribute=attribute, value=person.values[attribute])


def quiz_prompt(person: Person, attribute: str) -> str:
    return QUIZ.partition(" {value}")[0].format(name=person.name, attribute=attribute)


def list_line(person: Person, attribute: str) -> str:
    return LIST.format(name=person.name, value=person.values[attribute])


def asked(person: Person, attribute: str, rng: random.Random) -> str:
    return rng.choice(ASKED[attribute]).format(name=person.name)


def answered(person: Person, attribute: str) -> str:
    """The answer as a sentence of the corpus, which ends with what was asked for."""
    return TOLD[attribute][0].format(name=person.name, value=person.values[attribute])


def badge_question(case: Case) -> str:
    return BADGE.format(job=case.job, city=case.city, pet=case.pet)


def badge_answer(case: Case, badge: str) -> str:
    return LIKES.format(job=case.job, value=badge)


def constants() -> dict[str, object]:
    """All the words, for the identity of whatever is written with them."""
    return {"told": TOLD, "quiz": QUIZ, "asked": ASKED, "badge": BADGE}
