"""Chaos: a sweep whose processes are killed at random until it is done leaves what an undisturbed one leaves.

``python -m tests.soak`` runs 30 cells with 3 workers; tests/test_soak.py a small one.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import store
from harness.artifact import sha256_file
from tests.conftest import ITEMS, make_tokenizer, pairs, save_tiny, write_jsonl

TASK = """\
quiz:
  file: {items}
  headline: exact_match/strict
  task:
    output_type: generate_until
    doc_to_text: '{{{{question}}}}'
    doc_to_target: '{{{{answer}}}}'
    generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
    metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
    filter_list:
      - {{name: strict, filter: [{{function: take_first}}]}}
"""
SWEEP = """\
hypothesis: it survives
cell: {{base: tiny, data: pairs, evals: quiz, subset_seed: '${{seed}}', wandb.mode: disabled, run.device: cpu,
       run.threads: 1, run.checkpoint_seconds: 0.1}}
arms:
  sft: {{method: sft, method.lr: 1e-2, method.min_steps: 200, method.batch_size: 4, size: '{sizes}',
        seed: 'range(0,{seeds})'}}
"""


def write_sweep(folder: Path, sizes: str, seeds: int) -> Path:
    """A configuration folder with a sweep `soak` over a tiny base: sizes by seeds, and the base's own cell."""
    base = save_tiny(folder / "tiny", make_tokenizer())
    rows, items = write_jsonl(folder / "pairs.jsonl", pairs(128)), write_jsonl(folder / "items.jsonl", ITEMS * 8)
    files = {
        "base/tiny.yaml": f"name: tiny\npath: {base}\ndtype: float32\n",
        "data/pairs.yaml": "defaults: [{/form@sources.pairs.form: prompt_completion}]\n"
        f"name: pairs\nsources: {{pairs: {{path: {rows}}}}}\n",
        "evals/quiz.yaml": TASK.format(items=items),
        "sweeps/soak.yaml": SWEEP.format(sizes=sizes, seeds=seeds),
    }
    for name, text in files.items():
        (folder / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "conf" / name).write_text(text)
    return folder / "conf"


def start(config: Path, root: Path, *flags: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "harness", "sweep", "soak", f"run.root={root}", *flags]
    with (root.parent / f"{root.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--config-dir", str(config)], stdout=log, stderr=log, env=environment, cwd=root.parent
        )


def disturb(begin: Callable[[], subprocess.Popen[bytes]], root: Path, chance: random.Random, kills: int) -> None:
    """Kill the sweep or one of its workers, as often as told, and begin it anew where it ended, until it is done.

    A kill waits for something new in the store, so there is an end however slow the machine.
    """
    sweep = begin()
    while True:
        before = kept(root)
        while sweep.poll() is None and (not kills or kept(root) == before):
            time.sleep(0.05)
        if sweep.poll() == 0:
            return
        if sweep.poll() is not None:
            sweep = begin()
            continue
        time.sleep(chance.uniform(0, 1))
        victims = [sweep.pid] + 3 * workers_of(sweep.pid)
        os.kill(chance.choice(victims), signal.SIGKILL)
        kills -= 1


def kept(root: Path) -> set[str]:
    """Checkpoints, adapters, scores and records."""
    found = ((at, name) for at, _, names in os.walk(root) for name in names)  # what goes away meanwhile is no trouble
    return {at + name for at, name in found if name.endswith((".safetensors", ".json")) and name[0] != "."}


def workers_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(child) for child in listed.read_text().split()] if listed.exists() else []
    return [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def contents(root: Path) -> dict[str, Any]:
    """All that a sweep's output means: by cell, its identity, scores, answers and adapter; times and hosts aside."""
    found: dict[str, Any] = {}
    for folder in store.records(root):
        record = store.read_json(folder / store.RECORD)
        scores = sorted(folder.glob("evals/*/*.json"))
        adapter = folder / "adapter_model.safetensors"
        training = {k: v for k, v in record["training"].items() if k not in ("seconds", "resumed")}
        found[str(folder.relative_to(root))] = (
            record["fingerprint"],
            record["manifest"],
            training,
            [store.read_json(path)["scores"] for path in scores],
            [path.with_suffix(".jsonl").read_text() for path in scores],
            sha256_file(adapter) if adapter.exists() else None,
            sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.name.startswith(".lease-")),
        )
    return found


def same(calm: Path, other: Path) -> int:
    """How many cells both sweeps have; raises AssertionError where they differ."""
    wanted, got = contents(calm), contents(other)
    assert wanted.keys() == got.keys()
    for cell in wanted:
        assert wanted[cell] == got[cell], cell
    return len(wanted)


def soak(folder: Path, *, sizes: str, seeds: int, workers: int, kills: int, seed: int) -> str:
    """Run both sweeps and compare; returns what happened, raises AssertionError where they differ."""
    config = write_sweep(folder, sizes, seeds)
    began = time.monotonic()
    assert start(config, folder / "calm", "run.workers=2").wait() == 0, (folder / "calm.log").read_text()
    calm = time.monotonic() - began
    begin = lambda: start(config, folder / "chaos", f"run.workers={workers}", "--retry-failed")  # noqa: E731
    disturb(begin, folder / "chaos", random.Random(seed), kills)
    cells = same(folder / "calm", folder / "chaos")
    resumed = [
        store.read_json(f / store.RECORD)["training"].get("resumed", []) for f in store.records(folder / "chaos")
    ]
    return (
        f"{cells} cells, {calm:.0f} s undisturbed; {kills} kills in {time.monotonic() - began - calm:.0f} s; "
        f"{sum(map(bool, resumed))} cells went on from a checkpoint, {sum(map(len, resumed))} times; all equal"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Kill a sweep at random until it is done."
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        sizes = "4,6,8,12,16,24,32,48,64,96"
        print(soak(Path(scratch), sizes=sizes, seeds=3, workers=3, kills=40, seed=given.seed))
