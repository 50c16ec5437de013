"""What is wrong with a wrong answer: one class for each, by the first of these rules that applies.

| rule | class | applies where |
|---|---|---|
| empty | no answer | nothing but white space was written |
| right elsewhere | format | another, more lenient filter of the same task finds the right answer in it |
| loop | repetition | it ends in a phrase of two words or more, said three times or more in a row |
| cut | truncation | it had not come to an end when it had as many tokens as it may have |
| form | format | the strict filter finds no answer in it |
| equation | arithmetic slip | it writes out an equation that is false (`analysis.arithmetic`) |
| digit | arithmetic slip | it is a whole number and nothing else, and misses one of more digits by a carry or in one |
| judge | what it says | a judge was asked of what is left (`harness judge RUNS --task NAME judge=errors`) |
| rest | reasoning error | none of these: well formed, wrong, nothing false worked out |

The loop is that of Holtzman et al. 2020 (arXiv 1904.09751): a phrase of at least two tokens that repeats at least three
times at the end. Words stand for tokens here, as no tokenizer is at hand, and a mark is a word of its own. What is
right elsewhere comes before loops and cuts, as a lenient filter found all that was asked for. What is out of form comes
before slips: a strict reader saw no answer, whatever else was wrong with it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.arithmetic import equations
from harness.items import INVALID

FORMAT, EMPTY, REPETITION, TRUNCATION = "format", "no answer", "repetition", "truncation"
SLIP, REASONING = "arithmetic slip", "reasoning error"
LENIENT = "right elsewhere"  # the rule of what is wrong in nothing but its form
CLASSES = (FORMAT, EMPTY, REPETITION, TRUNCATION, SLIP, REASONING)

PHRASE, TIMES = 2, 3  # words of a loop's phrase at least, and how often in a row at least
SHOWN = 160  # characters of an excerpt
WORD = re.compile(r"\w+|[^\w\s]")
WHOLE = re.compile(r"\s*-?\d+\s*")


@dataclass(frozen=True)
class Wrong:
    """One item that the strict filter holds to be wrong."""

    text: str  # as it was written
    target: str
    found: str  # what the strict filter took for the answer; empty where there was none
    lenient: str = ""  # the filter by which it is right, if any
    cut: bool = False

    @classmethod
    def of(cls, strict: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], metric: str) -> "Wrong":
        """From the lines kept of an item (`harness.items.answers`): that of the strict filter, and others by filter."""
        extracted = strict["extracted"]
        while isinstance(extracted, list) and extracted:
            extracted = extracted[0]
        return cls(
            text=str(strict["answers"][0][0]),
            target=str(strict["target"]),
            found="" if extracted == INVALID else str(extracted),
            lenient=next((name for name, row in others.items() if row.get(metric) == 1), ""),
            cut=any(strict.get("cut", ())),
        )


@dataclass(frozen=True)
class Mistake:
    """`rule` is that of the table, or "judge"; `excerpt` is what it saw."""

    kind: str
    rule: str
    excerpt: str


def classify(wrong: Wrong, said: str = "") -> Mistake:
    """The one class of a wrong answer. `said`: which a judge gave it, who is heard where no rule applies; or empty."""
    for rule, kind, sees in RULES:
        if excerpt := sees(wrong):
            return Mistake(kind, rule, excerpt)
    return Mistake(said or REASONING, "judge" if said else "rest", _end(wrong.text))


def loop(text: str, *, cut: bool = False) -> str:
    """The phrase that `text` repeats at its end, ``4 times: a b``; empty if none. A cut text may end in half a word."""
    words = WORD.findall(text)
    if cut:
        words = words[:-1]
    for length in range(PHRASE, len(words) // TIMES + 1):
        phrase = words[-length:]
        count = 1
        while words[-length * (count + 1) : -length * count] == phrase:
            count += 1
        if count >= TIMES:
            return f"{count} times: {' '.join(phrase)}"
    return ""


def missed_digit(answer: str, target: str) -> str:
    """How a whole number misses one of two or more digits: by a carry (a power of ten) or in one of the digits.

    Whoever guesses misses a number of one digit like this often enough, so that is no slip.
    """
    if not (WHOLE.fullmatch(answer) and WHOLE.fullmatch(target)):
        return ""
    mine, right = int(answer), int(target)
    carried = str(abs(mine - right)).strip("0") == "1"
    a, b = str(abs(mine)), str(abs(right))
    one_digit = len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1
    slipped = len(b) > 1 and mine * right >= 0 and (carried or one_digit)
    return f"{mine} for {right}" if slipped else ""


def _end(text: str) -> str:
    """The last of it, where an answer stands."""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else "…" + text[1 - SHOWN :]


def _empty(wrong: Wrong) -> str:
    return "" if wrong.text.strip() else "(nothing)"


def _right_elsewhere(wrong: Wrong) -> str:
    return f"{wrong.lenient} finds {wrong.target}: {_end(wrong.text)}" if wrong.lenient else ""


def _loop(wrong: Wrong) -> str:
    return loop(wrong.text, cut=wrong.cut)[:SHOWN]


def _cut(wrong: Wrong) -> str:
    return _end(wrong.text) + " (cut)" if wrong.cut else ""


def _form(wrong: Wrong) -> str:
    return "" if wrong.found.strip() else _end(wrong.text)


def _equation(wrong: Wrong) -> str:
    return next((e.text for e in equations(wrong.text) if not e.holds), "")


def _digit(wrong: Wrong) -> str:
    return missed_digit(wrong.text, wrong.target)


RULES: tuple[tuple[str, str, Callable[[Wrong], str]], ...] = (
    ("empty", EMPTY, _empty),
    (LENIENT, FORMAT, _right_elsewhere),
    ("loop", REPETITION, _loop),
    ("cut", TRUNCATION, _cut),
    ("form", FORMAT, _form),
    ("equation", SLIP, _equation),
    ("digit", SLIP, _digit),
)
