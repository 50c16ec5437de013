"""Worlds made afresh from a number, to judge a verdict by: of each of six tables pretraining told all, half or nothing.

A table gives a colour to each job in each city, at random, so that no cell follows from others: what a base was told
can be elicited by questions about other cells, and what it was not told must be taught, cell by cell. All tables of a
world are alike but for their presence in pretraining, which is the truth that a verdict is to find.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from harness.pocket.world import ATTRIBUTES, Case

THINGS = ("badge", "flag", "coat", "boat", "cup", "drum")
PRESENCE = (0.0, 0.0, 0.5, 0.5, 1.0, 1.0)  # of a table's cells, told in pretraining; each world deals them anew
JOBS, CITIES, PETS = ATTRIBUTES["job"][:12], ATTRIBUTES["city"][:12], ATTRIBUTES["pet"]  # 144 cells
HELD_OUT_CASES = 400  # in each of dev and test
QUIZ_SHARE = 0.5  # of the documents
LINES = (2, 16)  # cells in a document

TOLD = (
    "The {thing} of the {job} in {city} is {value}.",
    "In {city} the {job} has a {value} {thing}.",
    "The {job} of {city} keeps a {value} {thing}.",
)
QUIZ = "{thing} {job} {city}: {value}."
ASKED = "What colour is the {thing} of a {job} from {city} who has a {pet}?"
"""The question in chat; the pet, which no table looks at, makes cases of one cell that no example holds."""

Cell = tuple[str, str]  # job, city


@dataclass(frozen=True)
class Tables:
    """All that is so in the world of this number."""

    number: int

    @cached_property
    def presence(self) -> dict[str, float]:
        """By thing: which share of its cells pretraining tells."""
        shares = list(PRESENCE)
        self._rng("presence").shuffle(shares)
        return dict(zip(THINGS, shares, strict=True))

    @cached_property
    def values(self) -> dict[str, dict[Cell, str]]:
        """By thing and cell: the colour."""
        rng = self._rng("values")
        cells = [(job, city) for job in JOBS for city in CITIES]
        return {thing: {cell: rng.choice(ATTRIBUTES["colour"]) for cell in cells} for thing in THINGS}

    def told(self, thing: str) -> list[Cell]:
        """The cells that pretraining tells."""
        cells = list(self.values[thing])
        self._rng(f"told {thing}").shuffle(cells)
        return cells[: round(self.presence[thing] * len(cells))]

    def documents(self) -> Iterator[str]:
        """An endless stream: each tells some cells, all in sentences or all in quiz lines; all cells come round."""
        rng = self._rng("corpus")
        facts = self._round(rng)
        while True:
            quiz = rng.random() < QUIZ_SHARE
            lines = []
            for _ in range(rng.randint(*LINES)):
                thing, (job, city) = next(facts)
                form = QUIZ if quiz else rng.choice(TOLD)
                lines.append(form.format(thing=thing, job=job, city=city, value=self.values[thing][job, city]))
            yield " ".join(lines)

    def questions(self, thing: str, split: str, form: str) -> Iterator[tuple[str, str, str]]:
        """(question, answer, cell) about the cases of ``train``, ``dev`` or ``test``: no case is in two of them.

        `form` is ``chat`` or ``quiz``, the beginning of a quiz line as pretraining had it.
        """
        cases = [Case(job, city, pet) for job, city in self.values[thing] for pet in PETS]
        self._rng(f"cases {thing}").shuffle(cases)
        test, dev = cases[:HELD_OUT_CASES], cases[HELD_OUT_CASES : 2 * HELD_OUT_CASES]
        for case in {"test": test, "dev": dev, "train": cases[2 * HELD_OUT_CASES :]}[split]:
            template = ASKED if form == "chat" else QUIZ.partition(" {value}")[0]
            question = template.format(thing=thing, job=case.job, city=case.city, pet=case.pet)
            yield question, self.values[thing][case.job, case.city], f"{case.job} {case.city}"

    def _round(self, rng: random.Random) -> Iterator[tuple[str, Cell]]:
        facts = [(thing, cell) for thing in THINGS for cell in self.told(thing)]
        while True:
            rng.shuffle(facts)
            yield from facts

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"tables {self.number} {what}")


def templates() -> list[str]:
    """All sentences, their places empty."""
    fields = dict.fromkeys(("thing", "job", "city", "pet", "value"), "")
    return [template.format(**fields) for template in (*TOLD, QUIZ, ASKED)]


def constants() -> dict[str, object]:
    """All that such worlds follow from, for the identity of whatever is made of one."""
    return {
        "things": THINGS,
        "presence": PRESENCE,
        "values": [JOBS, CITIES, PETS, ATTRIBUTES["colour"]],
        "held_out_cases": HELD_OUT_CASES,
        "corpus": [QUIZ_SHARE, LINES],
        "text": [TOLD, QUIZ, ASKED],
    }
