"""Instructions whose following can be checked without judging the text, as in IFEval (Zhou et al. 2023, 2311.07911)."""

import json
import re
from dataclasses import dataclass
from typing import Any

from harness.errors import HarnessError
from harness.rewards.base import Reward


@dataclass
class Constraints(Reward):
    """The share of the row's constraints that the completion meets; with `strict` 1 where it meets all, else 0.

    The reference is a JSON object of constraints by name, e.g. ``{"words_at_most": 50, "keywords": ["sea"]}``; `meets`
    says which there are.
    """

    strict: bool = False

    def __call__(self, completion: str, reference: str) -> float:
        if not completion.strip():  # or saying nothing would meet most of them
            return 0.0
        met = [meets(completion, name, value) for name, value in _read(reference).items()]
        return float(all(met)) if self.strict else sum(met) / len(met)

    def check(self, reference: str) -> None:
        for name, value in _read(reference).items():
            meets("", name, value)


def _read(reference: str) -> dict[str, Any]:
    try:
        constraints = json.loads(reference)
    except ValueError:
        constraints = None
    if not isinstance(constraints, dict) or not constraints:
        raise HarnessError(f"the reference {reference!r:.80} is no JSON object of constraints; see harness.rewards")
    return constraints


def meets(text: str, name: str, value: Any) -> bool:
    """Whether `text` meets the constraint. Raises HarnessError for one that is not known, or a value that is not its.

    A word is a run of characters without white space; a sentence ends with . ! or ?; paragraphs are set apart by empty
    lines; a bullet is a line that begins with - or *.
    """
    low = text.casefold()
    match name, value:
        case "words_at_least", int():
            return len(text.split()) >= value
        case "words_at_most", int():
            return len(text.split()) <= value
        case "sentences_at_most", int():
            return len(re.findall(r"[^.!?\s][^.!?]*(?:[.!?]+|\Z)", text)) <= value
        case "paragraphs", int():
            return len([part for part in re.split(r"\n\s*\n", text) if part.strip()]) == value
        case "bullets", int():
            return len(re.findall(r"^\s*[-*]\s+\S", text, re.MULTILINE)) == value
        case "keywords", list():
            return all(_has(low, word) for word in value)
        case "forbidden", list():
            return not any(_has(low, word) for word in value)
        case "begins_with", str():
            return text.strip().startswith(value)
        case "ends_with", str():
            return text.strip().endswith(value)
        case "lowercase", True:
            return text == text.lower()
        case "uppercase", True:
            return text == text.upper()
        case "no_commas", True:
            return "," not in text
        case "json", True:
            return _is_json(text)
    raise HarnessError(
        f"the constraint {name!r}: {value!r} is not known; use words_at_least, words_at_most, sentences_at_most, "
        "paragraphs or bullets (a number), keywords or forbidden (a list of words), begins_with or ends_with (a text), "
        "lowercase, uppercase, no_commas or json (true)"
    )


def _has(low: str, word: Any) -> bool:
    return re.search(rf"(?<!\w){re.escape(str(word).casefold())}(?!\w)", low) is not None


def _is_json(text: str) -> bool:
    """Also in a fence, as a chat writes it."""
    inside = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", text, re.DOTALL)
    try:
        json.loads(inside[1] if inside else text)
    except ValueError:
        return False
    return True
