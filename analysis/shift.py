"""Token-distribution shift: how much of what the tuned model writes the base would have written itself.

Shares are of tokens, as the paper's (URIAL, Lin et al. 2023, arXiv 2312.01552), not means of items' shares. Their
intervals are over items, resampled with all their tokens (`analysis.sample.resample`), and over the runs of a size, as
`analysis.sample` has them: what is in their mean square beyond answering each item anew, drawn from its inverse
chi-square. Near 0 and 1 they are made up to Agresti and Coull's by the number of items, as everywhere on the page, less
as an item's tokens go their own ways.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis.points import brief, telling
from analysis.sample import DRAWS, Estimate, Point, resample
from analysis.section import Evidence, Picture, Section, Table
from analysis.style import DASHES, INK, PALETTES, PAPER, Look, frame, grid_of, handle, legend
from harness.items import Asked, answers
from harness.pieces import KINDS, MARGINAL, SHARES

TITLE = "Would the base have written the same tokens?"
ABSENT = (
    "No cell has its tokens read again by the base. Add evals=pocket_facts_shift, chain_sum_shift, gsm8k_shift or "
    "mt_bench_shift, or give any task in which the model writes a line `probe: {_target_: harness.probes.TokenShift}`; "
    "harness eval adds it to finished cells without training them again."
)
PUBLISHED = (  # arXiv 2312.01552, figure 2, on 1,000 open-ended prompts; the last from another's rerun
    ("Llama-2-7B, chat (published)", (77.7, 14.5, 7.8)),
    ("Llama-2-7B, Vicuna (published)", (82.4, 12.8, 4.8)),
    ("Mistral-7B, Instruct (published)", (82.2, 12.5, 5.2)),
    ("Qwen2.5-0.5B, Instruct (another's rerun, 40 prompts, 5,223 tokens)", (86.7, 10.5, 2.8)),
)
FEW = 5  # items below which there is no interval
MOST = 8  # tokens listed of a curve
LINE = ["base", "data", "method", "variant", "task"]
Pick = Callable[[dict[str, Any]], Iterable[int]]  # numbers of an item's tokens


@dataclass(frozen=True)
class Shares:
    """Of some tokens of one curve at one size."""

    tokens: int
    unshifted: Estimate
    marginal: Estimate
    shifted: Estimate
    kl: Estimate  # nats a token


@dataclass(frozen=True)
class Read:
    """What the runs of one curve at one size wrote, by item."""

    name: str  # of the curve
    task: str
    size: int
    asked: Asked
    runs: tuple[tuple[dict[str, Any], ...], ...]  # [K][n] lines of a cell's answers, in the order of `asked`

    def shares(self, pick: Pick = lambda row: range(len(row["ranks"]))) -> Shares | None:
        """None where no token is picked."""
        runs = np.array([[_sums(row, pick(row)) for row in run] for run in self.runs])
        sums = runs.sum(axis=0)
        total = sums.sum(axis=0)
        if not total[0]:
            return None
        values, having = total[1:] / total[0], int((sums[:, 0] > 0).sum())
        if having < FEW:
            return Shares(int(total[0]), *(Estimate(float(value)) for value in values))
        means = resample(self.asked, sums, DRAWS)
        drawn = means[:, 1:] / np.maximum(means[:, :1], 1e-12)
        rng = np.random.default_rng(having)
        noise = rng.standard_normal(DRAWS)
        for k in range(len(SHARES)):
            extra = Point(values[k : k + 1], np.nan, having).made_up * _alike(values[k], drawn[:, k].var(), having)
            drawn[:, k] += np.sqrt(extra) * noise
        drawn = (drawn + _noise_of_runs(runs, values, rng)).clip(0, [1, 1, 1, np.inf])
        return Shares(int(total[0]), *(Estimate.of(v, d) for v, d in zip(values, drawn.T, strict=True)))

    def longest(self) -> int:
        return max(len(row["ranks"]) for run in self.runs for row in run)


def _noise_of_runs(runs: np.ndarray, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[draws, 4] that the ratios `values` [4] have of K runs, `runs` [K, n, 5] as by `_sums`; 0 of one run."""
    count, items, _ = runs.shape
    if count == 1:
        return np.zeros((DRAWS, len(values)))
    apart = (runs[..., 1:] - values * runs[..., :1]) / runs[..., 0].mean()  # linearised: their mean is a run's distance
    mine = [Point(x.mean(axis=1), np.nan, items, x, proportion=False) for x in np.moveaxis(apart, 2, 0)]
    squares = np.array([point.runs.var(ddof=1) for point in mine]) * (count - 1) / rng.chisquare(count - 1, (DRAWS, 1))
    own = np.maximum(squares - [point.rest for point in mine], 0) / count
    return rng.standard_normal((DRAWS, 1)) * np.sqrt(own)


def _alike(share: float, variance: float, items: int) -> float:
    """How far the tokens of an item go together, 1 for wholly: a share of 0 or 1 each."""
    single = share * (1 - share) / items
    return min(variance / single, 1.0) if single else 1.0


def _sums(row: dict[str, Any], picked: Iterable[int]) -> list[float]:
    """Of an item's picked tokens how many, how many of each of `SHARES`, nats."""
    ranks, kls = row["ranks"], row["kls"]
    at = list(picked)
    first, some = sum(ranks[i] == 1 for i in at), sum(ranks[i] <= MARGINAL for i in at)
    return [len(at), first, some - first, len(at) - some, sum(kls[i] for i in at)]


def section(evidence: Evidence) -> Section:
    found = read(evidence)
    if not found:
        return Section(TITLE, absent=ABSENT)
    last = list({(one.name, one.task): one for one in found}.values())  # at its largest size
    data = pd.DataFrame(_rows(found), columns=["curve", "task", "size", "of", "tokens", *_columns()])
    return Section(
        TITLE,
        lines=tuple(line for one in last for line in _lines(one)),
        tables=(_overall(found), _positions(last), _kinds(last), _listed(last)),
        pictures=(Picture("token_shift", "How far from the base, token by token", READING, _figure(last)),),
        data={"token_shift": data, "shifted_tokens": pd.DataFrame(_tokens(last))},
    )


READING = (
    "The divergence of the base's next-token distribution from the tuned model's (nats), averaged over the tokens at "
    "each place of the answers, with 95% bands over items and runs. High at first and low after: the tuning sets how "
    "an answer begins, and the base goes on by itself."
)


def read(evidence: Evidence) -> list[Read]:
    """Every curve at every size, the untouched base left out, which reads its own tokens."""
    rows = evidence.of_probe("TokenShift").dropna(subset=["score"])
    rows = telling(rows[rows["method"] != "base"])
    rows = rows.drop_duplicates(
        [*LINE, "size", "eval_fingerprint", "seed", "subset_seed"]
    )  # a run seen from two sweeps
    found = []
    for key, cells in rows.groupby([*LINE, "size", "eval_fingerprint"], sort=True):
        base, data, method, variant, task, size, mark = key
        runs = [answers(evidence.root, path, str(task), str(mark)) for path in cells["path"]]
        for run in runs:
            run.sort(key=lambda row: (row["task"], row["item"]))  # as the items are
        told = " ".join(filter(None, [str(method), str(variant)])) + (f" on {data}" if size else "")
        asked = evidence.items.asked[str(task), str(mark)]
        found.append(Read(f"{base}, {told}", str(task), int(str(size)), asked, tuple(map(tuple, runs))))
    return found


def places(longest: int) -> list[tuple[str, range]]:
    """Places in an answer, from 1, in spans that double: 1, 2-3, 4-7 ..."""
    spans, start = [], 0
    while start < longest:
        end = 2 * start + 1
        spans.append((f"{start + 1}" if end == start + 1 else f"{start + 1}-{end}", range(start, end)))
        start = end
    return spans


def _at(span: range) -> Pick:
    return lambda row: (i for i in span if i < len(row["ranks"]))


def _of_kind(letter: str) -> Pick:
    return lambda row: (i for i, kind in enumerate(row["kinds"]) if kind == letter)


def _parts(one: Read) -> list[tuple[str, Shares]]:
    picks: list[tuple[str, Pick]] = [(name, _of_kind(letter)) for letter, name in KINDS.items()]
    picks.append(("says the right answer", lambda row: row["right"]))
    return [(name, got) for name, pick in picks if (got := one.shares(pick))]


def _spans(one: Read) -> list[tuple[str, range, Shares]]:
    return [(name, span, got) for name, span in places(one.longest()) if (got := one.shares(_at(span)))]


# --------------------------------------------------------------------------------------------------------------- words


def _percent(estimate: Estimate) -> str:
    return estimate.words("{:.1%}".format)


def _nats(estimate: Estimate) -> str:
    return estimate.words("{:.3g}".format)


def _lines(one: Read) -> list[str]:
    every = one.shares()
    assert every is not None
    size = f", {one.size:,} example{'s' * (one.size > 1)}" if one.size else ""
    said = [
        f"{one.task}, {one.name}{size}: of {every.tokens:,} tokens {_percent(every.unshifted)} are the base's own "
        f"first choice, {_percent(every.marginal)} its second or third, and {_percent(every.shifted)} are shifted."
    ]
    first, later = one.shares(_at(range(1))), one.shares(_at(range(1, one.longest())))
    if first and later:
        said[0] += (
            f" Shifted are {_percent(first.shifted)} of first tokens and {_percent(later.shifted)} of later ones."
        )
    right = one.shares(lambda row: row["right"])
    if right:
        said[0] += (
            f" Of the {right.tokens:,} tokens that say a right answer the base would have chosen "
            f"{_percent(right.unshifted)} itself."
        )
    again = sum(row["retraced"] for run in one.runs for row in run) / every.tokens
    if again < 0.999:
        said.append(
            f"{one.task}, {one.name}: the tuned model itself, reading again, has {again:.1%} of the tokens as its "
            "first choice; the rest its number format rounds away, and ranks are no surer. base.dtype=float32 mends it."
        )
    return said


def _cells(got: Shares) -> tuple[str, ...]:
    return (f"{got.tokens:,}", *(_percent(getattr(got, name)) for name in SHARES), _nats(got.kl))


COLUMNS = ("tokens", "unshifted (rank 1)", "marginal (2-3)", "shifted (> 3)", "KL, nats a token")


def _overall(found: list[Read]) -> Table:
    ours = [(one.task, one.name, brief(one.size) if one.size else "-", *_cells(got))
            for one in found if (got := one.shares())]  # fmt: skip
    theirs = [("open-ended prompts", name, "-", "-", *(f"{x}%" for x in values), "-") for name, values in PUBLISHED]
    return Table(
        "Tokens of the greedy answer by the rank that the base gives them",
        ("task", "model", "examples", *COLUMNS),
        (*ours, *theirs),
        "95% intervals over items and runs. Published: Lin et al. 2023, arXiv 2312.01552. Answers of many hundred "
        "tokens have few that set the form; of short ones most do, so compare shares of one task only.",
    )


def _positions(last: list[Read]) -> Table:
    rows = [(one.task, one.name, name, *_cells(got)) for one in last for name, _, got in _spans(one)]
    return Table("By place in the answer, at the largest size", ("task", "model", "tokens no.", *COLUMNS), tuple(rows))


def _kinds(last: list[Read]) -> Table:
    rows = [(one.task, one.name, name, *_cells(got)) for one in last for name, got in _parts(one)]
    note = (
        "A token that says the right answer is part of the target's words where they stand last in the answer; it is "
        "counted under its own kind, too."
    )
    return Table("By kind of token, at the largest size", ("task", "model", "kind", *COLUMNS), tuple(rows), note)


def _tokens(last: list[Read]) -> list[dict[str, Any]]:
    """Tokens that were shifted at least once, most often first, and what the base would have written there."""
    listed = []
    for one in last:
        times, shifted = Counter[str](), Counter[str]()
        instead: dict[str, Counter[str]] = defaultdict(Counter)
        for row in (row for run in one.runs for row in run):
            for token, rank, top in zip(row["tokens"], row["ranks"], row["tops"], strict=True):
                times[token] += 1
                if rank > MARGINAL:
                    shifted[token] += 1
                    instead[token][top] += 1
        for token, count in sorted(shifted.items(), key=lambda pair: (-pair[1], pair[0])):
            top, often = min(instead[token].items(), key=lambda pair: (-pair[1], pair[0]))
            listed.append(
                {"task": one.task, "curve": one.name, "token": token, "shifted": count, "times": times[token],
                 "base_would": top, "base_would_times": often}
            )  # fmt: skip
    return listed


def _listed(last: list[Read]) -> Table:
    rows, shown = [], Counter[tuple[str, str]]()
    for t in _tokens(last):
        shown[t["task"], t["curve"]] += 1
        if shown[t["task"], t["curve"]] <= MOST:
            counts = f"{t['shifted']:,} of {t['times']:,}"
            would = f"{_visible(t['base_would'])} ({t['base_would_times']:,} of {t['shifted']:,})"
            rows.append((t["task"], t["curve"], _visible(t["token"]), counts, would))
    columns = ("task", "model", "token", "shifted, of all times", "the base's first choice there, most often")
    return Table(
        "Tokens most often shifted, at the largest size", columns, tuple(rows), "␣ is a blank, ⏎ a line's end."
    )


def _visible(token: str) -> str:
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "(nothing)"


# -------------------------------------------------------------------------------------------------------------- numbers


def _columns() -> list[str]:
    return [f"{name}{end}" for name in (*SHARES, "kl") for end in ("", "_low", "_high")]


def _rows(found: list[Read]) -> Iterable[list[Any]]:
    for one in found:
        whole = one.shares()
        parts = [("all", whole), *_parts(one), *((f"tokens no. {name}", got) for name, _, got in _spans(one))]
        for name, got in parts:
            assert got is not None
            numbers = [getattr(got, share) for share in (*SHARES, "kl")]
            yield [
                one.name,
                one.task,
                one.size,
                name,
                got.tokens,
                *(x for e in numbers for x in (e.value, e.low, e.high)),
            ]


@rc_context({"text.parse_math": False})
def _figure(last: list[Read]) -> Figure:
    """KL by place, a panel a task, a line a model."""
    tasks = sorted({one.task for one in last})
    names = sorted({one.name for one in last})
    looks = {
        name: Look(PALETTES["base"][i % 7], i % 2 == 1, "os^Dv"[i % 5], DASHES[i % len(DASHES)])
        for i, name in enumerate(names)
    }
    figure, grid = grid_of(len(tasks), 3.1, 0.5 + 0.2 * len(names))
    for axes, task in zip(grid, tasks, strict=True):
        for one in (one for one in last if one.task == task):
            spans, look = _spans(one), looks[one.name]
            x = [(span.start + span.stop + 1) / 2 for _, span, _ in spans]
            kl = [got.kl for *_, got in spans]
            axes.fill_between(x, [e.low for e in kl], [e.high for e in kl], color=look.colour, alpha=0.14, linewidth=0)
            face = PAPER if look.hollow else look.colour
            axes.plot(x, [e.value for e in kl], color=look.colour, linestyle=look.dashes, marker=look.marker,
                      markerfacecolor=face, markersize=5, linewidth=1.7)  # fmt: skip
        axes.set_xscale("log", base=2)
        ticks = [2.0**n for n in range(12) if 2**n <= max(one.longest() for one in last if one.task == task)]
        axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        frame(axes, task, "KL from the base (nats a token)")
    figure.supxlabel("place of the token in the answer", fontsize=9.5, color=INK)
    legend(figure, [handle(name, looks[name]) for name in names], 1)
    return figure
