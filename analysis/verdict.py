"""Elicited, taught, both or undecided: one rule, written down, and the evidence it was applied to.

The shape of a curve alone does not tell. What the base knows may need many examples to come out, and what is easily
learned needs few. So two things are asked, each with its interval, both as parts of the same gain: from the untouched
base, or from guessing where that is higher (answers that merely have the right form are right that often), to the score
at the largest size.

- **early**: the part that a tenth of the examples bring (1,000 where the sweep goes to 10,000 or beyond).
- **shown**: the part that the untouched base shows when it is asked in another form: the same answers in another task
  (a quiz in the form of its pretraining, a choice, corrected for guessing), few-shot, URIAL's prompt, a more lenient
  filter. The best of them, each at a level made stricter for how many there are.

| verdict | shown | early |
|---|---|---|
| elicited | at least `much` | whatever: it was there, however slowly it came out |
| elicited | more than `little` | at least `much` |
| both | more than `little`, less than `much` | less than `much`: a further clear rise came later |
| taught | at most `little`, and it could have been shown | at most `little` |
| undecided | else, and where the gain may be nothing | |

"At least", "at most" hold for the whole interval, never for the estimate alone. *Could have been shown* means that the
same answers were asked in another task, or that few-shot questions were answered no worse than by guessing: a base too
small to learn in context answers them worse than that, which says nothing of what it knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.elicitation import FEWSHOT, URIAL, Sampled, lima_scale, references
from analysis.points import is_proportion
from analysis.sample import Estimate, Point, level
from harness.items import Asked, Items

CHANCE = 20  # items
ELICITED, TAUGHT, BOTH, UNDECIDED = "elicited", "taught", "both", "undecided"


@dataclass(frozen=True)
class Rule:
    """What the words of the table mean, in parts of the gain."""

    little: float = 0.25
    much: float = 0.75
    level: float = 0.95  # of every interval


@dataclass(frozen=True)
class Sign:
    """What the untouched base shows in another form."""

    form: str  # in words
    score: Estimate
    part: Estimate  # of the gain
    telling: bool  # a low score would mean that it is not there


@dataclass(frozen=True)
class Verdict:
    verdict: str
    why: str  # one sentence
    n_early: float | None  # examples that count as few; None where the smallest size is more
    floor: float  # guessing, or the untouched base
    gain: Estimate
    early: Estimate
    signs: tuple[Sign, ...]

    def words(self) -> str:
        return f"{self.verdict}: {self.why}"

    def evidence(self) -> list[str]:
        """One line a piece."""
        lines = [f"gain above {self.floor:.2f}: {self.gain.words('{:+.2f}'.format)}"]
        few = f"{self.n_early:,.0f}" if self.n_early else "few"
        lines.append(f"part of it with {few} examples: {self.early.words()}")
        lines += [f"{sign.form}: {sign.score.words()}, part of the gain {sign.part.words()}" for sign in self.signs]
        return lines


def verdict(
    curve: Sampled,
    others: Sequence[Sampled],
    frame: pd.DataFrame,
    items: Items,
    rule: Rule | None = None,
) -> Verdict:
    """Apply the rule to one curve. `others` are all curves of the sweep and `frame` its table.

    A task on which the untouched base was scored counts as another form of this one where its answers are the same,
    item for item, of `CHANCE` or more.
    """
    rule = rule or Rule()
    series = curve.series
    n_early = lima_scale(series.sizes)
    none = Estimate(why="there is no gain to have a part of")
    start, chance = curve.start(), series.asked.chance if series.asked else 0.0
    if start is None:
        missing = Estimate(why="the untouched base was not scored")
        return Verdict(UNDECIDED, "the untouched base was not scored.", n_early, chance, missing, none, ())
    if series.better < 0 or not all(p.proportion for p in series.points):
        other = Estimate(why="scores are no shares of right answers")
        return Verdict(UNDECIDED, "the rule is for shares of right answers.", n_early, chance, other, none, ())
    floor, floors = max(start[0], chance), np.maximum(start[1], chance)
    last, lasts = curve.at(series.sizes[-1])
    whole = Estimate.of(last - floor, lasts - floors, rule.level)
    if not whole.low > 0:
        what = "is a loss" if whole.high < 0 else "may be nothing"
        reason = f"the gain over the base or guessing, {whole.words('{:+.2f}'.format)}, {what}."
        return Verdict(UNDECIDED, reason, n_early, floor, whole, none, ())
    signs = _signs(curve, others, frame, items, rule, (floor, floors))
    if n_early is None:
        early = Estimate(why="the smallest size is more than a tenth of the largest")
    else:
        few, fews = curve.at(n_early)
        early = Estimate.of((few - floor) / (last - floor), (fews - floors) / (lasts - floors), rule.level)
    name, why = decide(rule, early, signs)
    return Verdict(name, why, n_early, floor, whole, early, tuple(signs))


def decide(rule: Rule, early: Estimate, signs: Sequence[Sign]) -> tuple[str, str]:
    """The table of this file. NaN bounds (what cannot be told) satisfy nothing."""
    best = max(signs, key=lambda sign: (sign.part.low, sign.telling), default=None)
    shown = best.part if best else Estimate(why="nothing asked in another form")
    asked = f"asked in another form ({best.form}), the untouched base" if best else ""
    if shown.low >= rule.much:
        pace = ", though few examples do not bring it out" if early.high < rule.much else ""
        return ELICITED, f"{asked} shows {shown.words()} of the gain{pace}."
    if shown.low > rule.little and early.low >= rule.much:
        return ELICITED, f"few examples bring {early.words()} of the gain, and {asked} shows {shown.words()} of it."
    if shown.low > rule.little and shown.high < rule.much and early.high < rule.much:
        return (
            BOTH,
            f"{asked} shows {shown.words()} of the gain, and {early.words()} of it came with few examples, more later.",
        )
    telling = [sign for sign in signs if sign.telling]
    absent = bool(telling) and all(sign.part.high <= rule.little for sign in signs)
    if absent and early.high <= rule.little:
        return TAUGHT, f"few examples bring {early.words()} of the gain, and {asked} shows {shown.words()} of it."
    if not telling:
        return UNDECIDED, (
            f"few examples bring {early.words()} of the gain, but nothing tells whether the base had it: score the "
            "untouched base on the same answers asked in another form (harness eval)."
        )
    return (
        UNDECIDED,
        f"few examples bring {early.words()} of the gain, and {asked} shows {shown.words()} of it: neither is clear.",
    )


def _signs(
    curve: Sampled,
    others: Sequence[Sampled],
    frame: pd.DataFrame,
    items: Items,
    rule: Rule,
    floor: tuple[float, np.ndarray],
) -> list[Sign]:
    series = curve.series
    chance = series.asked.chance if series.asked else 0.0
    found: list[tuple[str, float, np.ndarray, bool, Asked | None]] = []
    known = references(curve, others)
    for name in (FEWSHOT, URIAL):
        if reference := known[name]:
            found.append((name, *reference, bool(np.quantile(reference[1], rule.level) >= chance), series.asked))
    for other in others:
        if (
            replace(other.series, filter=series.filter).key == series.key
            and other is not curve
            and (start := other.start())
        ):
            found.append((f"its answers by {other.series.filter}", *start, False, series.asked))
    for task, point, drawn, asked in _other_tasks(curve, frame, items):
        found.append((f"{task}, untouched", point.score, drawn, True, asked))
    last, lasts = curve.at(series.sizes[-1])
    strict = 1 - (1 - rule.level) / max(len(found), 1)
    signs = []
    for name, score, drawn, telling, asked in found:
        told = Estimate.of(score, drawn, rule.level)
        here, heres = _without_guessing(score, asked, series.asked), _without_guessing(drawn, asked, series.asked)
        parts = np.maximum(heres - floor[1], 0) / np.maximum(lasts - floor[1], 1e-9)  # the gain is clear of 0
        part = Estimate.of(max(here - floor[0], 0) / (last - floor[0]), parts, strict)
        signs.append(Sign(name, told, part, telling))
    return signs


def _without_guessing(score: Any, asked: Asked | None, here: Asked | None) -> Any:
    """What a score among the choices of `asked` would be among those of `here`, or where answers are written.

    Who knows a share k and guesses the rest among m scores k + (1 - k) / m: the correction for guessing (Frary 1988,
    Educational Measurement: Issues and Practice 7(2):33), forth and back. Else four choices would show a quarter of
    what nobody knows.
    """
    known = [asked.chance if asked and asked.choices else 0.0 for asked in (asked, here)]
    return known[1] + (1 - known[1]) * (score - known[0]) / (1 - known[0])


def _other_tasks(
    curve: Sampled, frame: pd.DataFrame, items: Items
) -> list[tuple[str, Point, np.ndarray, Asked | None]]:
    """Tasks whose answers are this one's, scored on the untouched base: name, point, draws, items."""
    series = curve.series
    rows = frame[(frame["base"] == series.base) & (frame["method"] == "base") & (frame["status"] == "ok")]
    rows = rows[rows["headline"].astype(bool) & (rows["task"] != series.task) & rows["higher_is_better"].astype(bool)]
    found = []
    for row in rows.drop_duplicates("task").to_dict("records"):
        stacked = items.stack([row["path"]], row["task"], row["metric"], row["filter"])
        same = stacked is not None and series.asked is not None and stacked[0].targets == series.asked.targets
        same = same and series.points[0].n >= CHANCE  # fewer may be equal for no reason
        if same and is_proportion(row["score"], row["stderr"], row["n_items"]):
            asked, scores = stacked if stacked else (None, None)
            point = Point(np.array([row["score"]]), row["stderr"], int(row["n_items"]), scores)
            found.append((row["task"], point, level(point, asked, len(curve.draws.scores)), asked))
    return found
