"""`harness plan`: what a sweep would run, and what is done."""

from harness import plan as plans
from harness.commands.common import print_cells, sweep_arguments


def main(arguments: list[str]) -> int:
    parsed, cells, _ = sweep_arguments("plan", arguments)
    if parsed.cfg:
        return print_cells(cells)
    planned = plans.plan(cells)
    for p in planned:
        print(f"{p.state:8} {p.cell.folder()}  [{', '.join(p.cell.evals)}]")
    print(summary(planned))
    plans.check(plans.to_run(planned, retry_failed=True))
    return 0


def summary(planned: list[plans.Planned]) -> str:
    states = [p.state for p in planned]
    counts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
    return f"{len(planned)} cells: {counts}"
