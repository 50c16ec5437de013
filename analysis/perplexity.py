"""Does the loss on held-out answers fall as the score rises? Perplexity against quality, size by size.

Two losses are looked at: that of reference answers, where a task asks for their likelihood (`conf/evals/*_nll.yaml`),
and `held_out_loss`, where a learning rate was chosen by it. Each is set beside the scores of the same base, data and
method; a loss of the same items as a score only beside that one.

- **Together or apart**: the change of both from the untouched base to the smallest size and from there to the largest,
  and between the settings of a method at their largest common size, each with its interval (`analysis.paired.compare`).
  Zhou et al. 2023 (LIMA, arXiv 2305.11206, appendix B) saw perplexity rise with training while quality rose.
- **Rank correlation** (Spearman) over sizes, with the interval of its draws. Of S sizes the ranks agree or oppose
  wholly by chance alone in 2 of S! orders, which is said where it is more than one in twenty.
- **Noise**: the standard deviation of a point over the change from end to end, the same for loss and score, and how
  many times smaller it is for the loss: a loss is a mean of what is never quite right or wrong, so a smoother curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import factorial, isnan

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import rankdata

from analysis.curves import line_of, sizes_as_ticks
from analysis.elicitation import Sampled, shown_variants
from analysis.losses import LOSS, in_nats
from analysis.paired import Comparison, Side, compare
from analysis.points import CURVE, aimed, brief, ruler
from analysis.sample import Draws, Estimate, Series, collect, draws
from analysis.section import Evidence, Picture, Section, Table
from analysis.style import DASHES, LEVEL_DASHES, MARKERS, PALETTES, PAPER, SOFT, Look, frame, handle, legend

TITLE = "Does the loss on held-out answers fall as the score rises?"
ABSENT = (
    "No loss of held-out answers stands beside a score here; add one of the same items, e.g. harness eval RUNS "
    "evals=gsm8k_nll."
)
RARE = 0.05
SIGNED = "{:+.3f}".format


@dataclass(frozen=True)
class Pair:
    """A score and a loss of the same runs."""

    score: Sampled
    loss: Sampled
    name: str
    steps: dict[int, float]  # optimizer steps by size; NaN where nothing was trained

    def rank(self) -> Estimate:
        """Spearman's correlation of loss and score over sizes; -1: the one falls wherever the other rises."""
        if len(self.score.series.sizes) < 3:
            return Estimate(why="two sizes have no order to agree on")
        both = (self.score.series, self.loss.series)
        value = float(_spearman(both[0].scores[None] * both[0].better, both[1].scores[None])[0])
        drawn = _spearman(self.score.draws.scores * both[0].better, self.loss.draws.scores)
        return Estimate(value) if np.isnan(drawn).any() else Estimate.of(value, drawn)

    def smoother(self) -> Estimate:
        """How many times smaller the noise of the loss is than that of the score, each relative to its own change."""
        if len(self.score.series.sizes) < 2:
            return Estimate(why="one size has no change")
        score, loss = _relative_noise(self.score), _relative_noise(self.loss)
        if score is None or loss is None:
            return Estimate(why="one of the two may not have changed at all")
        return Estimate.of(score[0] / loss[0], score[1] / loss[1])


def section(evidence: Evidence) -> Section:
    pairs = paired_up(evidence)
    if not pairs:
        return Section(TITLE, absent=ABSENT)
    reading = "Bars are 95% intervals; a colour and a marker are one curve; dashes are the untouched base."
    return Section(
        TITLE,
        lines=tuple(line for pair in pairs for line in _lines(pair)) + tuple(m.words() for m in by_setting(pairs)),
        tables=(_table(pairs),),
        pictures=(Picture("perplexity", "Loss beside score.", reading, draw(pairs)),),
        data={"perplexity": _numbers(pairs)},
    )


# ----------------------------------------------------------------------------------------------------- what is paired


def paired_up(evidence: Evidence) -> list[Pair]:
    """Every leading score beside every loss of the same base, data, method and variant; see the head of this file."""
    nats = in_nats(evidence)
    lost = nats.frame["metric"].astype(str).str.startswith(LOSS)  # of cells that all failed there is no text
    table = pd.concat([nats.frame[lost], nats.plain[nats.plain["higher_is_better"].eq(True)]])
    table = pd.concat([aimed(table), _held_out(nats.plain)], ignore_index=True)
    curves = [Sampled(s, draws(s)) for s in collect(table, nats.items) if s.headline]
    scores = [c for c in curves if c.series.better > 0]
    short = shown_variants(curves)
    found = []
    for loss in (c for c in curves if c.series.better < 0):
        alike = [c for c in scores if _same_items(c.series, loss.series)]
        for score in alike or scores:
            if score.series.key[:4] == loss.series.key[:4]:
                both = _common(score, loss)
                s = score.series
                on = f"{s.base} {s.method} {short[s.key]}".strip()
                name = f"{on} on {s.data}: {loss.series.task} beside {s.task}"
                found += [Pair(*both, name, _steps(table, both[0].series))] if both else []
    return found


def _steps(table: pd.DataFrame, series: Series) -> dict[int, float]:
    rows = table[table["path"].isin([path for point in series.points for path in point.paths])]
    return {int(str(size)): float(steps) for size, steps in rows.groupby("size")["steps"].mean().items()}


def _held_out(table: pd.DataFrame) -> pd.DataFrame:
    """The losses by which learning rates were chosen, as the scores of a task of that name."""
    cells = table[table["held_out_loss"].notna()].drop_duplicates("path")
    return cells.assign(
        task="held-out loss", metric=f"{LOSS}token", filter="none", headline=True, score=cells["held_out_loss"],
        stderr=np.nan, n_items=1, higher_is_better=False, eval_fingerprint="",
    )  # fmt: skip


def _same_items(one: Series, other: Series) -> bool:
    if one.asked is None or other.asked is None:
        return False
    marks = [{name.split(":")[1] for name in series.asked.names} for series in (one, other) if series.asked]
    return bool(marks[0] & marks[1])


def _common(score: Sampled, loss: Sampled) -> tuple[Sampled, Sampled] | None:
    """Both at the sizes that both have."""
    sizes = sorted({int(s) for s in score.series.sizes} & {int(s) for s in loss.series.sizes})
    return (_at(score, sizes), _at(loss, sizes)) if sizes else None


def _at(curve: Sampled, sizes: list[int]) -> Sampled:
    kept = [i for i, size in enumerate(curve.series.sizes) if int(size) in sizes]
    series = replace(curve.series, sizes=curve.series.sizes[kept], points=tuple(curve.series.points[i] for i in kept))
    return Sampled(series, Draws(curve.draws.scores[:, kept], curve.draws.start))


# ------------------------------------------------------------------------------------------------- what is said of it


@dataclass(frozen=True)
class Move:
    """What score and loss did from one model to another: `gain` and `fall` are of the first less the second, so that
    up is better in both."""

    where: str
    gain: Comparison
    fall: Comparison

    @property
    def kind(self) -> str:
        """together, apart, loss alone, score alone, worse, or nothing that can be told."""
        gain, fall = _sign(self.gain.difference), _sign(self.fall.difference)
        return {
            (1, 1): "together", (-1, -1): "together", (1, -1): "apart", (-1, 1): "apart", (0, 1): "loss alone",
            (0, -1): "loss alone", (1, 0): "score alone", (-1, 0): "score alone", (0, 0): "neither",
        }[gain, fall]  # fmt: skip

    def words(self) -> str:
        gain, loss = self.gain.difference, _minus(self.fall.difference)
        moves = {1: "rises", -1: "falls", 0: "holds"}
        said = (
            f"the loss {moves[-_sign(self.fall.difference)]} ({loss.words(SIGNED)} nats) while the score "
            f"{moves[_sign(gain)]} ({gain.words(SIGNED)})"
        )
        judged = {
            "together": "they move together", "apart": "they move apart", "loss alone": "only the loss moves",
            "score alone": "only the score moves", "neither": "neither can be told to move",
        }[self.kind]  # fmt: skip
        seen = ", as LIMA saw" * (self.kind == "apart" and gain.value > 0)
        return f"{self.where}, {said}: {judged}{seen}."


def _sign(difference: Estimate) -> int:
    """0 where the interval holds 0, or where there is none."""
    if isnan(difference.low) or difference.holds(0):
        return 0
    return 1 if difference.value > 0 else -1


def _minus(one: Estimate) -> Estimate:
    return Estimate(-one.value, -one.high, -one.low)


def moves(pair: Pair) -> list[Move]:
    """From the untouched base to the smallest size, and from there to the largest."""
    sizes = [int(size) for size in pair.score.series.sizes]
    started = all(curve.series.start is not None for curve in (pair.score, pair.loss))
    steps = [(sizes[0], 0)] * started + [(sizes[-1], sizes[0])] * (len(sizes) > 1)
    found = []
    for last, first in steps:
        since = f"{brief(first)} examples" if first else "the untouched base"
        where = f"{pair.name}, from {since} to {brief(last)}" + " examples" * (not first)
        found.append(_move(where, pair, last, pair, first))
    return found


def by_setting(pairs: Sequence[Pair]) -> list[Move]:
    """Between the settings of a method, at the largest size that both have; from fewer optimizer steps to more."""
    found = []
    for one, other in combinations(pairs, 2):
        a, b = one.score.series, other.score.series
        same = (
            a.key[:3] == b.key[:3] and a.key[4:] == b.key[4:] and one.loss.series.key[4:] == other.loss.series.key[4:]
        )
        common = {int(size) for size in a.sizes} & {int(size) for size in b.sizes}
        if same and a.variant != b.variant and common:
            size = max(common)
            few, many = (one, other) if one.steps[size] <= other.steps[size] else (other, one)
            where = f"With {brief(size)} examples, from {_setting(few)} to {_setting(many)}"
            found.append(_move(where, many, size, few, size))
    return found


def _setting(pair: Pair) -> str:
    return pair.name.partition(":")[0]


def _move(where: str, to: Pair, last: int, since: Pair, first: int) -> Move:
    sides = [
        compare(Side("", getattr(to, which).series, last), Side("", getattr(since, which).series, first), "")
        for which in ("score", "loss")
    ]
    return Move(where, *sides)


def _lines(pair: Pair) -> list[str]:
    said = [move.words() for move in moves(pair)]
    rank, count = pair.rank(), len(pair.score.series.sizes)
    if not rank.why:
        chance = 2 / factorial(count)
        caution = f"; of {count} sizes the ranks agree or oppose wholly by chance in {chance:.0%} of all orders"
        said.append(f"Rank correlation of loss and score over sizes: {rank.words()}{caution * (chance > RARE)}.")
    smoother = pair.smoother()
    if not smoother.why:
        said.append(f"Beside its own change, the noise of the loss is {smoother.words('{:.1f}'.format)} times smaller.")
    return said


def _spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[B] of two [B, S], ties in mean ranks; 0 where one has a single rank. NaN where a value is."""
    a, b = (rankdata(x, axis=1, nan_policy="propagate") for x in (one, other))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    length = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), length, out=np.zeros(len(length)), where=length != 0)


def _relative_noise(curve: Sampled) -> tuple[float, np.ndarray] | None:
    """Mean standard deviation of a point over the change from end to end, and its draws [B]; None where that change may
    be none, or where nothing is known of the noise."""
    drawn = curve.draws.scores
    change, changes = curve.series.scores[-1] - curve.series.scores[0], drawn[:, -1] - drawn[:, 0]
    if np.isnan(drawn).any() or Estimate.of(change, changes).holds(0):
        return None
    noise = float(drawn.std(axis=0).mean())
    return noise / abs(change), noise / np.abs(changes)


# ----------------------------------------------------------------------------------------------------------- the page


def _told(curve: Sampled, i: int | None) -> Estimate:
    """At the i-th size, or of the untouched base. No interval of a loss, -log p of what was there, goes below 0."""
    told = curve.start() if i is None else (float(curve.series.scores[i]), curve.draws.scores[:, i])
    if told is None:
        return Estimate(why="not scored")
    return Estimate.of(told[0], told[1].clip(0) if curve.series.better < 0 else told[1])


def _numbers(pairs: Sequence[Pair]) -> pd.DataFrame:
    rows = []
    for pair in pairs:
        s, lost = pair.score.series, pair.loss.series
        about = dict(zip(CURVE[:4], s.key[:4], strict=True)) | {"task": s.task, "loss": lost.task, "unit": lost.metric}
        for i, size in [(None, 0), *enumerate(s.sizes.tolist())]:
            its = {"score": _told(pair.score, i), "loss": _told(pair.loss, i)}
            if not any(one.why for one in its.values()):
                values = {f"{w}_{end}": getattr(one, end) for w, one in its.items() for end in ("value", "low", "high")}
                rows.append({**about, "size": size, **values})
    return pd.DataFrame(rows)


def _table(pairs: Sequence[Pair]) -> Table:
    number = "{:.3f}".format
    rows = [
        (pair.name, f"{size:,}", _told(pair.score, i).words(number), _told(pair.loss, i).words(number))
        for pair in pairs
        for i, size in [(None, 0), *enumerate(pair.score.series.sizes.tolist())]
    ]
    note = "A loss in nats: of a whole answer where the task is asked by likelihood, of a token where it was held out."
    return Table("Score and loss by size", ("curve", "examples", "score", "loss, nats"), tuple(rows), note)


@rc_context({"text.parse_math": False})
def draw(pairs: Sequence[Pair]) -> Figure:
    """A row for each score and loss: the score left, the loss right, a colour and a marker for each curve."""
    names = sorted(
        {(p.score.series.task, p.loss.series.task, p.score.series.metric, p.score.series.filter) for p in pairs}
    )
    figure = Figure(figsize=(7.8, 3.1 * len(names) + 0.9), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(len(names), 2, squeeze=False)
    curves = sorted({_setting(pair) for pair in pairs})
    look = {
        name: Look(
            PALETTES["method"][i % len(PALETTES["method"])], i % 2 == 1, MARKERS[i % len(MARKERS)], DASHES[i % 5]
        )
        for i, name in enumerate(curves)
    }
    for row, key in zip(grid, names, strict=True):
        mine = [p for p in pairs if (p.score.series.task, p.loss.series.task, *p.score.series.key[5:]) == key]
        for axes, which in zip(row, ("score", "loss"), strict=True):
            for pair in mine:
                curve: Sampled = getattr(pair, which)
                told = [_told(curve, i) for i in range(len(curve.series.sizes))]
                line = pd.DataFrame({"size": curve.series.sizes, "score": [t.value for t in told]})
                line_of(axes, line.assign(low=[t.low for t in told], high=[t.high for t in told]), look[_setting(pair)])
                if start := curve.start():
                    axes.axhline(start[0], color=SOFT, linewidth=0.9, linestyle=LEVEL_DASHES["base"])
            series = getattr(mine[0], which).series
            unit = ruler(series.metric, series.filter) if which == "score" else series.metric
            frame(axes, series.task, unit, size=9.5)
            sizes_as_ticks(axes, pd.Series(np.unique(np.concatenate([p.score.series.sizes for p in mine]))))
    figure.supxlabel("number of examples", fontsize=9.5)
    legend(figure, [handle(name, look[name]) for name in curves], 2)
    return figure
