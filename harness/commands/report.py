"""`harness report`: the page, the figures, the table."""

from dataclasses import replace
from pathlib import Path

from analysis.published import papers
from harness.board import MODES
from harness.commands.common import draw, kept_wandb, new_parser
from harness.store import RECORD, records


def main(arguments: list[str]) -> int:
    parser = new_parser(
        "report", "Draw report.html, curves.png, curves.svg and points.csv in RUNS.", "harness report runs/pocket"
    )
    parser.add_argument("runs", metavar="RUNS", type=Path)
    parser.add_argument(
        "--against",
        metavar="PAPER",
        default="",
        help=f"also beside what was published, and what of the protocol differs: {', '.join(papers())}",
    )
    parser.add_argument(
        "--wandb",
        choices=MODES,
        help="how W&B is told of it, which replaces what it was told before; default: as the sweep's cells were",
    )
    parsed = parser.parse_args(arguments)
    done = (folder for folder in records(parsed.runs) if (folder / RECORD).exists())
    own = kept_wandb(first) if (first := next(done, None)) else None  # without one there is nothing to report either
    settings = replace(own, mode=parsed.wandb or own.mode) if own else None
    draw(parsed.runs, wandb=settings, against=parsed.against)
    return 0
