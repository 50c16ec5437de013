"""The truth: people who were never born, what is so of each of them, and a rule that nobody was ever told.

Everything here follows from ``SEED`` through ``random.Random``, whose streams are the same on every machine, so the
answer to every question is known before any model exists.
"""

import random
from dataclasses import dataclass
from functools import cache

SEED = 20_240
N_PEOPLE = 240
HELD_OUT_PEOPLE = 40  # in each of dev and test; the rest may be asked about in fine-tuning

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "city": tuple(
        (
            "Arvendal Belcastro Corvenna Drusk Elmora Fennick Gorlund Hestra Ilvane Jorwick Kelmar Lorvik "
            "Mirefold Norhaven Ostrava Pellimar Quorn Rivendor Silbury Tarnholt"
        ).split()
    ),
    "job": tuple(
        (
            "baker carpenter dentist engineer farmer gardener hunter innkeeper jeweller lawyer mason nurse "
            "optician painter sailor tailor potter weaver miller barber"
        ).split()
    ),
    "pet": tuple(
        (
            "cat dog horse rabbit parrot goat hamster turtle snake lizard crow duck goose ferret hedgehog "
            "pigeon frog mouse donkey sheep"
        ).split()
    ),
    "colour": tuple(
        (
            "red blue green yellow orange purple black white brown grey pink crimson violet indigo teal "
            "beige amber ivory olive maroon"
        ).split()
    ),
}
"""What can be known of a person, and the values it can take. Every value is one word, and no word is two values."""


@dataclass(frozen=True)
class Person:
    name: str
    values: dict[str, str]


@cache
def people() -> tuple[Person, ...]:
    """All of them, in a fixed order that says nothing about their values."""
    rng = random.Random(f"{SEED} people")
    onsets = "B Br D Dr F G Gr H J K Kl L M N P Pr R S St T Tr V W Y Z".split()
    middles = ["a", "e", "i", "o", "u", "ae", "ia"]
    codas = "bek dan fin gar hil jun kos lam mir nox pel ras sul tav vin wen xa yor zed thi".split()
    names = rng.sample([a + b + c for a in onsets for b in middles for c in codas], N_PEOPLE)
    return tuple(
        Person(name, {attribute: rng.choice(values) for attribute, values in ATTRIBUTES.items()}) for name in names
    )


def people_of(split: str) -> tuple[Person, ...]:
    """The people asked about in ``train``, ``dev`` or ``test``: no person is in two of them."""
    test, dev = people()[:HELD_OUT_PEOPLE], people()[HELD_OUT_PEOPLE : 2 * HELD_OUT_PEOPLE]
    return {"test": test, "dev": dev, "train": people()[2 * HELD_OUT_PEOPLE :]}[split]


@dataclass(frozen=True)
class Case:
    """One input of the rule: a job, a city and a pet. The rule never looks at the pet."""

    job: str
    city: str
    pet: str


BADGE_JOBS, BADGE_CITIES = ATTRIBUTES["job"][:15], ATTRIBUTES["city"][:15]
HELD_OUT_CASES = 200  # in each of dev and test


@cache
def badges() -> dict[tuple[str, str], str]:
    """The rule: the colour of the badge for each (job, city).

    A random table is the purest thing to teach: no base can know it, and a cell that is in no example can only be
    guessed, so that n examples give, guesses apart, no more than the share of the cells which they cover.
    """
    rng = random.Random(f"{SEED} badges")
    return {(job, city): rng.choice(ATTRIBUTES["colour"]) for job in BADGE_JOBS for city in BADGE_CITIES}


@cache
def _cases() -> tuple[Case, ...]:
    cases = [Case(job, city, pet) for job, city in badges() for pet in ATTRIBUTES["pet"]]
    random.Random(f"{SEED} cases").shuffle(cases)
    return tuple(cases)


def cases_of(split: str) -> tuple[Case, ...]:
    """The inputs asked about in ``train``, ``dev`` or ``test``: no (job, city, pet) is in two of them."""
    test, dev = _cases()[:HELD_OUT_CASES], _cases()[HELD_OUT_CASES : 2 * HELD_OUT_CASES]
    return {"test": test, "dev": dev, "train": _cases()[2 * HELD_OUT_CASES :]}[split]


def constants() -> dict[str, object]:
    """All that the world follows from, for the identity of whatever is made of it."""
    return {
        "seed": SEED,
        "people": N_PEOPLE,
        "held_out_people": HELD_OUT_PEOPLE,
        "badge_jobs": BADGE_JOBS,
        "badge_cities": BADGE_CITIES,
        "held_out_cases": HELD_OUT_CASES,
        "attributes": ATTRIBUTES,
    }
