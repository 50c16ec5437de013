"""Losses in nats, item by item, from whatever form of perplexity was kept.

A perplexity is exp of a mean, so it is no mean over items and has no vector of them; its logarithm is one, or a ratio
of two. Put into nats, a loss is a score like any other to `analysis.sample` and `analysis.paired`.

| kept | of an item | in nats |
|---|---|---|
| perplexity (lm-eval, loglikelihood) | log p | an answer: mean of -log p |
| word_perplexity (loglikelihood_rolling) | log p, words | a word: sum of -log p / sum of words |
| byte_perplexity, bits_per_byte | log p, bytes | a byte: sum of -log p / sum of bytes |
| loss (`harness.probes.TokenLoss`) | loss | a token: mean over documents |

Of a ratio R = sum(L) / sum(w) an item stands for R + (L - R w) / mean(w), by which it moves R (linearisation): their
mean is R, and their spread its standard error.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.section import Evidence
from harness.items import Items, answers

UNITS = {"perplexity": "answer", "word_perplexity": "word", "byte_perplexity": "byte", "bits_per_byte": "byte"}
LOSS = "loss, nats per "  # how a loss in nats is called; its unit follows
TOKEN_LOSS = "TokenLoss"  # the probe


def is_loss(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Of each row of `harness.store.load`'s table, whether its score is a loss that `in_nats` knows."""
    plain = frame["metric"].isin(list(UNITS)) & (frame["probe"].isna() | (frame["probe"] == ""))
    return (plain | ((frame["metric"] == "loss") & (frame["probe"] == TOKEN_LOSS))) & frame["score"].notna()


def in_nats(evidence: Evidence) -> Evidence:
    """The same, every loss as `loss, nats per ...`: scores, standard errors and vectors by item.

    Of a task whose several losses are one in other units, the leading one is left.
    """
    frame = evidence.frame[~is_loss(evidence.frame) | evidence.frame["headline"].eq(True)].copy()
    items = replace(evidence.items, scores=dict(evidence.items.scores))
    rows: list[dict[str, Any]] = []
    for row in map(_named, frame[is_loss(frame)].to_dict("records")):
        unit = UNITS.get(row["metric"], "token")
        name = f"{LOSS}{unit}"
        kept = _vector(evidence.root, items, row)
        value = _nats(row["metric"], row["score"])
        error = row["stderr"]
        if kept is not None and np.isclose(kept.mean(), value, rtol=1e-4, atol=1e-6):
            items.scores[row["path"], row["task"], name, row["filter"]] = kept.astype(np.float32)
            error = float(kept.std(ddof=1) / np.sqrt(len(kept))) if len(kept) > 1 else np.nan
        elif row["metric"] != "loss":
            error = np.nan  # lm-eval's is that of the perplexity
        rows.append({**row, "metric": name, "score": value, "stderr": error, "higher_is_better": False})
    made = pd.DataFrame(rows, columns=frame.columns).astype(frame.dtypes.to_dict()) if rows else frame.iloc[:0]
    return Evidence(evidence.root, pd.concat([frame[~is_loss(frame)], made], ignore_index=True), items)


def _named(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}


def _nats(metric: str, score: float) -> float:
    return score * log(2) if metric == "bits_per_byte" else score if metric == "loss" else log(score)


def _vector(root: Path, items: Items, row: dict[str, Any]) -> np.ndarray | None:
    """[n] in the order of `harness.items`; None where items were not kept."""
    path, task, filter_, mark = (row[name] for name in ("path", "task", "filter", "eval_fingerprint"))
    if row["metric"] == "loss":
        return items.scores.get((path, task, "loss", filter_))
    if (task, mark) not in items.asked or items.protocol.get((path, task)) != mark:
        return None
    kept = [line for line in answers(root, path, task, mark) if line["filter"] == filter_]
    kept.sort(key=lambda line: (line["task"], line["item"]))
    values = [line.get(row["metric"]) for line in kept]
    if all(isinstance(value, float | int) for value in values):
        return -np.array(values, float)
    if not all(isinstance(value, list) and len(value) == 2 for value in values):
        return None
    likelihoods, weights = np.array(values, float).T
    ratio = -likelihoods.sum() / weights.sum()
    return ratio + (-likelihoods - ratio * weights) / weights.mean()
