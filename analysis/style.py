"""How lines look, the same in every figure and on the page: a colour, a marker and dashes tell what a line is of.

A colour means one thing: bases, data and methods have palettes of their own. No figure asks to be read by colour alone:
neighbours differ in luminance and filling too, so that a grey print can be read.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

from analysis.points import has_sizes

By = Literal["base", "data", "method"]

# Okabe & Ito (2008), "Color Universal Design", and two schemes of Paul Tol (SRON/EPS/TN/09-002, "muted" and "bright"):
# safe for the common colour-vision deficiencies. Ordered so that neighbours differ in luminance too; no pure black or
# white, so that one figure serves light and dark pages.
PALETTES: dict[By, tuple[str, ...]] = {
    "base": ("#0072B2", "#E69F00", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#8C8C8C"),
    "data": ("#AA4499", "#44AA99", "#882255", "#DDCC77", "#117733", "#CC6677", "#88CCEE"),
    "method": ("#4477AA", "#CCBB44", "#AA3377", "#66CCEE", "#228833", "#EE6677", "#BBBBBB"),
}
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (1, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (2.5, 1)), (0, (4, 1, 1, 1, 1, 1)))
INK, SOFT, RULE, PAPER = "#23282d", "#646b70", "#dfe2e0", "#fdfdfd"  # text and axes; asides; grid; inside of markers
LEVEL_DASHES = {"base": (0, (5, 3)), "given": (0, (1, 2.5))}  # kept for them
Kind = tuple[str, str]  # method and variant
DOT = "  ·  "  # between the parts of a title


class Look(NamedTuple):
    colour: str
    hollow: bool
    marker: str
    dashes: Any


@dataclass(frozen=True)
class Style:
    """From sorted names, so that a base, data or method looks the same in every figure of the same table."""

    names: dict[By, list[Any]]  # bases, data and (method, variant)s in order

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Style":
        lines = table[has_sizes(table)]
        methods = sorted(lines["method"].unique(), reverse=True)  # sft before icl: the solid line for the main matter
        kinds = sorted({(m, v) for m, v in lines[["method", "variant"]].itertuples(index=False)}, reverse=True)
        kinds.sort(key=lambda kind: (methods.index(kind[0]), kind[1]))
        return cls({"base": sorted(table["base"].unique()), "data": sorted(lines["data"].unique()), "method": kinds})

    @property
    def apart(self) -> By:
        """What colours had better tell in a panel of all lines of a task: bases, or methods where there is one base."""
        return "method" if len(self.names["base"]) == 1 and len(self.names["method"]) > 1 else "base"

    def colour(self, by: By, name: Any) -> str:
        """Of a base, data or (method, variant)."""
        return PALETTES[by][self.names[by].index(name) % len(PALETTES[by])]

    def hollow(self, by: By, name: Any) -> bool:
        return by != "method" and self.names[by].index(name) % 2 == 1

    def marker(self, method: str) -> str:
        return MARKERS[list(dict.fromkeys(m for m, _ in self.names["method"])).index(method) % len(MARKERS)]

    def dashes(self, kind: Kind) -> Any:
        return DASHES[self.names["method"].index(kind) % len(DASHES)]

    def look(self, by: By, base: str, data: str, kind: Kind) -> Look:
        """Of a line in a figure whose colours tell `by`; method and variant always tell marker and dashes."""
        name = {"base": base, "data": data, "method": kind}[by]
        return Look(self.colour(by, name), self.hollow(by, name), self.marker(kind[0]), self.dashes(kind))


def handle(label: str, look: Look, **more: Any) -> Line2D:
    """What stands for a line in a legend."""
    face = PAPER if look.hollow else look.colour
    given = {"color": look.colour, "marker": look.marker, "linestyle": look.dashes, "markerfacecolor": face}
    return Line2D([], [], label=label, linewidth=1.7, markersize=5, markeredgewidth=1.3, **given | more)


def frame(axes: Axes, title: str, ylabel: str, size: float = 10.5) -> None:
    """The quiet frame of every panel. A title wider than it goes on below, after one of its dots."""
    spec = axes.get_subplotspec()
    room = axes.get_figure(root=True).get_figwidth() / (spec.get_gridspec().ncols if spec else 1) - 0.6  # type: ignore[union-attr]
    lines = [""]
    for part in title.split(DOT):
        longer = DOT.join(filter(None, [lines[-1], part]))
        if lines[-1] and inches(longer, size, "bold") > room:
            lines.append(part)
        else:
            lines[-1] = longer
    axes.set_facecolor("none")
    axes.set_title("\n".join(lines), loc="left", fontweight="bold", fontsize=size, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
    axes.tick_params(axis="y", length=0)


def grid_of(panels: int, height: float, room: float = 0.75, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure and its `panels` of `height` inches, at most `columns` in a row, with `room` inches for the legend."""
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(max(6.2, 3.9 * columns), height * rows + room), layout="constrained", facecolor=PAPER)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[panels:]:
        axes.remove()
    return figure, grid[:panels]


LEGEND: dict[str, Any] = {"fontsize": 8.5, "handlelength": 2.6, "handletextpad": 0.8, "columnspacing": 1.6}


def legend(figure: Figure, handles: Iterable[Artist], columns: int) -> None:
    """Above the panels, in at most so many columns, and in fewer where they would be wider than the figure."""
    shown = list(handles)
    while columns > 1 and legend_width(shown, columns) > figure.get_figwidth():
        columns -= 1
    figure.legend(handles=shown, loc="outside upper left", ncols=columns, labelcolor=INK, frameon=False, **LEGEND)


def legend_width(handles: Sequence[Artist], columns: int) -> float:
    """Inches that a legend of so many columns takes; it is filled column by column."""
    size = LEGEND["fontsize"]
    texts = [inches(str(handle.get_label()), size) for handle in handles]
    around = size * (LEGEND["handlelength"] + LEGEND["handletextpad"] + LEGEND["columnspacing"]) / 72
    return sum(float(max(column)) + around for column in np.array_split(texts, columns) if len(column))


def inches(text: str, size: float, weight: str = "normal") -> float:
    """How wide a text of so many points is."""
    return (
        float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size, weight=weight), False)[0]) / 72
    )


def svg(figure: Figure) -> str:
    """The figure as an SVG element: text stays text, names are escaped, and the same figure gives the same bytes."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "curves"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
