"""`harness report`: the page, the figures, the table."""

from pathlib import Path

from harness.commands.common import draw, new_parser


def main(arguments: list[str]) -> int:
    parser = new_parser(
        "report", "Draw report.html, curves.png, curves.svg and points.csv in RUNS.", "harness report runs/pocket"
    )
    parser.add_argument("runs", metavar="RUNS", type=Path)
    draw(parser.parse_args(arguments).runs)
    return 0
