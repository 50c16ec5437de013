"""`harness status`: what finished, with its scores, and what runs."""

from pathlib import Path

from harness.commands.common import new_parser
from harness.errors import HarnessError
from harness.schedule import SETTLED
from harness.standing import standing
from harness.watch import running_line, watch

SECONDS = 2.0


def main(arguments: list[str]) -> int:
    parser = new_parser(
        "status", "What finished below RUNS, with its headline scores, and what runs.", "harness status runs/pocket"
    )
    parser.add_argument("runs", metavar="RUNS", type=Path)
    parser.add_argument(
        "--watch",
        nargs="?",
        const=SECONDS,
        type=float,
        metavar="SECONDS",
        help=f"look again every so many seconds ({SECONDS:.0f}) until nothing runs and nothing is left",
    )
    parsed = parser.parse_args(arguments)
    if parsed.watch is None:
        return _table(parsed.runs)
    if not parsed.watch > 0:
        raise HarnessError(f"--watch {parsed.watch:g}: give the seconds between two looks, more than 0")
    try:
        return 1 if watch(parsed.runs, parsed.watch).failed else 0
    except KeyboardInterrupt:
        return 0


def _table(runs: Path) -> int:
    from harness.store import load

    now, frame = standing(runs), load(runs)
    if frame.empty and not now.running:
        raise HarnessError(f"{runs} holds no finished cells; run a sweep first, e.g. harness sweep pocket")
    done, ended = frame[frame.status == "ok"], frame[frame.status != "ok"]
    seconds = done.drop_duplicates("path").train_seconds.sum()
    others = "".join(f", {count} {status}" for status, count in ended.status.value_counts().items())
    others += f", {len(now.running)} running" if now.running else ""
    others += f", {len(now.left)} left" if now.left else ""
    print(f"{done.path.nunique()} cells done{others}; {seconds:.0f} s of training")
    lead = done[done.headline.astype(bool)]
    if len(lead):
        keys = ["task", "base", "data", "method", "variant", "size"]
        by = lead.groupby(keys, dropna=False)
        table = by.score.agg(["mean", "min", "max", "count"]).rename(columns={"count": "seeds"}).round(3)
        if lead.lr_rule.isin(SETTLED).any():
            table["lr"] = by.lr.agg(lambda rates: " ".join(f"{lr:.3g}" for lr in sorted(set(rates.dropna()))))
        print(table.to_string())
    for path, work in now.running.items():
        print(f"running: {running_line(path, work).strip()}")
    for row in ended.itertuples():
        print(f"{row.status}: {row.path}")
    return 1 if len(ended) else 0
