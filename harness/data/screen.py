"""What a dataset should not hold, found and, by its policies, left out before anything is ordered.

The steps have one order: what the form leaves out, copies, what evaluations ask, then the order, of which a size is a
prefix. A policy is `report`, `drop` or `fail`; reports of exact copies and of what evaluations ask are of the examples
that a cell takes, and cost nothing here.
"""

from dataclasses import dataclass, field

import hydra.utils
import numpy as np

from harness.cell import Data
from harness.data import contamination
from harness.data.duplicates import exact_copies, near_copies
from harness.data.table import Array, Table
from harness.errors import HarnessError

POLICIES = ("report", "drop", "fail")


@dataclass
class Screened:
    stays: list[Array]  # of each table: (rows,) bool
    found: dict[str, int] = field(default_factory=dict)  # examples by what was found of them: exact, near, contaminated
    dropped: int = 0


def check_policies(data: Data) -> None:
    """Raise HarnessError where a policy is none."""
    dedupe, contaminated = data.dedupe, data.contamination
    policies = {"dedupe.exact": dedupe.exact, "contamination.policy": contaminated.policy}
    if dedupe.near != "off":
        policies["dedupe.near"] = dedupe.near
    for name, policy in policies.items():
        if policy not in POLICIES:
            also = ", or off" if name == "dedupe.near" else ""
            raise HarnessError(f"data.{name}={policy!r} is unknown; use {', '.join(POLICIES)}{also}")
    if dedupe.near == "drop" and dedupe.exact != "drop":
        raise HarnessError("data.dedupe.near=drop leaves out exact copies, too; set data.dedupe.exact=drop beside it")
    if not 0.3 <= dedupe.threshold <= 1:
        raise HarnessError(f"data.dedupe.threshold={dedupe.threshold} must lie between 0.3 and 1; 0.8 is usual")
    if not 5 <= contaminated.words <= 100:
        raise HarnessError(f"data.contamination.words={contaminated.words} must lie between 5 and 100; 13 is usual")
    if data.order == "file" and (dedupe.near == "drop" or "drop" in (dedupe.exact, contaminated.policy)):
        raise HarnessError("data.order=file takes the file as it stands; to drop examples use data.order=hash")


def screen(data: Data, tables: dict[str, Table]) -> Screened:
    """Look for what the policies name. Raises HarnessError where one is `fail` and something was found."""
    all_, dedupe = list(tables.values()), data.dedupe
    stays = np.ones(sum(map(len, all_)), bool)
    found: dict[str, int] = {}

    def settle(what: str, policy: str, here: Array, told: str) -> None:
        here = here & stays
        found[what] = int(here.sum())
        if policy == "fail" and found[what]:
            field = "contamination.policy" if what == "contaminated" else f"dedupe.{what}"
            raise HarnessError(
                f"{found[what]:,} of the {len(stays):,} examples of {data.name} {told}, and data.{field} is fail; "
                f"set it to drop, or mend the data"
            )
        if policy == "drop":
            stays[here] = False

    if dedupe.exact != "report" or dedupe.near != "off":
        copies = exact_copies(all_)
        settle("exact", dedupe.exact, copies, "repeat another one")
        if dedupe.near != "off":
            settle("near", dedupe.near, near_copies(all_, dedupe.threshold, ~copies), "are nearly another one")
    if data.contamination.policy != "report":
        held = _held(data, all_)
        settle(
            "contaminated", data.contamination.policy, held, f"hold what {', '.join(data.contamination.against)} asks"
        )
    parts = np.split(stays, np.cumsum([len(table) for table in all_])[:-1])
    return Screened(parts, found, int((~stays).sum()))


def _held(data: Data, tables: list[Table]) -> Array:
    """(all rows) bool: whether an example holds an item of an evaluation."""
    held = [np.zeros(len(table), bool) for table in tables]
    for what in data.contamination.against.values():
        items: contamination.Items = hydra.utils.instantiate(what, _recursive_=False)
        index = contamination.Index(items.texts(), data.contamination.words)
        for own, table in zip(held, tables, strict=True):
            own[contamination.in_table(table, index)[:, 0]] = True
    return np.concatenate(held)
