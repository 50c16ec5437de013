"""What a sweep's page concludes: a row for each leading curve, the sentences behind it, and tables for the figures.

Everything is from `analysis.findings` and `analysis.choice`; here it is put into the words and shapes of a page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.by_size import by_size
from analysis.choice import Choice, choose
from analysis.compared import Compared, compared
from analysis.elicitation import Sampled, share
from analysis.findings import Finding, findings, percent, sampled
from analysis.fit import Points, error_of, fit, grid
from analysis.foretold import foretell
from analysis.points import CURVE, brief
from analysis.sample import Estimate, Series
from harness.items import Items

SIGNED = "{:+.2f}".format


@dataclass(frozen=True)
class Row:
    """One curve's answers, each a few words; `lines` are the sentences behind them."""

    name: str
    gain: str
    few: str
    end: str
    form: str
    verdict: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Conclusions:
    """`fits`, `shares` and `measures` are tables as `analysis.figures` describes them.

    `findings` are all that was found, gain or none, and `choices` which law each gaining curve supports, by its key.
    """

    rows: tuple[Row, ...] = ()  # curves that gain
    others: tuple[str, ...] = ()  # of those that do not for sure, a sentence each
    cautions: tuple[str, ...] = ()  # what of all of them is to be known, each said once
    fits: pd.DataFrame | None = None
    shares: pd.DataFrame | None = None
    measures: pd.DataFrame | None = None
    findings: tuple[Finding, ...] = ()
    choices: Mapping[tuple[str, ...], Choice] = field(default_factory=dict)
    compared: Compared = field(default_factory=Compared)


def conclude(frame: pd.DataFrame, items: Items) -> Conclusions:
    """From `harness.store.load`'s table and `harness.items.load_items` of it."""
    curves = sampled(frame, items)
    found = findings(frame, items, curves)
    gaining = [one for one in found if one.gain.low > 0]
    choices = {one.curve.series.key: law_of(one.curve) for one in gaining}
    supported = {one.curve.series.key: (one.curve, choices[one.curve.series.key]) for one in gaining}
    said = dict.fromkeys(text for one in found for text in one.cautions)
    return Conclusions(
        rows=tuple(_row(one, choices[one.curve.series.key]) for one in gaining),
        others=tuple(
            f"{one.name}: {f'a gain of {one.gain.words(SIGNED)}' if not one.gain.why else one.gain.words()}."
            for one in found
            if one not in gaining
        ),
        cautions=tuple(said),
        fits=_table([row for one in gaining for row in _fit_rows(one.curve, choices[one.curve.series.key])]),
        shares=_table([row for one in gaining for row in _share_rows(one.curve)]),
        measures=_table([row for one in gaining for row in _measure_rows(one, curves)]),
        findings=tuple(found),
        choices=choices,
        compared=compared(curves, {key: asymptote(*pair) for key, pair in supported.items()}),
    )


# ---------------------------------------------------------------------------------------------------------------- laws


def law_of(curve: Sampled) -> Choice:
    """Which law of error against size, if any; the standard errors are those of the draws."""
    error, drawn = errors(curve)
    proportion = _proportion(curve.series)
    spread = drawn.std(axis=0)
    if not proportion and curve.series.better > 0:
        return Choice((), (), None, "Laws are of an error or a loss; of a score without a best value there is none.")
    return choose(curve.series.sizes, error, spread if (spread > 0).all() else None, share=proportion)


def errors(curve: Sampled) -> tuple[np.ndarray, np.ndarray]:
    """[S] and [B, S]: 1 - score above chance of a share of right answers, else the loss as it is."""
    if not _proportion(curve.series):
        return curve.series.scores, curve.draws.scores
    chance = _chance(curve.series)
    return error_of(curve.series.scores, chance), error_of(curve.draws.scores, chance)


def _scores(series: Series, error: np.ndarray) -> np.ndarray:
    """The way back."""
    return 1 - error * (1 - _chance(series)) if _proportion(series) else error


def _proportion(series: Series) -> bool:
    return series.better > 0 and all(point.proportion for point in series.points)


def _chance(series: Series) -> float:
    """Of guessing among choices; where answers are written, a fixed one's luck is nothing to be subtracted."""
    return series.asked.chance if series.asked and series.asked.choices else 0.0


def _fit_rows(curve: Sampled, choice: Choice) -> list[dict[str, object]]:
    """The supported law as it was before it saw the largest sizes, drawn through all of them."""
    if choice.supported is None:
        return []
    sizes, (_, drawn) = curve.series.sizes, errors(curve)
    held = choice.splits[0].held
    shown = fit(choice.supported.law, choice.supported.points.where(~held))
    at = np.unique(np.concatenate([grid(choice.supported.points, 60), sizes]))
    band = shown.refit(drawn[:, ~held]).band(at, reach=1.01 * sizes[-1] / sizes[~held].max())
    ends = [_scores(curve.series, one) for one in (band.middle, band.low, band.high)]
    since = float(sizes[held].min())
    return [
        {**_key(curve.series), "size": size, "score": middle, "low": min(low, high), "high": max(low, high)}
        | {"held_out": since}
        for size, middle, low, high in zip(at, *ends, strict=True)
    ]


def beyond(curve: Sampled) -> str:
    """What the laws that the data do not refute say one decade beyond the largest size, in a sentence."""
    error, drawn = errors(curve)
    told = foretell(curve.series.sizes, error, drawn, share=_proportion(curve.series))
    given = f"What {brief(told.size)} examples would give"
    if told.error.why:
        return f"{given} {told.error.words()}."
    laws = ", ".join(f"{name} {percent(weight)}" for name, weight in told.weights.items() if weight >= 0.01)
    said = f"{given}, by the laws that agree with all sizes ({laws}): {_told(curve, told.error).words()}"
    leading = next(one.law for one in told.said if one.law.name == next(iter(told.weights)))
    points = Points(curve.series.sizes, error, drawn.std(axis=0), share=_proportion(curve.series))
    check = by_size(leading, points, told.size)
    if not check.why:
        said += f"; by the {leading.name} law alone, over resamples of the sizes: {_told(curve, check).words()}"
    return f"{said}; farther nothing is said."


def _told(curve: Sampled, error: Estimate) -> Estimate:
    """A score from its error."""
    value, *ends = (float(_scores(curve.series, np.array(e))) for e in (error.value, error.low, error.high))
    return Estimate(value, min(ends), max(ends))


def asymptote(curve: Sampled, choice: Choice) -> Estimate:
    """The score that the supported law tends to, were it to hold for ever; not every law has one."""
    law = choice.supported
    if law is None:
        return Estimate(why="no law is supported")
    if "E" not in law.values:
        return Estimate(why=f"the {law.law.name} law, which is supported, tends to none")
    refits = law.refit(errors(curve)[1])
    if (known := refits.of("E")).low_open and known.high_open:
        return Estimate(why="the asymptote of the supported law is not identified")
    value = _scores(curve.series, np.array(law.values["E"]))
    return Estimate.of(float(value), _scores(curve.series, refits.values["E"]))


# ----------------------------------------------------------------------------------------------------------- the page


def _row(one: Finding, choice: Choice) -> Row:
    few = "cannot be told" if one.few is None or one.share.why else f"{one.share.words(percent)} with {brief(one.few)}"
    slope = "" if one.end.slope.why else f", {SIGNED(one.end.slope.value)} a decade"
    law = [choice.why] + ([beyond(one.curve)] if choice.supported else [])
    return Row(
        name=one.name,
        gain=one.gain.words(SIGNED),
        few=few,
        end=one.end.state + slope,
        form=one.form.finding,
        verdict=one.verdict.verdict,
        lines=(*one.words()[1:], *law, *(f"Evidence: {line}." for line in one.verdict.evidence()), *one.cautions),
    )


def _share_rows(curve: Sampled) -> list[dict[str, object]]:
    """None of one size, which has all of its gain."""
    rows: list[dict[str, object]] = []
    if len(curve.series.sizes) < 2:
        return rows
    for size in curve.series.sizes:
        part = share(curve, float(size), curve.start())
        rows.append({**_key(curve.series), "size": size, "share": part.value, "low": part.low, "high": part.high})
    return rows


def _measure_rows(one: Finding, curves: Sequence[Sampled]) -> list[dict[str, object]]:
    """Strict, flexible, in the strict form, right of those; nothing where form and content do not part."""
    if one.form.flexible.why or (one.form.finding == "capability" and one.form.valid is None):
        return []
    mine = one.curve.series
    others = [c for c in curves if c.series.key[:6] == mine.key[:6] and c.series.filter != mine.filter]
    named: list[tuple[str, Sampled | None]] = [(f"score, {mine.filter}", one.curve)]
    named += [(f"score, {c.series.filter}", c) for c in others]
    named += [("in the form asked for", one.form.valid), ("score of those in form", one.form.given_valid)]
    rows = []
    for measure, curve in named:
        if curve is None:
            continue
        for i, size in enumerate(curve.series.sizes):
            told = Estimate.of(curve.series.scores[i], curve.draws.scores[:, i])
            rows.append({**_key(mine), "size": size, "measure": measure, "score": told.value} | _ends(told))
    return rows


def _ends(told: Estimate) -> dict[str, float]:
    return {"low": told.low, "high": told.high}


def _key(series: Series) -> dict[str, object]:
    return dict(zip(CURVE, series.key, strict=True))


def _table(rows: list[dict[str, object]]) -> pd.DataFrame | None:
    return pd.DataFrame(rows) if rows else None
