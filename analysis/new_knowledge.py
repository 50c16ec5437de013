"""New knowledge: are facts that no base can know taught by telling them, and can they be reasoned with?

Two evaluations ask for the same new facts, and say so in their lm-eval `metadata`: `new_facts: direct` asks for a fact
itself, `new_facts: multihop` for what follows from it and something the base may know; `cluster` names the column that
says which fact a question hangs on. Where the prompt itself tells the fact, as an oracle's retrieval would, both also
have `told: prompt`. Evaluations go together where they ask for the same facts, told alike.

Scores are those of `analysis.sample`, differences between ways to tell those of `analysis.paired`: item by item, facts
as clusters. **Multi-hop where the direct answer is right** is a ratio over questions: those answered rightly of those
whose fact the same run could say. Its interval resamples facts in numerator and denominator together, and adds the
noise between runs, pooled over sizes; what runs answer anew to an item is in both, so that it is rather too wide.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis import paired
from analysis.elicitation import Sampled, shown_variants
from analysis.points import brief
from analysis.sample import Estimate, Point, Series, Squares, collect, draws, resample
from analysis.section import Evidence, Picture, Section, Table
from analysis.style import INK, PAPER, SOFT, Style, frame, handle, legend
from harness.items import answers
from harness.store import newest_identities

TITLE = "Are new facts taught, and can they be reasoned with?"
KINDS = ("direct", "multihop")
ABSENT = (
    "No two evaluations ask for the same new facts directly and by way of others. `harness sweep new_knowledge` does "
    "so on the pocket world, `harness sweep new_knowledge_real` with facts of your own."
)
PUBLISHED = Table(
    "Published: Facts100, 100 facts of news after the base's cut-off (Raghavendra et al. 2024, arXiv 2410.03717)",
    ("facts told", "model", "direct", "multi-hop"),
    (
        ("by fine-tuning", "base", "65%", "37%"),
        ("by fine-tuning", "post-trained first", "81%", "55%"),
        ("in the prompt (oracle)", "base", "49%", "34%"),
        ("in the prompt (oracle)", "post-trained first", "86%", "71%"),
    ),
    "As notes by others give them; other facts, models and scorer: for the direction, not the level.",
)


@dataclass(frozen=True)
class Asked:
    """A task that says it asks for new facts."""

    task: str
    kind: str
    in_prompt: bool  # whether the prompt tells the fact


@dataclass(frozen=True)
class Told:
    """One way to tell the facts: its two curves, and the fact of each item, in the items' order."""

    name: str
    direct: Sampled
    multihop: Sampled
    asked_for: tuple[str, ...]  # [n] items of `direct`
    hung_on: tuple[str, ...]  # [n] items of `multihop`
    in_prompt: bool

    @property
    def pair(self) -> str:
        return f"{self.direct.series.task} and {self.multihop.series.task}"

    def sizes(self) -> list[int]:
        """0, the untouched base, if it was scored, and all sizes of which both curves have a point."""
        both = sorted(set(self.direct.series.sizes.tolist()) & set(self.multihop.series.sizes.tolist()))
        known = self.direct.series.start is not None and self.multihop.series.start is not None
        return [0] * known + both

    @cached_property
    def estimates(self) -> pd.DataFrame:
        """A row for each size: `direct`, `multihop`, `known` (multi-hop where the direct answer is right) and `unknown`
        (where it is wrong), Estimates each."""
        sizes = self.sizes()
        scores = {kind: [_at(getattr(self, kind), size) for size in sizes] for kind in KINDS}
        given = {name: self._given(sizes, right) for name, right in (("known", True), ("unknown", False))}
        return pd.DataFrame({"size": sizes, **scores, **given})

    def _given(self, sizes: list[int], right: bool) -> list[Estimate]:
        """By size: the share of multi-hop questions answered rightly of those whose fact is answered so directly."""
        asked = self.multihop.series.asked
        counted = [self._counts(size, right) for size in sizes]
        if asked is None or any(part is None for part in counted):
            return [Estimate(why="no run kept its answers to both, item by item")] * len(sizes)
        points = [_ratio(*part) for part in counted if part is not None]
        squares = Squares.of([point for point, size in zip(points, sizes, strict=True) if size and point.n])
        found, place = [], 0
        for number, (size, point, part) in enumerate(zip(sizes, points, counted, strict=True)):
            assert part is not None
            if not point.n:
                found.append(Estimate(why="there is no such item"))
                continue
            rng = np.random.default_rng([number, point.n])
            solved, those = (side.mean(axis=0) for side in part)
            drawn = resample(asked, np.stack([solved, those], axis=1), 2000)
            ratio = np.divide(drawn[:, 0], drawn[:, 1], out=np.full(len(drawn), point.score), where=drawn[:, 1] > 0)
            ratio += np.sqrt(point.made_up) * rng.standard_normal(len(ratio))
            if squares and size:
                spread = squares.seed_sd()[place] / np.sqrt(len(point.runs))
                ratio += spread * rng.standard_t(squares.df[place], len(ratio))
            place += bool(size)
            found.append(Estimate.of(point.score, ratio.clip(0, 1)))
        return found

    def _counts(self, size: int, right: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """[K, n] each, over runs and multi-hop items: rightly answered ones of those, and those themselves."""
        one, other = _point(self.direct.series, size), _point(self.multihop.series, size)
        if one.items is None or other.items is None:
            return None
        rows = dict(zip(one.paths, one.items, strict=True))
        runs = [number for number, path in enumerate(other.paths) if path in rows]
        if not runs:  # each question was put to other runs
            return None
        column = {fact: i for i, fact in enumerate(self.asked_for)}
        at = [column[fact] for fact in self.hung_on]
        said = np.stack([rows[other.paths[run]][at] for run in runs]) > 0.5
        those = (said == right).astype(float)
        return those * other.items[runs], those


def section(evidence: Evidence) -> Section:
    told, said = ways(evidence)
    if not told:
        return Section(TITLE, absent=" ".join([ABSENT, *said]))
    tables, lines, data = [], list(said), []
    for pair in dict.fromkeys(way.pair for way in told):
        found = [(way, way.estimates) for way in told if way.pair == pair]
        lines += _lines(found)
        tables.append(_table(pair, found))
        data += [_numbers(way, table) for way, table in found]
    numbers = pd.concat(data, ignore_index=True)
    return Section(
        TITLE,
        lines=tuple(dict.fromkeys(lines)),  # what is so of several curves is said once
        tables=(*tables, PUBLISHED),
        pictures=(
            Picture("new-knowledge", "New facts, asked directly and put together with old ones", READING, draw(told)),
        ),
        data={"new-knowledge": numbers},
    )


READING = (
    "Left: the facts themselves, asked in other words. Middle: questions that put them together with what the base "
    "knew. Right: those of the middle whose fact the same run could say. A line for each way to tell; 95% intervals."
)


def ways(evidence: Evidence) -> tuple[list[Told], list[str]]:
    """All ways to tell facts that were asked for both ways; and in words what claims to be of them and is left out."""
    asked, said = _asked(evidence)
    told = [way for one in asked for way in _ways(evidence, one, asked, said)]
    return sorted(told, key=lambda way: way.pair), list(dict.fromkeys(said))


def _asked(evidence: Evidence) -> tuple[list[Asked], list[str]]:
    """The tasks that ask for new facts, and in words what claims to and does not say how."""
    done = evidence.plain[evidence.plain["status"].eq("ok") & evidence.plain["headline"].eq(True)]
    found, said = [], []
    for name, rows in done.groupby("task", sort=True):
        task = newest_identities(evidence.root / rows["path"].iloc[0])[str(name)]["task"]
        marks = (task.get("metadata") or {}) if isinstance(task, dict) else {}
        if "new_facts" not in marks:
            continue
        if marks["new_facts"] in KINDS and "cluster" in marks:
            found.append(Asked(str(name), marks["new_facts"], marks.get("told") == "prompt"))
        else:
            said.append(f"{name} is left out: its metadata needs new_facts, direct or multihop, and a cluster.")
    return found, said


def _ways(evidence: Evidence, multihop: Asked, asked: Sequence[Asked], said: list[str]) -> Iterator[Told]:
    """The ways of one multi-hop task, with every task that asks directly for its facts; `said` gets why none does."""
    if multihop.kind != "multihop":
        return
    direct = [one for one in asked if (one.kind, one.in_prompt) == ("direct", multihop.in_prompt)]
    names = [multihop.task, *(one.task for one in direct)]
    mine = evidence.plain["task"].isin(names) & evidence.plain["headline"].eq(True)
    series = collect(evidence.plain[mine], evidence.items)
    said += [
        f"{s.name} is left out of {s.task}: its answers were not kept item by item." for s in series if not s.asked
    ]
    curves = [Sampled(s, draws(s)) for s in series if s.asked]
    if not curves:
        return
    shown = shown_variants(curves)
    matched = False
    for there in (curve for curve in curves if curve.series.task == multihop.task):
        hung_on = _facts(evidence, there.series)
        for here in (c for c in curves if c.series.key[:4] == there.series.key[:4] and c is not there):
            asked_for = _facts(evidence, here.series)
            if not set(asked_for) >= set(hung_on):
                continue
            matched = True
            if len(set(asked_for)) < len(asked_for):
                said.append(f"{multihop.task} is left out: {here.series.task} asks for a fact more than once.")
                continue
            name = f"{there.series.method} {shown[there.series.key]}".strip()
            way = Told(name, here, there, asked_for, hung_on, multihop.in_prompt)
            if way.sizes():
                yield way
    if not matched:
        said.append(f"{multihop.task} is left out: no evaluation asks directly for the facts that it puts together.")


def _facts(evidence: Evidence, series: Series) -> tuple[str, ...]:
    """The fact of each item, in the order of `harness.items.Items`; all cells of a curve were asked the same."""
    path, task = series.points[0].paths[0], series.task
    rows = evidence.frame[(evidence.frame["path"] == path) & (evidence.frame["task"] == task)]
    kept = answers(evidence.root, path, task, rows["eval_fingerprint"].iloc[0])
    kept = [row for row in kept if row["filter"] == series.filter]
    return tuple(str(row["cluster"]) for row in sorted(kept, key=lambda row: (row["task"], row["item"])))


def _point(series: Series, size: int) -> Point:
    point = series.points[series.sizes.tolist().index(size)] if size else series.start
    assert point is not None  # `Told.sizes` gives no other
    return point


def _at(curve: Sampled, size: int) -> Estimate:
    start = curve.start()
    if size:
        at = curve.series.sizes.tolist().index(size)
        return Estimate.of(curve.series.scores[at], curve.draws.scores[:, at])
    assert start is not None
    return Estimate.of(*start)


def _ratio(solved: np.ndarray, those: np.ndarray) -> Point:
    """Over all runs; the runs that have such items by themselves."""
    each = those.sum(axis=1)
    runs = solved.sum(axis=1)[each > 0] / each[each > 0]
    whole = solved.sum() / those.sum() if those.any() else np.nan
    runs = runs + (whole - runs.mean()) if len(runs) else np.array([np.nan])  # their mean is the pooled share
    return Point(runs, error=np.nan, n=int(those.any(axis=0).sum()))


def _differences(told: Sequence[Told]) -> list[paired.Comparison]:
    """All pairs of ways on one base and data, at the largest size that both have; both kinds of question."""
    found = []
    for kind in KINDS:
        for one, other in itertools.combinations(told, 2):
            a, b = getattr(one, kind).series, getattr(other, kind).series
            both = set(one.sizes()) & set(other.sizes()) - {0}
            if both and (a.base, a.data) == (b.base, b.data):
                sides = paired.Side(one.name, a, max(both)), paired.Side(other.name, b, max(both))
                found.append(paired.compare(*sides, f"{a.base} on {a.data}"))
    return paired.holm(found)


def _lines(found: Sequence[tuple[Told, pd.DataFrame]]) -> Iterator[str]:
    first = found[0][0]
    where = "told in the prompt" if first.in_prompt else "told by training"
    yield (
        f"{first.direct.series.task} and {first.multihop.series.task} ask for the same {len(set(first.hung_on)):,} "
        f"facts, {where}, the second in {len(first.hung_on):,} questions."
    )
    for way, table in found:
        last, base = table.iloc[-1], way.direct.series.base
        yield (
            f"{base}, {way.name} on {last['size']:,} of {way.direct.series.data}: direct {last['direct'].words()}, "
            f"multi-hop {last['multihop'].words()}; where the direct answer is right, {last['known'].words()}."
        )
        cautions = [*way.direct.series.cautions(), *way.multihop.series.cautions()]
        yield from (f"{base}, {way.name}: {caution}" for caution in dict.fromkeys(cautions))
    yield from (difference.words() for difference in _differences([way for way, _ in found]))


def _table(pair: str, found: Sequence[tuple[Told, pd.DataFrame]]) -> Table:
    rows: dict[tuple[str, ...], tuple[str, ...]] = {}  # the untouched base is in every way, and told once
    for way, table in found:
        for row in table.to_dict("records"):
            told = (way.name, f"{row['size']:,}") if row["size"] else ("nothing: the untouched base", "0")
            head = (way.direct.series.base, *told)
            rows.setdefault(head, (*head, *(_words(row[k]) for k in ESTIMATED)))
    columns = (
        "base",
        "told by",
        "examples",
        "direct",
        "multi-hop",
        "multi-hop, direct right",
        "multi-hop, direct wrong",
    )
    note = "Scores with 95% intervals over runs and facts. A fact that is in no example can only be guessed."
    return Table(f"{pair}: scores by number of examples", columns, tuple(rows.values()), note)


ESTIMATED = (*KINDS, "known", "unknown")


def _words(estimate: Estimate) -> str:
    return "-" if estimate.why else estimate.words()


def _numbers(way: Told, table: pd.DataFrame) -> pd.DataFrame:
    series = way.direct.series
    rows = [
        {
            "base": series.base,
            "data": series.data,
            "method": series.method,
            "variant": series.variant,
            "pair": way.pair,
            "size": row["size"],
            "score": kind,
            "value": row[kind].value,
            "low": row[kind].low,
            "high": row[kind].high,
        }
        for row in table.to_dict("records")
        for kind in ESTIMATED
    ]
    return pd.DataFrame(rows)


@rc_context({"text.parse_math": False})
def draw(told: Sequence[Told]) -> Figure:
    """A row of three panels for each base, data and pair of tasks; a line for each way to tell."""
    groups: dict[tuple[str, str, str], list[Told]] = {}
    for way in told:
        groups.setdefault((way.direct.series.base, way.direct.series.data, way.pair), []).append(way)
    names = [{k: getattr(w.direct.series, k) for k in ("base", "data", "method", "variant")} for w in told]
    style = Style.of(pd.DataFrame(names).drop_duplicates())
    figure = Figure(figsize=(10.4, 3.1 * len(groups) + 0.5), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(len(groups), 3, squeeze=False, sharey=True)
    handles = {}
    for axes_row, ((base, data, _), here) in zip(grid, groups.items(), strict=True):
        titles = ("direct", "multi-hop", "multi-hop, direct right")
        for axes, kind, title in zip(axes_row, ("direct", "multihop", "known"), titles, strict=True):
            for way in here:
                table = way.estimates[(way.estimates["size"] > 0) & ~way.estimates[kind].map(lambda e: bool(e.why))]
                look = style.look("method", base, data, (way.direct.series.method, way.direct.series.variant))
                values = np.array([[e.value, e.low, e.high] for e in table[kind]]).reshape(-1, 3)
                reach = np.abs(values[:, 1:].T - values[:, 0])
                axes.errorbar(
                    table["size"], values[:, 0], yerr=reach, color=look.colour, marker=look.marker, markersize=4.5,
                    linestyle=look.dashes, linewidth=1.7, elinewidth=0.8, capsize=0,
                )  # fmt: skip
                handles[way.name] = handle(way.name, look)
            frame(axes, title, f"{base}, share right" if axes is axes_row[0] else "", size=9.5)
            sizes = sorted({size for way in here for size in way.sizes() if size})
            axes.set_xscale("log")
            axes.set_xticks(sizes, [brief(size) for size in sizes])
            axes.minorticks_off()
            axes.set_ylim(-0.04, 1.04)
            axes.axhline(0, color=SOFT, linewidth=0.7)
    figure.supxlabel("examples trained on", fontsize=9.5, color=INK)
    legend(figure, handles.values(), min(3, len(handles)))
    return figure
