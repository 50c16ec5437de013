"""The curves: score against number of examples, in small multiples drawn from `analysis.points`.

One drawing, three questions: its colours tell bases, data or methods apart, and what they do not tell has panels.
"""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.points import brief, has_sizes, ruler, telling
from analysis.style import (
    DOT,
    INK,
    LEVEL_DASHES,
    PAPER,
    SOFT,
    By,
    Look,
    Style,
    frame,
    grid_of,
    handle,
    legend,
    legend_width,
)
from harness.errors import HarnessError

PANEL: dict[By, list[str]] = {"base": ["data", "task"], "data": ["base", "task"], "method": ["base", "data", "task"]}
FULL = 6  # lines in a panel, from which on colours had better tell the methods


def wanted(table: pd.DataFrame) -> list[By]:
    """What is worth a figure of its own, the colours of which tell it.

    Bases where there are several, or nothing else. Data where a base has a task's curves on several: a thousand general
    examples against many of the task. Methods where there is one base, or where a panel of the first figure has more
    than `FULL` lines of several bases and methods; elsewhere marker and dashes tell them there.
    """
    lines = table[has_sizes(table) & table["headline"]]
    panels = lines.groupby(["data", "task", "metric", "filter"])
    several = (panels["base"].nunique() > 1) & ((panels["method"].nunique() > 1) | (panels["variant"].nunique() > 1))
    full = panels.apply(lambda p: len(p.drop_duplicates(["base", "method", "variant"]))) > FULL
    alone = lines["base"].nunique() == 1
    found: list[By] = [] if alone else ["base"]
    if (lines.groupby(["base", "task"])["data"].nunique() > 1).any():
        found.append("data")
    if (several & full).any() or (alone and len(lines.drop_duplicates(["method", "variant"])) > 1):
        found.append("method")
    return found or ["base"]


@rc_context({"text.parse_math": False})  # a "$" in a name is a dollar sign
def draw(table: pd.DataFrame, *, by: By = "base", others: bool = False) -> Figure:
    """Small multiples of `points`: score against examples (log axis); colours tell `by`, as `PANEL` says of panels.

    Bars are the 95% intervals; a dashed level line with a band is the untouched base. By default each task's headline
    (metric, filter) is drawn. With `others`, one panel for each further (metric, filter); where the metric is the
    headline's, on its scale and with its curves thin behind, so that what is only answer format shows as a gap.
    """
    panels = _panels(table, by, others)
    if not panels:
        raise HarnessError("nothing to draw: no finished cell with examples" + " and a second filter" * others)
    table = telling(table)
    style = Style.of(table)
    tasks = len({key[-3:] for key in panels})  # side by side, where there are rows of them
    figure, grid = grid_of(len(panels), 3.25, columns=min(3, tasks) if 1 < tasks < len(panels) and not others else 3)
    lines = table[has_sizes(table)]
    several = [column for column in PANEL[by][:-1] if lines[column].nunique() > 1]
    for axes, key in zip(grid, panels, strict=True):
        *_, task, metric, filter_ = key
        at = dict(zip(PANEL[by], key, strict=False))
        here = _select(table, at)
        shown = here[(here["metric"] == metric) & (here["filter"] == filter_)]
        if others:
            _curves(axes, here[here["headline"] & (here["metric"] == metric)], style, by, ghost=True)
        _curves(axes, shown, style, by)
        lower = "" if shown["higher_is_better"].all() else ", lower is better"
        frame(axes, DOT.join([task, *(at[column] for column in several)]), ruler(metric, filter_) + lower)
        sizes_as_ticks(axes, shown.loc[has_sizes(shown), "size"])
        room_for(axes, table[(table["task"] == task) & (table["metric"] == metric)])
    figure.supxlabel("number of examples", fontsize=9.5, color=INK)
    legend(figure, *_legend(table, style, by, others, figure.get_figwidth()))
    return figure


def has_others(table: pd.DataFrame) -> bool:
    """Whether some task has a (metric, filter) besides its headline."""
    return bool(_panels(table, "base", others=True))


def _panels(table: pd.DataFrame, by: By, others: bool) -> list[tuple[str, ...]]:
    """What `PANEL` has, with metric and filter, of each panel in reading order: a column for each task."""
    lines = table[has_sizes(table) & (table["headline"] != others)]
    found = lines[[*PANEL[by], "metric", "filter"]].drop_duplicates().itertuples(index=False, name=None)
    return sorted(found)


def _select(table: pd.DataFrame, at: dict[str, str]) -> pd.DataFrame:
    """The rows of one panel: its curves, and the level of each base that has one of them.

    A base without a curve anywhere (an instruct model, say) is there to be compared with, and stands in every panel.
    """
    lines = table[has_sizes(table)]
    mine = lines[(lines[list(at)] == pd.Series(at)).all(axis=1)]
    elsewhere = set(lines["base"]) - set(mine["base"])
    levels = table[~has_sizes(table) & (table["task"] == at["task"])]
    return pd.concat([levels[~levels["base"].isin(elsewhere)], mine])


def _curves(axes: Axes, rows: pd.DataFrame, style: Style, by: By, ghost: bool = False) -> None:
    """Draw one (metric, filter) of a panel; a ghost is thin and without bars, for comparison only."""
    for reference in rows[~has_sizes(rows)].to_dict("records") if not ghost else ():
        colour = style.colour("base", reference["base"]) if by == "base" else SOFT
        axes.axhspan(reference["low"], reference["high"], color=colour, alpha=0.10, linewidth=0)
        axes.axhline(reference["score"], color=colour, linestyle=LEVEL_DASHES[reference["method"]], linewidth=1.1)
    lines_of(axes, rows[has_sizes(rows)], style, by, ghost=ghost)


def lines_of(axes: Axes, rows: pd.DataFrame, style: Style, by: By, *, ghost: bool = False) -> None:
    """The curves of `rows`, slightly apart sideways so that bars at the same size do not hide one another."""
    lines = list(rows.groupby(["base", "data", "method", "variant"], sort=True))
    apart = min(0.035, 0.2 / max(len(lines), 1))  # decades
    for i, (key, line) in enumerate(lines):
        base, data, method, variant = map(str, key)
        shift = 10 ** (apart * (i - (len(lines) - 1) / 2))
        line_of(axes, line, style.look(by, base, data, (method, variant)), shift=shift, ghost=ghost)


def line_of(axes: Axes, line: pd.DataFrame, look: Look, *, shift: float = 1.0, ghost: bool = False) -> None:
    """One curve with the bars of its intervals; `shift` multiplies its sizes."""
    line = line.sort_values("size")
    x, y = line["size"].to_numpy(float) * shift, line["score"].to_numpy(float)
    if ghost:
        axes.plot(x, y, color=look.colour, linestyle=look.dashes, linewidth=0.8, alpha=0.5)
        return
    axes.plot(x, y, color=look.colour, linestyle=look.dashes, linewidth=1.7)
    points_of(axes, x, line, look)


def points_of(axes: Axes, x: Any, line: pd.DataFrame, look: Look) -> None:
    """Markers and bars of the rows of one curve."""
    y = line["score"].to_numpy(float)
    axes.errorbar(
        x, y, yerr=np.abs(line[["low", "high"]].to_numpy(float).T - y), fmt=look.marker, markersize=5,
        markeredgewidth=1.3, color=look.colour, markerfacecolor=PAPER if look.hollow else look.colour, elinewidth=1.0,
        capsize=0, zorder=3,
    )  # fmt: skip


def sizes_as_ticks(axes: Axes, shown: pd.Series) -> None:
    """A log axis of sizes with those there are as ticks, and labels where there is room."""
    axes.set_xscale("log")
    sizes = sorted(shown.unique())
    room = math.log10(sizes[-1] / sizes[0]) / 8  # decades that a label needs
    ticks: list[float] = []
    for size in reversed(sizes):
        if not ticks or math.log10(ticks[-1] / size) >= room:
            ticks.append(size)
    axes.set_xticks(ticks, [brief(s) for s in ticks])
    axes.set_xticks([s for s in sizes if s not in ticks], minor=True)
    axes.xaxis.set_tick_params(which="minor", labelbottom=False)
    axes.set_xlim(sizes[0] / 1.45, sizes[-1] * 1.45)


def room_for(axes: Axes, scale: pd.DataFrame) -> None:
    """The scores and intervals of all rows of `scale`, with a little room."""
    bottom = np.nanmin(scale[["low", "score"]].to_numpy(float))
    top = np.nanmax(scale[["high", "score"]].to_numpy(float))
    room = 0.06 * max(top - bottom, 0.02)
    axes.set_ylim(bottom - room, top + room)


def _legend(table: pd.DataFrame, style: Style, by: By, others: bool, width: float) -> tuple[list[Line2D], int]:
    """Handles and number of columns for `width` inches: what colours tell above kinds of line or, if too wide, beside.

    Matplotlib fills a legend column by column, hence the pairs.
    """
    notes = {str(row["base"]): row["base_note"] for row in table.to_dict("records")}
    named = {base: f"{base} ({note})" if note else base for base, note in notes.items()}
    told = [] if by == "method" else style.names[by]
    look = {name: Look(style.colour(by, name), style.hollow(by, name), "o", "-") for name in told}
    labels = {name: named.get(name, name) for name in told}
    above = [handle(labels[name], look[name]) for name in told]
    lines: list[Line2D] = []
    for kind in style.names["method"]:
        colour = style.colour("method", kind) if by == "method" else INK
        lines.append(handle(" ".join(kind).strip(), Look(colour, False, style.marker(kind[0]), style.dashes(kind))))
    levels = INK if by == "base" else SOFT
    if (table["method"] == "base").any():
        label = f"{next(iter(named.values())) if by != 'base' and len(named) == 1 else 'base'}, untouched"
        lines.append(Line2D([], [], color=levels, linestyle=LEVEL_DASHES["base"], linewidth=1.1, label=label))
    if given := sorted(table.loc[table["method"] == "given", "variant"].unique()):
        label = "given: " + ", ".join(given)
        lines.append(Line2D([], [], color=levels, linestyle=LEVEL_DASHES["given"], linewidth=1.1, label=label))
    if others:
        lines.append(Line2D([], [], color=INK, linewidth=0.8, alpha=0.5, label="headline filter"))
    if not above:
        return lines, min(len(lines), 4)
    pairs = list(itertools.zip_longest(above, lines, fillvalue=Line2D([], [], linestyle="none", label=" ")))
    side_by_side = [handle for pair in pairs for handle in pair]
    if legend_width(side_by_side, len(pairs)) > width:
        return [first for first, _ in pairs] + [second for _, second in pairs], 2
    return side_by_side, len(pairs)
