"""The one table of a report: every point as text, with a bar on the scale of its task."""

from typing import Any

import pandas as pd

from analysis.points import has_sizes, ruler
from analysis.style import Style

FLAGS = {"items": " ¹", "seeds": " ²"}


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Text cells of each point, headline scores first; `bar` is from, at and to in percent of the task's scale.

    `ruler` is the filter alone where a task has one metric.
    """
    style = Style.of(table)
    scale = table.groupby(["task", "metric"])
    low = scale["low"].transform("min").fillna(scale["score"].transform("min"))
    high = scale["high"].transform("max").fillna(scale["score"].transform("max"))
    width = (high - low).where(high > low, 1.0)
    percent = {c: 100 * (table[c] - low) / width for c in ("low", "score", "high")}
    table = table.assign(**{f"p_{c}": p for c, p in percent.items()}, first=has_sizes(table), others=~table["headline"])
    order = ["others", "task", "metric", "filter", "base", "first", "data", "method", "variant", "size"]
    several = table.groupby("task")["metric"].nunique()
    made: list[dict[str, Any]] = []
    for p in table.sort_values(order).to_dict("records"):
        group = (p["task"], p["metric"], p["filter"], p["base"])
        known = not pd.isna(p["low"])
        flag = FLAGS.get(p["interval"], "") if p["method"] != "base" else ""  # the base has no seeds to vary
        made.append(
            {
                **{name: p[name] for name in ("task", "base", "method", "variant", "data")},
                "ruler": ruler(p["metric"], p["filter"]) if several[p["task"]] > 1 else p["filter"],
                "group": group,
                "new": bool(made) and made[-1]["group"] != group,
                "size": f"{p['size']:,}",
                "seeds": p["n_seeds"] if p["method"] != "base" else "",
                "score": f"{p['score']:.3f}",
                "interval": (f"{p['low']:.3f} to {p['high']:.3f}" if known else "") + flag,
                "sd": "" if pd.isna(p["seed_sd"]) else f"{p['seed_sd']:.3f}",
                "bar": [f"{p[c]:.1f}" for c in ("p_low", "p_score", "p_high")] if known else None,
                "dot": f"{p['p_score']:.1f}",
                "colour": style.names["base"].index(p["base"]),
            }
        )
    return made
