"""The mirror on Weights & Biases: one run a cell, one run a sweep with score against number of examples.

Only this file and `harness.replay` import wandb. Truth lies in the cells' records: W&B may be offline, down or absent,
and no cell notices. Every call here puts work on one background thread of the process and returns, so that neither
W&B's start (about one second a process) nor its network is ever waited for by training. What fails is logged once as a
warning, and that run becomes silent. Offline runs lie in ``<folder>/wandb`` and go up later with ``wandb sync``;
`harness sync` fills in what never went up.

Nothing about the machine or the command is sent: no arguments, environment, host name, code, git state, packages,
console output or system statistics. A run holds only the config, losses, scores, table and figure it is given.
"""

import contextlib
import functools
import hashlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.cell import LEVELS, Wandb, fingerprint
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
    if _mode(settings) == "disabled":
        return CellRun()
    line = _line(os.getpid())
    return CellRun(line, line.put("open", lambda: line.open(settings, folder, told)))


def tell_scores(settings: Wandb, told: Told, folder: Path) -> None:
    """Of a run that there is already only the summary again, which has more scores now.

    An offline file knows nothing of the one before, which it replaces when both go up: it gets everything.
    """
    if _mode(settings) == "disabled":
        return
    line = _line(os.getpid())

    def tell() -> None:
        run = line.open(settings, folder, told, resume="allow" if line.mode(settings) == "online" else None)
        for row in [] if line.mode(settings) == "online" else told.history:  # it may have turned out to be offline
            write_row(run, row)
        close(run, told.summary, told.status)

    line.put("scores", tell)


def log_curves(settings: Wandb, *, sweep: str, points: pd.DataFrame, figure: Path, folder: Path) -> None:
    """Draw score against data size on W&B: one run a sweep, one history row a size, over the step metric `examples`.

    `points` is `analysis.points.points`' table and `figure` a PNG. A series is named
    ``task/metric/filter/base/method``, with data and variant added where the sweep has more than one. What has no size,
    as the base's own score, is repeated in every row and so shows as the level line it is. Waits until all is written,
    at most `FINISH_SECONDS`.
    """
    if _mode(settings) == "disabled":
        return
    line = _line(os.getpid())

    def draw() -> None:
        told = curves_of(sweep, points)
        run = line.open(settings, folder, told)
        address = run.url
        write_curves(run, told, points, figure)
        log.info("W&B: curves of %s in %s", sweep, address or Path(folder, "wandb"))

    line.put("curves", draw)
    settle(FINISH_SECONDS)


def curves_of(sweep: str, points: pd.DataFrame) -> Told:
    """The run of a sweep's curves. Its summary tells these points from those of another day."""
    rows = history(points)
    run_id = f"curves-{hashlib.sha256(sweep.encode()).hexdigest()[:12]}"
    return Told(
        run_id, f"{sweep} curves", sweep, {"sweep": sweep}, history=rows, summary={"points_sha256": fingerprint(rows)}
    )


def write_curves(run: Any, told: Told, points: pd.DataFrame, figure: Path) -> None:
    """Rows, table and figure into a wandb Run, and finish it; see `log_curves`."""
    import wandb

    run.define_metric("examples")
    run.define_metric("*", step_metric="examples")
    cells = points.astype(object).where(points.notna(), None)
    table = wandb.Table(columns=list(points.columns), data=list(cells.to_numpy().tolist()))
    for row in told.history[:-1]:
        run.log(row)
    run.log({**told.history[-1], "points": table, "figure": wandb.Image(str(figure))})
    close(run, told.summary, told.status)


def history(points: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of `log_curves`, one a size in ascending order: ``{"examples": n, "<series>": score, ...}``."""
    with_data = points[~points["method"].isin(LEVELS)]["data"].nunique() > 1
    by_size: dict[int, dict[str, Any]] = {}
    levels: dict[str, float] = {}
    for p in points.dropna(subset=["score"]).to_dict("records"):
        names = [p["task"], p["metric"], p["filter"], p["base"], p["method"]]
        if p["method"] in LEVELS:
            names += [p["variant"]] if p["variant"] else []
            levels["/".join(names)] = float(p["score"])
            continue
        names += [p["data"]] if with_data else []
        names += [p["variant"]] if p["variant"] else []
        by_size.setdefault(int(p["size"]), {})["/".join(names)] = float(p["score"])
    return [{"examples": size, **levels, **by_size[size]} for size in sorted(by_size)] or [{"examples": 0, **levels}]


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


def _mode(settings: Wandb) -> str:
    if settings.mode not in MODES:
        raise HarnessError(f"wandb.mode={settings.mode!r}: choose one of {', '.join(MODES)}")
    return settings.mode


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
