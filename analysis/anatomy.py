"""What is wrong with the wrong answers, and how each kind falls with the number of examples.

Every item that the strict filter holds to be wrong has one class (`analysis.mistakes`), so the shares of the classes
and of the right answers add up to all items. Each share is a curve of the same runs and items as the score itself, with
draws of its own kind (`analysis.sample`), items in their clusters.

Two questions, after "Revisiting the Superficial Alignment Hypothesis" (arXiv 2410.03717), which saw errors of format
gone by 100 examples and errors of reasoning fall on: from how many examples errors of format are no more than `GONE` of
all items, and whether the last decade of sizes still lowers the share of reasoning errors.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.elicitation import Sampled, crossing, end, examples, isotonic, shown_variants
from analysis.mistakes import CLASSES, FORMAT, LENIENT, REASONING, Mistake, Wrong, classify
from analysis.points import aimed, brief
from analysis.sample import DRAWS, Estimate, Point, Series, collect, draws
from analysis.section import Evidence, Picture, Section, Table
from analysis.style import PALETTES, PAPER, frame, grid_of, legend
from harness import verdicts
from harness.items import PATIENCE, answers

TITLE = "What is wrong with the wrong answers?"
ABSENT = (
    "No task here has answers that a model wrote and that are right or wrong one by one; add one, e.g. harness eval "
    "RUNS evals=gsm8k."
)
GONE = 0.05  # of all items
HATCHES = ("", "//", "..", "xx", "", "\\\\")  # so that a grey print can be read
KEPT = ("base", "data", "method", "variant", "task")


@dataclass(frozen=True)
class Anatomy:
    """Of one curve: the share of all items that each class has, by class."""

    strict: Series  # the scores whose wrong answers these are
    name: str
    shares: dict[str, Sampled]
    lenient: dict[int, float]  # by size, the share of all items that are right but for the form
    unknown: bool  # of some answers it was not kept whether they were cut

    def at(self, kind: str, size: int) -> Estimate:
        """The share of a class with `size` examples; 0 is the untouched base."""
        share = self.shares[kind]
        if size == 0:
            value, drawn = share.start() or (np.nan, np.full(DRAWS, np.nan))
        else:
            i = list(share.series.sizes).index(size)
            value, drawn = float(share.series.scores[i]), share.draws.scores[:, i]
        return Estimate.of(value, drawn)

    @property
    def sizes(self) -> list[int]:
        return [0] * (self.strict.start is not None) + [int(size) for size in self.strict.sizes]

    def gone(self, kind: str = FORMAT, most: float = GONE) -> Estimate:
        """Examples from which on no more than `most` of all items are of this class, by the curve made monotone."""
        share = self.shares[kind]
        rows = -np.vstack([share.series.scores, share.draws.scores])
        found = crossing(np.log10(share.series.sizes), isotonic(rows), np.full(len(rows), -most))
        return Estimate.of(10 ** found[0], 10 ** found[1:])

    def words(self) -> list[str]:
        first, last = self.sizes[0], self.sizes[-1]
        said = [f"{self.name}: {_told(self, first)}; {_told(self, last)}."]
        parts = " and ".join(f"{_percent(self.lenient[size])} {_with(size)}" for size in dict.fromkeys((first, last)))
        said.append(f"Right but for the form, under a more lenient filter, were {parts}.")
        gone, sizes = self.gone(), self.strict.sizes
        if all(self.at(FORMAT, size).high <= GONE for size in self.sizes):
            said.append(f"Errors of format were never more than {GONE:.0%} of all items.")
        else:
            number = lambda n: examples(n, sizes)  # noqa: E731
            few = f"at most {GONE:.0%} of all items"
            said.append(f"Errors of format are gone, {few}, from {gone.words(number)} examples on.")
        falling = end(self.shares[REASONING])
        state = {
            "still rising": "go on falling", "saturated": "no longer fall", "falling": "rise",
            "cannot tell": "may fall or not, which cannot be told",
        }[falling.state]  # fmt: skip
        slope = falling.slope
        if slope.why:
            return [*said, f"Whether errors of reasoning go on falling {slope.words()}."]
        fall = Estimate(-slope.value, -slope.high, -slope.low).words("{:+.3f}".format)
        return [*said, f"Errors of reasoning {state}: {fall} a decade from {falling.since:,.0f} examples on."]


def section(evidence: Evidence) -> Section:
    """What no rule applies to is what a judge said of it, or else an error of reasoning."""
    heard = judged(evidence)
    found, lines = anatomies(evidence, {key: said for one in heard.values() for key, said in one.items()})
    if not found:
        return Section(TITLE, absent=ABSENT)
    said = [line for one in found for line in one.words()]
    said.append(
        "An answer has one class, the first that applies. Wrong content in an answer out of form counts as format, so "
        "errors of reasoning can rise as the form comes."
    )
    told = lines["rule"].eq("judge").groupby(lines["task"]).sum()
    said += [f"Of {task}, {told.get(task, 0):,} answers that no rule could class were by {who}." for task, who in heard]
    if any(one.unknown for one in found):
        said.append(
            "Of some answers it was not kept whether they were cut at the most tokens; none counts as truncated."
        )
    shares = pd.DataFrame([row for one in found for row in _rows(one)])
    reading = "Bars are shares of all items; what is above them was answered right."
    return Section(
        TITLE,
        lines=tuple(said),
        tables=(_table(found), _examples(lines)),
        pictures=(Picture("anatomy", "What is wrong, by number of examples.", reading, draw(found)),),
        data={"anatomy": lines, "anatomy-shares": shares},
    )


Said = dict[tuple[str, str, str], str]  # by task, a cell's path and an item's hash: its class, by a judge


def judged(evidence: Evidence) -> dict[tuple[str, str], Said]:
    """By task and judge, what was said of wrong answers; of several judgings of a task the one that says most."""
    frame = evidence.plain
    asked = set(zip(frame["path"], frame["task"], frame["eval_fingerprint"], strict=True))
    found: dict[tuple[str, str], Said] = {}
    most: dict[str, tuple[str, str]] = {}
    for judging in verdicts.load(evidence.root):
        if judging.sorts:
            task, mark = judging.about["task"], judging.about["mark"]
            lines = [line for line in judging.lines if line["verdicts"][0] and (line["one"], task, mark) in asked]
            said = {(task, line["one"], line["item_hash"]): str(line["verdicts"][0]) for line in lines}
            if said and (task not in most or len(said) > len(found[most[task]])):
                found.pop(most.get(task, ("", "")), None)
                most[task] = task, judging.judge
                found[most[task]] = said
    return found


def unclassed(evidence: Evidence, task: str) -> set[tuple[str, str]]:
    """The wrong answers to `task` that no rule applies to, by the cell's path and the item (``task:number``)."""
    _, lines = anatomies(evidence)
    rest = lines[(lines["task"] == task) & (lines["rule"] == "rest")]
    return set(zip(rest["path"].astype(str), rest["item"].astype(str), strict=True))


def anatomies(evidence: Evidence, said: Said | None = None) -> tuple[list[Anatomy], pd.DataFrame]:
    """Of every curve with written answers, and a line for each wrong item: where it is from, class, rule, excerpt."""
    plain = aimed(evidence.plain)
    done = plain.loc[plain["status"] == "ok", ["path", "task", "eval_fingerprint"]].drop_duplicates()
    marks = {(str(path), str(task)): str(mark) for path, task, mark in done.itertuples(index=False)}
    strict = _strict(collect(plain, evidence.items))
    short = shown_variants([Sampled(s, draws(s, 2)) for s in strict])
    cells: dict[tuple[str, str], _Cell | None] = {}
    wanted = dict.fromkeys((path, s.task, s.metric, s.filter) for s in strict for path in _paths(s))
    began = told = time.monotonic()
    for number, (path, task, metric, filter_) in enumerate(wanted):
        cells[path, task] = _read(evidence.root, path, task, marks[path, task], metric, filter_, said or {})
        if time.monotonic() > max(began + PATIENCE, told + 1):
            told = time.monotonic()
            print(f"wrong answers: those of {number + 1:,} of {len(wanted):,} evaluations read", file=sys.stderr)
    found, lines = [], []
    for series in strict:
        mine = [cells[path, series.task] for path in _paths(series)]
        kept = [cell for cell in mine if cell is not None]
        if len(kept) < len(mine):
            continue
        shares = {kind: _share(series, kind, cells) for kind in CLASSES}
        unknown = any(cell.unknown for cell in kept)
        points = ([(0, series.start)] if series.start else []) + list(
            zip(map(int, series.sizes), series.points, strict=True)
        )
        lenient = {size: _lenient([cells[path, series.task] for path in point.paths]) for size, point in points}
        variant = short[series.key]
        name = " ".join(filter(None, [f"{series.task}, {series.base}", series.method, variant, "on", series.data]))
        found.append(Anatomy(series, name, shares, lenient, unknown))
    told_of = {(path, one.strict.task) for one in found for path in _paths(one.strict)}
    columns = ["path", "base", "data", "method", "variant", "size", "seed"]
    cell_of = {str(row["path"]): row for row in plain[columns].drop_duplicates("path").to_dict("records")}
    for path, task in sorted(told_of):
        about = {name: cell_of[path][name] for name in columns} | {"task": task}
        cell = cells[path, task]
        lines += [{**about, **line} for line in (cell.lines if cell else ())]
    return found, pd.DataFrame(lines, columns=[*columns, "task", *LINE])


LINE = ("item", "class", "rule", "target", "excerpt")


@dataclass(frozen=True)
class _Cell:
    """The wrong answers of one cell to one task."""

    kinds: np.ndarray  # [n] index into CLASSES; -1 for what is right
    lines: list[dict[str, Any]]
    unknown: bool


def _strict(curves: Sequence[Series]) -> list[Series]:
    """Of each task and curve the one whose filter is called strict, or else that which leads."""
    leads = [c for c in curves if c.headline and c.better > 0 and c.asked is not None]
    found = []
    for lead in leads:
        alike = [c for c in curves if "strict" in c.filter and replace(c, filter=lead.filter).key == lead.key]
        found.append(lead if "strict" in lead.filter or not alike else alike[0])
    return [s for s in found if s.asked is not None and not s.asked.choices]


def _paths(series: Series) -> list[str]:
    points = [*series.points] + ([series.start] if series.start else [])
    return [path for point in points for path in point.paths]


def _read(root: Path, path: str, task: str, mark: str, metric: str, filter_: str, said: Said) -> _Cell | None:
    """None where answers are no single texts, or where one is neither right nor wrong."""
    by_filter: dict[str, list[dict[str, Any]]] = {}
    for row in answers(root, path, task, mark):
        by_filter.setdefault(row["filter"], []).append(row)
    for rows in by_filter.values():
        rows.sort(key=lambda row: (row["task"], row["item"]))  # as in harness.items
    strict = by_filter.pop(filter_)
    written = all(len(row["answers"][0]) == 1 and isinstance(row["answers"][0][0], str) for row in strict)
    if not written or any(row.get(metric) not in (0, 1) for row in strict):
        return None
    kinds, lines = np.full(len(strict), -1), []
    for i, row in enumerate(strict):
        if row[metric]:
            continue
        others = {name: rows[i] for name, rows in by_filter.items() if rows[i]["item_hash"] == row["item_hash"]}
        wrong = Wrong.of(row, others, metric)
        its: Mistake = classify(wrong, said.get((task, path, row["item_hash"]), ""))
        kinds[i] = CLASSES.index(its.kind)
        name = f"{row['task']}:{row['item']}"
        lines.append(dict(zip(LINE, (name, its.kind, its.rule, wrong.target, its.excerpt), strict=True)))
    return _Cell(kinds, lines, unknown=any("cut" not in row for row in strict))


def _lenient(cells: Sequence[_Cell | None]) -> float:
    kept = [cell for cell in cells if cell is not None]
    right = sum(line["rule"] == LENIENT for cell in kept for line in cell.lines)
    return right / sum(len(cell.kinds) for cell in kept)


def _share(series: Series, kind: str, cells: dict[tuple[str, str], _Cell | None]) -> Sampled:
    """The share of one class as a curve of its own."""
    number = CLASSES.index(kind)

    def point(of: Point) -> Point:
        kept = [cell.kinds for path in of.paths if (cell := cells[path, series.task])]
        mine = np.stack(kept) == number
        return replace(of, runs=mine.mean(axis=1), items=mine.astype(float), error=np.nan, proportion=True, extra=0.0)

    points = tuple(point(p) for p in series.points)
    start = point(series.start) if series.start else None
    made = replace(series, metric=f"share of {kind}", headline=False, points=points, start=start, better=-1)
    return Sampled(made, draws(made))


# ----------------------------------------------------------------------------------------------------------- the page


def _percent(part: float) -> str:
    return f"{100 * part:.0f}%"


def _told(one: Anatomy, size: int) -> str:
    parts = {kind: one.at(kind, size) for kind in CLASSES}
    most = sorted((kind for kind in CLASSES if parts[kind].value > 0), key=lambda kind: -parts[kind].value)
    said = ", ".join(f"{parts[kind].words(_percent)} {kind}" for kind in most[:3])
    return f"{_with(size)}, of all items {said or 'none is wrong'}"


def _with(size: int) -> str:
    return f"with {brief(size)} examples" if size else "untouched"


def _rows(one: Anatomy) -> list[dict[str, Any]]:
    about = {name: getattr(one.strict, name) for name in (*KEPT, "filter")}
    told = [(kind, size, one.at(kind, size)) for kind in CLASSES for size in one.sizes]
    return [
        {**about, "class": kind, "size": size, "share": its.value, "low": its.low, "high": its.high}
        for kind, size, its in told
    ]


def _table(found: Sequence[Anatomy]) -> Table:
    rows = [
        (one.name, f"{size:,}", *(one.at(kind, size).words(_percent) for kind in CLASSES))
        for one in found for size in one.sizes
    ]  # fmt: skip
    note = "Share of all items with its 95% interval, over seeds and items. Which rule comes when is in anatomy.csv."
    return Table("Share of all items by what is wrong", ("curve", "examples", *CLASSES), tuple(rows), note)


def _examples(lines: pd.DataFrame, each: int = 2) -> Table:
    """The first items of each class and task, to be looked at."""
    few = lines.groupby(["task", "class"], sort=True).head(each).sort_values(["task", "class"])
    columns = ["task", "class", "rule", "size", "target", "excerpt"]
    rows = tuple(tuple(map(str, row)) for row in few[columns].itertuples(index=False))
    return Table("Examples of each class", tuple(columns), rows, "All wrong items are in anatomy.csv.")


@rc_context({"text.parse_math": False})
def draw(found: Sequence[Anatomy]) -> Figure:
    """Stacked shares of all items, a panel for each curve and a bar for each size."""
    figure, grid = grid_of(len(found), 3.1)
    looks: list[dict[str, Any]] = [
        {"facecolor": PALETTES["data"][i % len(PALETTES["data"])], "hatch": HATCHES[i], "edgecolor": PAPER}
        for i in range(len(CLASSES))
    ]
    for axes, one in zip(grid, found, strict=True):
        floor = np.zeros(len(one.sizes))
        for kind, look in zip(CLASSES, looks, strict=True):
            height = np.array([one.at(kind, size).value for size in one.sizes])
            axes.bar(range(len(one.sizes)), height, bottom=floor, width=0.75, linewidth=0.3, **look)
            floor += height
        frame(axes, one.name.replace(", ", "\n", 1), "share of items", size=8.5)
        axes.set_xticks(range(len(one.sizes)), [brief(size) for size in one.sizes])
        axes.set_ylim(0, 1)
    figure.supxlabel("number of examples", fontsize=9.5)
    handles = [Patch(label=kind, **look) for kind, look in zip(CLASSES, looks, strict=True)]
    legend(figure, handles, 3)
    return figure
