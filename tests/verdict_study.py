"""Does the rule of analysis/verdict.py find what is so? It sees scores alone; the truth is how the worlds were made.

``python -m tests.verdict_study runs/pocket_worlds``, after ``harness sweep pocket_worlds``, prints the table: what
pretraining told of a table against the verdict on it, how many were decided, and how many of those wrongly.
"""

import argparse
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis.findings import sampled
from analysis.verdict import BOTH, ELICITED, TAUGHT, UNDECIDED, Rule, Verdict, verdict
from harness.items import Items, load_items
from harness.pocket.tables import Tables
from harness.store import load

TRUTH = {0.0: TAUGHT, 0.5: BOTH, 1.0: ELICITED}  # by the share of a table's cells that pretraining told
TOLD = {ELICITED: "all", BOTH: "half", TAUGHT: "nothing"}
VERDICTS = (ELICITED, BOTH, TAUGHT, UNDECIDED)


@dataclass
class Confusion:
    """`cells[truth, verdict]`: how many tables."""

    cells: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def tables(self) -> int:
        return self.cells.total()

    @property
    def decided(self) -> int:
        return sum(count for (_, said), count in self.cells.items() if said != UNDECIDED)

    @property
    def wrong(self) -> int:
        return sum(count for (truth, said), count in self.cells.items() if said not in (truth, UNDECIDED))

    def words(self) -> str:
        lines = [f"| pretraining told | {' | '.join(VERDICTS)} |", f"|---|{'---:|' * len(VERDICTS)}"]
        for truth, told in TOLD.items():
            lines.append(f"| {told} | {' | '.join(str(self.cells[truth, said]) for said in VERDICTS)} |")
        share = self.decided / max(self.tables, 1)
        lines.append(f"\n{self.decided} of {self.tables} tables decided ({share:.0%}), {self.wrong} of those wrongly.")
        return "\n".join(lines)


def truth(base: str) -> str:
    """Of a base named ``tables-<world>-<thing>``."""
    found = re.fullmatch(r"tables-(\d+)-(\w+)", base)
    if not found:
        raise SystemExit(f"{base} is no base of the sweep pocket_worlds")
    return TRUTH[Tables(int(found[1])).presence[found[2]]]


def judge(frame: pd.DataFrame, items: Items, rule: Rule | None = None) -> dict[str, Verdict]:
    """The verdict on each table, by its base's name."""
    curves = [c for c in sampled(frame, items) if c.series.headline and c.series.task == "pocket_table"]
    return {curve.series.base: verdict(curve, curves, frame, items, rule) for curve in curves}


def confusion(found: dict[str, Verdict]) -> Confusion:
    return Confusion(Counter((truth(base), one.verdict) for base, one in found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="e.g. runs/pocket_worlds")
    parser.add_argument("--all", action="store_true", help="each table's evidence, not of wrong verdicts alone")
    args = parser.parse_args()
    frame = load(args.runs)
    found = judge(frame, load_items(args.runs, frame))
    for base, one in sorted(found.items()):
        if args.all or one.verdict not in (truth(base), UNDECIDED):
            print(f"{base}, truly {truth(base)}. {one.words()}", *one.evidence(), sep="\n  ")
    print(confusion(found).words())


if __name__ == "__main__":
    main()
