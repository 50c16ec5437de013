"""Who hears how one try at a cell goes: whoever shows it, the lease for those who look on, and the mirror on W&B."""

from typing import Any

from harness import board, mirror, ranks, store
from harness.cell import Cell, OnPhase, OnStep
from harness.errors import DivergedError
from harness.lease import Lease
from harness.pace import Pace
from harness.preempt import PreemptedError


class Telling:
    """One try. Where several processes share the cell, `lease` is the first one's, and only that one tells."""

    def __init__(
        self, cell: Cell, plain: dict[str, Any], identity: dict[str, Any], lease: Lease | None,
        on_step: OnStep | None, on_phase: OnPhase | None,
    ) -> None:  # fmt: skip
        """`plain` is the cell as plain data."""
        self.cell, self.folder, self.lease = cell, cell.folder(), lease
        self.on_step, self.on_phase = on_step, on_phase
        self.pace, self.run = Pace(), board.CellRun()
        self.scores: dict[str, list[dict[str, Any]]] = {}  # by task
        # A cell that only gets more evaluations has its run already: of that one only the summary is told again.
        self.again = (self.folder / store.RECORD).exists()
        if not lease or self.again:
            return
        told = {"attempt": lease.number, "identity": identity, "cell": plain}
        store.write_json(self.folder / store.ATTEMPT, told)
        self.run = board.open_cell(cell.wandb, mirror.begun(self.folder, plain, identity, lease.number), self.folder)
        if (self.folder / store.TRAINED).exists():
            self.resumed(mirror.history(self.folder))

    def phase(self, name: str) -> None:
        if self.lease:
            self.lease.tell({"phase": name})
        if self.on_phase:
            self.on_phase(name)

    def step(self, number: int, steps: int, values: dict[str, float]) -> None:
        self.run.log(number, values)
        if self.lease:
            self.lease.tell(self.pace.step(number, steps, values))
        if self.on_step:
            self.on_step(number, steps, values)

    def resumed(self, losses: list[dict[str, Any]]) -> None:
        """Steps of tries before, so that this try's run on W&B is whole by itself."""
        for row in losses:
            self.run.log_row(row)

    def end(self, error: BaseException | None = None) -> None:
        match error:
            case None:
                status = "ok"
            case DivergedError():
                status = "diverged"
            case PreemptedError():
                status = "preempted"
            case _:
                status = "failed"
        self.run.finish(mirror.summary(self.cell.size, self.scores), status)
        if not error and ranks.first():
            (self.folder / store.FAILURE).unlink(missing_ok=True)
            (self.folder / store.ATTEMPT).unlink(missing_ok=True)
            if self.again and (told := mirror.of(self.folder)):
                board.tell_scores(self.cell.wandb, told, self.folder)
