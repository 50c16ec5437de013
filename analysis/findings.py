"""What a sweep says of the question, in plain sentences with their intervals: one `Finding` for each leading curve."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.answer_format import Form, form
from analysis.elicitation import (
    LIMA,
    End,
    Sampled,
    end,
    examples,
    gain,
    lima_scale,
    reached,
    references,
    share,
    shown_variants,
)
from analysis.points import aimed
from analysis.sample import DRAWS, Estimate, Series, collect, draws
from analysis.verdict import Rule, Verdict, verdict
from harness.items import Items


@dataclass(frozen=True)
class Finding:
    """The answers for one curve. Every estimate is in the metric's unit or a share of the gain."""

    curve: Sampled
    name: str  # of the curve, as short as tells it from others
    gain: Estimate
    few: float | None  # examples that stand for LIMA's thousand (`lima_scale`); None where no size is small enough
    share: Estimate  # of the gain, with so few
    shares: dict[str, Estimate]  # the same, counted from each reference
    missing: tuple[str, ...]  # references that the sweep does not hold
    half: Estimate  # examples for half of the gain
    ninety: Estimate
    end: End
    form: Form
    verdict: Verdict
    cautions: tuple[str, ...]

    def words(self) -> list[str]:
        """A sentence for each question: how much came early, is it still rising, is it format, was it in the base."""
        sizes = self.curve.series.sizes
        number = lambda n: examples(n, sizes)  # noqa: E731
        said = [f"{self.name}: a gain of {self.gain.words('{:+.2f}'.format)} with {sizes[-1]:,} examples."]
        if self.gain.why:
            said = [f"{self.name}: the gain {self.gain.words()}."]
        if self.few is None:
            said.append(
                "How much of it came with few examples cannot be told: the smallest size is more than a tenth of all."
            )
        elif self.share.why:
            said.append(f"How much of it came with few examples {self.share.words()}.")
        else:
            scale = "LIMA's scale" if self.few == LIMA else "a tenth of all"
            said.append(f"With {self.few:,.0f} examples, {scale}, {self.share.words(percent)} of it had come.")
        if not self.half.why:
            said.append(
                f"Half of it needs {self.half.words(number)} examples, nine tenths {self.ninety.words(number)}."
            )
        said.append(f"At the end: {self.end.words()}.")
        said.append(f"Of format: {self.form.words()}.")
        said.append(f"In the base? {self.verdict.words()}")
        return said


def percent(part: float) -> str:
    return f"{100 * part:.0f}%"


def sampled(frame: pd.DataFrame, items: Items, n: int = DRAWS, seed: int = 0) -> list[Sampled]:
    """The curves of `harness.store.load`'s table with their draws; not of tasks elsewhere, where nothing is to gain."""
    return [Sampled(series, draws(series, n, seed)) for series in collect(aimed(frame), items)]


def findings(
    frame: pd.DataFrame,
    items: Items,
    curves: Sequence[Sampled] | None = None,
    *,
    rule: Rule | None = None,
    margin: float | None = None,
) -> list[Finding]:
    """One for each leading (metric, filter) of a task and each curve that trains or shows examples.

    `items` is `harness.items.load_items(root, frame)`; `curves` those of `sampled`, made here if not given.
    """
    curves = sampled(frame, items) if curves is None else list(curves)
    found = []
    short = shown_variants(curves)
    for curve in curves:
        if not curve.series.headline:
            continue
        known = references(curve, curves)
        few, start = lima_scale(curve.series.sizes), curve.start()
        nothing = Estimate(why="the smallest size is more than a tenth of the largest")
        shares = {name: share(curve, few, ref) if few else nothing for name, ref in known.items() if ref}
        found.append(
            Finding(
                curve=curve,
                name=_name(curve.series, short[curve.series.key]),
                gain=gain(curve, start),
                few=few,
                share=share(curve, few, start) if few else nothing,
                shares=shares,
                missing=tuple(name for name, ref in known.items() if ref is None),
                half=reached(curve, 0.5, start),
                ninety=reached(curve, 0.9, start),
                end=end(curve, margin),
                form=form(curve, curves, items),
                verdict=verdict(curve, curves, frame, items, rule),
                cautions=tuple(curve.series.cautions()),
            )
        )
    return found


def _name(series: Series, variant: str) -> str:
    return " ".join(filter(None, [f"{series.task}, {series.base}", series.method, variant, "on", series.data]))
