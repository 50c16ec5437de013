"""Figures that answer one question each, from plain tables: which base, what share, which law, form or content.

A table here has the columns of `analysis.points.CURVE`, `size`, and what is drawn with its `low` and `high`; NaN where
an interval or a value is not known. Whoever computes it computes all of it: nothing here estimates. With it comes the
whole table of points, from which colours and markers follow as in every other figure.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.curves import line_of, lines_of, points_of, room_for, sizes_as_ticks
from analysis.points import CURVE, has_sizes, ruler, telling
from analysis.style import (
    DASHES,
    DOT,
    INK,
    LEVEL_DASHES,
    PAPER,
    RULE,
    SOFT,
    By,
    Look,
    Style,
    frame,
    grid_of,
    handle,
    legend,
)

LIMA = 1000  # examples, the size at which the question is asked
Panel = Callable[[Axes, pd.DataFrame, Style], None]


def has_ranges(table: pd.DataFrame) -> bool:
    """Whether there are enough bases for a figure that ranks them; of two, the curves tell at a glance."""
    return int(table.loc[has_sizes(table), "base"].nunique()) > 2


@rc_context({"text.parse_math": False})
def ranges(table: pd.DataFrame) -> Figure:
    """Which base starts better, which gains more: of each base and task a bar from its untouched score to that at the
    largest size, a tick where it stood at the size nearest to LIMA's; best last score on top. Headline scores."""
    style = Style.of(telling(table))
    table = telling(table)[table["headline"]]
    lines = table[has_sizes(table)]
    panels = list(lines.groupby(["task", "data", "method", "variant"], sort=True))
    tallest = max(panel["base"].nunique() for _, panel in panels)
    figure, grid = grid_of(len(panels), 0.27 * tallest + 1.0)
    for axes, (key, panel) in zip(grid, panels, strict=False):
        task, data, method, variant = map(str, key)
        untouched = table[(table["method"] == "base") & (table["task"] == task)].set_index("base")
        ends = panel.sort_values("size").groupby("base").tail(1).sort_values("score")
        for y, end in enumerate(ends.to_dict("records")):
            colour = style.colour("base", end["base"])
            if end["base"] in untouched.index:
                start = untouched.loc[end["base"]]
                axes.plot([start["score"], end["score"]], [y, y], color=colour, linewidth=1.4, alpha=0.6)
                axes.plot(start["score"], y, "o", color=colour, markerfacecolor=PAPER, markersize=5)
            axes.plot([end["low"], end["high"]], [y - 0.22] * 2, color=colour, linewidth=1.0)
            axes.plot(end["score"], y, "o", color=colour, markersize=5.5)
            own = panel[panel["base"] == end["base"]]
            near = own.iloc[np.abs(np.log(own["size"] / LIMA)).argmin()]
            axes.plot(near["score"], y, "|", color=INK, markersize=9, markeredgewidth=1.4)
        metric = ruler(panel["metric"].iloc[0], panel["filter"].iloc[0])
        kinds = [f"{method} {variant}".strip()] if len(style.names["method"]) > 1 else []
        frame(axes, DOT.join([task, data, *kinds]), "", size=9.5)
        axes.set_xlabel(metric, fontsize=9, color=INK)
        axes.set_yticks(range(len(ends)), ends["base"])
        axes.grid(axis="x", color=RULE, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(-0.6, len(ends) - 0.4)
    marks = [("untouched", "o", PAPER), (f"near {LIMA:,} examples", "|", INK), ("at its largest size", "o", INK)]
    look: dict[str, Any] = {"linestyle": "none", "color": INK, "markersize": 6}
    legend(figure, [Line2D([], [], marker=m, markerfacecolor=f, label=label, **look) for label, m, f in marks], 3)
    return figure


def shares(table: pd.DataFrame, parts: pd.DataFrame) -> Figure:
    """How much of the gain came by when: the column `share` (0 to 1, or beyond) of `parts`, with its interval.

    Level lines at none, half, nine tenths and all of it, and an upright one at LIMA's size.
    """

    def panel(axes: Axes, here: pd.DataFrame, style: Style) -> None:
        for level in (0, 0.5, 0.9, 1):
            axes.axhline(100 * level, color=SOFT, linewidth=0.7, linestyle=LEVEL_DASHES["base"])
        axes.axvline(LIMA, color=SOFT, linewidth=0.7, linestyle=LEVEL_DASHES["given"])
        percent = here.assign(score=100 * here["share"], low=100 * here["low"], high=100 * here["high"])
        lines_of(axes, percent, style, style.apart)
        axes.set_ylim(-12, 118)

    style, parts = _alike(table, parts[parts["share"].notna()])
    return _small_multiples(parts, panel, style, style.apart, ylabel="share of the gain (%)")


def fitted(table: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Which law, and did it foresee: the points of `table`, and the `score` of `fits` with its band at its own sizes.

    `fits` has `held_out` besides, the least size that the fit has not seen (NaN: it has seen all); from there on the
    line is dashed and the points are rings. A curve that is not in `fits` has points only: no law is supported.
    """
    style, laws = _alike(table, fits)

    def panel(axes: Axes, here: pd.DataFrame, style: Style) -> None:
        for key, line in here.groupby(CURVE, sort=True):
            base, data, method, variant = map(str, key[:4])
            look = style.look(style.apart, base, data, (method, variant))
            law = laws[(laws[CURVE] == pd.Series(dict(zip(CURVE, key, strict=True)))).all(axis=1)].sort_values("size")
            since = law["held_out"].iloc[0] if len(law) else math.nan
            unseen = line["size"] >= since  # NaN: none
            last = law.loc[~(law["size"] >= since), "size"].max()  # where the one ends the other begins
            for part, dashes in ((law[law["size"] <= last], "-"), (law[law["size"] >= last], (0, (3, 2)))):
                axes.fill_between(part["size"], part["low"], part["high"], color=look.colour, alpha=0.14, linewidth=0)
                axes.plot(part["size"], part["score"], color=look.colour, linestyle=dashes, linewidth=1.7)
            for rows, hollow in ((line[~unseen], False), (line[unseen], True)):
                points_of(axes, rows["size"].to_numpy(float), rows, look._replace(hollow=hollow))

    marks = [
        handle("seen by the fit", Look(INK, False, "o", "none")),
        handle("held out", Look(INK, True, "o", "none")),
        Line2D([], [], color=INK, linestyle=(0, (3, 2)), linewidth=1.7, label="foretold"),
    ]
    shown = telling(table)[table["headline"] & has_sizes(table)]
    return _small_multiples(shown, panel, style, style.apart, extra=marks, hollow=False)


def beside(table: pd.DataFrame, marks: list[dict[str, Any]]) -> Figure:
    """Ours over theirs, in panels that have both: `marks` as `analysis.published.Comparison.marks` gives them."""
    theirs = pd.DataFrame(marks)
    both = theirs[["task", "data"]].drop_duplicates()

    def panel(axes: Axes, here: pd.DataFrame, style: Style) -> None:
        lines_of(axes, here, style, "base")
        at = theirs[(theirs[["task", "data"]] == here[["task", "data"]].iloc[0]).all(axis=1)]
        for m in at.to_dict("records"):
            colour = style.colour("base", m["base"])
            look: dict[str, Any] = {
                "fmt": "D",
                "color": colour,
                "markerfacecolor": PAPER,
                "markersize": 6,
                "markeredgewidth": 1.4,
            }
            axes.errorbar(m["size"], m["score"], yerr=m["reach"], elinewidth=3, alpha=0.85, zorder=4, **look)
        room_for(axes, pd.concat([here, at.assign(low=at["score"] - at["reach"], high=at["score"] + at["reach"])]))

    short = telling(table)
    shown = short[short["headline"] & has_sizes(short)].merge(both, on=["task", "data"])
    mark = handle("published", Look(INK, True, "D", "none"))
    return _small_multiples(shown, panel, Style.of(short), "base", extra=[mark], own_scale=True)


def measures(table: pd.DataFrame, parts: pd.DataFrame) -> Figure:
    """Form or content: `score` of `parts` by its column `measure` (strict, flexible, valid format, right given valid
    format ...), told by dashes and marker in the order in which they come, a panel for each curve."""
    kinds = list(dict.fromkeys(parts["measure"]))
    inks = [INK, INK, SOFT, SOFT]
    looks = {k: Look(inks[i % 4], i % 2 == 1, "os^D"[i % 4], DASHES[i % 5]) for i, k in enumerate(kinds)}
    style, parts = _alike(table, parts)
    panels = list(parts.groupby(["task", "data", "base", "method", "variant"], sort=True))
    figure, grid = grid_of(len(panels), 3.1)
    for axes, (key, panel) in zip(grid, panels, strict=False):
        task, data, base, method, variant = map(str, key)
        colour = style.colour("base", base)
        for kind in kinds:
            rows = panel[panel["measure"] == kind]
            line_of(axes, rows, looks[kind]._replace(colour=colour if looks[kind].colour == INK else SOFT))
        frame(axes, DOT.join([task, data, f"{base} {method} {variant}".strip()]), "share of items", size=9)
        sizes_as_ticks(axes, panel["size"])
        axes.set_ylim(-0.04, 1.04)
    figure.supxlabel("number of examples", fontsize=9.5, color=INK)
    legend(figure, [handle(kind, looks[kind]) for kind in kinds], min(4, len(kinds)))
    return figure


@rc_context({"text.parse_math": False})
def _small_multiples(
    table: pd.DataFrame,
    panel: Panel,
    style: Style,
    by: By,
    *,
    ylabel: str = "",
    extra: list[Line2D] | None = None,
    own_scale: bool = False,
    hollow: bool = True,
) -> Figure:
    """A panel for each task and data, sizes below; colours tell bases or methods, as `by` says, dashes methods."""
    panels = list(table.groupby(["task", "data", "metric", "filter"], sort=True))
    figure, grid = grid_of(len(panels), 3.25)
    for axes, (key, here) in zip(grid, panels, strict=False):
        task, data, metric, filter_ = map(str, key)
        panel(axes, here, style)
        frame(axes, f"{task}  ·  {data}", ylabel or ruler(metric, filter_))
        sizes_as_ticks(axes, here["size"])
        if not (ylabel or own_scale):
            room_for(axes, here)
    figure.supxlabel("number of examples", fontsize=9.5, color=INK)
    handles, kinds = [], style.names["method"]
    if by == "base":
        looks = {
            b: Look(style.colour("base", b), hollow and style.hollow("base", b), "o", "-") for b in style.names["base"]
        }
        handles = [handle(base, look) for base, look in looks.items()]
    for kind in kinds if len(kinds) > 1 else ():
        colour = style.colour("method", kind) if by == "method" else INK
        handles.append(handle(" ".join(kind).strip(), Look(colour, False, style.marker(kind[0]), style.dashes(kind))))
    legend(figure, [*handles, *(extra or [])], 4)
    return figure


def _alike(table: pd.DataFrame, parts: pd.DataFrame) -> tuple[Style, pd.DataFrame]:
    """The style of the points, and `parts` with variants as short as theirs; parts of no curve of theirs left out."""
    key, short = ["base", "data", "method", "variant"], telling(table)
    pairs = dict(zip(map(tuple, table[key].to_numpy()), short["variant"], strict=True))
    known = parts[[tuple(row) in pairs for row in parts[key].to_numpy()]]
    return Style.of(short), known.assign(variant=[pairs[tuple(row)] for row in known[key].to_numpy()])
