"""A whole sweep from process start to scores: `harness sweep` beside a shell loop of a TRL script and `lm_eval`."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra.utils

from harness import store
from harness.cell import Cell
from harness.data.subset import load_dataset
from harness.sweep import sweep_cells
from tests.bench import models
from tests.bench.knobs import Knobs
from tests.bench.peer import ROOT, SCRIPTS, version
from tests.bench.table import Row, in_turn, say, timed
from tests.bench.training import in_our_order

HERE = Path(__file__).parent
TASK, HEADLINE, LIMIT = "chain_sum", "flexible-extract", 100
Scores = dict[str, tuple[float, float]]  # by cell, "16-0" or "base": score and standard error


def sweep(knobs: Knobs) -> Iterator[Row]:
    """The same five examples before every question."""
    yield _sweep("sweep", HERE / "sweep_cells.yaml", knobs)


def sweep_drawn(knobs: Knobs) -> Iterator[Row]:
    """More to train on, and other examples before each question, so that there is nothing to share."""
    yield _sweep("sweep_drawn", HERE / "sweep_drawn_cells.yaml", knobs)


def _sweep(work: str, definition: Path, knobs: Knobs) -> Row:
    """All eleven cells on both sides, once: no start-up or loading is left out."""
    trl, lm_eval = version("trl"), version("lm_eval")
    limit = 4 if knobs.tiny else LIMIT
    overrides = [f"evals.{TASK}.limit={limit}", *(["size=4", "seed=0"] if knobs.tiny else [])]
    os.environ["BENCH_MODEL"] = str(models.smollm())
    _, cells = sweep_cells(str(definition), overrides)
    trained = [cell for cell in cells if cell.size]
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as scratch:
        folder = Path(scratch)
        _write_for_peer(trained, folder)
        # Nothing that an earlier run has left behind helps either side.
        fresh = {**os.environ, "HARNESS_CACHE": f"{scratch}/cache", "HF_DATASETS_CACHE": f"{scratch}/datasets"}
        runs = folder / "runs"
        our_command = [sys.executable, "-m", "harness", "sweep", str(definition), f"run.root={runs}", *overrides]
        loop = [f"{cell.size}:{cell.seed}" for cell in trained]
        peer_command = [str(SCRIPTS / "sweep.sh"), str(models.smollm()), scratch, sys.executable, str(limit)]
        peer_command += ["1" if cells[0].evals[TASK].chat else "0", *loop]
        say(f"{work}: {len(cells)} cells on each side; the peer's take about a minute and a half each")
        pair = in_turn(
            work,
            lambda: _run(our_command, fresh, folder / "ours.log"),
            lambda: _run(peer_command, fresh, folder / "peer.log"),
            1,
        )
        mine, its = _our_scores(runs), _peer_scores(folder / "scores")
    if mine.keys() != its.keys():
        raise RuntimeError(f"the two did not score the same cells: {sorted(mine)} and {sorted(its)}")
    apart = {cell: abs(mine[cell][0] - its[cell][0]) for cell in mine}
    equal = all(apart[cell] <= mine[cell][1] + its[cell][1] for cell in mine)
    return pair.row(
        work,
        "shell loop of TRL and lm_eval",
        f"{trl}, {lm_eval}",
        equal,
        rule="every cell's score within the two standard errors",
        cells=len(cells),
        items=limit,
        our_scores={cell: score for cell, (score, _) in mine.items()},
        peer_scores={cell: score for cell, (score, _) in its.items()},
        largest_difference=max(apart.values()),
    )


def _write_for_peer(cells: list[Cell], folder: Path) -> None:
    """The cells' examples in the order in which ours are trained on, and the task, in the forms that the peers read."""
    for cell in cells:
        examples = load_dataset(cell.data).subset(cell.size, cell.subset_seed)
        rows = folder / "rows" / f"{cell.size}-{cell.seed}.jsonl"
        turns = [list(example.messages) for example in examples]
        batch = cell.method.batch_size  # type: ignore[attr-defined]
        store.write_jsonl(
            rows, [{"prompt": t[:-1], "completion": t[-1:]} for t in in_our_order(turns, batch, cell.seed)]
        )
    task = cells[0].evals[TASK]
    items = hydra.utils.instantiate(task.make).path()
    spec = {
        **task.task,
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items)}},
        "test_split": "test",
        "fewshot_split": "test",
    }
    store.write_json(folder / "tasks" / f"{TASK}.yaml", spec)  # JSON is YAML


def _run(command: list[str], environment: dict[str, str], log: Path) -> tuple[float, None]:
    with log.open("w") as out:
        seconds, done = timed(
            lambda: subprocess.run(
                command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, check=False
            )
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{log.read_text()[-3000:]}")
    return seconds, None


def _our_scores(runs: Path) -> Scores:
    frame = store.load(runs)
    lead = frame[(frame.task == TASK) & (frame["filter"] == HEADLINE)]
    return {
        f"{row['size']}-{row['seed']}" if row["size"] else "base": (float(row["score"]), float(row["stderr"]))
        for row in lead.to_dict("records")
    }


def _peer_scores(folder: Path) -> Scores:
    scores = {}
    for file in folder.rglob("results_*.json"):
        result: dict[str, Any] = json.loads(file.read_text())["results"][TASK]
        cell = file.relative_to(folder).parts[0]
        scores[cell] = (result[f"exact_match,{HEADLINE}"], result[f"exact_match_stderr,{HEADLINE}"])
    return scores
