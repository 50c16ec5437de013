"""News: facts about people of whom no pretraining document knows, told by fine-tuning, then asked directly or by way of
what pretraining did tell.

Pretraining tells of 240 people where each lives, what each does and who is a friend of whom. The news are friends of
256 newcomers, old people all of them. So "Who is the friend of Zorb?" asks for a new fact, and "Where does the friend
of Zorb live?" puts it together with an old one that nobody told about Zorb: what Revisiting the Superficial Alignment
Hypothesis (Raghavendra et al. 2024, arXiv 2410.03717) asks of news after a base's cut-off. How two facts are put
together can be taught beforehand, on old people alone.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from harness.pocket import text, world

HOPS = ("city", "job")  # what of the friend is asked for
TOLD_OF = (*HOPS, "friend")
NEWCOMERS = 256
QUIZ_SHARE = 0.5  # of the documents
LINES = (2, 16)  # facts in a document

FRIEND_TOLD = (
    "The friend of {name} is {value}.",
    "{name} has a friend called {value}.",
    "{name} often visits {value}.",
    "{name} walks with {value}.",
)
FRIEND_ASKED = (
    "Who is the friend of {name}?",
    "Which friend does {name} have?",
    "Whom does {name} visit?",
    "With whom does {name} walk?",
)
HOP_ASKED: dict[str, tuple[str, ...]] = {
    "city": ("What is the city of the friend of {name}?", "Which city does the friend of {name} live in?"),
    "job": ("What is the job of the friend of {name}?", "Which job does the friend of {name} do?"),
}
STEPS = "{friend} {attribute}: {value}"
"""An answer in two steps: who the friend is, then what is so of that one, in the words of a quiz line. The last word is
the answer itself."""


@dataclass(frozen=True)
class Row:
    """A question, its answer, and the person whose friend must be known for it."""

    question: str
    answer: str
    person: str


@cache
def old_friends() -> dict[str, str]:
    """By name: the friend of each person of the pretraining, another one of them."""
    rng = random.Random(f"{world.SEED} friends")
    names = [person.name for person in world.people()]
    return {name: rng.choice([other for other in names if other != name]) for name in names}


@cache
def newcomers() -> dict[str, str]:
    """By name: the friend of each newcomer, somebody of whom pretraining told."""
    rng = random.Random(f"{world.SEED} newcomers")
    old = [person.name for person in world.people()]
    onsets, middles = "B D F G H J K L M N P R S T V W Z".split(), ["au", "ei", "oi", "ui"]
    codas = "bor cad dev fal gem hob jin kel lod mun nar pim rok sil tud vas wem yob".split()
    names = rng.sample([a + b + c for a in onsets for b in middles for c in codas], NEWCOMERS)
    return {name: rng.choice(old) for name in names}


def newcomers_of(split: str) -> list[str]:
    """Those asked about in ``dev`` and ``test``, half each; all are told of."""
    names = list(newcomers())
    return {"dev": names[: NEWCOMERS // 2], "test": names[NEWCOMERS // 2 :]}[split]


def documents(seed: int) -> Iterator[str]:
    """An endless stream: each tells facts of several old people, all in sentences or all in quiz lines."""
    rng = random.Random(f"{world.SEED} friends corpus {seed}")
    facts = [(person, attribute) for person in world.people() for attribute in TOLD_OF]
    left: list[tuple[world.Person, str]] = []
    while True:
        quiz = rng.random() < QUIZ_SHARE
        lines = []
        for _ in range(rng.randint(*LINES)):
            if not left:
                left = rng.sample(facts, len(facts))
            person, attribute = left.pop()
            value = old_friends()[person.name] if attribute == "friend" else person.values[attribute]
            forms = FRIEND_TOLD if attribute == "friend" else text.TOLD[attribute]
            form = text.QUIZ if quiz else rng.choice(forms)
            lines.append(form.format(name=person.name, attribute=attribute, value=value))
        yield " ".join(lines)


def told() -> Iterator[Row]:
    """The news: one row a newcomer, in one wording."""
    for name, friend in newcomers().items():
        yield Row(FRIEND_ASKED[_wording(name)].format(name=name), friend, name)


def direct(split: str) -> Iterator[Row]:
    """Each newcomer of the split in a wording in which that one was not told of, though others were."""
    for name in newcomers_of(split):
        others = [form for number, form in enumerate(FRIEND_ASKED) if number != _wording(name)]
        asked = random.Random(f"{world.SEED} asked {name}").choice(others)
        yield Row(asked.format(name=name), newcomers()[name], name)


def multihop(split: str) -> Iterator[Row]:
    """City and job of the friend of each newcomer of the split; the answer alone."""
    for name in newcomers_of(split):
        for question, _, value in _hops(name, newcomers()[name]):
            yield Row(question, value, name)


def reasoning() -> Iterator[Row]:
    """All of `recall`, and city and job of the friend of each old person, step by step."""
    yield from recall()
    for name, friend in old_friends().items():
        for question, attribute, value in _hops(name, friend):
            yield Row(question, STEPS.format(friend=friend, attribute=attribute, value=value), name)


def recall() -> Iterator[Row]:
    """What pretraining told of old people, asked one by one: the same facts as in `reasoning`, never put together."""
    rng = random.Random(f"{world.SEED} recall")
    for person in world.people():
        yield Row(rng.choice(FRIEND_ASKED).format(name=person.name), old_friends()[person.name], person.name)
        for attribute in HOPS:
            yield Row(text.asked(person, attribute, rng), person.values[attribute], person.name)


TRAINED = {"news": told, "reasoning": reasoning, "recall": recall}
ASKED = {"direct": direct, "multihop": multihop}


def rows(what: str, split: str) -> Iterator[dict[str, str]]:
    """In the shapes that fine-tuning data and lm-eval tasks have everywhere; `person` is whose friend it is about."""
    question, answer = ("question", "answer") if what in ASKED else ("prompt", "completion")
    for row in ASKED[what](split) if what in ASKED else TRAINED[what]():
        yield {question: row.question, answer: row.answer, "person": row.person}


def _hops(name: str, friend: str) -> Iterator[tuple[str, str, str]]:
    """(question, attribute, value) by way of the friend."""
    values = {person.name: person.values for person in world.people()}
    rng = random.Random(f"{world.SEED} hops {name}")
    for attribute in HOPS:
        yield rng.choice(HOP_ASKED[attribute]).format(name=name), attribute, values[friend][attribute]


def _wording(name: str) -> int:
    return random.Random(f"{world.SEED} told {name}").randrange(len(FRIEND_ASKED))


def templates() -> list[str]:
    """All sentences, their places empty."""
    groups = [FRIEND_TOLD, FRIEND_ASKED, (STEPS, text.QUIZ)]
    groups += [group[attribute] for group in (text.TOLD, text.ASKED, HOP_ASKED) for attribute in HOPS]
    fields = dict.fromkeys(("name", "friend", "attribute", "value"), "")
    return [template.format(**fields) for group in groups for template in group]


def constants() -> dict[str, object]:
    """All that it follows from, for the identity of whatever is made of it."""
    return {
        "world": world.constants(),
        "told_of": TOLD_OF,
        "newcomers": NEWCOMERS,
        "corpus": [QUIZ_SHARE, LINES],
        "text": [FRIEND_TOLD, FRIEND_ASKED, HOP_ASKED, STEPS, text.TOLD, text.ASKED, text.QUIZ],
    }
