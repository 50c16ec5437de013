"""One cell from configuration to record: the whole story on one screen."""

import dataclasses
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from harness import asked, evaluate, ranks, retention, search, store
from harness import base as bases
from harness import lease as leases
from harness.along import Along
from harness.artifact import sha256_file
from harness.cell import Attempt, Cell, OnPhase, OnStep
from harness.clock import Clock, part, running
from harness.data.overlap import copies
from harness.data.subset import NOTHING, Subset, load_dataset, subset_identity
from harness.errors import HarnessError
from harness.files import clear_unfinished
from harness.identity import fingerprint
from harness.lease import Lease
from harness.telling import Telling


def subset_of(cell: Cell) -> Subset:
    """The cell's examples; refuses a size beyond the dataset."""
    return load_dataset(cell.data).subset(cell.size, cell.subset_seed) if cell.method.uses_data else NOTHING


def identity_of(cell: Cell, examples: Subset) -> dict[str, Any]:
    """The cell's training identity, with what its base and examples are."""
    return cell.identity(bases.identity(cell.base), subset_identity(examples), search.rule(cell))


def wanted_of(cell: Cell) -> dict[str, dict[str, Any]]:
    """The identity of each of its evaluations, by name."""
    return {name: evaluate.identity(name, task) for name, task in cell.evals.items()}


def is_done(cell: Cell) -> bool:
    """Whether nothing of the cell is left to do. Raises HarnessError where its folder holds another experiment."""
    store.check_drift(cell.folder(), identity_of(cell, subset_of(cell)))
    return store.is_done(cell, wanted_of(cell))


def run(cell: Cell, on_step: OnStep | None = None, on_phase: OnPhase | None = None) -> Path:
    """Do what is not done yet of: adapt the base, score every task, write the record. Returns the cell's folder.

    Raises HarnessError where the folder holds another experiment. What was finished before is not done again.
    """
    if ranks.count() > 1 and cell.run.eval_backend == "vllm":
        raise HarnessError("vLLM starts processes of its own; under accelerate launch set run.eval_backend=shared")
    if not cell.run.profile:
        return _run(cell, on_step, on_phase)
    with running(Clock()) as clock, part("cell"):
        folder = _run(cell, on_step, on_phase)
    if ranks.first():
        store.write_json(folder / "profile.json", clock.as_dict())
        print(clock.table(), file=sys.stderr)
    return folder


def _run(cell: Cell, on_step: OnStep | None, on_phase: OnPhase | None) -> Path:
    folder = cell.folder()
    with part("examples"):
        examples = subset_of(cell)
        identity = identity_of(cell, examples)
    wanted = wanted_of(cell)

    def done() -> bool:
        store.check_drift(folder, identity)
        return store.is_done(cell, wanted)

    if ranks.agree(done):
        return folder
    with _claimed(folder) as lease:
        if not ranks.agree(done):  # another process may have been at it until just now
            _work(cell, examples, identity, wanted, lease, on_step, on_phase)
    return folder


@contextmanager
def _claimed(folder: Path) -> Iterator[Lease | None]:
    """Hold the cell for as long as the context lasts; only the first rank has the lease. Raises BusyError."""
    lease = leases.take(folder) if ranks.first() else None
    if ranks.agree(lambda: lease is None):
        raise leases.BusyError(
            f"{folder} is being worked on by {leases.owner(folder) or 'another process'}; wait for it, or run "
            "harness sweep again, which goes round such cells and comes back to them"
        )
    try:
        yield lease
    finally:
        if lease:
            lease.release()


def _work(
    cell: Cell,
    examples: Subset,
    identity: dict[str, Any],
    wanted: dict[str, dict[str, Any]],
    lease: Lease | None,
    on_step: OnStep | None,
    on_phase: OnPhase | None,
) -> None:
    folder, started = cell.folder(), time.time()
    if ranks.first():
        clear_unfinished(folder)
    telling = Telling(cell, as_dict(cell), identity, lease, on_step, on_phase)

    def commit(path: Path, value: Callable[[], Any]) -> None:
        """The first rank writes what is not there, if the cell is still its own; the others wait for it."""

        def write() -> None:
            if lease and not path.exists():
                content = value()
                lease.check()
                try:
                    store.write_result(path, content)
                except FileExistsError as error:
                    raise leases.LostError(f"{path} was written by another process meanwhile") from error

        ranks.agree(write)

    try:
        telling.phase("loading the base")
        with part("load the base"):
            base = bases.load(cell.method.resident(cell.base), cell.run.device)
        checkpoints = folder / "checkpoints" / fingerprint(identity)[:16]
        attempt = Attempt(
            folder,
            checkpoints,
            on_step=telling.step,
            on_resumed=telling.resumed,
            still_ours=lease.check if lease else lambda: None,
            trunk=partial(_trunk, cell, identity, examples),
            along=Along(base, cell, wanted, commit, telling.phase),
        )
        settled, rate = cell, dict[str, Any]()
        if cell.method.trains and not ranks.agree((folder / store.TRAINED).exists):
            settled, rate = search.settle(cell, identity, base, examples, partial(run, on_step=on_step), telling.phase)
            telling.phase("training")
        with settled.method.adapt(base, examples, settled, attempt) as adapted:
            adapted.training |= rate
            trained = {"identity": identity, "training": adapted.training}
            commit(folder / store.TRAINED, lambda: trained)
            among, overlaps = asked.items_among(cell.evals, examples), dict[str, Any]()
            of_all = examples if len(cell.method.parts(cell)) == 1 else None  # else each stage had its own
            for name, task in cell.evals.items():
                path = store.score_path(folder, name, wanted[name])
                if not ranks.agree(path.exists):
                    telling.phase(f"evaluating {name}")
                    with part(f"evaluate {name}"):
                        result = evaluate.evaluate(base, adapted, name, task, cell.run, of_all)
                        result |= {"items_in_training": among[name], "elsewhere": task.elsewhere}
                        if len(examples):
                            result["overlap"] = asked.overlap(name, task, examples, cell.data.contamination.words)
                    commit(path, partial(_scores, path, result, fingerprint(wanted[name])))
                kept = ranks.agree(partial(store.read_result, path))
                telling.scores[name], overlaps[name] = kept["scores"], kept.get("overlap")
        number = lease.number if lease else 0
        told: dict[str, Any] = {
            "training": adapted.training,
            "overlaps": overlaps,
            "attempt": number,
            "started": started,
        }
        commit(folder / store.RECORD, lambda: _record(cell, identity, examples, **told))
    except BaseException as error:
        telling.end(error)
        raise
    if ranks.first():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        retention.prune(cell)
    telling.end()


def _trunk(cell: Cell, identity: dict[str, Any], examples: Subset, count: int) -> Path:
    """Where the state after the first `count` examples lies, which any size of this curve may have left."""
    begun = {**identity["data"], "subset": subset_identity(examples[:count])}
    mark = fingerprint({**identity, "size": count, "data": begun})
    return cell.folder().parent / ".trunk" / mark[:16]


def _scores(path: Path, result: dict[str, Any], mark: str) -> dict[str, Any]:
    """What is kept of an evaluation; the answers item by item go into a file of their own, first."""
    answers = path.with_suffix(".jsonl")
    store.write_jsonl(answers, result.pop("samples"))
    return {**result, "fingerprint": mark, "answers_sha256": sha256_file(answers), "finished": time.time()}


def _record(
    cell: Cell,
    identity: dict[str, Any],
    examples: Subset,
    *,
    training: dict[str, Any],
    overlaps: dict[str, Any],
    attempt: int,
    started: float,
) -> dict[str, Any]:
    manifest = None
    if cell.method.uses_data:
        manifest = load_dataset(cell.data).manifest(examples, cell.subset_seed)
        manifest |= {"copies": copies(examples), "overlap": overlaps}
    return {
        "fingerprint": fingerprint(identity),
        "identity": identity,
        "cell": as_dict(cell),
        "attempt": attempt,
        "row": store.row(cell, identity, training),
        "manifest": manifest,
        "training": training,
        "started": started,
        "wall_seconds": time.time() - started,
        "processes": ranks.count(),
        "peak_memory_bytes": _peak_memory(),
        "device": _device(),
        "provenance": store.provenance(),
    }


def as_dict(cell: Cell) -> dict[str, Any]:
    """The cell as plain data, the method's name among its fields; without the engine, which is no part of it."""
    fields = {k: v for k, v in dataclasses.asdict(cell).items() if k != "engine"}
    return {**fields, "method": {"name": cell.method.name, **cell.method.settings()}}


def _device() -> str:
    """What computed it."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _peak_memory() -> int:
    """Bytes: the accelerator's peak where there is one, else the process's resident peak (of all its cells so far)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
