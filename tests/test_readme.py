"""The commands of the README are composed as they stand there: no override in them is one that Hydra refuses."""

import re
import shlex
from pathlib import Path

import pytest

from harness.compose import compose_cell
from harness.sweep import sweep_cells

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PARTS = re.split(r"^```.*\n", TEXT, flags=re.MULTILINE)  # prose, block, prose, ...
BLOCKS = [line for block in PARTS[1::2] for line in block.replace("\\\n", " ").splitlines()]
INLINE = [code.replace("\n", " ") for prose in PARTS[::2] for code in re.findall(r"`([^`]+)`", prose)]
# The reader's own, and what we have of the kind
YOURS = {"mybase": "pocket_s", "mydata": "gsm8k", "mystages": "pocket_stages"}
SWEEPS = ("mysweep", "mine", "NAME", "...")


def commands() -> list[str]:
    """Each ``harness run|sweep|plan|eval ...``, without what stands before it."""
    found = (re.search(r"\bharness +(?:run|sweep|plan|eval) .*", line) for line in BLOCKS + INLINE)
    return sorted({match[0] for match in found if match})


@pytest.mark.parametrize("command", commands())
def test_a_command_composes(command: str) -> None:
    _, verb, *rest = shlex.split(command, comments=True)
    told = [word for word in rest if re.match(r"[+~]?[a-z_@/]+[.\w@/]*(=|$)", word) and ("=" in word or word[0] == "~")]
    overrides = ["=".join(YOURS.get(part, part) for part in word.split("=", 1)) for word in told]
    if verb in ("run", "eval") or rest[0] == "...":
        compose_cell([re.sub(r"(=[^\[{,]*),.*", r"\1", override) for override in overrides])  # the first of several
    else:
        sweep_cells("lima_quantity" if rest[0] in SWEEPS else rest[0], overrides)


def test_the_commands_are_found() -> None:
    assert len(commands()) > 30
