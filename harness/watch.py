"""A sweep seen from another shell: on a terminal a block redrawn in place, elsewhere a block for each change."""

import shutil
import sys
import time
from pathlib import Path

from harness import lease
from harness.pace import clock, in_words
from harness.standing import Standing, Work, standing


def watch(root: Path, seconds: float) -> Standing:
    """Look every so many seconds, until nothing runs and nothing is left below `root`; how it then stands."""
    live, drawn, before = sys.stdout.isatty(), 0, None
    heard: dict[str, tuple[int, float]] = {}  # path -> the newest beat, and when it was new
    while True:
        now = standing(root)
        silent = _silent(now, heard)
        lines = in_lines(root, now, silent)
        if live:
            columns, rows = shutil.get_terminal_size()
            lines = [line[: columns - 1] for line in lines[: rows - 1]]
            print((f"\033[{drawn}A" if drawn else "") + "\033[J" + "\n".join(lines), flush=True)
            drawn = len(lines)
        elif (change := _what_matters(now, silent)) != before:
            print("\n".join(lines), flush=True)
            before = change
        if not now.running and not now.left:
            return now
        time.sleep(seconds)


def in_lines(root: Path, now: Standing, silent: dict[str, float] | None = None) -> list[str]:
    """The cells counted, then a line for each that runs and each that failed; `silent`: seconds without a beat."""
    counts = [f"{len(now.done)}/{now.cells} cells done", f"{len(now.running)} running", f"{len(now.left)} left"]
    counts += [f"{len(now.failed)} failed"] if now.failed else []
    ending = f"; {clock(now.seconds_left)} left" if now.seconds_left is not None else ""
    ending += "; nobody is at work, the same command goes on" if now.left and not now.running else ""
    lines = [f"{root}: {', '.join(counts)}{ending}"]
    lines += [running_line(path, work, (silent or {}).get(path)) for path, work in now.running.items()]
    return lines + [f"  {status}: {path}" for path, status in now.failed.items()]


def running_line(path: str, work: Work, silent: float | None = None) -> str:
    """``  <path>  process 4711 on node3  step 12/400 ...``"""
    said = f"no sign of life for {clock(silent)}" if silent else in_words(work.progress)
    return f"  {path}  {work.owner}  {said}".rstrip()


def _silent(now: Standing, heard: dict[str, tuple[int, float]]) -> dict[str, float]:
    """For how many seconds owners have not shown a beat, of those who are overdue."""
    for path, work in now.running.items():
        if heard.get(path, (-1, 0.0))[0] != work.beat:
            heard[path] = work.beat, time.monotonic()
    since = {path: time.monotonic() - heard[path][1] for path in now.running}
    return {path: seconds for path, seconds in since.items() if seconds > lease.LIFETIME}


def _what_matters(now: Standing, silent: dict[str, float]) -> object:
    """What a reader of a log wants to hear of once: no step, no loss."""
    phases = {path: work.progress.get("phase") for path, work in now.running.items()}
    return now.done, now.failed, now.left, phases, sorted(silent)
