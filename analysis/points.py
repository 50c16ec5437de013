"""Score against number of examples as a table: seeds averaged with an honest interval, one row a point.

Reads only the one table of records (`harness.store.load`). Everything drawn or said comes from `points`, so the table
of a report, its sentences and its figures cannot disagree.
"""

import math
import re
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from harness.cell import LEVELS
from harness.errors import HarnessError

CURVE = ["base", "data", "method", "variant", "task", "metric", "filter"]
LEVEL = 0.95
EFFORTS = {  # what else a size costs, where the records tell; its column of `harness.store.load` -> in words
    "tokens": "target tokens trained on",
    "steps": "gradient steps",
    "flops": "training FLOPs",
    "adapter_bits": "bits of the adapter",
}


def points(frame: pd.DataFrame) -> pd.DataFrame:
    """Average the seeds: one row for each (base, data, method, variant, task, metric, filter, size).

    Adds `score` (mean over seeds), `low` and `high` (95%), `n_seeds`, `seed_sd` (sample sd between seeds; NaN for one),
    `item_stderr` (root mean square of lm-eval's), `n_items` and `interval`, which says what the interval holds:
    "seeds+items", "items" (a single seed: nothing is known of the spread between runs), "seeds" (the metric has no
    standard error) or "none" (neither; low and high are NaN). Of `EFFORTS`, those in `frame`, as means over seeds.

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
    efforts = [column for column in EFFORTS if column in done]
    rows = [
        {**dict(zip([*CURVE, "size"], key, strict=True)), **average(group), **group[efforts].mean().to_dict()}
        for key, group in done.groupby([*CURVE, "size"], sort=True)
    ]
    columns = [*CURVE, "size", "headline", "score", "low", "high", "n_seeds", "seed_sd", "item_stderr", "n_items"]
    columns += ["interval", "higher_is_better", "base_note", *efforts]
    return pd.DataFrame(rows, columns=columns).astype({"headline": bool})


def check(done: pd.DataFrame) -> None:
    """Refuse a table in which one curve would join what was not measured alike."""
    for _, why in _unalike(done):
        raise HarnessError(why)


def alike(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table without the scores that `check` refuses (empty in their rows), and of each why, for a page to say."""
    frame, said = frame.copy(), []
    for rows, why in _unalike(frame[(frame["status"] == "ok") & frame["score"].notna()]):
        frame.loc[rows, "score"] = np.nan
        said.append(f"Left out of all below: {why}.")
    return frame, said


def own_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Without what probes have measured, which is no score of a task's; a cell with nothing else keeps a bare row."""
    own = frame["probe"].fillna("") == ""
    bare = frame[~own & ~frame["path"].isin(frame.loc[own, "path"])].drop_duplicates("path")
    blank = bare.assign(task="", score=np.nan, stderr=np.nan, headline=False)
    return pd.concat([frame[own], blank], ignore_index=True) if len(blank) else frame[own]


def _unalike(done: pd.DataFrame) -> Iterator[tuple[pd.Index, str]]:
    """The rows of finished scores that make no one curve, and why."""
    for (base, task), group in done.groupby(["base", "task"]):
        protocols = sorted(group["eval_fingerprint"].dropna().unique())
        if len(protocols) > 1:
            yield (
                group.index,
                f"{base} was scored on {task} under {len(protocols)} protocols ({names(p[:8] for p in protocols)}), so "
                "its scores make no one curve. Score all its cells again under one, or keep the sweeps apart",
            )
    for key, group in done.groupby(["base", "data", "method", "variant", "size", "seed", "subset_seed"]):
        if group["fingerprint"].nunique() > 1:
            name = " ".join(map(str, key))
            yield group.index, f"different experiments carry the same names ({name}); keep their sweeps apart"


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


def has_sizes(table: pd.DataFrame) -> "pd.Series[bool]":
    """Of each row, whether it is a point of a curve and no level line."""
    return ~table["method"].isin(LEVELS)


def aimed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `harness.store.load`'s table without curves of tasks elsewhere, where there is nothing to gain."""
    return frame[~frame["elsewhere"].eq(True) | frame["method"].eq("base")]


def telling(table: pd.DataFrame) -> pd.DataFrame:
    """The table without what of its variants tells no line from another.

    They are left out where a base's data and method have only one, the settings of a recipe's stages where the stages
    tell its lines apart, and settings that all lines of a base's data and method have in common.
    """
    kinds = table.groupby(["base", "data", "method"])["variant"]
    brief = table.assign(variant=table["variant"].map(_stages))
    clear = brief.groupby(["base", "data", "method"])["variant"].transform("nunique") == kinds.transform("nunique")
    several = (kinds.transform("nunique") > 1) | ~has_sizes(table)
    short = table.assign(variant=table["variant"].mask(clear, brief["variant"]).where(several, ""))
    lines = short[has_sizes(short)]
    for _, group in lines.groupby(["base", "data", "method"]):
        every = [_settings(variant) for variant in group["variant"].unique()]
        shared = set.intersection(*map(set, every)) if len(every) > 1 else set()
        left = group["variant"].map(lambda v, drop=shared: ",".join(s for s in _settings(v) if s not in drop))
        short.loc[group.index, "variant"] = left
    return short


def _settings(variant: str) -> list[str]:
    """``lr=0.1,stages=[a,b]`` -> [``lr=0.1``, ``stages=[a,b]``]."""
    found, depth = [""], 0
    for character in variant:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return found


def _stages(variant: str) -> str:
    """A variant without what it has in brackets."""
    shorter = re.sub(r"\([^()]*\)", "", variant)
    return shorter if shorter == variant else _stages(shorter)


def ruler(metric: str, filter_: str) -> str:
    """A (metric, filter) in words: ``exact match (strict-match)``."""
    return metric.replace("_", " ") + (f" ({filter_})" if filter_ not in ("none", "") else "")


def brief(size: float) -> str:
    """A number of examples as people write it: 300, 1k, 3.5k, 1M; 2048 stays 2048."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if size >= unit and (size >= 10 * unit or size % (unit / 10) == 0):
            return f"{size / unit:.3g}{name}"
    return f"{size:.0f}"


def names(values: Iterable[object]) -> str:
    """A list in words: ``a, b and c``."""
    texts = [str(v) for v in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else ""
