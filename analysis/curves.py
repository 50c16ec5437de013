"""Score against number of examples: seeds averaged with an honest interval, and the figures drawn from that.

Reads only the one table of records (`harness.store.load`). Everything drawn comes from `points`, so the table of a
report and its figures cannot disagree.
"""

import io
import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import stdtrit

from harness.cell import LEVELS
from harness.errors import HarnessError

CURVE = ["base", "data", "method", "variant", "task", "metric", "filter"]
LEVEL = 0.95

# Okabe & Ito (2008), "Color Universal Design": safe for the common colour-vision deficiencies. Ordered so that
# neighbours differ in luminance too; no pure black or white, so that one figure serves light and dark pages.
COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#8C8C8C")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (1, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (2.5, 1)), (0, (4, 1, 1, 1, 1, 1)))
INK, RULE, PAPER = "#23282d", "#dfe2e0", "#fdfdfd"  # text and axes; grid; inside of hollow markers
LEVEL_DASHES = {"base": (0, (5, 3)), "given": (0, (1, 2.5))}  # kept for them


def points(frame: pd.DataFrame) -> pd.DataFrame:
    """Average the seeds: one row for each (base, data, method, variant, task, metric, filter, size).

    Adds `score` (mean over seeds), `low` and `high` (95%), `n_seeds`, `seed_sd` (sample sd between seeds; NaN for one),
    `item_stderr` (root mean square of lm-eval's), `n_items` and `interval`, which says what the interval holds:
    "seeds+items", "items" (a single seed: nothing is known of the spread between runs), "seeds" (the metric has no
    standard error) or "none" (neither; low and high are NaN).

    **What it is an interval for**: the expected score of this recipe over fresh seeds *and* fresh items of the same
    kind. All seeds answer the same items, so item noise does not shrink with more seeds. With y_ij = mu + seed_i +
    item_j + e_ij, the between-seed variance of k runs, over k, estimates var(seed)/k + var(e)/kn; lm-eval's squared
    standard error (var(item) + var(e))/n. Their sum exceeds the variance of the mean by at most var(e)/n: conservative,
    and as near as one gets without per-item outputs. The limits of the two parts, Student's t with k-1 degrees of
    freedom for seeds and Wilson's (1927) score interval for proportions, are joined in quadrature on each side (MOVER:
    Zou & Donner 2008, Stat. Med. 27:1693). Wilson's has width at 0 and 1 and holds for few items, where the normal one
    fails (Bowyer et al. 2025, arXiv:2503.01747); means of other item scores use the normal one on lm-eval's standard
    error. Items are taken as independent: where several share a passage, this is too narrow (Miller 2024,
    arXiv:2411.00640). Intervals are for one point each: not for differences between curves, nor simultaneous. They need
    no answers by item. `analysis.sample`, which has them, is for what compares points: it takes var(e)/n off, pools the
    seeds of all sizes and so is narrower for few seeds, and knows which items hang together.
    """
    done = frame[(frame["status"] == "ok") & frame["score"].notna()]
    check(done)
    done = done.drop_duplicates([*CURVE, "size", "seed", "subset_seed"])  # one experiment seen from two sweeps
    rows = [
        {**dict(zip([*CURVE, "size"], key, strict=True)), **average(group)}
        for key, group in done.groupby([*CURVE, "size"], sort=True)
    ]
    columns = [*CURVE, "size", "headline", "score", "low", "high", "n_seeds", "seed_sd", "item_stderr", "n_items"]
    return pd.DataFrame(rows, columns=[*columns, "interval", "higher_is_better", "base_note"])


def check(done: pd.DataFrame) -> None:
    """Refuse a table in which one curve would join what was not measured alike."""
    for (base, task), group in done.groupby(["base", "task"]):
        protocols = sorted(group["eval_fingerprint"].dropna().unique())
        if len(protocols) > 1:
            raise HarnessError(
                f"{base} was scored on {task} under {len(protocols)} protocols ({names(p[:8] for p in protocols)}), so "
                "its scores make no one curve. Score all its cells again under one, or keep the sweeps apart"
            )
    cell = ["base", "data", "method", "variant", "size", "seed", "subset_seed"]
    kinds = done.groupby(cell)["fingerprint"].nunique()
    if (kinds > 1).any():
        name = " ".join(str(part) for part in kinds[kinds > 1].index[0])
        raise HarnessError(f"different experiments carry the same names ({name}); keep their sweeps apart")


def average(group: pd.DataFrame) -> dict[str, object]:
    """The columns of `points` for the runs (one row each) of one point."""
    scores = group["score"].to_numpy(float)
    k, mean, n_items = len(scores), float(scores.mean()), int(group["n_items"].min())
    sd = float(scores.std(ddof=1)) if k > 1 else math.nan
    stderr = float(np.sqrt(np.mean(group["stderr"].to_numpy(float) ** 2)))
    seed_part = float(stdtrit(k - 1, 0.5 + LEVEL / 2)) * sd / math.sqrt(k) if k > 1 else math.nan
    proportion = all(is_proportion(*run) for run in group[["score", "stderr", "n_items"]].to_numpy(float))
    below, above = _item_part(mean, stderr, n_items, proportion)
    known = [name for name, part in (("seeds", seed_part), ("items", below)) if not math.isnan(part)]
    low = mean - math.hypot(*np.nan_to_num([seed_part, below])) if known else math.nan
    high = mean + math.hypot(*np.nan_to_num([seed_part, above])) if known else math.nan
    if proportion:
        low, high = max(low, 0.0), min(high, 1.0)
    first = group.iloc[0]
    return {
        "headline": bool(first["headline"]),
        "score": mean,
        "low": low,
        "high": high,
        "n_seeds": k,
        "seed_sd": sd,
        "item_stderr": stderr,
        "n_items": n_items,
        "interval": "+".join(known) or "none",
        "higher_is_better": first["higher_is_better"],
        "base_note": first["base_note"],
    }


def is_proportion(score: float, stderr: float, n_items: float) -> bool:
    """Whether a score is a share of right answers, told from the numbers.

    A mean of zeros and ones is a whole number over n, and lm-eval's standard error of it, sample sd / sqrt(n), is then
    sqrt(p (1-p) / (n-1)): equal for no other scores between 0 and 1.
    """
    if not 0 <= score <= 1 or abs(score * n_items - round(score * n_items)) > 1e-4 * max(1.0, n_items / 100):
        return False
    return math.isnan(stderr) or math.isclose(stderr**2 * max(n_items - 1, 1), score * (1 - score), rel_tol=1e-3)


def wilson(share: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion (J. Am. Stat. Assoc. 22:209, 1927). `share` may be any in [0, 1]."""
    z = float(stdtrit(math.inf, 0.5 + level / 2))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _item_part(mean: float, stderr: float, n_items: int, proportion: bool) -> tuple[float, float]:
    """How far the item interval reaches below and above `mean`; NaN where items say nothing."""
    if proportion and n_items > 0:
        low, high = wilson(mean, n_items)
        return mean - low, high - mean
    half = float(stdtrit(math.inf, 0.5 + LEVEL / 2)) * stderr
    return half, half


# ---------------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Style:
    """Colour and filling tell the base; marker and dashes tell the method (and its variant)."""

    colours: dict[str, str]
    hollow: dict[str, bool]
    markers: dict[str, str]
    dashes: dict[tuple[str, str], Any]

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Style":
        """From sorted names, so that a base or method looks the same in every figure of the same table."""
        bases = sorted(table["base"].unique())
        lines = table[has_sizes(table)]
        methods = sorted(lines["method"].unique(), reverse=True)  # sft before icl: the solid line for the main matter
        kinds = sorted({(m, v) for m, v in lines[["method", "variant"]].itertuples(index=False)}, reverse=True)
        kinds.sort(key=lambda kind: (methods.index(kind[0]), kind[1]))
        return cls(
            colours={b: COLOURS[i % len(COLOURS)] for i, b in enumerate(bases)},
            hollow={b: i % 2 == 1 for i, b in enumerate(bases)},
            markers={m: MARKERS[i % len(MARKERS)] for i, m in enumerate(methods)},
            dashes={kind: DASHES[i % len(DASHES)] for i, kind in enumerate(kinds)},
        )


@rc_context({"text.parse_math": False})  # a "$" in a name is a dollar sign
def draw(table: pd.DataFrame, *, others: bool = False) -> Figure:
    """Small multiples of `points`: score against examples (log axis), one panel for each (task, data) there is.

    Bars are the 95% intervals; a dashed level line with a band is the untouched base. By default each task's headline
    (metric, filter) is drawn. With `others`, one panel for each further (metric, filter); where the metric is the
    headline's, on its scale and with its curves thin behind, so that what is only answer format shows as a gap.
    """
    panels = _panels(table, others)
    if not panels:
        raise HarnessError("nothing to draw: no finished cell with examples" + " and a second filter" * others)
    table = telling(table)
    style = Style.of(table)
    columns = min(3, len({p[0] for p in panels}) if len({p[1] for p in panels}) > 1 else len(panels))
    if others:
        columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(6.2, 3.9 * columns), 3.25 * rows + 0.75), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    several = table.loc[has_sizes(table), "data"].nunique() > 1
    for axes, (task, data, metric, filter_) in zip(grid.flat, panels, strict=False):
        here = _select(table, task, data)
        shown = here[(here["metric"] == metric) & (here["filter"] == filter_)]
        if others:
            _curves(axes, here[here["headline"] & (here["metric"] == metric)], style, ghost=True)
        _curves(axes, shown, style)
        _dress(axes, table[(table["task"] == task) & (table["metric"] == metric)], shown)
        title = f"{task}  ·  {data}" if several else task
        axes.set_title(title, loc="left", fontweight="bold", fontsize=10.5, color=INK)
        lower = "" if shown["higher_is_better"].all() else ", lower is better"
        axes.set_ylabel(ruler(metric, filter_) + lower, fontsize=9, color=INK)
    figure.supxlabel("number of examples", fontsize=9.5, color=INK)
    handles, legend_columns = _legend(table, style, others, figure.get_figwidth())
    figure.legend(
        handles=handles, loc="outside upper left", ncols=legend_columns, fontsize=8.5, labelcolor=INK,
        frameon=False, handlelength=2.6, columnspacing=1.6,
    )  # fmt: skip
    return figure


def has_sizes(table: pd.DataFrame) -> "pd.Series[bool]":
    """Of each row, whether it is a point of a curve and no level line."""
    return ~table["method"].isin(LEVELS)


def telling(table: pd.DataFrame) -> pd.DataFrame:
    """The table without what of its variants tells no line from another.

    They are left out where a base's data and method have only one, and the settings of a recipe's stages where the
    stages tell its lines apart.
    """
    kinds = table.groupby(["base", "data", "method"])["variant"]
    brief = table.assign(variant=table["variant"].map(_stages))
    clear = brief.groupby(["base", "data", "method"])["variant"].transform("nunique") == kinds.transform("nunique")
    several = (kinds.transform("nunique") > 1) | ~has_sizes(table)
    return table.assign(variant=table["variant"].mask(clear, brief["variant"]).where(several, ""))


def _stages(variant: str) -> str:
    """A variant without what it has in brackets."""
    shorter = re.sub(r"\([^()]*\)", "", variant)
    return shorter if shorter == variant else _stages(shorter)


def svg(figure: Figure) -> str:
    """The figure as an SVG element: text stays text, names are escaped, and the same figure gives the same bytes."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "curves"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def has_others(table: pd.DataFrame) -> bool:
    """Whether some task has a (metric, filter) besides its headline."""
    return bool(_panels(table, others=True))


def _panels(table: pd.DataFrame, others: bool) -> list[tuple[str, str, str, str]]:
    """(task, data, metric, filter) of each panel, in reading order: a row for each data, a column for each task."""
    lines = table[has_sizes(table) & (table["headline"] != others)]
    found = lines[["data", "task", "metric", "filter"]].drop_duplicates().itertuples(index=False, name=None)
    return [(task, data, metric, filter_) for data, task, metric, filter_ in sorted(found)]


def _select(table: pd.DataFrame, task: str, data: str) -> pd.DataFrame:
    """The rows of one panel: the task's curves on `data`, and the level of each base that has one of them.

    A base without a curve anywhere (an instruct model, say) is there to be compared with, and stands in every panel.
    """
    lines = table[has_sizes(table)]
    elsewhere = set(lines["base"]) - set(lines.loc[(lines["task"] == task) & (lines["data"] == data), "base"])
    here = table[(table["task"] == task) & ((table["data"] == data) | ~has_sizes(table))]
    return here[~here["base"].isin(elsewhere)]


def ruler(metric: str, filter_: str) -> str:
    """A (metric, filter) in words: ``exact match (strict-match)``."""
    return metric.replace("_", " ") + (f" ({filter_})" if filter_ not in ("none", "") else "")


def _curves(axes: Axes, rows: pd.DataFrame, style: Style, ghost: bool = False) -> None:
    """Draw one (metric, filter) of a panel; a ghost is thin and without bars, for comparison only."""
    for reference in rows[~has_sizes(rows)].to_dict("records"):
        colour = style.colours[reference["base"]]
        if not ghost:
            axes.axhspan(reference["low"], reference["high"], color=colour, alpha=0.10, linewidth=0)
            dashes = LEVEL_DASHES[reference["method"]]
            axes.axhline(reference["score"], color=colour, linestyle=dashes, linewidth=1.1)
    lines = list(rows[has_sizes(rows)].groupby(["base", "method", "variant"], sort=True))
    apart = min(0.035, 0.2 / max(len(lines), 1))  # decades, so that bars at the same size do not hide one another
    for i, (key, line) in enumerate(lines):
        base, method, variant = map(str, key)
        line = line.sort_values("size")
        x = line["size"].to_numpy(float) * 10 ** (apart * (i - (len(lines) - 1) / 2))
        colour, dashes = style.colours[base], style.dashes[method, variant]
        if ghost:
            axes.plot(x, line["score"], color=colour, linestyle=dashes, linewidth=0.8, alpha=0.5)
            continue
        axes.plot(x, line["score"], color=colour, linestyle=dashes, linewidth=1.7)
        reach = np.abs(line[["low", "high"]].to_numpy(float).T - line["score"].to_numpy(float))
        axes.errorbar(
            x, line["score"], yerr=reach, fmt=style.markers[method], markersize=5, markeredgewidth=1.3, color=colour,
            markerfacecolor=PAPER if style.hollow[base] else colour, elinewidth=1.0, capsize=0, zorder=3,
        )  # fmt: skip


def _dress(axes: Axes, scale: pd.DataFrame, shown: pd.DataFrame) -> None:
    """Axes of a panel: sizes as ticks, scores on the scale of all rows of `scale`, quiet frame."""
    axes.set_facecolor("none")
    axes.set_xscale("log")
    sizes = sorted(shown.loc[has_sizes(shown), "size"].unique())
    room = math.log10(sizes[-1] / sizes[0]) / 8  # decades that a label needs
    ticks: list[float] = []
    for size in reversed(sizes):
        if not ticks or math.log10(ticks[-1] / size) >= room:
            ticks.append(size)
    axes.set_xticks(ticks, [brief(s) for s in ticks])
    axes.set_xticks([s for s in sizes if s not in ticks], minor=True)
    axes.xaxis.set_tick_params(which="minor", labelbottom=False)
    axes.set_xlim(sizes[0] / 1.45, sizes[-1] * 1.45)
    bottom = np.nanmin(scale[["low", "score"]].to_numpy(float))
    top = np.nanmax(scale[["high", "score"]].to_numpy(float))
    room = 0.06 * max(top - bottom, 0.02)
    axes.set_ylim(bottom - room, top + room)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
    axes.tick_params(axis="y", length=0)


def brief(size: float) -> str:
    """A number of examples as people write it: 300, 1k, 3.5k, 1M; 2048 stays 2048."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if size >= unit and (size >= 10 * unit or size % (unit / 10) == 0):
            return f"{size / unit:.3g}{name}"
    return f"{size:.0f}"


def _legend(table: pd.DataFrame, style: Style, others: bool, width: float) -> tuple[list[Line2D], int]:
    """Handles and number of columns for `width` inches: bases above kinds of line or, if that is too wide, beside them.

    Matplotlib fills a legend column by column, hence the pairs.
    """
    notes = {str(row["base"]): row["base_note"] for row in table.to_dict("records")}
    look: dict[str, Any] = {"markersize": 5, "markeredgewidth": 1.3}
    bases: list[Line2D] = []
    lines: list[Line2D] = []
    for base, colour in style.colours.items():
        face = PAPER if style.hollow[base] else colour
        label = f"{base} ({notes[base]})" if notes[base] else base
        bases.append(Line2D([], [], color=colour, marker="o", markerfacecolor=face, linewidth=1.7, label=label, **look))
    for (method, variant), dashes in style.dashes.items():
        label = f"{method} {variant}".strip()
        lines.append(Line2D([], [], color=INK, linestyle=dashes, marker=style.markers[method], label=label, **look))
    if (table["method"] == "base").any():
        lines.append(Line2D([], [], color=INK, linestyle=LEVEL_DASHES["base"], linewidth=1.1, label="base, untouched"))
    if given := sorted(table.loc[table["method"] == "given", "variant"].unique()):
        label = "given: " + ", ".join(given)
        lines.append(Line2D([], [], color=INK, linestyle=LEVEL_DASHES["given"], linewidth=1.1, label=label))
    if others:
        lines.append(Line2D([], [], color=INK, linewidth=0.8, alpha=0.5, label="headline filter"))
    pairs = list(itertools.zip_longest(bases, lines, fillvalue=Line2D([], [], linestyle="none", label=" ")))
    inches = [0.058 * max(len(str(handle.get_label())) for handle in pair) + 0.6 for pair in pairs]  # at this font size
    if sum(inches) > width:
        return [base for base, _ in pairs] + [line for _, line in pairs], 2
    return [handle for pair in pairs for handle in pair], len(pairs)


def names(values: Iterable[object]) -> str:
    """A list in words: ``a, b and c``."""
    texts = [str(v) for v in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else ""
