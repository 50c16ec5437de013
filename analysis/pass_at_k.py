"""Does sampling find what one answer does not? pass@k of the untouched base beside that of what it became.

Where tuning only brings out what the base can do, the base catches up once it may answer often enough; where it
teaches, items remain that only the tuned model solves (Yue et al. 2025, arXiv 2504.13837). An item's estimate of pass@k
is unbiased (`harness.samples`), so that intervals come from the items: their clusters are resampled, the same ones for
every model and every k, and an interval holds the luck of the draws too. Shares near 0 or 1 get the variance that
`analysis.sample` makes up for them. Where a size has several runs, their noise is added: normal with the runs' own
covariance over all k, and Student's t for few.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.points import brief
from analysis.sample import DRAWS, Estimate, Point, resample
from analysis.section import Evidence, Picture, Section, Table
from analysis.style import INK, LEVEL_DASHES, PALETTES, PAPER, SOFT, frame, grid_of, legend
from harness.items import Asked
from harness.samples import curve

TITLE = "Does sampling find what one answer does not?"
ABSENT = (
    "No evaluation drew several answers to a prompt. For finished cells: harness eval RUNS evals=math500_passk, or any "
    "task that writes answers with evals.NAME.samples=64 and evals.NAME.generation={do_sample: true, temperature: "
    "0.6, top_p: 0.95}."
)
ALONE = (
    "Several answers to a prompt were drawn, but not of an untouched base and of what it became, under the same "
    "settings. For finished cells, base and tuned: harness eval RUNS evals=NAME."
)
NEAR = 1e-6  # means of resamples are equal up to this


@dataclass(frozen=True)
class Model:
    """The runs of one recipe at one size, or the untouched base, on N items asked n times."""

    name: str
    size: int  # 0: the untouched base, or a given model
    n: int
    right: np.ndarray  # [runs, N] whole numbers of right answers

    @property
    def curves(self) -> np.ndarray:
        """[runs, N, n]: pass@k of each item, k from 1 on."""
        return curve(self.n)[self.right]

    def solved(self, tries: int) -> np.ndarray:
        """[runs, N]: the chance that so many of the n answers hold a right one."""
        return self.curves[:, :, tries - 1]


@dataclass(frozen=True)
class Pair:
    """The untouched base and one model made of it, on the same items and prompts."""

    base: str
    task: str
    filter: str
    asked: Asked
    before: Model
    after: Model

    @property
    def name(self) -> str:
        return f"{self.after.name}, {self.after.size:,} examples" if self.after.size else self.after.name


@dataclass(frozen=True)
class Found:
    """What one pair says. Curves are [n], k from 1 on, their draws [B, n] within what a share can be."""

    pair: Pair
    before: np.ndarray
    after: np.ndarray
    before_draws: np.ndarray
    after_draws: np.ndarray
    crossing: Estimate  # the least k at which the base is not behind; infinite where it is behind at all k up to n
    worth: Estimate  # the least k at which the base solves as much as the tuned model does in one try
    split: dict[str, Estimate]  # of the items: both, only base, only tuned, neither; within n answers
    covered: Estimate  # of the items that the tuned model solves within n answers, the share that the base does too

    @property
    def difference(self) -> Estimate:
        """The base less the tuned model, at n."""
        draws = self.before_draws[:, -1] - self.after_draws[:, -1]
        return Estimate.of(float(self.before[-1] - self.after[-1]), draws)


def pairs(evidence: Evidence) -> list[Pair]:
    """Every tuned model whose untouched base was asked the same, by base, task, recipe and size; headline filters."""
    table = _drawn(evidence)
    found = []
    for key, rows in table.groupby(["base", "task", "eval_fingerprint"], sort=True):
        lead = rows[rows["headline"].astype(bool)]
        filter_ = str(lead["filter"].iloc[0]) if len(lead) else "none"
        rows = rows[rows["filter"] == filter_]
        n = max(int(metric.removeprefix("pass@")) for metric in rows["metric"])
        ones = rows[rows["metric"] == "pass@1"]
        untouched = ones[ones["method"] == "base"]["path"].tolist()[:1]
        recipe = ["method", "variant", "data", "size"]
        tuned = ones[ones["method"] != "base"]
        for (method, variant, data, _), runs in tuned.groupby(recipe, sort=True, dropna=False):
            runs = runs.drop_duplicates(["seed", "subset_seed"])
            stacked = evidence.items.stack([*untouched, *runs["path"]], str(key[1]), "pass@1", filter_)
            if not untouched or n == 1 or stacked is None:
                continue
            right = np.rint(stacked[1] * n).astype(int)
            size = int(runs["size"].iloc[0])
            named = f"{method} {variant}".strip() + (f" on {data}" if size else "")
            before, after = Model("the untouched base", 0, n, right[:1]), Model(named, size, n, right[1:])
            found.append(Pair(str(key[0]), str(key[1]), filter_, stacked[0], before, after))
    return found


def _drawn(evidence: Evidence) -> pd.DataFrame:
    table = evidence.plain
    return table[(table["status"] == "ok") & table["metric"].astype(str).str.fullmatch(r"pass@\d+")]


def look(pair: Pair, draws: int = DRAWS, seed: int = 0) -> Found:
    """All of one pair, from the same resamples of its items."""
    n, count = pair.before.n, len(pair.asked.names)
    columns = [model.curves.mean(axis=0) for model in (pair.before, pair.after)]
    drawn = resample(pair.asked, np.hstack(columns), draws, seed)
    before_draws, after_draws = drawn[:, :n], drawn[:, n:] + _runs(pair.after, draws, seed)
    before, after = (column.mean(axis=0) for column in columns)
    # Of resamples alone: what is made up for either would part curves that have met at 0 or 1.
    crossing = Estimate.of(first(before, after)[0], first(before_draws, after_draws))
    worth = Estimate.of(first(before, after[:1])[0], first(before_draws, after_draws[:, :1]))
    before_draws = _share(before, before_draws, count, [seed, 1])
    after_draws = _share(after, after_draws, count, [seed, 2])
    parts, share = split(pair, n, draws, seed), covered(pair, n, draws, seed)
    return Found(pair, before, after, before_draws, after_draws, crossing, worth, parts, share)


def _share(value: np.ndarray, drawn: np.ndarray, count: float, seed: list[int]) -> np.ndarray:
    """Draws [B, m] of m shares of `count` items, with what is made up for those near 0 or 1."""
    spread = np.sqrt([Point(np.array([v]), np.nan, count).made_up for v in value])  # type: ignore[arg-type]
    normal = np.random.default_rng(seed).standard_normal((len(drawn), 1))
    return np.clip(drawn + spread * normal, 0, 1)


def first(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[B]: the least k, from 1, at which `one` [B, n] is not below `other`; infinite where there is none."""
    reached = np.atleast_2d(one) >= np.atleast_2d(other) - NEAR
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.inf)


def split(pair: Pair, tries: int, draws: int = DRAWS, seed: int = 0) -> dict[str, Estimate]:
    """Which items either model solves within so many answers: shares of all items, averaged over the runs."""
    base, tuned = pair.before.solved(tries)[0], pair.after.solved(tries).mean(axis=0)
    parts = {
        "both": base * tuned,
        "only base": base * (1 - tuned),
        "only tuned": (1 - base) * tuned,
        "neither": (1 - base) * (1 - tuned),
    }
    values = np.stack(list(parts.values()), axis=1)
    shares = values.mean(axis=0)
    drawn = _share(shares, resample(pair.asked, values, draws, seed), len(values), [seed, 3])
    return {part: Estimate.of(shares[i], drawn[:, i]) for i, part in enumerate(parts)}


def covered(pair: Pair, tries: int, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Of what the tuned model solves within so many answers, averaged over its runs, the share the base solves too."""
    base, tuned = pair.before.solved(tries)[0], pair.after.solved(tries).mean(axis=0)
    if not tuned.any():
        return Estimate(why="the tuned model solves none")
    both, solved = resample(pair.asked, np.stack([base * tuned, tuned], axis=1), draws, seed).T
    share = np.array([(base * tuned).sum() / tuned.sum()])
    ratio = np.divide(both, solved, out=np.full(draws, share[0]), where=solved > NEAR)
    return Estimate.of(share[0], _share(share, ratio[:, None], tuned.sum(), [seed, 4])[:, 0])


def guessing(asked: Asked, n: int) -> np.ndarray:
    """[n]: pass@k of drawing an answer from among the items' targets, as often as each is one."""
    counts = Counter(asked.targets)
    share = np.array([counts[target] / len(asked.targets) for target in asked.targets])
    return 1 - ((1 - share)[:, None] ** np.arange(1, n + 1)).mean(axis=0)


def _runs(model: Model, draws: int, seed: int) -> np.ndarray:
    """[draws, n]: noise of the mean of the runs; none where there is one run."""
    runs = model.curves.mean(axis=1)
    count = len(runs)
    if count == 1:
        return np.zeros((draws, model.n))
    rng = np.random.default_rng([seed, count])
    weights = rng.standard_normal((draws, count)) / math.sqrt(count * (count - 1))
    return weights * np.sqrt((count - 1) / rng.chisquare(count - 1, (draws, 1))) @ (runs - runs.mean(axis=0))


# ------------------------------------------------------------------------------------------------------ for the page


def section(evidence: Evidence) -> Section:
    seen = [look(pair) for pair in pairs(evidence)]
    if not seen:
        return Section(TITLE, absent=ALONE if len(_drawn(evidence)) else ABSENT)
    largest = list(_largest(seen))
    return Section(
        TITLE,
        lines=tuple(line for found in largest for line in words(found)),
        tables=(_table(seen), _coverage(seen)),
        pictures=(Picture("pass-at-k", "pass@k of base and tuned models", _READING, draw(largest)),),
        data={"pass-at-k": _curves(seen), "pass-at-k-pairs": _numbers(seen)},
    )


def _largest(seen: list[Found]) -> Iterator[Found]:
    """Of each recipe the pair with most examples."""
    best: dict[tuple[str, ...], Found] = {}
    for found in seen:
        key = (found.pair.base, found.pair.task, found.pair.after.name)
        if key not in best or found.pair.after.size > best[key].pair.after.size:
            best[key] = found
    yield from best.values()


def words(found: Found) -> list[str]:
    pair, n = found.pair, found.pair.before.n
    scores = f"{found.after[0]:.2f} against {found.before[0]:.2f} with one answer"
    said = f"{pair.task}, {pair.base}. {pair.name}: {scores}"
    if found.before[0] >= found.after[0] - NEAR:
        said += ", so the base is not behind from the start."
    elif math.isinf(found.crossing.value):
        said += f"; the base does not catch it within {n} answers (k = {_tries(found.crossing, n)})"
        said += f": there the base's score less its own is {found.difference.words('{:+.2f}'.format)}."
    else:
        said += f"; the base catches it at k = {_tries(found.crossing, n)} of {n}."
    if found.before[0] < found.after[0] - NEAR:
        said += f" One of its answers is worth {_tries(found.worth, n)} of the base's."
    parts = ", ".join(f"{part} {share.words()}" for part, share in found.split.items())
    unseen = 1 - 0.05 ** (1 / n)
    later = [(model.solved(n) - model.solved(max(n // 2, 1))).mean() for model in (pair.before, pair.after)]
    limits = (
        f"An item counts as solved by one right answer of {n}; of items that are right {unseen:.1%} of the time, one "
        f"in twenty shows none. The second half of the answers added {later[0]:.1%} of the items to the base's and "
        f"{later[1]:.1%} to the tuned model's: more answers would move items between the parts about as much."
    )
    guess = guessing(pair.asked, n)[-1]
    chance = f" Guessing among the answers of the task would solve {guess:.2f} of its items within {n}"
    base = Estimate.of(found.before[-1], found.before_draws[:, -1])
    if base.low > guess:
        chance += "; the base does better."
    elif base.high < guess:
        chance += ", and the base does worse: it may not answer in the form that is asked for, and know all the same."
    else:
        chance += ", and the base is not known to do better."
    shared = f"Of what the tuned model solves, the base solves {found.covered.words()} too."
    return [
        said,
        f"Solved within {n} answers, {pair.task}, {pair.base}, {pair.name}: {parts}. {shared} {limits}{chance}",
    ]


def _tries(estimate: Estimate, n: int) -> str:
    def tell(k: float) -> str:
        return f"more than {n}" if math.isinf(k) else f"{k:.0f}"

    return f"{tell(estimate.value)} [{tell(estimate.low)}, {tell(estimate.high)}]"


def _table(seen: list[Found]) -> Table:
    rows = []
    for found in seen:
        n = found.pair.before.n
        ends = [
            Estimate.of(line[k], drawn[:, k]).words()
            for k in (0, -1)
            for line, drawn in ((found.before, found.before_draws), (found.after, found.after_draws))
        ]
        tries = [_tries(found.crossing, n), _tries(found.worth, n)]
        rows.append((found.pair.task, found.pair.base, found.pair.name, *ends[:2], str(n), *ends[2:], *tries))
    return Table(
        "How many answers of the base are worth as much",
        ("task", "base", "tuned", "base, 1 answer", "tuned, 1 answer", "n", "base, n", "tuned, n",
         "base catches it at k", "worth one of the tuned"),
        tuple(rows),
        "Chance that one of k answers is right; 95% intervals over items and, where there are several, runs.",
    )  # fmt: skip


def _coverage(seen: list[Found]) -> Table:
    rows = tuple(
        (
            f.pair.task,
            f.pair.base,
            f.pair.name,
            str(f.pair.before.n),
            *(s.words() for s in (*f.split.values(), f.covered)),
        )
        for f in seen
    )
    note = "Shares of the items, with 95% intervals over items: what a model does not solve it may with more answers."
    columns = ("task", "base", "tuned", "answers", "both", "only base", "only tuned", "neither", "base, of the tuned's")
    return Table("Which items either solves", columns, rows, note)


def _curves(seen: list[Found]) -> pd.DataFrame:
    """A row for each model and k, at full precision."""
    rows = []
    for found in seen:
        pair = found.pair
        told = {"task": pair.task, "filter": pair.filter, "base": pair.base, "pair": pair.name, "n": pair.before.n}
        sides = (
            ("base", found.before, found.before_draws),
            ("tuned", found.after, found.after_draws),
            ("guessing", guessing(pair.asked, pair.before.n), None),
        )
        for model, line, drawn in sides:
            for k, score in enumerate(line, 1):
                here = Estimate.of(score, drawn[:, k - 1]) if drawn is not None else Estimate(float(score))
                rows.append({**told, "model": model, "k": k, **_bounds("score", here)})
    return pd.DataFrame(rows)


def _numbers(seen: list[Found]) -> pd.DataFrame:
    rows = []
    for found in seen:
        pair = found.pair
        told: dict[str, Any] = {"task": pair.task, "filter": pair.filter, "base": pair.base, "tuned": pair.after.name}
        told |= {"size": pair.after.size, "runs": len(pair.after.right), "n": pair.before.n}
        parts = {f"share_{part.replace(' ', '_')}": share for part, share in found.split.items()}
        whole = {
            "crossing": found.crossing,
            "worth": found.worth,
            "difference": found.difference,
            "covered": found.covered,
        }
        for name, estimate in (whole | parts).items():
            told |= _bounds(name, estimate)
        rows.append(told)
    return pd.DataFrame(rows)


def _bounds(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


_READING = (
    "The chance that one of k answers is right. Where the dashed line of the untouched base meets a tuned model's, the "
    "base solves as much given k tries. Dotted: guessing among the answers of the task."
)


@rc_context({"text.parse_math": False})
def draw(seen: list[Found]) -> Figure:
    """A panel for each task and base: its curve and those of what it became, with 95% bands."""
    panels: dict[tuple[str, str], list[Found]] = {}
    for found in seen:
        panels.setdefault((found.pair.task, found.pair.base), []).append(found)
    figure, grid = grid_of(len(panels), 3.25)
    names = list(dict.fromkeys(found.pair.name for found in seen))
    colours = {name: PALETTES["method"][i % len(PALETTES["method"])] for i, name in enumerate(names)}
    for axes, ((task, base), here) in zip(grid, panels.items(), strict=True):
        n = here[0].pair.before.n
        ks = np.arange(1, n + 1)
        lines: list[tuple[np.ndarray, np.ndarray, str, Any]]
        lines = [(f.after, f.after_draws, colours[f.pair.name], "-") for f in here]
        lines.append((here[0].before, here[0].before_draws, INK, LEVEL_DASHES["base"]))
        for line, drawn, colour, dashes in lines:
            low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
            axes.fill_between(ks, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(ks, line, color=colour, linestyle=dashes, linewidth=1.7)
        axes.plot(ks, guessing(here[0].pair.asked, n), color=SOFT, linestyle=LEVEL_DASHES["given"], linewidth=1.0)
        for found in here:
            if 1 < found.crossing.value < math.inf:
                at = int(found.crossing.value)
                axes.plot(at, found.before[at - 1], "o", color=colours[found.pair.name], markerfacecolor=PAPER)
        frame(axes, f"{task}  ·  {base}", f"pass@k ({here[0].pair.filter})", size=9.5)
        axes.set_xscale("log", base=2)
        ticks = [2**i for i in range(n.bit_length())]
        axes.set_xticks(ticks, [brief(k) for k in ticks])
        axes.minorticks_off()
        axes.set_ylim(-0.04, 1.04)
    figure.supxlabel("answers to a prompt, k", fontsize=9.5, color=INK)
    handles = [Line2D([], [], color=INK, linestyle=LEVEL_DASHES["base"], linewidth=1.7, label="the untouched base")]
    handles += [Line2D([], [], color=colours[name], linewidth=1.7, label=name) for name in names]
    legend(figure, handles, 2)
    return figure
