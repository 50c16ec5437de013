"""W&B told of finished cells from their files, once: what `harness sync` does.

Unlike the mirror of a running cell (`harness.board`) nothing here is a side matter: each step raises `SyncError` where
it fails, and a receipt is kept beside a record only once W&B has shown that it holds all of the run.

    <cell>/wandb/synced.json    which run, to where, and the hash of what was sent

Online, W&B is asked first what it has. A run that is whole is left alone; of one whose scores alone are old, only the
summary is sent; one that is not whole (the upload broke off) is replaced under its own id. So no row is there twice,
with or without receipts.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from harness import board, store
from harness.board import Told
from harness.cell import Wandb
from harness.errors import HarnessError

RECEIPT = Path("wandb", "synced.json")
CONFIRM_SECONDS = 60.0  # for W&B to show what it was sent, once it has taken it
LOOK = 1.0  # seconds between two looks

T = TypeVar("T")
Write = Callable[[Any, Told, bool], None]  # hears a wandb Run, what it is to hold, whether its history too


def write_cell(run: Any, told: Told, history: bool) -> None:
    """A `Write` of a cell's run."""
    for row in told.history if history else []:
        board.write_row(run, row)
    board.close(run, told.summary, told.status)


class SyncError(HarnessError):
    """W&B cannot be reached, or does not take or show what it is sent."""


@dataclass
class Held:
    """What W&B has of a run."""

    state: str  # finished, failed, crashed, running, ...
    rows: int
    summary: dict[str, Any]

    def has_rows(self, told: Told) -> bool:
        # A failed try left no losses on disk; whatever W&B heard of it while it ran is all there is.
        return told.status != "ok" or self.rows >= len(told.history)

    def is_whole(self, told: Told) -> bool:
        ended = self.state == ("finished" if told.status == "ok" else "failed")
        return ended and self.has_rows(told) and told.summary.items() <= self.summary.items()


class Replay:
    """Sends runs as `settings` say: into offline files in each cell's folder, or up to the server."""

    def __init__(self, settings: Wandb) -> None:
        self.settings, self.online = settings, settings.mode == "online"
        board.prepare()
        if self.online:
            if not _guarded("look for credentials", board.has_key):
                raise SyncError("W&B has no credentials: wandb login, or WANDB_API_KEY; --mode offline writes files")
            _guarded("reach the server", board.answers)

    def where(self, folder: Path) -> str:
        """Where the runs of the sweep in `folder` are now, for people."""
        if not self.online:
            return f"in files below {folder}, which `wandb sync` sends up"
        import wandb

        return f"on {wandb.setup().settings.app_url}, project {self.settings.project}"

    def has_receipt(self, told: Told, folder: Path) -> bool:
        """Whether the run was confirmed as it is now."""
        kept = folder / RECEIPT
        return kept.exists() and store.read_json(kept) == self._receipt(told)

    def _receipt(self, told: Told) -> dict[str, Any]:
        content = json.dumps(asdict(told), sort_keys=True)
        return {"run": told.run_id, "sha256": hashlib.sha256(content.encode()).hexdigest(), **asdict(self.settings)}

    def held(self, group: str) -> dict[str, Held]:
        """What W&B has of the runs of a sweep, by their ids; nothing where runs go into files."""
        return _guarded("list the runs", lambda: self._held(group)) if self.online else {}

    def _held(self, group: str) -> dict[str, Held]:
        import wandb

        api = wandb.Api(timeout=int(board.INIT_SECONDS))
        project = f"{self.settings.entity or api.default_entity}/{self.settings.project}"
        runs = api.runs(project, filters={"group": group}, per_page=100, lazy=False)
        try:  # no list(runs): it would ask their number first, and take an error there for none
            return {run.id: Held(run.state, run.history_line_count or 0, dict(run.summary_metrics)) for run in runs}
        except ValueError as error:
            if "not find project" in str(error):  # W&B makes it with its first run
                return {}
            raise

    def send(self, told: Told, folder: Path, held: Held | None, write: Write) -> None:
        """Make the run whole; `held` is what W&B has of it. `settle` tells whether it is."""
        begun = held is not None and held.has_rows(told)

        def tell() -> None:
            resume = "must" if begun else None
            write(board.init(self.settings, folder, self.settings.mode, told, resume), told, not begun)

        _guarded("send a run", tell)

    def settle(self, group: str, sent: list[tuple[Told, Path]]) -> None:
        """Wait until W&B shows these runs whole, or their files are closed; then leave receipts."""
        if not self.online:
            _guarded("close the files", _close_files)
        patience = time.monotonic() + CONFIRM_SECONDS
        while sent:
            held = self.held(group)
            for told, folder in sent:
                if not self.online or (told.run_id in held and held[told.run_id].is_whole(told)):
                    store.write_json(folder / RECEIPT, self._receipt(told))
            sent = [(told, folder) for told, folder in sent if not self.has_receipt(told, folder)]
            if sent and time.monotonic() > patience:
                raise SyncError(
                    f"W&B took {len(sent)} runs but does not show them whole after {CONFIRM_SECONDS:.0f} s, "
                    f"{sent[0][0].run_id} among them; harness sync again looks once more"
                )
            time.sleep(LOOK if sent else 0)


def _close_files() -> None:
    import wandb

    wandb.teardown()


def _guarded(what: str, work: Callable[[], T]) -> T:
    try:
        return work()
    except (Exception, SystemExit) as error:
        # Broad for the reason given in `harness.board`: wandb raises what its many libraries raise, and exits.
        text = (str(error).strip().splitlines() or [""])[0]
        raise SyncError(
            f"W&B: could not {what} ({type(error).__name__}: {text}); the records stay as they are"
        ) from error
