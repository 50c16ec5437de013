"""Data: chat rows from a file to token sequences ready to be trained on, beside TRL's own preparation."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench import models
from tests.bench.knobs import Knobs
from tests.bench.peer import Peer, version
from tests.bench.questions import sums
from tests.bench.table import Row, in_turn, say

MAX_LENGTH = 1024
PROCESSES = os.cpu_count() or 1  # of TRL's preparation: its best, tried with one process a core and with one


def data(knobs: Knobs) -> Iterator[Row]:
    """Both begin with a file and an empty cache. One repeat, since it takes long."""
    rows = 2_000 if knobs.tiny else knobs.rows
    trl = version("trl")
    with tempfile.TemporaryDirectory(prefix="bench-data-") as scratch:
        ours, peers = _write_rows(Path(scratch), rows)
        common = {"model": str(models.smollm()), "max_length": MAX_LENGTH}
        our_job = {**common, "file": str(ours), "size": rows, "check": True}
        peer_job = {**common, "file": str(peers), "folder": f"{scratch}/trl", "processes": PROCESSES}
        cache = {"HARNESS_CACHE": f"{scratch}/cache"}
        peaks = {}

        def once(script: str, job: dict[str, Any], **settings: str) -> tuple[float, dict[str, Any]]:
            with Peer(script, job, environment=settings, watch_memory=True) as process:
                seconds, answer = process()
                peaks[script] = process.peak_memory()
            return seconds, answer

        pair = in_turn(
            f"data {rows} rows", lambda: once("our_data.py", our_job, **cache), lambda: once("trl_data.py", peer_job), 1
        )
        other = max(1, rows // 10)
        reopened, _ = once("our_data.py", {**our_job, "size": other, "check": False}, **cache)
        say(f"data: {other} of the rows opened again in a fresh process: {reopened:.2f} s")
    mine, its = pair.our_answers, pair.peer_answers
    # TRL also keeps and learns the line break that the chat template writes after the end of the turn.
    newline = its["tokens"] - rows == mine["tokens"] and its["learned"] - rows == mine["learned"]
    line_break = _line_break()
    equal = newline and its["sum"] - rows * line_break == mine["sum"]
    yield pair.row(
        f"data {rows} rows",
        "TRL preparation",
        trl,
        equal,
        rule="as many tokens, as many learned, the same sum of ids (TRL's line break after each turn apart)",
        tokens=mine["tokens"],
        peer_processes=PROCESSES,
        our_peak_gib=peaks["our_data.py"],
        peer_peak_gib=peaks["trl_data.py"],
        reopen_seconds=round(reopened, 2),
        reopen_rows=other,
    )


def _line_break() -> int:
    from harness.base import load_tokenizer
    from harness.cell import Base

    (token,) = load_tokenizer(Base(name="bench", path=str(models.smollm())))("\n")["input_ids"]
    return int(token)


def _write_rows(folder: Path, count: int) -> tuple[Path, Path]:
    """The same examples in the forms that each likes best: messages for us, prompt and completion for TRL."""
    ours, peers = folder / "messages.jsonl", folder / "prompts.jsonl"
    say(f"data: writing {count} rows")
    with ours.open("w") as mine, peers.open("w") as its:
        for messages in sums(count):
            print(json.dumps({"messages": messages}), file=mine)
            print(json.dumps({"prompt": messages[:1], "completion": messages[1:]}), file=its)
    return ours, peers
