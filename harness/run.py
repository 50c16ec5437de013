"""One cell from configuration to record: the whole story on one screen."""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from harness import base as bases
from harness import board, evaluate, ranks, store
from harness.cell import Cell, OnStep, fingerprint
from harness.clock import Clock, part, running
from harness.data.subset import NOTHING, Subset, load_dataset, subset_identity
from harness.errors import HarnessError


def subset_of(cell: Cell) -> Subset:
    """The cell's examples; refuses a size beyond the dataset."""
    return load_dataset(cell.data).subset(cell.size, cell.subset_seed) if cell.method.uses_data else NOTHING


def identity_of(cell: Cell, examples: Subset) -> dict[str, Any]:
    """The cell's training identity, with what its base and examples are."""
    return cell.identity(bases.identity(cell.base), subset_identity(examples))


def run(cell: Cell, on_step: OnStep | None = None) -> Path:
    """Do what is not done yet of: adapt the base, score every task, write the record. Returns the cell's folder.

    Raises HarnessError where the folder holds another experiment. What was finished before is not done again.
    """
    if ranks.count() > 1 and cell.run.eval_backend == "vllm":
        raise HarnessError("vLLM starts processes of its own; under accelerate launch set run.eval_backend=shared")
    if not cell.run.profile:
        return _run(cell, on_step)
    with running(Clock()) as clock, part("cell"):
        folder = _run(cell, on_step)
    if ranks.first():
        store.write_json(folder / "profile.json", clock.as_dict())
        print(clock.table(), file=sys.stderr)
    return folder


def _run(cell: Cell, on_step: OnStep | None) -> Path:
    folder = cell.folder()
    with part("examples"):
        examples = subset_of(cell)
        identity = identity_of(cell, examples)
    store.check_drift(folder, identity)
    wanted = {name: evaluate.identity(name, task) for name, task in cell.evals.items()}
    if ranks.agree(lambda: store.is_done(cell, wanted)):
        return folder
    started, mirror = time.time(), board.CellRun()
    if ranks.first():
        mirror = board.open_cell(cell.wandb, **_mirrored(cell, identity, folder))

    def step(number: int, steps: int, values: dict[str, float]) -> None:
        mirror.log(number, values)
        if on_step:
            on_step(number, steps, values)

    summary: dict[str, Any] = {"examples": cell.size}
    try:
        with part("load the base"):
            base = bases.load(cell.base, cell.run.device)
        with cell.method.adapt(base, examples, cell, folder, step) as adapted:
            trained = {"identity": identity, "training": adapted.training}
            _write_once(folder / store.TRAINED, lambda: trained)
            for name, task in cell.evals.items():
                path = store.score_path(folder, name, wanted[name])
                if not ranks.agree(path.exists):
                    with part(f"evaluate {name}"):
                        result = evaluate.evaluate(base, adapted, name, task, cell.run)
                    ranks.agree(partial(_write_scores, path, result, fingerprint(wanted[name])))
                for score in ranks.agree(partial(store.read_json, path))["scores"]:
                    summary[f"{name}/{score['metric']}/{score['filter']}"] = score["score"]
        _write_once(folder / store.RECORD, lambda: _record(cell, identity, examples, adapted.training, started))
    except BaseException:
        mirror.finish(summary, ok=False)
        raise
    (folder / store.FAILURE).unlink(missing_ok=True)
    mirror.finish(summary)
    return folder


def _write_once(path: Path, value: Callable[[], Any]) -> None:
    """The first rank writes what is not there; the others wait for it."""

    def write() -> None:
        if not path.exists():
            store.write_json(path, value())

    ranks.agree(write)


def _write_scores(path: Path, result: dict[str, Any], mark: str) -> None:
    store.write_jsonl(path.with_suffix(".jsonl"), result.pop("samples"))
    store.write_json(path, {**result, "fingerprint": mark, "finished": time.time()})


def _record(
    cell: Cell, identity: dict[str, Any], examples: Subset, training: dict[str, Any], started: float
) -> dict[str, Any]:
    manifest = load_dataset(cell.data).manifest(examples, cell.subset_seed) if cell.method.uses_data else None
    return {
        "fingerprint": fingerprint(identity),
        "identity": identity,
        "cell": as_dict(cell),
        "row": store.row(cell, identity, training),
        "manifest": manifest,
        "training": training,
        "started": started,
        "wall_seconds": time.time() - started,
        "processes": ranks.count(),
        "peak_memory_bytes": _peak_memory(),
        "provenance": store.provenance(),
    }


def as_dict(cell: Cell) -> dict[str, Any]:
    """The cell as plain data, the method's name among its fields."""
    return {**dataclasses.asdict(cell), "method": {"name": cell.method.name, **dataclasses.asdict(cell.method)}}


def _mirrored(cell: Cell, identity: dict[str, Any], folder: Path) -> dict[str, Any]:
    config = {k: v for k, v in as_dict(cell).items() if k not in ("run", "wandb", "evals")}
    name = f"{cell.base.name}/{cell.data.name}/{cell.method.name}/{folder.name}"
    return {
        "run_id": fingerprint([cell.sweep, identity])[:16],
        "name": name,
        "group": cell.sweep,
        "config": {**config, "evals": sorted(cell.evals), "fingerprint": fingerprint(identity)},
        "folder": folder,
    }


def _peak_memory() -> int:
    """Bytes: the accelerator's peak where there is one, else the process's resident peak (of all its cells so far)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
