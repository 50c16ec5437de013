"""What a sweep's page shows, as plain tables: for a place that draws and filters by itself, such as W&B.

Nothing is computed here that the page does not say too, but for the intervals of a supported law's parameters. `curve`
names a line in every sheet, ``base/method`` with data and variant where the sweep has more than one of them, so that
sheets can be joined by task, metric, filter and curve. A number that is not known or not finite is None.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.conclusions import Conclusions, errors
from analysis.elicitation import examples
from analysis.findings import Finding
from analysis.fit import Refits
from analysis.points import CURVE, EFFORTS, has_sizes, telling
from analysis.sample import Estimate, Series

RULER = ["task", "metric", "filter"]
RECIPE = ["base", "method", "data", "variant"]
LINE = [*RULER, "curve", *RECIPE]  # how each row of each sheet begins
_BAND = ["score", "low", "high"]
_POINT = ["leading", *_BAND, "interval", "n_seeds", "seed_sd", "item_stderr", "n_items", "higher_is_better"]
_CONCLUSION = ["examples", "gain", "gain_low", "gain_high", "few", "share", "share_low", "share_high", "half", "ninety"]
_CONCLUSION += ["slope", "slope_low", "slope_high", "end", "form", "law", "law_why", "verdict", "verdict_why"]
_CONCLUSION += ["evidence", "cautions"]
_LAW = ["law", "formula", "parameters", "aicc", "above_best", "held_out", "supported", "cautions"]
_PARAMETER = ["law", "formula", "parameter", "value", "low", "high", "low_open", "high_open"]

Names = Mapping[tuple[str, ...], str]  # a curve's name by its `CURVE`


@dataclass(frozen=True)
class Sheets:
    """One sweep. Each table but `pairs` begins with `LINE`, and has its columns without rows too."""

    points: pd.DataFrame  # a row for each line and number of examples: `analysis.points.points`
    conclusions: pd.DataFrame  # a row for each leading curve: gain, share, end, form, law, verdict, evidence
    laws: pd.DataFrame  # a row for each law that was tried on a curve that gains: `analysis.choice.Choice.rows`
    parameters: pd.DataFrame  # a row for each parameter of a supported law
    fits: pd.DataFrame  # the supported law as it was before it saw `held_out` examples and more, with its band
    pairs: pd.DataFrame  # every difference between methods and between bases: `analysis.compared.Compared.table`


def sheets(table: pd.DataFrame, found: Conclusions) -> Sheets:
    """From `analysis.points.points`' table and what was concluded from the same records."""
    names = _names(table)
    curves = {one.curve.series.key: one.curve for one in found.findings}
    fits = found.fits if found.fits is not None else pd.DataFrame(columns=[*CURVE, "size", *_BAND, "held_out"])
    named = fits.rename(columns={"size": "examples"})
    named["curve"] = [names[key] for key in _keys(fits)]
    laws = [_line(curves[key].series, names) | row for key, choice in found.choices.items() for row in choice.rows()]
    parameters = [
        row
        for key, choice in found.choices.items()
        if choice.supported
        for row in _parameters(curves[key].series, choice.supported.refit(errors(curves[key])[1]), names)
    ]
    return Sheets(
        points=_points(table, names),
        conclusions=_sheet([_conclusion(one, found, names) for one in found.findings], _CONCLUSION),
        laws=_sheet(laws, _LAW),
        parameters=_sheet(parameters, _PARAMETER),
        fits=_plain(named[[*LINE, "examples", *_BAND, "held_out"]]),
        pairs=_plain(found.compared.table().rename(columns={"size": "examples"})),
    )


def _names(table: pd.DataFrame) -> Names:
    """A level has no data of its own; a curve's is told where the sweep has curves of several."""
    several = table.loc[has_sizes(table), "data"].nunique() > 1
    told = telling(table)
    parts = [
        [row["base"], row["method"], row["data"] if several and sized else "", row["variant"]]
        for row, sized in zip(told.to_dict("records"), has_sizes(table), strict=True)
    ]
    return {key: "/".join(filter(None, part)) for key, part in zip(_keys(table), parts, strict=True)}


def _points(table: pd.DataFrame, names: Names) -> pd.DataFrame:
    named = table.rename(columns={"size": "examples", "headline": "leading"})
    named["curve"] = [names[key] for key in _keys(table)]
    efforts = [column for column in EFFORTS if column in table]
    return _plain(named[[*LINE, "examples", *_POINT, *efforts]].sort_values([*RULER, "curve", "examples"]))


def _conclusion(one: Finding, found: Conclusions, names: Names) -> dict[str, Any]:
    sizes, choice = one.curve.series.sizes, found.choices.get(one.curve.series.key)
    return {
        **_line(one.curve.series, names),
        "examples": int(sizes[-1]),
        **_estimate("gain", one.gain),
        "few": one.few,
        **_estimate("share", one.share),
        # In words: an end outside of the sizes is "<10" or ">1M".
        "half": one.half.words(lambda n: examples(n, sizes)),
        "ninety": one.ninety.words(lambda n: examples(n, sizes)),
        **_estimate("slope", one.end.slope),
        "end": one.end.state,
        "form": one.form.finding,
        "law": choice.supported.law.name if choice and choice.supported else "none",
        "law_why": choice.why if choice else "Laws are tried on curves that gain.",
        "verdict": one.verdict.verdict,
        "verdict_why": one.verdict.why,
        "evidence": "; ".join(one.verdict.evidence()),
        "cautions": "; ".join(one.cautions),
    }


def _parameters(series: Series, drawn: Refits, names: Names) -> list[dict[str, Any]]:
    """`drawn`: `analysis.fit.Refits` of the law on all sizes. Open ends lie at a bound of the search."""
    law, rows = drawn.fit.law, []
    for name, value in drawn.fit.values.items():
        told = drawn.of(name)
        interval = {"low": told.low, "high": told.high, "low_open": told.low_open, "high_open": told.high_open}
        said = {"law": law.name, "formula": law.formula, "parameter": name, "value": value}
        rows.append({**_line(series, names), **said, **interval})
    return rows


def _line(series: Series, names: Names) -> dict[str, Any]:
    return {"curve": names[series.key]} | {name: getattr(series, name) for name in (*RULER, *RECIPE)}


def _estimate(name: str, told: Estimate) -> dict[str, float]:
    return {name: told.value, f"{name}_low": told.low, f"{name}_high": told.high}


def _keys(table: pd.DataFrame) -> list[tuple[str, ...]]:
    return [tuple(map(str, key)) for key in table[CURVE].itertuples(index=False, name=None)]


def _sheet(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    return _plain(pd.DataFrame(rows, columns=[*LINE, *columns]))


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Python's own objects; None for what is missing, NaN or infinite."""
    known = table.astype(object)
    return known.where(table.notna() & ~table.isin([np.inf, -np.inf]), None).reset_index(drop=True)
