"""The mirror on Weights & Biases: one run a cell, and the thread and settings by which a sweep's run goes there too.

Only this file, `harness.sweep_board` (the sweep's run) and `harness.replay` import wandb. Truth lies in the cells'
records: W&B may be offline, down or absent, and no cell notices. Every call here puts work on one background thread of
the process and returns, so that neither W&B's start (about one second a process) nor its network is ever waited for by
training. What fails is logged once as a warning, and that run becomes silent. Offline runs lie in ``<folder>/wandb``
and go up later with ``wandb sync``; `harness sync` fills in what never went up.

Nothing about the machine or the command is sent: no arguments, environment, host name, code, git state, packages,
console output or system statistics. A run holds only the config, losses, scores, tables and files it is given.
"""

import contextlib
import functools
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.cell import Wandb
from harness.errors import HarnessError
from harness.secrets import redacted

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
REACH_SECONDS = 3.0  # for the server's first answer; without one the process stays offline
INIT_SECONDS = 15.0  # for opening one run online, once the server has answered
FINISH_SECONDS = 60.0  # for the upload of what one run still holds
RETRIES = 2  # of one request; wandb's own default goes on for days


@dataclass
class Told:
    """All that one W&B run holds."""

    run_id: str  # names it for good
    name: str
    group: str  # the sweep
    config: dict[str, Any]
    tags: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)  # a row a step, the step's number in it as `step`
    summary: dict[str, Any] = field(default_factory=dict)  # scores and counts by name
    status: str = "ok"  # or failed, diverged, preempted
    job_type: str | None = None  # what kind of run it is among those of its group


class CellRun:
    """One W&B run. Calls return at once and never raise; the run of a disabled or broken W&B swallows them."""

    def __init__(self, line: "_Line | None" = None, opened: "Future[Any] | None" = None) -> None:
        self._line, self._opened = line, opened

    def log(self, step: int, values: dict[str, float]) -> None:
        """One history row, e.g. ``log(20, {"loss": 1.3})``; steps must not fall."""
        self.log_row({**values, "step": step})

    def log_row(self, row: dict[str, Any]) -> None:
        """The same, with the step's number among the values as `step`."""
        row = dict(row)  # the caller may go on writing into its own
        self._put("log", lambda run: write_row(run, row))

    def finish(self, summary: dict[str, Any], status: str = "ok") -> None:
        """Write the summary and close the run, as failed unless `status` is ok; `Told` says what both may be."""
        last = dict(summary)
        self._put("finish", lambda run: close(run, last, status))

    def _put(self, what: str, work: Callable[[Any], None]) -> None:
        line, opened = self._line, self._opened
        if line is None or opened is None:
            return

        def step() -> None:
            run = opened.result()  # done by now: it was put on the same thread before
            if run is not None:
                work(run)

        line.put(what, step)


def write_row(run: Any, row: dict[str, Any]) -> None:
    """A history row into a wandb Run."""
    run.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])


def close(run: Any, summary: dict[str, Any], status: str) -> None:
    """Write the summary of a wandb Run and finish it."""
    run.summary.update(summary)
    if status != "ok":
        run.tags = (*run.tags, status)
    run.finish(exit_code=0 if status == "ok" else 1)


def open_cell(settings: Wandb, told: Told, folder: Path) -> CellRun:
    """Open the run of one cell, to be told its history and summary as they come; its files go to `folder`."""
    if is_off(settings):
        return CellRun()
    line = _line(os.getpid())
    return CellRun(line, line.put("open", lambda: line.open(settings, folder, told)))


def tell_scores(settings: Wandb, told: Told, folder: Path) -> None:
    """Of a run that there is already only the summary again, which has more scores now.

    An offline file knows nothing of the one before, which it replaces when both go up: it gets everything.
    """
    if is_off(settings):
        return
    line = _line(os.getpid())

    def tell() -> None:
        run = line.open(settings, folder, told, resume="allow" if line.mode(settings) == "online" else None)
        for row in [] if line.mode(settings) == "online" else told.history:  # it may have turned out to be offline
            write_row(run, row)
        close(run, told.summary, told.status)

    line.put("scores", tell)


def tell_of_sweep(settings: Wandb, told: Told, folder: Path, write: Callable[[Any], None]) -> None:
    """Open a run for `told`, which `write` fills and closes. Waits until all is written, at most `FINISH_SECONDS`."""
    line = _line(os.getpid())

    def tell() -> None:
        run = line.open(settings, folder, told)
        address = run.url
        write(run)
        log.info("W&B: %s in %s", told.name, address or Path(folder, "wandb"))

    line.put("report", tell)
    settle(FINISH_SECONDS)


def settle(seconds: float = 30.0) -> bool:
    """Wait until all put so far is written, at most so long; whether it was. A process that exits waits by itself."""
    try:
        _line(os.getpid()).pool.submit(lambda: None).result(timeout=seconds)
    except TimeoutError:
        log.warning("W&B has not taken everything after %.0f s; the records on disk are complete without it", seconds)
        return False
    return True


class _Line:
    """The one thread of this process that speaks with W&B, and what it has learnt about it."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wandb")
        self.modes: dict[str, str] = {}  # mode asked for -> mode that works here
        self.warned: set[str] = set()

    def put(self, what: str, work: Callable[[], Any]) -> "Future[Any]":
        """Do `work` after all that was put before; its future holds None if it failed."""
        prepare()
        import wandb  # noqa: F401  in the caller's thread: two threads importing at once can meet half-made modules

        def guarded() -> Any:
            try:
                return work()
            except (Exception, SystemExit) as error:
                # Broad on purpose, here at the edge: wandb raises its own errors, but also those of pydantic, protobuf,
                # sockets and files, and exits where its service does. None may cost a cell its result; all are told.
                self.warn(what, error)
                return None

        return self.pool.submit(guarded)

    def warn(self, what: str, error: BaseException) -> None:
        text = redacted((str(error).splitlines() or [""])[0])
        if what not in self.warned:
            log.warning("W&B %s failed (%s: %s); results are not affected", what, type(error).__name__, text)
            self.warned.add(what)

    def mode(self, settings: Wandb) -> str:
        """What the mode asked for comes to here."""
        if settings.mode not in self.modes:
            self.modes[settings.mode] = self.reach(settings.mode)
        return self.modes[settings.mode]

    def open(self, settings: Wandb, folder: Path, told: Told, resume: str | None = None) -> Any:
        """A wandb Run: online if that works, else offline; raises if not even that."""
        import wandb

        mode = self.mode(settings)
        try:
            return init(settings, folder, mode, told, resume)
        except wandb.Error as error:
            if mode != "online":
                raise
            self.warn("online", error)
            self.modes[settings.mode] = "offline"  # for the rest of this process: no cell waits for the same again
            wandb.teardown()  # its service still holds the id of the run that did not open
            return init(settings, folder, "offline", told)

    def reach(self, mode: str) -> str:
        """What `mode` comes to here: online needs credentials, found without asking, and a server that answers."""
        import wandb

        if mode == "auto":
            mode = os.environ.get("WANDB_MODE", "auto")
        if mode not in ("auto", "online"):
            wandb.setup(settings=wandb.Settings(silent=True))
            return mode
        try:
            if has_key():
                answers()
                return "online"
            if mode == "online":
                log.warning("W&B has no credentials (wandb login, or WANDB_API_KEY); runs are kept offline")
        except (OSError, wandb.Error) as error:
            self.warn("online", error)
        return "offline"


def init(settings: Wandb, folder: Path, mode: str, told: Told, resume: str | None = None) -> Any:
    """A wandb Run with what `told` says of its beginning; its files go to `folder`.

    Without `resume` a run of the same id that there is already is replaced, history and all
    (docs.wandb.ai/guides/runs/resuming; seen in github.com/wandb/wandb issues 1450, 3841, 5865).
    """
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # wandb would quietly use the system's temporary folder
        raise PermissionError(f"{folder} is not writable")
    return wandb.init(
        project=settings.project,
        entity=settings.entity,
        dir=folder.absolute(),  # wandb's service may have been started in another working directory
        mode=mode,  # type: ignore[arg-type]
        id=told.run_id,
        name=told.name,
        group=told.group,
        job_type=told.job_type,
        config=told.config,
        tags=told.tags,
        resume=resume,  # type: ignore[arg-type]
        reinit="create_new",  # the previous cell's run may still be closing
        settings=wandb.Settings(**_quiet(), **_bounded()),
    )


def prepare() -> None:
    """Settings of the environment that W&B reads when it is first used.

    Its own error reports and usage metrics are off unless the user says otherwise: they send tracebacks, and hold up
    the exit of a process by some 20 s where the server is slow. Its service is this process's own, not the one of the
    process that started this one, which may be gone or go.
    """
    os.environ.pop("WANDB_SERVICE", None)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def has_key() -> bool:
    """Whether there are credentials for W&B, found without asking."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return bool(wandb.login(prompt=False, verify=False))


def answers() -> None:
    """Raise OSError unless W&B's server answers; what it thinks of the address does not matter."""
    import wandb

    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(wandb.setup().settings.base_url, timeout=REACH_SECONDS).close()


@functools.cache
def _line(pid: int) -> _Line:
    """This process's line; a forked child gets its own, as threads do not survive a fork."""
    return _Line()


def is_off(settings: Wandb) -> bool:
    """Whether W&B is told nothing, known without importing it; refuses a mode that there is not."""
    if settings.mode not in MODES:
        raise HarnessError(f"wandb.mode={settings.mode!r}: choose one of {', '.join(MODES)}")
    return "disabled" in (settings.mode, os.environ.get("WANDB_MODE") if settings.mode == "auto" else "")


def _quiet() -> dict[str, Any]:
    """Settings that keep the command line, the machine and the code out of the run, and its cost down."""
    return {
        "console": "off",
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "host": "",
        "program": "harness",  # else the path of the script
        "silent": True,
        "symlink": False,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
    }


def _bounded() -> dict[str, Any]:
    """Settings that make wandb give up: its defaults retry for hours to days."""
    return {
        "init_timeout": INIT_SECONDS,
        "finish_timeout": FINISH_SECONDS,
        "x_service_wait": INIT_SECONDS,
        "x_graphql_retry_max": RETRIES,
        "x_graphql_timeout_seconds": INIT_SECONDS,
        "x_file_stream_retry_max": RETRIES,
        "x_file_stream_timeout_seconds": INIT_SECONDS,
        "x_file_transfer_retry_max": RETRIES,
        "x_file_transfer_timeout_seconds": FINISH_SECONDS,
    }
