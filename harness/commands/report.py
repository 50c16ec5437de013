"""`harness report`: the page, the figures, the table."""

from pathlib import Path

from analysis.published import papers
from harness.commands.common import draw, new_parser


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
    parsed = parser.parse_args(arguments)
    draw(parsed.runs, against=parsed.against)
    return 0
