"""Which examples of a source come first: the rule of `data.select`.

Each rule is one order of all examples, of which every size is a prefix, so sizes nest. Examples arrive in the hash
order of the subset seed, and what a rule leaves open stays in it: a seed matters only there.

random             the hash order itself
longest            most characters in the answers first (Zhao et al. 2024, arXiv 2402.04833, count tokens; characters
                   need no tokenizer, so that all bases get the same examples)
score              the highest value of a column, or of a scorer, first
diversity          k-center greedy (Sener and Savarese 2018, arXiv 1708.00489): next comes the one farthest from all
                   before it
quality_diversity  by score, but one too near to a better one waits (DEITA, Liu et al. 2023, arXiv 2312.15685); those
                   that wait follow, by score again
stratified         the values of a column take turns
"""

import hashlib
from collections.abc import Callable
from typing import Any

import hydra.utils
import numpy as np
from tqdm import tqdm

from harness.cell import Data, Message
from harness.choice import Select
from harness.data.column import Column
from harness.data.embed import Words, vectors
from harness.data.greedy import farthest_first, spread
from harness.data.order import LARGE
from harness.data.table import Array, Table, kept
from harness.errors import HarnessError

RULES = ("random", "longest", "score", "diversity", "quality_diversity", "stratified")
ANSWERS = ("assistant", "text", "chosen", "reference")  # the roles whose characters `longest` counts
MOST = 200_000  # candidates: their vectors take 0.4 GiB
STEPS = 4 * 10**9  # picks x candidates; each reads 2 KiB, so that this is a quarter of an hour


def check_select(data: Data) -> None:
    """Raise HarnessError where the rule is unknown or lacks what it needs."""
    select = data.select
    if select.rule not in RULES:
        raise HarnessError(f"data.select.rule={select.rule!r} is unknown; use {', '.join(RULES)}")
    if select.rule != "random" and data.order == "file":
        raise HarnessError(f"data.order=file leaves nothing to select; with data.select.rule={select.rule} use hash")
    scored = select.rule in ("score", "quality_diversity")
    if scored and bool(select.column) == bool(select.scorer):
        raise HarnessError(
            f"data.select.rule={select.rule} orders by a score: set either data.select.column, a column of the rows, "
            "or data.select.scorer._target_"
        )
    if select.rule == "stratified" and not select.column:
        raise HarnessError("data.select.rule=stratified needs data.select.column, whose values take turns")
    if (select.column or select.scorer) and not scored and select.rule != "stratified":
        raise HarnessError(f"data.select.rule={select.rule} reads no score; leave column and scorer out, or use score")
    if not 0 < select.similarity < 1:
        raise HarnessError(f"data.select.similarity={select.similarity} is a cosine: choose it between 0 and 1")
    if not (select.picks >= 1 and 1 <= select.candidates <= MOST):
        raise HarnessError(
            f"data.select.candidates={select.candidates} and picks={select.picks} must be at least 1, and candidates "
            f"at most {MOST:,}: each is compared with all that were taken"
        )
    if select.rule == "diversity" and select.picks * select.candidates > STEPS:
        raise HarnessError(
            f"data.select: {select.picks:,} picks among {select.candidates:,} candidates would take hours; lower one "
            f"of them, to a product of {STEPS:,}"
        )


def needs_column(select: Select) -> bool:
    return bool(select.column)


def selected(table: Table, rows: Array, select: Select, column: Column | None, seed: int) -> tuple[Array | None, int]:
    """(order, ruled): where in `rows`, the table's in hash order, each next example stands, and for how many of the
    first ones the rule decided; None for the hash order itself.
    """
    match select.rule:
        case "longest":
            return _descending(_lengths(table)[rows]), len(rows)
        case "score":
            return _descending(_scores(table, rows, select, column)), len(rows)
        case "stratified":
            assert column
            return _by_turns(column, rows, seed), len(rows)
        case "diversity":
            pool = np.arange(min(select.candidates, len(rows)))
            picked = farthest_first(vectors(table, rows[pool], _embedder(select)), select.picks)
            return _first(picked, np.arange(len(rows))), len(picked)
        case "quality_diversity":
            order = _descending(_scores(table, rows, select, column))
            pool = order[: select.candidates]
            taken = spread(vectors(table, rows[pool], _embedder(select)), select.similarity)
            return _first(pool[taken], order), int(taken.sum())
    return None, 0


def _descending(scores: Array) -> Array:
    """Equal scores stay in hash order."""
    return np.argsort(-scores, kind="stable")


def _first(picked: Array, order: Array) -> Array:
    """The picked ones, then all others in their order."""
    others = np.ones(len(order), bool)
    others[picked] = False
    return np.concatenate([picked, order[others[order]]])


def _by_turns(column: Column, rows: Array, seed: int) -> Array:
    """One example of each value, then a second one of each that has two, and so on; a hash says which value begins."""
    codes = column.codes[rows]
    digests = [hashlib.sha256(f"{seed}:{value!r}".encode()).digest() for value in column.values]
    turn = np.argsort(np.argsort(np.array([int.from_bytes(d[:8], "big") for d in digests], np.uint64)))[codes]
    grouped = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[grouped], np.arange(len(column.values)))
    place = np.empty(len(rows), np.int64)
    place[grouped] = np.arange(len(rows)) - starts[codes[grouped]]
    return np.lexsort([turn, place])


def _lengths(table: Table) -> Array:
    """(rows,): characters in the answers of each."""

    def made() -> Array:
        rows = map(table.messages, tqdm(range(len(table)), "lengths", unit="row", delay=2, disable=None, leave=False))
        return np.array([sum(len(t["content"]) for t in turns if t["role"] in ANSWERS) for turns in rows])

    return made() if len(table) < LARGE else kept(table, "lengths-1", made)


def _scores(table: Table, rows: Array, select: Select, column: Column | None) -> Array:
    if column:
        return column.numbers()[rows]
    scorer: Callable[[list[Message]], float] = _made(select.scorer or {}, "scorer")
    bar = tqdm(rows, "scores", unit="row", delay=2, disable=None, leave=False)
    return np.array([_number(scorer, table.messages(int(row))) for row in bar])


def _number(scorer: Callable[[list[Message]], float], turns: list[Message]) -> float:
    number = scorer(turns)
    if isinstance(number, bool) or not isinstance(number, int | float) or not np.isfinite(number):
        raise HarnessError(f"data.select.scorer gives {number!r:.60} for an example, which is no number to order by")
    return float(number)


def _embedder(select: Select) -> Any:
    return _made(select.embed, "embed") if select.embed else Words()


def _made(what: dict[str, Any], field: str) -> Any:
    try:
        return hydra.utils.instantiate(what, _recursive_=False)
    except hydra.errors.InstantiationException as error:
        first = str(error).splitlines()[0]
        raise HarnessError(f"data.select.{field} cannot be made ({first}); check its _target_") from error
