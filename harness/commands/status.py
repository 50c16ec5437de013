"""`harness status`: what finished, with its scores."""

from pathlib import Path

from harness.commands.common import load_frame, new_parser


def main(arguments: list[str]) -> int:
    parser = new_parser("status", "What finished below RUNS, with its headline scores.", "harness status runs/pocket")
    parser.add_argument("runs", metavar="RUNS", type=Path)
    frame = load_frame(parser.parse_args(arguments).runs)
    done, left = frame[frame.status == "ok"], frame[frame.status != "ok"]
    seconds = done.drop_duplicates("path").train_seconds.sum()
    others = "".join(f", {count} {status}" for status, count in left.status.value_counts().items())
    print(f"{done.path.nunique()} cells done{others}; {seconds:.0f} s of training")
    lead = done[done.headline.astype(bool)]
    if len(lead):
        keys = ["task", "base", "data", "method", "variant", "size"]
        table = lead.groupby(keys, dropna=False).score.agg(["mean", "min", "max", "count"])
        print(table.rename(columns={"count": "seeds"}).round(3).to_string())
    for row in left.itertuples():
        print(f"{row.status}: {row.path}")
    return 1 if len(left) else 0
