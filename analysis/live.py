"""What the page's script draws from: the points as JSON that no text of theirs can leave.

The script (`report.js`) has no numbers of its own; with scripts off the drawn figures stay, from the same table.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.points import CURVE, EFFORTS, has_sizes, ruler, telling
from analysis.style import Style


def embedded(table: pd.DataFrame, fits: pd.DataFrame | None = None, published: Iterable[dict[str, Any]] = ()) -> Markup:
    """The points of `analysis.points`, with the curves of `fits` (see `analysis.figures.fitted`) and published values.

    `published` are {task, data, base, size, score, reach, text}, in the units of the scores.
    """
    table = table.assign(full=table["variant"])
    table = telling(table)
    style = Style.of(table)
    lines = table[has_sizes(table)]
    efforts = {name: words for name, words in EFFORTS.items() if name in lines and (lines[name] > 0).any()}
    axes = {"size": "number of examples", **efforts}
    value = {
        "axes": [{"name": name, "words": words} for name, words in axes.items()],
        "lines": [_line(key, line, list(axes), fits) for key, line in lines.groupby(CURVE, sort=True)],
        "levels": [_level(row) for row in table[~has_sizes(table)].to_dict("records")],
        "published": list(published),
        "notes": {str(b): str(n) for b, n in table[["base", "base_note"]].itertuples(index=False) if n},
        "base": {b: _look(style.colour("base", b), style.hollow("base", b)) for b in style.names["base"]},
        "data": {d: _look(style.colour("data", d), style.hollow("data", d)) for d in style.names["data"]},
        "method": {
            " ".join(kind).strip(): _look(style.colour("method", kind), False, style.marker(kind[0]), dashes)
            for kind, dashes in ((kind, style.dashes(kind)) for kind in style.names["method"])
        },
    }
    return escaped(value)


def escaped(value: Any) -> Markup:
    """JSON in which nothing ends or opens an element, nor any line: of what is not ASCII and of < > & only codes."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _line(key: Any, line: pd.DataFrame, axes: list[str], fits: pd.DataFrame | None) -> dict[str, Any]:
    base, data, method, variant, task, metric, filter_ = map(str, key)
    first = line.iloc[0]
    made: dict[str, Any] = {
        "base": base, "data": data, "method": f"{method} {variant}".strip(), "task": task, "metric": metric,
        "ruler": ruler(metric, filter_), "headline": bool(first["headline"]), "up": bool(first["higher_is_better"]),
        "points": [
            {
                "x": [_positive(p[axis]) for axis in axes],
                "y": [_brief(p[c]) for c in ("score", "low", "high")],
                "of": [int(p["n_seeds"]), int(p["n_items"]), p["interval"]],
            }
            for p in line.sort_values("size").to_dict("records")
        ],
    }  # fmt: skip
    if fits is not None:
        whole = dict(zip(CURVE, key, strict=True)) | {"variant": first["full"]}
        fit = fits[(fits[CURVE] == pd.Series(whole)).all(axis=1)].sort_values("size")
        made["fit"] = [[_brief(p[c]) for c in ("size", "score", "low", "high")] for p in fit.to_dict("records")]
    return made


def _level(row: dict[Any, Any]) -> dict[str, Any]:
    return {
        "base": row["base"], "task": row["task"], "ruler": ruler(row["metric"], row["filter"]), "metric": row["metric"],
        "headline": bool(row["headline"]), "given": row["variant"] if row["method"] == "given" else "",
        "y": [_brief(row[c]) for c in ("score", "low", "high")], "of": [int(row["n_seeds"]), int(row["n_items"])],
    }  # fmt: skip


def _look(colour: str, hollow: bool, marker: str = "o", dashes: Any = "-") -> dict[str, Any]:
    """`dashes` as lengths in pixels, which matplotlib counts in widths of the line."""
    return {
        "colour": colour, "hollow": hollow, "marker": marker,
        "dash": "" if dashes == "-" else " ".join(f"{1.7 * length:.3g}" for length in dashes[1]),
    }  # fmt: skip


def _positive(x: float) -> float | None:
    return _brief(x) if x and x > 0 else None


def _brief(number: float) -> float | int | None:
    """Six digits, which is more than anyone sees; None for what is not known."""
    if number is None or math.isnan(number):
        return None
    short = float(f"{number:.6g}")
    return int(short) if short.is_integer() else short
