"""The files a cell leaves: one folder each, written so that existence means done.

    <cell>/train.json            the method is through; its adapter, if any, lies beside it
    <cell>/losses.jsonl          training loss by step
    <cell>/evals/<task>/<8 hex>.json    scores of one task; the hex is of the evaluation's fingerprint
    <cell>/evals/<task>/<8 hex>.jsonl   per-item outputs
    <cell>/along/<task>/<8 hex>-<step>.json    scores in the course of the training, where they were asked for
    <cell>/record.json           last of all: the cell is done
    <cell>/attempt.json          what is being tried, and the number of the try; gone once the cell is done
    <cell>/failure.json          why the last try ended, if it failed

A record is never rewritten. Evaluations can be added later, each in a file of its own. What is a result (all but losses
and failure) carries its own sha256 or that of the file beside it, so that changed bytes are told. No torch here.
"""

import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd

from harness.cell import Cell
from harness.errors import HarnessError
from harness.files import whole
from harness.identity import differences, fingerprint

RECORD, TRAINED, FAILURE, ATTEMPT = "record.json", "train.json", "failure.json", "attempt.json"
ADAPTER, MODEL = "adapter_model.safetensors", "model.safetensors"  # what is trained: an adapter, or all weights
WEIGHTS = (ADAPTER, MODEL)
LOSSES = "losses.jsonl"
FAILED = ("failed", "diverged")  # statuses of a cell that waits for somebody to look at it
SEAL = b',\n "sha256": "'  # between a result and its checksum


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    with whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_result(path: Path, value: dict[str, Any]) -> None:
    """Write once, whole or not at all, and last in it the sha256 of all before, by which `read_result` knows it again.

    Raises FileExistsError where the file is there already.
    """
    body = json.dumps(value, indent=1, ensure_ascii=False).removesuffix("\n}").encode()
    with whole(path, once=True) as scratch:
        scratch.write_bytes(body + SEAL + _end(body))


def read_result(path: Path) -> dict[str, Any]:
    """What `write_result` wrote. Raises HarnessError where a byte of it has changed since."""
    body, _, end = path.read_bytes().rpartition(SEAL)
    if end != _end(body):
        again = path.parent if path.name in (RECORD, TRAINED) else path
        raise HarnessError(f"{path} does not match its checksum; delete {again} to have it made again")
    return dict(json.loads(body + b"\n}"))


def _end(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + b'"\n}'


def write_failure(cell: Cell, status: str, trace: str) -> None:
    """Why the last try at a cell left no record; `status` is failed, diverged or preempted."""
    about = {"row": {**row(cell, {}, {}), "fingerprint": "", "status": status}, "traceback": trace}
    write_json(cell.folder() / FAILURE, about)


def last_status(folder: Path) -> str:
    """What `write_failure` said of the last try at the cell; empty if it was not called."""
    return str(read_json(folder / FAILURE)["row"]["status"]) if (folder / FAILURE).exists() else ""


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    with whole(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score_path(folder: Path, task: str, identity: dict[str, Any]) -> Path:
    """Where the scores of `task` under this evaluation identity lie."""
    return folder / "evals" / task / f"{fingerprint(identity)[:8]}.json"


def along_path(folder: Path, task: str, identity: dict[str, Any], step: int) -> Path:
    """Where the scores of `task` after so many steps of the training lie."""
    return folder / "along" / task / f"{fingerprint(identity)[:8]}-{step:09d}.json"


def check_drift(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse a folder that holds another experiment than `identity` under the same names."""
    for name in (RECORD, TRAINED):
        if (folder / name).exists():
            old = read_result(folder / name)["identity"]
            if fingerprint(old) != fingerprint(identity):
                changed = "; ".join(differences(old, identity))
                raise HarnessError(
                    f"{folder} holds a result of another experiment: {changed}. "
                    "Nothing was changed. Rename the base or data, or choose another run.root or sweep name"
                )


def is_done(cell: Cell, eval_identities: dict[str, dict[str, Any]]) -> bool:
    """Whether the cell's record and all scores it asks for exist."""
    folder = cell.folder()
    scores = (score_path(folder, task, identity).exists() for task, identity in eval_identities.items())
    return (folder / RECORD).exists() and all(scores)


def records(root: Path) -> list[Path]:
    """Folders of all cells below `root` that finished or failed, sorted; not what lies in a hidden folder there."""
    if not root.is_dir():
        raise HarnessError(f"{root} is not a folder; give the output of a sweep, e.g. runs/pocket")
    found = {p.parent for name in (RECORD, FAILURE) for p in root.rglob(name)}
    return sorted(folder for folder in found if not _hidden(folder.relative_to(root)))


def _hidden(path: Path) -> bool:
    return any(name.startswith(".") for name in path.parts)


COLUMNS = (
    "sweep base data method variant size seed subset_seed task metric filter headline score stderr "
    "n_items higher_is_better status tokens train_seconds eval_seconds fingerprint eval_fingerprint "
    "base_note path copies items_in_training lr lr_rule lr_at_edge held_out_loss steps flops adapter_bits probe "
    "elsewhere"
).split()


def load(root: Path | str) -> pd.DataFrame:
    """All cells below `root`, one row for each (cell, task, metric, filter); see `COLUMNS`.

    `score` and `stderr` (lm-eval's, over items) are in the metric's own unit; `tokens` are target tokens trained on;
    times in seconds; `copies` are examples that repeat another one, `items_in_training` items of the task that stand
    word for word among the examples. `lr` is the learning rate, `lr_rule` where it comes from (given, auto or search)
    and `lr_at_edge` whether the best one stood at the edge of the grid; `held_out_loss` is in nats. `steps` are
    optimizer steps, `flops` those of the training, `adapter_bits` the bits of the weights that it leaves, as they are
    stored; all three are empty for what was not trained. `probe` is the class of the probe (`harness.probe`) that a
    score is of, empty for a task's own; `elsewhere` says that the task was marked so when it was scored. A cell whose
    last try left no record has one row with status "failed", "diverged" or "preempted", an empty task and no score.
    Where a task was scored under several evaluation fingerprints (a changed template, say), the newest one is given.
    """
    rows: list[dict[str, Any]] = []
    for folder in records(Path(root)):
        if (folder / RECORD).exists():
            rows += _score_rows(folder, Path(root))
        else:
            rows.append({**read_json(folder / FAILURE)["row"], "path": _relative(folder, root)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _score_rows(folder: Path, root: Path) -> list[dict[str, Any]]:
    record = read_result(folder / RECORD)
    copies = (record["manifest"] or {}).get("copies", 0)
    shared = {**record["row"], "status": "ok", "path": _relative(folder, root), "copies": copies}
    training = record["training"]
    shared |= {"steps": training.get("steps"), "flops": training.get("flops"), "adapter_bits": _bits(record)}
    rows = []
    for task, newest in _newest(folder).items():
        extra = {"task": task, "eval_seconds": newest["seconds"], "eval_fingerprint": newest["fingerprint"]}
        extra |= {"items_in_training": newest["items_in_training"]}
        extra |= {"probe": newest["identity"].get("probe", {}).get("name", "")}
        extra |= {"elsewhere": newest.get("elsewhere", False)}
        rows += [{**shared, **extra, **score} for score in newest["scores"]]
    return rows


def _bits(record: dict[str, Any]) -> float | None:
    """An adapter is kept in float32, all weights in the base's own type."""
    training, dtype = record["training"], record["cell"]["base"]["dtype"]
    if "trained_parameters" not in training:
        return None
    return training["trained_parameters"] * (16 if "model_sha256" in training and dtype.endswith("16") else 32)


def load_along(root: Path | str) -> pd.DataFrame:
    """Scores in the course of training of all done cells below `root`, a row a cell, task, metric, filter and step.

    Columns as those of `load`, and `step`, of `steps`. Those of the end, in `load`, are not repeated. Of a task that
    was scored under several evaluation fingerprints, those of the newest of its scores at the end.
    """
    rows = []
    for folder in records(Path(root)):
        if not (folder / RECORD).exists() or not (folder / "along").exists():
            continue
        shared = {**read_result(folder / RECORD)["row"], "path": _relative(folder, root)}
        for task, newest in _newest(folder).items():
            for path in sorted((folder / "along" / task).glob(f"{newest['fingerprint'][:8]}-*.json")):
                then = read_result(path)
                extra = {"task": task, "step": then["step"], "steps": then["steps"]}
                rows += [{**shared, **extra, **score} for score in then["scores"]]
    return pd.DataFrame(rows, columns=[*COLUMNS, "step"])


def newest_scores(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The scores of a cell by task, of each task's newest evaluation."""
    return {task: newest["scores"] for task, newest in _newest(folder).items()}


def newest_identities(folder: Path) -> dict[str, dict[str, Any]]:
    """What each task's newest evaluation of a cell asked, and how, by task."""
    return {task: newest["identity"] for task, newest in _newest(folder).items()}


def _newest(folder: Path) -> dict[str, dict[str, Any]]:
    """By task, what was kept of its newest evaluation."""
    found = {}
    for task in sorted((folder / "evals").iterdir()) if (folder / "evals").exists() else []:
        if scored := [read_result(p) for p in task.glob("*.json")]:
            found[task.name] = max(scored, key=lambda s: s["finished"])
    return found


def _relative(folder: Path, root: Path | str) -> str:
    return folder.relative_to(root).as_posix()


def row(cell: Cell, identity: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """The columns of `load` that belong to the cell as a whole; kept in its record so that reading needs no schema."""
    return {
        "sweep": cell.sweep,
        "base": cell.base.name,
        "data": cell.data.name,
        "method": cell.method.name,
        "variant": cell.method.variant(),
        "size": cell.size,
        "seed": cell.seed,
        "subset_seed": cell.subset_seed,
        "tokens": training.get("target_tokens", 0),
        "train_seconds": training.get("seconds", 0.0) - training.get("shared_seconds", 0.0),  # its own, not the trunk's
        "fingerprint": fingerprint(identity),
        "base_note": cell.base.note,
        "lr": training.get("lr"),
        "lr_rule": training.get("lr_rule", ""),
        "lr_at_edge": training.get("search", {}).get("edge", False),
        "held_out_loss": training.get("held_out_loss"),
    }


@functools.cache
def provenance() -> dict[str, Any]:
    """Versions, git commit and dirty flag of the harness, host and platform. Never the environment or the arguments."""
    packages = ("torch", "transformers", "peft", "lm-eval", "datasets", "accelerate", "hydra-core", "wandb", "pandas")
    here = Path(__file__).parent
    tracked = _git(here, "ls-files", "store.py")  # not so for a wheel installed inside somebody else's checkout
    return {
        "harness": importlib.metadata.version("superficial-alignment-harness"),
        "versions": {p: importlib.metadata.version(p) for p in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "host": platform.node(),
        "git_commit": _git(here, "rev-parse", "HEAD") if tracked else None,
        "git_dirty": bool(_git(here, "status", "--porcelain", "--untracked-files=no")) if tracked else None,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """Git's answer, or None where the harness is not in a git checkout (an installed wheel) or git is absent."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
