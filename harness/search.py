"""The learning rate of a cell where it is not given: by the published rule, or the best of a grid.

    <sweep>/.lr/<16 hex>/<base>/<data>/<method>/n...    one candidate, a cell like any other but of seed 0
    <sweep>/.lr/<16 hex>/choice.json                    how all of them did, and which was chosen

One choice is shared by all seeds of a base, data, method and size; the folder's name covers all that it rests on. Each
candidate trains on the subset of seed 0 and is asked the development evaluation, never the cell's own, or measured on
examples that no size learns from. Whoever needs a choice helps to make it: candidates are leased, resumed and kept as
cells are, so several workers try different ones and a killed search goes on where it was.
"""

import contextlib
import dataclasses
import math
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import evaluate, ranks, store
from harness.asked import shared_items
from harness.base import place_of
from harness.cell import Base, Cell, Task, Wandb
from harness.data.subset import held_out, load_dataset
from harness.errors import DivergedError, HarnessError
from harness.identity import fingerprint
from harness.lease import BEAT, BusyError
from harness.schedule import Schedule, Search
from harness.secrets import redacted
from harness.tuning import Learner

CHOICE = "choice.json"
Identify = Callable[[str, Task], dict[str, Any]]


def rule(cell: Cell, identify: Identify = evaluate.identity) -> dict[str, Any] | None:
    """What the cell's learning rate or its loss on held-out examples rests on, beside its settings; for its identity.

    lm-eval's version is left out: a choice stands, once made. Raises HarnessError where the size needs all examples.
    """
    method, found = cell.method, dict[str, Any]()
    if not isinstance(method, Schedule):
        return None
    first = dataclasses.replace(cell, subset_seed=0) if method.lr == "search" else cell
    if method.held_out:
        found["held_out"] = held_out(first, method.held_out).identity
    if method.lr == "search":
        found["subset"] = load_dataset(cell.data).subset(cell.size, 0).identity
        asked = {name: identify(name, task) for name, task in method.search.evals.items()}
        found["evals"] = {name: {k: v for k, v in its.items() if k != "lm_eval"} for name, its in asked.items()}
    return found or None


def candidates(cell: Cell, identity: dict[str, Any]) -> list[Cell]:
    """The cells among which the learning rate of a cell of this identity is chosen, lowest rate first."""
    method = cell.method
    if not (isinstance(method, Schedule) and method.lr == "search"):
        return []
    data = {**identity["data"], "subset": identity["search"]["subset"]}
    mark = fingerprint({**identity, "seed": 0, "subset_seed": 0, "data": data})[:16]
    run = dataclasses.replace(cell.run, root=str(Path(cell.run.root, cell.sweep, ".lr")), keep="none", profile=False)
    common: dict[str, Any] = {"sweep": mark, "seed": 0, "subset_seed": 0, "evals": dict(method.search.evals)}
    common |= {"run": run, "wandb": Wandb(mode="disabled")}
    return [dataclasses.replace(at_rate(cell, lr), **common) for lr in sorted(set(method.search.lrs))]


def at_rate(cell: Cell, lr: float) -> Cell:
    settled: dict[str, Any] = {"lr": lr, "search": Search()}
    return dataclasses.replace(cell, method=dataclasses.replace(cell.method, **settled))


def settle(
    cell: Cell,
    identity: dict[str, Any],
    base: Any,
    examples: Sequence[Any],
    run: Callable[..., Any],
    on_phase: Callable[[str], None],
) -> tuple[Cell, dict[str, Any]]:
    """The cell with its learning rate as a number, to be trained, and what of it belongs in the record.

    `run` runs a candidate, hearing phases as `on_phase`. Raises DivergedError where no candidate is left.
    """
    method = cell.method
    if not isinstance(method, Schedule):
        return cell, {}
    told: dict[str, Any] = {"lr": method.lr, "lr_rule": "given"}
    if method.lr == "auto":
        width = base.model.config.get_text_config().hidden_size
        told = {"lr": method.published_lr(names(cell.base), width, _steps(method, base, examples)), "lr_rule": "auto"}
    elif method.lr == "search":
        choice = _searched(candidates(cell, identity), run, on_phase)
        told = {"lr": choice["lr"], "lr_rule": "search", "search": choice}
    return at_rate(cell, told["lr"]), told


def names(base: Base) -> list[str]:
    """What a base is called: by its configuration, and where it comes from."""
    return [base.name, Path(base.path).name]


def width_of(base: Base) -> int:
    """Its hidden size, from its configuration."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(**place_of(base)).get_text_config().hidden_size)


def _steps(method: Schedule, base: Any, examples: Sequence[Any]) -> int:
    """As many as the training will have."""
    assert isinstance(method, Learner)  # others have no published rule
    sequences = method.tokens(base.tokenizer, examples)
    flops_a_token = method.flops_a_token * base.model.num_parameters()  # type: ignore[attr-defined]
    return method.steps(len(sequences), float(sequences.lengths.mean()), flops_a_token)


def check(cell: Cell) -> None:
    """Raise HarnessError where no rate could be settled for the cell, or by items that it will be scored on."""
    method = cell.method
    if not isinstance(method, Schedule):
        return
    if method.lr == "auto":
        method.published_lr(names(cell.base), 1, 1)
    for name, task in method.search.evals.items():
        evaluate.check(name, task)
        for other, its in cell.evals.items():
            if shared := shared_items((name, task), (other, its)):
                raise HarnessError(
                    f"method.search.evals.{name} asks {shared} items of the evaluation {other}, and a learning rate is "
                    "never chosen by test items; name a development evaluation, or set method.held_out instead"
                )


def _searched(tried: list[Cell], run: Callable[..., Any], on_phase: Callable[[str], None]) -> dict[str, Any]:
    """The choice among the candidates, made once."""
    file = Path(tried[0].run.root, tried[0].sweep, CHOICE)
    while not ranks.agree(file.exists):
        for cell in tried:
            if ranks.agree(lambda cell=cell: _result(cell)) is None:  # type: ignore[misc]
                _try(cell, run, on_phase)
        if ranks.agree(lambda: None in map(_result, tried)):
            on_phase("waiting for other processes' learning rates")
            time.sleep(BEAT)
        else:
            ranks.agree(lambda: _keep(file, choose([r for r in map(_result, tried) if r])))
    return ranks.agree(lambda: store.read_result(file))


def chosen(tried: list[Cell]) -> float | None:
    """The rate chosen among these candidates, once it is."""
    file = Path(tried[0].run.root, tried[0].sweep, CHOICE) if tried else None
    return float(store.read_result(file)["lr"]) if file and file.exists() else None


def _try(cell: Cell, run: Callable[..., Any], on_phase: Callable[[str], None]) -> None:
    rate = cell.method.rate  # type: ignore[attr-defined]
    try:
        run(cell, on_phase=lambda phase: on_phase(f"{phase}, learning rate {rate:g}"))
    except BusyError:  # whoever is at it does it for all
        pass
    except DivergedError as error:
        trace = redacted("".join(traceback.format_exception(error)))
        ranks.agree(lambda: store.write_failure(cell, "diverged", trace))


def _result(cell: Cell) -> dict[str, Any] | None:
    """How a candidate did: {lr, status, score or loss, seconds}; None while it is not known."""
    found: dict[str, Any] = {"lr": cell.method.rate, "status": "ok"}  # type: ignore[attr-defined]
    folder = cell.folder()
    wanted = {name: evaluate.identity(name, task) for name, task in cell.evals.items()}
    if not store.is_done(cell, wanted):
        return {**found, "status": "diverged"} if store.last_status(folder) == "diverged" else None
    training = store.read_result(folder / store.RECORD)["training"]
    found["seconds"] = training["seconds"]
    for name, its in wanted.items():
        scores = store.read_result(store.score_path(folder, name, its))["scores"]
        (lead,) = (s for s in scores if s["headline"])
        by = f"{name} {lead['metric']}/{lead['filter']}"
        return {**found, "by": by, "higher_is_better": lead["higher_is_better"], "score": lead["score"]}
    return {**found, "by": "held-out loss", "higher_is_better": False, "score": training["held_out_loss"]}


def choose(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The choice among candidates' results, of which some may have diverged: the best score, the smaller rate of two.

    `edge` says that the best is the lowest or the highest rate of the grid, so that a wider one may hold a better.
    """
    left = [r for r in results if r["status"] == "ok" and math.isfinite(r["score"])]
    rates = [r["lr"] for r in results]
    if not left:
        raise DivergedError(f"all learning rates of the grid diverged, {min(rates):g} to {max(rates):g}; lower them")
    sign = 1 if left[0]["higher_is_better"] else -1
    best = max(left, key=lambda r: (sign * r["score"], -r["lr"]))
    return {
        "lr": best["lr"],
        "rule": f"{'highest' if sign > 0 else 'lowest'} {best['by']}, of equals the smaller rate",
        "edge": best["lr"] in (min(rates), max(rates)),
        "candidates": [{k: r.get(k) for k in ("lr", "status", "score", "seconds")} for r in results],
    }


def _keep(file: Path, choice: dict[str, Any]) -> None:
    with contextlib.suppress(FileExistsError):  # somebody else has come to the same
        store.write_result(file, choice)
