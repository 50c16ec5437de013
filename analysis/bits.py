"""How few bits bring a base to a score: task complexity (arXiv 2602.15829) from above, for each base and task.

A *program* is what a cell was told, or what it learned: its demonstrations or its training examples, coded by the
untouched base (`harness.probes.CodeLength`), or its adapter, made smaller (`harness.probes.AdapterBits`). It has a
length in bits and a score; runs of one recipe and size count as one program, by their means. Of what is needed for a
score the shortest program that reaches it is an upper bound, as another may be shorter.

**Gain** is that of the program with the best score, over the untouched base. The bits for half of it, and for nine
tenths, are those of the shortest program that reaches as much; nothing is read between programs. Intervals are over
items: they are resampled, the same for all programs and the base (`analysis.sample.resample`), and gain and shortest
program are found anew. Which program is the best stays, so that a maximum over noisy scores is not taken twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis.points import is_proportion, names, ruler, telling
from analysis.sample import DRAWS, Estimate, Point, resample
from analysis.section import Evidence, Picture, Section, Table
from analysis.style import INK, LEVEL_DASHES, PALETTES, PAPER, RULE, SOFT, Look, frame, grid_of, handle, legend
from harness.items import Asked
from harness.store import newest_identities, read_result

TITLE = "How few bits bring it out?"
ABSENT = (
    "No program's length was measured. Add it to finished cells, beside the task itself: harness eval RUNS "
    "evals=chain_sum_bits (or gsm8k_bits, pocket_facts_bits; for another task, its own lines with the probes "
    "harness.probes.CodeLength and harness.probes.AdapterBits)."
)
KINDS = {"prompt": "demonstrations", "data": "training examples", "adapter": "adapters"}
PARTS = {"half": 0.5, "nine tenths": 0.9}
KEY = ["kind", "data", "method", "variant", "size", "compression"]
PUBLISHED = (
    "Published for GSM8K (arXiv 2602.15829, as notes on the paper have it): Olmo3-32B scores 72.2% with a program of "
    "4,358 bits; pretrained Olmo3-7B is at its best from about 5 million bits on, SmolLM3-3B from about 50 billion."
)


@dataclass(frozen=True)
class Program:
    """The runs of one recipe at one size, as a point: bits and score are their means."""

    about: dict[str, Any]  # KEY
    bits: float
    point: Point

    @property
    def kind(self) -> str:
        return str(self.about["kind"])

    def words(self) -> str:
        its, size = self.about, self.about["size"]
        told = [f"{its['method']} {its['variant']}".strip()]
        told += [f"{size:,} example{'s' * (size > 1)} of {its['data']}"] * bool(size)
        return ", ".join(filter(None, [*told, its["compression"]]))


@dataclass(frozen=True)
class Known:
    """All programs of a base and task, shortest first, and what their scores could be on other items."""

    base: str
    task: str
    metric: str
    filter: str
    better: int  # 1, or -1 where lower scores are better
    start: Point
    programs: tuple[Program, ...]  # [P]
    asked: Asked

    @cached_property
    def bits(self) -> np.ndarray:
        return np.array([program.bits for program in self.programs])

    @cached_property
    def scores(self) -> np.ndarray:
        """[P]"""
        return np.array([program.point.score for program in self.programs])

    @cached_property
    def draws(self) -> np.ndarray:
        """[B, P + 1]: the scores, the untouched base's last."""
        points = [*(program.point for program in self.programs), self.start]
        means = np.stack([point.items.mean(axis=0) for point in points if point.items is not None], axis=1)
        spread = np.sqrt([point.made_up for point in points])
        normal = np.random.default_rng([len(points), self.asked.clusters.size]).standard_normal((DRAWS, len(points)))
        drawn = resample(self.asked, means, DRAWS) + spread * normal
        return drawn.clip(0, 1) if all(point.proportion for point in points) else drawn

    @cached_property
    def best(self) -> int:
        return int((self.better * self.scores).argmax())

    @cached_property
    def gain(self) -> Estimate:
        drawn = self.draws[:, self.best] - self.draws[:, -1]
        return Estimate.of(self.better * (self.scores[self.best] - self.start.score), self.better * drawn)

    def needed(self, part: float, kind: str = "") -> Estimate:
        """Bits of the shortest program (of this kind) with `part` of the gain; inf where none has it."""
        if not self.gain.low > 0:
            return Estimate(why=f"the gain, {self.gain.words()}, may be nothing")
        mine = np.array([not kind or program.kind == kind for program in self.programs])
        rows = self.better * np.vstack([[*self.scores, self.start.score], self.draws])
        level = rows[:, -1] + part * (rows[:, self.best] - rows[:, -1])
        reached = (rows[:, :-1] >= level[:, None] - 1e-12) & mine
        shortest = np.where(reached.any(axis=1), self.bits[reached.argmax(axis=1)], np.inf)
        return Estimate.of(shortest[0], shortest[1:])

    @property
    def front(self) -> list[int]:
        """Which programs no shorter one scores as well as."""
        return pareto(self.bits, self.better * self.scores)

    def interval(self, program: int) -> Estimate:
        return Estimate.of(self.scores[program], self.draws[:, program])


def pareto(bits: np.ndarray, scores: np.ndarray) -> list[int]:
    """Which of the points [P] have a better score than all with no more bits, in the order of their bits."""
    order = np.lexsort((-scores, bits))
    found, most = [], -np.inf
    for i in order:
        if scores[i] > most:
            found.append(int(i))
            most = scores[i]
    return found


def collect(evidence: Evidence) -> tuple[list[Known], list[str]]:
    """Of each base and task whose programs' lengths are known; and of which nothing can be said, and why."""
    code = evidence.of_probe("CodeLength").dropna(subset=["score"])
    code = code[code["filter"] != "none"].drop_duplicates("path").set_index("path")
    adapters = _adapters(evidence)
    done = evidence.frame[
        (evidence.frame["status"] == "ok") & (evidence.frame["probe"].astype(object).fillna("") == "")
    ]
    done = telling(done[done["headline"].astype(bool) & done["score"].notna()])
    adapters["variant"] = adapters["path"].map(done.drop_duplicates("path").set_index("path")["variant"])
    found, why = [], []
    for key, rows in done.groupby(["base", "task", "metric", "filter"], sort=True):
        base, task, metric, filter_ = map(str, key)
        told = rows[rows["path"].isin(code.index)].copy()
        told["kind"], told["bits"] = told["path"].map(code["filter"]), told["path"].map(code["score"])
        told["compression"] = ""
        small = adapters[(adapters["plain"] == task) & (adapters["scored"] == f"{metric}/{filter_}")]
        small = small[small["path"].isin(rows["path"])]
        start = rows[rows["method"] == "base"]
        if told.empty and small.empty:
            continue
        if start.empty:
            why.append(f"{base}, {task}: the untouched base was not scored, so no gain can be told.")
            continue
        of_start = evidence.items.stack(start["path"], task, metric, filter_)
        if of_start is None:
            why.append(f"{base}, {task}: its scores were not kept item by item, so nothing can be resampled.")
            continue
        asked, items = of_start
        programs = _programs(evidence, pd.concat([told, small]), asked)
        first = rows.iloc[0]
        found.append(
            Known(base, task, metric, filter_, 1 if first["higher_is_better"] else -1,
                  _point(start, items), tuple(sorted(programs, key=lambda p: p.bits)), asked)
        )  # fmt: skip
    return found, why


def _adapters(evidence: Evidence) -> pd.DataFrame:
    """The rows of `AdapterBits`, with the task that was asked (`plain`), what of it was `scored`, and the bits."""
    rows = evidence.of_probe("AdapterBits").dropna(subset=["score"]).copy()
    rows["compression"], rows["kind"] = rows["metric"], "adapter"
    for column in ("plain", "scored", "bits"):
        rows[column] = pd.Series(dtype=object)
    for key, mine in rows.groupby(["path", "task", "eval_fingerprint"]):
        path, task, mark = map(str, key)
        kept = read_result(Path(evidence.root, path, "evals", task, f"{mark[:8]}.json"))
        asked = newest_identities(Path(evidence.root, path))
        plain = [name for name, its in asked.items() if "probe" not in its and _protocol(its) == _protocol(asked[task])]
        rows.loc[mine.index, "plain"] = plain[0] if plain else ""
        rows.loc[mine.index, "scored"] = kept["scored"]
        rows.loc[mine.index, "bits"] = [kept["bits"][metric] for metric in mine["metric"]]
    return rows


def _protocol(identity: dict[str, Any]) -> dict[str, Any]:
    """What is asked and how, whatever it is called and whatever is measured of it."""
    return {name: value for name, value in identity.items() if name not in ("name", "probe")}


def _programs(evidence: Evidence, rows: pd.DataFrame, asked: Asked) -> Iterable[Program]:
    for key, runs in rows.groupby(KEY, sort=True):
        first = runs.iloc[0]
        stacked = evidence.items.stack(runs["path"], first["task"], first["metric"], first["filter"])
        if stacked and _hashes(stacked[0]) == _hashes(asked):
            yield Program(dict(zip(KEY, key, strict=True)), float(runs["bits"].mean()), _point(runs, stacked[1]))


def _hashes(asked: Asked) -> list[str]:
    """The items, whatever the task that asks them is called."""
    return [name.partition(":")[2] for name in asked.names]


def _point(rows: pd.DataFrame, items: np.ndarray) -> Point:
    numbers = rows[["score", "stderr", "n_items"]].to_numpy(float)
    proportion = all(is_proportion(*run) for run in numbers)
    return Point(numbers[:, 0], np.nan, items.shape[1], items.astype(float), proportion, tuple(rows["path"]))


# ----------------------------------------------------------------------------------------------------- for the page


def section(evidence: Evidence) -> Section:
    known, why = collect(evidence)
    if not known:
        return Section(TITLE, absent=" ".join([*why, ABSENT]))
    lines = [line for one in known for line in _lines(one)] + why
    if any("gsm8k" in one.task for one in known):
        lines.append(PUBLISHED)
    reading = (
        "Each mark is a program, each line joins those that no shorter one scores as well as. Level lines: the "
        "untouched base, and half and nine tenths of the gain. Bars are 95% intervals over items."
    )
    return Section(
        TITLE,
        tuple(lines),
        (_needed_table(known), _front_table(known)),
        (Picture("bits", "Score against the bits of the shortest programs.", reading, draw(known)),),
        {"bits": programs_table(known), "bits_needed": needed_table(known)},
    )


def _lines(one: Known) -> list[str]:
    name = f"{one.base}, {one.task}"
    half = one.needed(0.5)
    if half.why:
        return [f"{name}: the bits for half of the gain cannot be told ({half.why})."]
    parts = [f"{part} of it takes {_words(one.needed(share))} bits" for part, share in PARTS.items()]
    first = one.programs[int(np.flatnonzero(one.bits == half.value)[0])]
    said = [f"{name}: the gain is {one.gain.words()}; {', '.join(parts)} at most."]
    said[0] += f" The shortest program for half: {first.words()}."
    missed = [plural for kind, plural in KINDS.items() if _has(one, kind) and np.isinf(one.needed(0.5, kind).value)]
    return said + [f"{name}: no program of {names(missed)} reaches half of the gain."] * bool(missed)


def _has(one: Known, kind: str) -> bool:
    return any(program.kind == kind for program in one.programs)


def _words(needed: Estimate) -> str:
    return needed.words(in_bits)


def in_bits(bits: float) -> str:
    """Three digits of a number of bits: 4,360; 12.3 million; ``none`` for infinity, which no program has."""
    if np.isinf(bits):
        return "none"
    if bits >= 1e6:
        unit, name = (1e9, "billion") if bits >= 1e9 else (1e6, "million")
        return f"{bits / unit:.3g} {name}"
    return f"{float(f'{bits:.3g}'):,.0f}"


def needed_table(known: Sequence[Known]) -> pd.DataFrame:
    """A row for each base, task and kind of program (``any`` for all of them): bits for the parts of the gain."""
    rows = []
    for one in known:
        for kind in ["any", *(kind for kind in KINDS if _has(one, kind))]:
            row: dict[str, Any] = {"base": one.base, "task": one.task, "metric": one.metric, "filter": one.filter}
            row |= {"kind": kind, "gain": one.gain.value, "gain_low": one.gain.low, "gain_high": one.gain.high}
            for share in PARTS.values():
                bits, column = one.needed(share, "" if kind == "any" else kind), f"bits_{round(100 * share)}"
                row |= {column: bits.value, f"{column}_low": bits.low, f"{column}_high": bits.high}
            rows.append(row)
    return pd.DataFrame(rows)


def programs_table(known: Sequence[Known]) -> pd.DataFrame:
    """A row for each program."""
    rows = []
    for one in known:
        for i, program in enumerate(one.programs):
            told = one.interval(i)
            where = {"base": one.base, "task": one.task, "metric": one.metric, "filter": one.filter}
            row = {**where, **program.about, "runs": len(program.point.runs), "bits": program.bits}
            rows.append(row | {"score": told.value, "low": told.low, "high": told.high, "front": i in one.front})
    return pd.DataFrame(rows)


def _needed_table(known: Sequence[Known]) -> Table:
    rows = []
    for one in known:
        for kind in ["", *(kind for kind in KINDS if _has(one, kind))]:
            told = [_words(one.needed(share, kind)) for share in PARTS.values()]
            rows.append((one.base, one.task, KINDS.get(kind, "any program"), one.gain.words(), *told))
    return Table(
        "Bits that are enough",
        ("base", "task", "programs", "gain", *(f"bits for {part}" for part in PARTS)),
        tuple(rows),
        "Upper bounds, of the programs at hand: examples and demonstrations coded by the untouched base, adapters cut, "
        "rounded and entropy-coded. The base itself, its template and the code that prompts or trains it are not "
        "counted. The gain is that of the program with the best score, which is a little flattered by being the best. "
        "Intervals are over items: where one is a single number, the same program is the shortest in nearly every "
        "resample.",
    )


def _front_table(known: Sequence[Known]) -> Table:
    rows = [
        (one.base, one.task, in_bits(one.bits[i]), one.interval(i).words(), KINDS[one.programs[i].kind],
         one.programs[i].words())
        for one in known for i in one.front
    ]  # fmt: skip
    columns = ("base", "task", "bits", "score", "kind", "program")
    return Table(
        "Programs that no shorter one scores as well as",
        columns,
        tuple(rows),
        "keep0.25_bits3 is an adapter of which the strongest quarter of all layers' directions are kept, each number "
        "rounded to one of 2^3 steps; its bits are those of an adaptive entropy code. Runs of one recipe and size are "
        "averaged.",
    )


@rc_context({"text.parse_math": False})
def draw(known: Sequence[Known]) -> Figure:
    """A panel for each base and task: score against bits (log axis)."""
    figure, grid = grid_of(len(known), 3.25)
    looks = {kind: Look(PALETTES["method"][i], i == 1, "o^s"[i], "none") for i, kind in enumerate(KINDS)}
    for axes, one in zip(grid, known, strict=True):
        frame(axes, f"{one.task}  ·  {one.base}", ruler(one.metric, one.filter))
        axes.set_xscale("log")
        axes.grid(axis="x", color=RULE, linewidth=0.5)
        level = one.start.score
        axes.axhline(level, color=SOFT, linestyle=LEVEL_DASHES["base"], linewidth=1.1)
        for share in PARTS.values():
            axes.axhline(level + share * (one.scores[one.best] - level), color=SOFT, linestyle=LEVEL_DASHES["given"])
        front = one.front
        axes.step(one.bits[front], one.scores[front], where="post", color=INK, linewidth=1.2)
        for i, program in enumerate(one.programs):
            look, told = looks[program.kind], one.interval(i)
            if i in front:
                axes.plot([program.bits] * 2, [told.low, told.high], color=look.colour, linewidth=1.0)
            face = PAPER if look.hollow else look.colour
            axes.plot(program.bits, told.value, look.marker, color=look.colour, markerfacecolor=face, markersize=5,
                      alpha=1.0 if i in front else 0.55)  # fmt: skip
    figure.supxlabel("bits of the program", fontsize=9.5, color=INK)
    present = [kind for kind in KINDS if any(_has(one, kind) for one in known)]
    legend(figure, [handle(KINDS[kind], looks[kind]) for kind in present], 3)
    return figure
