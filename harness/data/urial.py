"""A prompt file of URIAL (Lin et al. 2023, arXiv 2312.01552) as rows: the instruction, each query and its answer."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from harness.artifact import build_once, cache_dir, sha256_file
from harness.errors import HarnessError
from harness.identity import fingerprint

_PAIR = re.compile(r"^# Query:\s*```(.*?)```\s*^# Answer:\s*```(.*?)```\s*(?=^# Query:|\Z)", re.DOTALL | re.MULTILINE)


@dataclass
class UrialPrompt:
    """An Artifact: JSONL with the columns system, question and answer, in the order of the prompt file `file`."""

    file: str

    def _read(self) -> list[dict[str, str]]:
        text = Path(self.file).expanduser().read_text(encoding="utf-8")
        head, *queries = re.split(r"^(?=# Query:)", text, flags=re.MULTILINE)
        pairs = _PAIR.findall("".join(queries))
        if len(pairs) != len(queries) or not pairs:
            raise HarnessError(f"{self.file} has not URIAL's form: # Query: and # Answer:, each followed by ``` fences")
        system = head.strip().removeprefix("# Instruction").strip()
        return [{"system": system, "question": q.strip(), "answer": a.strip()} for q, a in pairs]

    def identity(self) -> str:
        path = Path(self.file).expanduser()
        if not path.is_file():
            raise HarnessError(f"{self.file} is not a file; URIAL's are in urial_prompts/ of github.com/Re-Align/URIAL")
        return fingerprint(["urial", 1, sha256_file(path)])

    def path(self) -> Path:
        def build(folder: Path) -> None:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self._read()]
            (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")

        return build_once(cache_dir() / "urial" / self.identity()[:32], build) / "rows.jsonl"
