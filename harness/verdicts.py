"""What a judge said of finished cells' answers, as it is kept below the sweep. Written by `harness.judge`. No torch.

    <root>/.judge/calls/<2 hex>/<64 hex>.json    one answer of a judge, by the sha256 of all that it was asked and how
    <root>/.judge/<task>/<8 hex>.json            one judging of a task's answers: who judged, how, what is left
    <root>/.judge/<task>/<8 hex>.jsonl           its verdicts, a line a match, or an answer rated by itself

A judging is made anew from the calls whenever more of them are there; a call is written once.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.artifact import sha256_file
from harness.errors import HarnessError
from harness.identity import fingerprint
from harness.store import read_result, write_jsonl, write_result

FOLDER = ".judge"
REFERENCE = "reference"  # the player whose answers are the items' targets; others are named by their cells' paths


@dataclass(frozen=True)
class Judging:
    """One judge, one prompt, the answers of one evaluation.

    `about` has ``task``, ``mark`` (the evaluation's fingerprint), ``judge`` (`harness.judge.Judge.identity`), its
    ``name``, ``against`` and counts: ``matches``, ``calls``, and of these ``left``, which have no reply, and among
    them ``refused``.

    `lines`, each with ``item`` (its place among ``items``), ``cluster``, ``one`` and ``other``, the players (`other` is
    empty where an answer was rated by itself), ``words`` of their answers, ``same`` where these are equal, so that
    nobody was asked, and ``verdicts``: of each order, `one` shown first and then `other`, what `one` won (1, 0.5 or 0;
    None for a reply that says neither), or the one rating or class of error; and the ``calls``' names, where the
    replies' words are.
    """

    about: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def pairwise(self) -> bool:
        return not self.about["judge"]["prompt"]["alone"]

    @property
    def sorts(self) -> bool:
        """Whether it says what is wrong with wrong answers; its verdicts are then `analysis.mistakes.CLASSES`."""
        return any(isinstance(meant, str) for meant in self.about["judge"]["prompt"]["means"].values())

    @property
    def judge(self) -> str:
        """The judge's name, for people."""
        return str(self.about["name"])

    @property
    def style(self) -> str:
        return str(self.about["judge"]["prompt"]["name"])


def place(root: Path, task: str, identity: dict[str, Any]) -> Path:
    return root / FOLDER / task / f"{fingerprint(identity)[:8]}.json"


def write(path: Path, about: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """In place of what is there. Killed between the two files it leaves a pair that `load` refuses."""
    rows = path.with_suffix(".jsonl")
    write_jsonl(rows, lines)
    path.unlink(missing_ok=True)
    write_result(path, {**about, "verdicts_sha256": sha256_file(rows)})


def load(root: Path) -> list[Judging]:
    """All judgings below `root`, by task and name. Raises HarnessError where a byte of one has changed."""
    found = []
    for path in sorted(root.glob(f"{FOLDER}/*/*.json")):
        if path.parent.name == "calls":
            continue
        about, rows = read_result(path), path.with_suffix(".jsonl")
        if not rows.exists() or sha256_file(rows) != about["verdicts_sha256"]:
            raise HarnessError(f"{rows} does not match its checksum; harness judge makes it again, at no call")
        found.append(Judging(about, [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]))
    return found
