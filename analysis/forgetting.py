"""What did the tuning cost elsewhere? Tasks marked `elsewhere` and the loss on the base's own corpus, before and after.

Of each such task every size of every method is set against the untouched base, item by item
(`analysis.paired.compare`). All these comparisons together are corrected by Holm, so that the chance of even one false
cost among them is 5%. Losses are in nats (`analysis.losses`). What a tuning cost is set beside what it gained: the
change of the leading task that it was for, at the same size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis.elicitation import Sampled, shown_variants
from analysis.losses import LOSS, in_nats
from analysis.paired import Comparison, Side, compare, holm
from analysis.points import CURVE, aimed, brief, ruler
from analysis.sample import Estimate, Series, collect, draws
from analysis.section import Evidence, Picture, Section, Table
from analysis.style import DASHES, INK, MARKERS, PALETTES, PAPER, SOFT, Look, frame, grid_of, handle, legend

TITLE = "What did the tuning cost elsewhere?"
ABSENT = (
    "No evaluation here is marked as elsewhere, that is as none of what the tuning is for; add one, e.g. harness eval "
    "RUNS evals=corpus (text like the base's pretraining, from a file), or set evals.NAME.elsewhere=true beside a task."
)
SIGNED = "{:+.3f}".format


@dataclass(frozen=True)
class Change:
    """From the untouched base to one size of one curve, on a task elsewhere; `compared` is better up."""

    series: Series
    name: str  # of the tuning
    size: int
    compared: Comparison

    @property
    def unit(self) -> str:
        return "nats" if self.series.metric.startswith(LOSS) else ""

    @property
    def raw(self) -> Estimate:
        """In the metric's own direction: of a loss up is worse."""
        d = self.compared.difference
        return d if self.series.better > 0 else Estimate(-d.value, -d.high, -d.low)

    @property
    def stands(self) -> str:
        """worse, better, or empty where the change may be nothing."""
        return ("better" if self.compared.difference.value > 0 else "worse") if self.compared.clear else ""

    def words(self) -> str:
        what = f"the {self.series.metric.partition(',')[0]} of {self.series.task}" if self.unit else self.series.task
        told = f"{self.raw.words(SIGNED)} {self.unit}".strip()
        return f"{self.name}, {brief(self.size)} examples: {what} {told}, {p_words(self.compared)}"


def p_words(one: Comparison) -> str:
    if isnan(one.adjusted):
        return "nothing is known of its noise"
    return "p < 0.0001" if one.adjusted < 1e-4 else f"p = {one.adjusted:.2g}"


def section(evidence: Evidence) -> Section:
    found = changes(evidence)
    if not found:
        return Section(TITLE, absent=ABSENT)
    return Section(
        TITLE,
        lines=tuple(_lines(found)),
        tables=(_table(found),),
        pictures=_pictures(evidence, found),
        data={"forgetting": _numbers(found)},
    )


def changes(evidence: Evidence) -> list[Change]:
    """Of every curve on a task elsewhere, at every size; p-values adjusted for all of them together."""
    nats = in_nats(evidence)
    curves = [s for s in collect(nats.frame[_elsewhere(nats.frame)], nats.items) if s.headline and s.start is not None]
    names = _names(curves)
    made = [
        Change(s, names[s.key], size, compare(Side("tuned", s, size), Side("untouched", s, 0), s.name))
        for s in curves
        for size in map(int, s.sizes)
    ]
    adjusted = holm([one.compared for one in made])
    return [Change(one.series, one.name, one.size, its) for one, its in zip(made, adjusted, strict=True)]


def _elsewhere(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Rows of curves that are marked, in any of their cells, and of the untouched base."""
    curve = ["base", "data", "method", "variant", "task"]
    marked = set(map(tuple, frame.loc[frame["elsewhere"].eq(True) & (frame["method"] != "base"), curve].to_numpy()))
    mine = pd.Series([tuple(row) in marked for row in frame[curve].to_numpy()], index=frame.index)
    return mine | frame["method"].eq("base") | frame["status"].ne("ok")


def _names(curves: Sequence[Series]) -> dict[tuple[str, ...], str]:
    short = shown_variants([Sampled(s, draws(s, 2)) for s in curves])
    return {s.key: " ".join(filter(None, [s.base, s.method, short[s.key], "on", s.data])) for s in curves}


# ----------------------------------------------------------------------------------------------------------- the page


def _lines(found: Sequence[Change]) -> list[str]:
    worse = [one for one in found if one.stands == "worse"]
    better = [one for one in found if one.stands == "better"]
    said = [
        f"Of {len(found)} changes of tasks elsewhere against the untouched base, {len(worse)} stand as costs and "
        f"{len(better)} as gains, all compared together (Holm)."
    ]
    for task in dict.fromkeys(one.series.task for one in found):
        mine = [one for one in worse if one.series.task == task]
        if mine:
            most = max(mine, key=lambda one: abs(one.raw.value))
            said.append(f"The dearest for {task}: {most.words()}.")
        else:
            said.append(f"No cost for {task} can be told.")
    said += [f"Dearer the more examples: {one}." for one in _grows(found)]
    return said


def _grows(found: Sequence[Change]) -> list[str]:
    """Curves whose cost at the largest size is surely above that at the smallest."""
    said = []
    for series in {one.series.key: one.series for one in found}.values():
        first, last = int(series.sizes[0]), int(series.sizes[-1])
        if first < last:
            step = compare(Side("", series, last), Side("", series, first), "")
            if step.difference.high < 0:
                its = next(one for one in found if one.series.key == series.key and one.size == last)
                raw = Change(series, its.name, last, step).raw.words(SIGNED)
                said.append(f"{series.task} after {its.name}, {raw} from {brief(first)} to {brief(last)} examples")
    return said


def _table(found: Sequence[Change]) -> Table:
    rows = [
        (
            f"{one.series.task}, {one.series.metric}", one.name, f"{one.size:,}", one.raw.words(SIGNED),
            p_words(one.compared), one.stands or "cannot be told",
        )
        for one in found
    ]  # fmt: skip
    note = "Change against the untouched base in the measure's own unit, paired by item; p by Holm over all rows."
    return Table("What changed elsewhere", ("task", "tuning", "examples", "change", "p", ""), tuple(rows), note)


def _numbers(found: Sequence[Change]) -> pd.DataFrame:
    return pd.DataFrame(
        {**dict(zip(CURVE, one.series.key, strict=True)), "size": one.size, "change": one.raw.value,
         "low": one.raw.low, "high": one.raw.high, "p_holm": one.compared.adjusted, "stands": one.stands}
        for one in found
    )  # fmt: skip


def _pictures(evidence: Evidence, found: Sequence[Change]) -> tuple[Picture, ...]:
    gains = gained(evidence)
    if not any((*one.series.key[:4], one.size) in gains for one in found):
        return ()
    reading = (
        "Right is more gained, below is dearer; a line joins the sizes of one tuning, a point is named by its size."
    )
    return (Picture("forgetting", "What was gained against what it cost.", reading, draw(found, gains)),)


def gained(evidence: Evidence) -> dict[tuple[str | int, ...], tuple[str, Estimate]]:
    """By curve and size, the leading task that the tuning was for and its gain; the first by name of several."""
    found: dict[tuple[str | int, ...], tuple[str, Estimate]] = {}
    for series in collect(aimed(evidence.plain), evidence.items):
        if series.headline and series.better > 0 and series.start is not None:
            for size in map(int, series.sizes):
                its = compare(Side("", series, size), Side("", series, 0), "").difference
                found.setdefault((*series.key[:4], size), (series.task, its))
    return found


@rc_context({"text.parse_math": False})
def draw(found: Sequence[Change], gains: dict[tuple[str | int, ...], tuple[str, Estimate]]) -> Figure:
    """Cost against gain, a panel for each task elsewhere; both are changes against the untouched base, up is better."""
    shown = [one for one in found if (*one.series.key[:4], one.size) in gains]
    tasks = list(dict.fromkeys(one.series.task for one in shown))
    figure, grid = grid_of(len(tasks), 3.3, 0.9)
    tunings = sorted({one.name for one in shown})
    palette = PALETTES["method"]
    looks = {
        name: Look(palette[i % len(palette)], i % 2 == 1, MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, name in enumerate(tunings)
    }
    for axes, task in zip(grid, tasks, strict=True):
        axes.axhline(0, color=SOFT, linewidth=0.8)
        for name in tunings:
            mine = sorted(
                (one for one in shown if (one.series.task, one.name) == (task, name)), key=lambda one: one.size
            )
            look = looks[name]
            x = [gains[(*one.series.key[:4], one.size)][1] for one in mine]
            y = [one.compared.difference for one in mine]
            axes.errorbar(
                [e.value for e in x], [e.value for e in y], xerr=_reach(x), yerr=_reach(y), color=look.colour,
                linestyle=look.dashes, marker=look.marker, markerfacecolor=PAPER if look.hollow else look.colour,
                markersize=5, linewidth=1.2, elinewidth=0.8,
            )  # fmt: skip
            for one, right, up in zip(mine, x, y, strict=True):
                axes.annotate(
                    brief(one.size),
                    (right.value, up.value),
                    (4, 4),
                    textcoords="offset points",
                    fontsize=7.5,
                    color=INK,
                )
        one = next(one for one in shown if one.series.task == task)
        metric = one.series.metric
        label = f"fall of {metric}" if one.series.better < 0 else f"change of {ruler(metric, one.series.filter)}"
        frame(axes, task, label, size=9.5)
    figure.supxlabel("gain on the task it was for", fontsize=9.5, color=INK)
    legend(figure, [handle(name, looks[name]) for name in tunings], 2)
    return figure


def _reach(told: Sequence[Estimate]) -> np.ndarray:
    """[2, n] bars; none where an interval is not known."""
    return np.nan_to_num(np.array([[e.value - e.low for e in told], [e.high - e.value for e in told]])).clip(0)
