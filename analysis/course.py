"""Score in the course of training: how much of a size's gain came how early. Apart from the curves over sizes.

A line begins at the untouched base's score, where there is one, and ends at the score that the curves show.
"""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.points import CURVE, average, brief, ruler, telling
from analysis.style import DOT, INK, frame, grid_of

POINT = [*CURVE, "size", "share"]


def points(frame: pd.DataFrame, along: pd.DataFrame) -> pd.DataFrame:
    """One row for each curve of `CURVE`, size and `share` of the training gone (0 to 1), headline metrics only.

    `frame` is `harness.store.load`'s table and `along` that of `load_along`. Seeds are averaged and intervals made as
    in `analysis.points.points`; those of one line are of the same runs and items, so not independent.
    """
    along = along[along["headline"].astype(bool)]
    looked = along[["path", "task"]].drop_duplicates()
    frame = frame[(frame["status"] == "ok") & frame["headline"].astype(bool)]
    ends = frame.merge(looked, on=["path", "task"]).assign(share=1.0)
    rows = pd.concat([along.assign(share=along["step"] / along["steps"]), ends])
    begun = frame[frame["method"] == "base"]
    lines = rows[[*CURVE, "size"]].drop_duplicates()
    shared = ["base", "task", "metric", "filter"]
    starts = lines.merge(begun.drop(columns=["data", "method", "variant", "size"]), on=shared).assign(share=0.0)
    rows = pd.concat([starts, rows])
    made = [{**dict(zip(POINT, key, strict=True)), **average(group)} for key, group in rows.groupby(POINT, sort=True)]
    return pd.DataFrame(made)


@rc_context({"text.parse_math": False})
def draw(table: pd.DataFrame) -> Figure:
    """Small multiples of `points`: score against the share of the training gone, a panel for each task, base, data and
    method; the more examples, the darker."""
    panels = list(table.groupby(["task", "base", "data", "method", "variant"], sort=True))
    figure, grid = grid_of(len(panels), 3.1)
    sizes = sorted(table["size"].unique())
    ramp = matplotlib.colormaps["viridis_r"](np.linspace(0.12, 0.95, len(sizes)))
    colours = {size: matplotlib.colors.to_hex(colour) for size, colour in zip(sizes, ramp, strict=True)}
    shown = telling(table)["variant"]
    for axes, (key, panel) in zip(grid, panels, strict=True):
        task, base, _, method, _ = map(str, key)
        for size, line in panel.groupby("size", sort=True):
            line = line.sort_values("share")
            reach = np.abs(line[["low", "high"]].to_numpy(float).T - line["score"].to_numpy(float))
            axes.errorbar(
                100 * line["share"], line["score"], yerr=reach, color=colours[size], marker="o", markersize=3.5,
                linewidth=1.5, elinewidth=0.7, capsize=0,
            )  # fmt: skip
        variant = str(shown.loc[panel.index[0]])
        title = DOT.join(filter(None, [task, f"{base} {method}", variant]))
        frame(axes, title, ruler(panel["metric"].iloc[0], panel["filter"].iloc[0]), size=9.5)
        scale = table[table["task"] == task]
        low, high = np.nanmin(scale[["low", "score"]].to_numpy()), np.nanmax(scale[["high", "score"]].to_numpy())
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    figure.supxlabel("share of the training gone (%)", fontsize=9.5, color=INK)
    handles = [Line2D([], [], color=colours[s], marker="o", markersize=4, label=brief(s)) for s in sizes]
    figure.legend(
        handles=handles, title="examples", loc="outside upper left", ncols=min(8, len(sizes)), fontsize=8.5,
        title_fontsize=8.5, labelcolor=INK, frameon=False,
    )  # fmt: skip
    return figure


def in_words(table: pd.DataFrame) -> list[str]:
    """One sentence a line: its scores, by the share of the training gone."""
    lines = []
    for key, line in table.groupby([*CURVE, "size"], sort=True):
        base, data, method, variant, task, *_, size = key
        line = line.sort_values("share")
        scores = ", ".join(f"{p['score']:.3g} at {100 * p['share']:.0f}%" for p in line.to_dict("records"))
        recipe = " ".join(filter(None, [f"{base}, {method}", str(variant), f"on {size:,} of {data}"]))
        lines.append(f"{task}. {recipe}: {scores}.")
    return lines
