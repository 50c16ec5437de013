"""`harness plan`: what a sweep would run, what is done, and what each cell costs."""

import argparse
import dataclasses
import json
import math
from typing import Any

from tqdm import tqdm

from harness import evaluate, findings, search
from harness import plan as plans
from harness.capacity import warnings
from harness.commands.common import print_cells, sweep_arguments
from harness.cost import Cost, Estimator, total
from harness.judge import Judge
from harness.plan import DONE, Planned
from harness.schedule import SETTLED


def main(arguments: list[str]) -> int:
    parsed, cells, _ = sweep_arguments("plan", arguments)
    if parsed.cfg:
        return print_cells(cells)
    planned = plans.plan(cells)
    plans.check(plans.to_run(planned, retry_failed=True))
    both = planned + plans.searches(planned)
    estimator = _estimator(both, parsed)
    costs = [estimator.cost(p) for p in tqdm(both, "costs", unit="cell", delay=2, disable=None, leave=False)]
    found = findings.findings([p.cell for p in planned if p.state != DONE])
    if parsed.json:
        told = as_json(both, len(planned), costs, estimator, parsed.price)
        print(json.dumps(told | {"data": found, "judge_calls": judge_calls(planned)}, indent=1))
        return 0
    for p, cost in zip(both, costs, strict=True):
        print(f"{p.state:8} {p.cell.folder()}  [{', '.join(p.cell.evals)}]  {_rate(p, estimator)}{_line(cost)}")
    sums = _totals(both, costs, estimator, parsed.price)
    judged = [
        f"to judge {name}: at most {n:,} calls of harness judge, whose --dry-run tells the price of what was answered"
        for name, n in judge_calls(planned).items()
    ]
    print("\n".join([*map(findings.line, found), _states(planned, both), *sums, *judged, *warnings(cells, estimator)]))
    return 0


def totals(planned: list[Planned], parsed: argparse.Namespace) -> list[str]:
    """How many cells are in which state; where something is left to do, what it takes, what was spent, what stays."""
    if all(p.state == DONE for p in planned):  # asking what it took would load lm-eval and the tasks
        return [_states(planned, planned)]
    both = planned + plans.searches(planned)
    estimator = _estimator(both, parsed)
    costs = [estimator.cost(p) for p in both]
    told = warnings([p.cell for p in planned], estimator)
    return [_states(planned, both), *_totals(both, costs, estimator, parsed.price), *told]


def judge_calls(planned: list[Planned]) -> dict[str, int]:
    """By task whose answers are kept for a judge: the calls that this takes at most, by the judge's defaults."""
    tasks = {name: task for p in planned for name, task in p.cell.evals.items()}
    calls = {}
    for name, task in tasks.items():
        if evaluate.for_a_judge(name, task):
            asked = [p.cell for p in planned if name in p.cell.evals]
            bases = sum(cell.method.name == "base" for cell in asked)
            calls[name] = Judge().most_calls(evaluate.extent(name, task).items, len(asked), bases)
    return calls


def _rate(p: Planned, estimator: Estimator) -> str:
    """The learning rate where it is not given, as far as it is known."""
    how = getattr(p.cell.method, "lr", None)
    if how not in SETTLED:
        return ""
    rate = search.chosen(p.candidates) if how == "search" else estimator.lr(p.cell)
    return f"lr {rate:.3g} ({how})  " if rate else "lr to be searched  "


def _estimator(planned: list[Planned], parsed: argparse.Namespace) -> Estimator:
    return Estimator(planned, parsed.teraflops and parsed.teraflops * 1e12)


def _states(planned: list[Planned], both: list[Planned]) -> str:
    """Of the cells, and of the candidates behind them in `both`."""
    text = f"{len(planned)} cells: {_counts(planned)}"
    tried = both[len(planned) :]
    return text + f"; {len(tried)} candidates for learning rates: {_counts(tried)}" * bool(tried)


def _counts(planned: list[Planned]) -> str:
    states = [p.state for p in planned]
    return ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))


def _totals(planned: list[Planned], costs: list[Cost], estimator: Estimator, price: float | None) -> list[str]:
    lines, run = [], planned[0].cell.run
    spent, left = _parts(planned, costs)
    if any(p.state != DONE for p in planned):
        workers = f" with {run.workers} workers" if run.workers > 1 else ""
        basis = estimator.basis()
        each = dataclasses.replace(left, seconds=left.seconds / run.workers)
        lines.append(f"to do: {_line(each, workers, left, price)}" + f"  ({basis})" * bool(basis))
    if any(p.state == DONE for p in planned):
        lines.append(f"done: {_line(spent, ' of one worker', spent, price)}")
    if any(p.cell.method.trains for p in planned):
        count = len(estimator.staying)
        lines.append(f"stays: {count} adapters, {_bytes((spent + left).disk_bytes)} (run.keep={run.keep})")
    return lines


def as_json(
    planned: list[Planned], cells: int, costs: list[Cost], estimator: Estimator, price: float | None
) -> dict[str, Any]:
    """Numbers in base units: tokens, FLOPs, seconds of one worker, bytes; null where not known.

    `planned` are so many cells, and behind them the candidates for their learning rates.
    """
    spent, left = _parts(planned, costs)

    def told(cost: Cost) -> dict[str, Any]:
        values = {**dataclasses.asdict(cost), "price": price and price * cost.seconds / 3600}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}

    rows = [
        {"folder": str(p.cell.folder()), "state": p.state, "why": p.why, "evals": list(p.cell.evals), **told(cost)}
        | {"lr": search.chosen(p.candidates) or estimator.lr(p.cell)}
        for p, cost in zip(planned, costs, strict=True)
    ]
    totals = {"done": told(spent), "to_do": told(left), "basis": estimator.basis()}
    told_of = warnings([p.cell for p in planned[:cells]], estimator)
    return {"cells": rows[:cells], "candidates": rows[cells:], **totals, "warnings": told_of}


def _parts(planned: list[Planned], costs: list[Cost]) -> tuple[Cost, Cost]:
    """What was spent on cells that are done, and what is left to do."""
    both = list(zip(planned, costs, strict=True))
    return total(c for p, c in both if p.state == DONE), total(c for p, c in both if p.state != DONE)


def _line(cost: Cost, who: str = "", of_one: Cost | None = None, price: float | None = None) -> str:
    text = f"{cost.examples:,} examples, {_count(cost.tokens)} tokens, {_count(cost.train_flops)} training + "
    text += f"{_count(cost.eval_flops)} evaluation FLOPs, {_duration(cost.seconds)}{who}, {_bytes(cost.memory_bytes)}"
    if price is not None and of_one:
        text += f", {price * of_one.seconds / 3600:,.2f} at {price:g} per GPU-hour"
    return text


def _count(number: float) -> str:
    if math.isnan(number):
        return "unknown"
    return f"{number:.2e}" if number >= 1e9 else f"{number:,.0f}"


def _duration(seconds: float) -> str:
    return "unknown time" if math.isnan(seconds) else str(tqdm.format_interval(seconds))


def _bytes(number: float) -> str:
    if math.isnan(number):
        return "unknown size"
    return f"{number / 2**30:.2f} GiB" if number >= 2**27 else f"{number / 2**20:.1f} MiB"
