"""`harness export`: a finished cell as a model of its own."""

from pathlib import Path

from harness.commands.common import new_parser
from harness.errors import HarnessError
from harness.store import RECORD, read_json


def main(arguments: list[str]) -> int:
    parser = new_parser(
        "export",
        "Merge the adapter of the finished cell CELL into its base and write the model to FOLDER, for transformers, "
        "lm-eval or vLLM: weights, tokenizer, chat template, generation settings and a README.",
        "harness export runs/pocket/pocket-m/pocket_facts/sft/n000000064-s0-... models/facts-64",
    )
    parser.add_argument("cell", metavar="CELL", type=Path)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parsed = parser.parse_args(arguments)
    if not (parsed.cell / RECORD).is_file():
        raise HarnessError(f"{parsed.cell} holds no {RECORD}; give a finished cell's folder")
    from harness.compose import from_dict
    from harness.export import export

    record = read_json(parsed.cell / RECORD)
    exported = export(parsed.cell, record, from_dict(record["cell"]), parsed.folder)
    print(parsed.folder, exported.in_words(), sep="\n")
    return 0
