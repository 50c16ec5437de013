"""`harness show`: a cell as the model sees it."""

from pathlib import Path

from harness.commands.common import new_parser
from harness.compose import compose_cell, from_dict, users_folder
from harness.cost import Estimator
from harness.errors import HarnessError
from harness.plan import MISSING, Planned
from harness.show import show_cell
from harness.store import RECORD, read_result


def main(arguments: list[str]) -> int:
    parser = new_parser(
        "show",
        "A cell as the model sees it: rendered turns with their tokens and loss mask, and one evaluation prompt. "
        "CELL is a finished cell's folder; instead, overrides describe a cell that has not run.",
        "harness show data=pocket_facts size=2",
    )
    parser.add_argument("cell", metavar="CELL|OVERRIDE", nargs="+")
    parser.add_argument("--config-dir", help="your own configuration folder")
    parsed = parser.parse_intermixed_args(arguments)
    record = Path(parsed.cell[0], RECORD)
    if record.is_file():
        cell = from_dict(read_result(record)["cell"])
    elif len(parsed.cell) == 1 and "=" not in Path(parsed.cell[0]).name:
        raise HarnessError(
            f"{parsed.cell[0]} holds no {RECORD}; give a finished cell's folder, or overrides such as size=2"
        )
    else:
        cell = compose_cell(parsed.cell, users_folder(parsed.config_dir))
    show_cell(cell)
    if getattr(cell.method, "lr", None) == "auto":
        print(f"\n## learning rate {Estimator([Planned(cell, MISSING)]).lr(cell):.3g}, as published")
    return 0
