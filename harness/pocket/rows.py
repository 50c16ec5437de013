"""Questions and answers as data: rows to fine-tune on, items to be asked."""

import random
from collections.abc import Iterator

from harness.pocket import text, world

CHOICES = 4
"""Answers offered with an item, for those who score by likelihood: chance is one in four."""
LISTED = "job"
"""The attribute of which a list is; nothing but the answers of other lines says so."""


def train_rows(task: str, split: str, form: str) -> Iterator[dict[str, object]]:
    """Rows in the shape that fine-tuning data has everywhere."""
    for question, answer, _, said in _questions(task, split, form):
        yield {"prompt": question, "completion": said if form == "sentence" else answer}


def pairs(task: str, split: str) -> Iterator[dict[str, object]]:
    """Rows for learning from preferences: the right answer is chosen, another value of the same attribute rejected."""
    rng = random.Random(f"{world.SEED} pairs {task} {split}")
    for question, answer, values, _ in _questions(task, split, "chat"):
        wrong = rng.choice([value for value in values if value != answer])
        yield {"prompt": question, "chosen": answer, "rejected": wrong}


def test_items(task: str, split: str, form: str) -> Iterator[dict[str, object]]:
    """Items in the shape an lm-eval task asks for, with wrong choices drawn from the same attribute."""
    rng = random.Random(f"{world.SEED} choices {task} {split}")
    for question, answer, values, _ in _questions(task, split, form):
        choices = [answer, *rng.sample([value for value in values if value != answer], CHOICES - 1)]
        rng.shuffle(choices)
        yield {"question": question, "answer": answer, "choices": choices, "label": choices.index(answer)}


def _questions(task: str, split: str, form: str) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Question, answer, all values that an answer can have, and the answer as a sentence."""
    if task == "rule":
        for case in world.cases_of(split):
            badge = world.badges()[case.job, case.city]
            yield text.badge_question(case), badge, world.ATTRIBUTES["colour"], text.badge_answer(case, badge)
        return
    rng = random.Random(f"{world.SEED} phrasing {split}")
    for person in world.people_of(split):
        for attribute, values in world.ATTRIBUTES.items():
            if form == "list" and attribute != LISTED:
                continue
            asked = {"quiz": text.quiz_prompt(person, attribute), "list": person.name}
            question = asked.get(form) or text.asked(person, attribute, rng)
            yield question, person.values[attribute], values, text.answered(person, attribute)
