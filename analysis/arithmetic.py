"""Equations in running text, checked exactly: which of the sums that an answer writes out are false.

Read are numbers with + - * / (also the signs for times and divided by, and x between numbers), brackets, decimals,
thousands' commas and currency signs, and words between a number and an operator ("5 apples + 3 apples"). In doubt an
equation is not judged: with a variable, a power, a per cent or a number in words beside it, or a unit before the equals
sign that the result does not have. Text of a model is parsed here and never run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

TOKEN = re.compile(r"(?P<space>\s*)(?:(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<word>[^\W\d_]+)|(?P<mark>\S))")
TIMES = ("\u00d7", "\u00b7", "\u22c5", "\u2219", r"\times", r"\cdot")
DIVIDED, LESS = ("\u00f7", r"\div"), ("\u2212", "\u2013")
SIGNS = dict.fromkeys(TIMES, "*") | dict.fromkeys(DIVIDED, "/") | dict.fromkeys(LESS, "-")
DROPPED = re.compile(r"\\?[$€£]|\\[()\[\],!;]|(?<!\d)\*\*|\*\*(?!\s*[\d(])|(?<=\d),(?=\d{3}(?!\d))")
BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d+[.)])\s+")
CALCULATES = {"of", "twice", "half", "double", "triple", "times", "plus", "minus", "per", "over", "by", "squared"}
NUMERALS = {"dozen", "hundred", "thousand", "million", "billion"}
HARMLESS = set(":;,.\"'>|<→([{}])?#")  # marks that may stand before or behind an equation
MOST = 40  # tokens of one equation; what is longer is no sum that somebody works out


@dataclass(frozen=True)
class Equation:
    text: str
    holds: bool


@dataclass(frozen=True)
class _Token:
    kind: str  # number, word or mark
    text: str
    apart: bool  # a space stands before it

    @property
    def counts(self) -> bool:
        return self.kind == "number" or (self.kind == "mark" and self.text in "+-*/()=")


@dataclass(frozen=True)
class _Side:
    """One side of an equation."""

    value: Fraction
    first: Fraction | None  # the number that it begins with
    worked: bool  # it has an operator
    exact: bool  # it has neither a division nor decimals, so nothing of it is rounded
    decimals: int  # of the number, where it is one


def equations(text: str) -> Iterator[Equation]:
    """Those of `text` that can be judged, in order; of ``a + b = c = d`` each neighbouring pair."""
    for sign, plain in SIGNS.items():
        text = text.replace(sign, plain)
    for line in DROPPED.sub("", text).splitlines():
        yield from _of_line(_without_units(_tokens(BULLET.sub("", line))))


def _tokens(line: str) -> list[_Token]:
    found = []
    for match in TOKEN.finditer(line):
        kind = str(match.lastgroup)
        found.append(_Token(kind, match[kind], bool(match["space"]) or match.start() == 0))
    for i, token in enumerate(found[1:-1], 1):
        between = found[i - 1].kind == found[i + 1].kind == "number"
        if token.text in ("x", "X") and between:
            found[i] = _Token("mark", "*", True)
    return found


def _without_units(tokens: list[_Token]) -> list[_Token]:
    """``5 apples + 3 apples = 8 apples`` -> ``5 + 3 = 8 apples``."""
    kept: list[_Token] = []
    for i, token in enumerate(tokens):
        unit = token.kind == "word" and token.apart and len(token.text) > 1 and token.text not in CALCULATES | NUMERALS
        behind, then = tokens[i + 1 : i + 2], tokens[i + 2 : i + 4]
        if unit and kept and kept[-1].kind == "number" and behind and behind[0].apart:
            if behind[0].text in ("+", "-", "*", "/") and then and (then[0].kind == "number" or then[0].text == "("):
                continue
            if behind[0].text == "=" and [t.text for t in then[1:]] == [token.text]:
                continue
        kept.append(token)
    return kept


def _of_line(tokens: list[_Token]) -> Iterator[Equation]:
    start = 0
    while start < len(tokens):
        if not tokens[start].counts:
            start += 1
            continue
        end = next((i for i in range(start, len(tokens)) if not tokens[i].counts), len(tokens))
        if end - start <= MOST:
            before, behind = tokens[start - 1 : start] if start else [], tokens[end : end + 1]
            begins = _begins(before[0], tokens[start]) if before else True
            yield from _of_run(tokens[start:end], begins, _ends(behind[0]) if behind else True)
        start = end


def _begins(before: _Token, first: _Token) -> bool:
    """Whether a sum can begin behind `before`: "so 3 + 5", but neither "x3 + 5", "2^3 + 5" nor "half of 3 + 5"."""
    if before.kind == "word":
        return first.apart and len(before.text) > 1 and before.text.lower() not in CALCULATES | NUMERALS
    return before.text in HARMLESS


def _ends(behind: _Token) -> bool:
    """Whether a result can end before `behind`: "= 8 apples", but neither "= 8x", "= 8%" nor "= 8 dozen"."""
    if behind.kind == "word":
        return behind.apart and len(behind.text) > 1 and behind.text.lower() not in CALCULATES | NUMERALS
    return behind.text in HARMLESS - {":"}


def _of_run(run: list[_Token], begins: bool, ends: bool) -> Iterator[Equation]:
    parts: list[list[_Token]] = [[]]
    for token in run:
        parts.append([]) if token.text == "=" else parts[-1].append(token)
    sides = [_side(part) for part in parts]
    sides[0], sides[-1] = sides[0] if begins else None, sides[-1] if ends else None
    for i, (one, other) in enumerate(pairwise(sides)):
        if one and other and (one.worked or other.worked):
            text = " = ".join(" ".join(token.text for token in part) for part in parts[i : i + 2])
            yield Equation(text, _equal(one, other))


def _equal(one: _Side, other: _Side) -> bool:
    """Exactly, or rounded or cut to the decimals shown where there was something to round; or, as in the running sum
    ``3 + 5 = 8 * 2``, equal to what the other side begins with."""
    if one.value == other.value:
        return True
    if not (one.exact and other.exact) and not other.worked:
        unit = Fraction(1, 10**other.decimals)
        apart = abs(one.value - other.value)
        if not other.decimals:  # a half is no rounded whole number: who had it could have written it
            return apart < unit / 2
        if apart <= unit / 2 or 0 <= abs(one.value) - abs(other.value) < unit:
            return True
    return other.worked and one.worked and one.value == other.first


def _side(tokens: list[_Token]) -> _Side | None:
    """None where it is no expression."""
    texts = [token.text for token in tokens]
    while texts.count("(") > texts.count(")") and texts[0] == "(":
        texts = texts[1:]
    while texts.count(")") > texts.count("(") and texts[-1] == ")":
        texts = texts[:-1]
    parser = _Parser(texts)
    try:
        value = parser.sum()
    except (IndexError, ValueError, ZeroDivisionError):  # it ends too early, has no number, or divides by nothing
        return None
    if parser.left:
        return None
    numbers = [text for text in texts if text not in "+-*/()"]
    worked = len(numbers) > 1
    decimals = len(texts[-1].partition(".")[2])
    exact = "/" not in texts and not any("." in number for number in numbers)
    return _Side(value, Fraction(numbers[0]) if texts[0] == numbers[0] else None, worked, exact, decimals)


class _Parser:
    """Recursive descent over the usual grammar; at most `MOST` deep."""

    def __init__(self, texts: list[str]) -> None:
        self.left = list(texts)

    def sum(self) -> Fraction:
        value = self.product()
        while self.left and self.left[0] in ("+", "-"):
            value += self.product() if self.left.pop(0) == "+" else -self.product()
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while self.left and self.left[0] in ("*", "/", "("):
            sign = "*" if self.left[0] == "(" else self.left.pop(0)
            value = value * self.factor() if sign == "*" else value / self.factor()
        return value

    def factor(self) -> Fraction:
        text = self.left.pop(0)
        if text == "-":
            return -self.factor()
        if text == "(":
            value = self.sum()
            if self.left.pop(0) != ")":
                raise ValueError
            return value
        return Fraction(text)  # ValueError for an operator
