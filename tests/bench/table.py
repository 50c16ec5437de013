"""Rows of the comparison: how a pair is timed, how the table is printed and kept."""

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"
Timed = Callable[[], tuple[float, Any]]  # does the work once; seconds of the work alone, and its answers


@dataclass(frozen=True)
class Row:
    """One line. `ratio` is the peer's seconds over ours (above 1: we are faster), the median over the pairs of repeats.

    `equal` says whether what the row demands of the answers holds; `detail` says what that was and how near they came.
    """

    work: str
    peer: str
    peer_version: str
    peer_seconds: float
    our_seconds: float
    ratio: float
    equal: bool
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Seconds and last answers of two that did the same work in turn."""

    ours: list[float]
    peer: list[float]
    our_answers: Any
    peer_answers: Any

    def row(self, work: str, peer: str, version: str, equal: bool, **detail: Any) -> Row:
        seconds = {"our_repeats": _short(self.ours), "peer_repeats": _short(self.peer)}
        ratio = statistics.median(p / o for o, p in zip(self.ours, self.peer, strict=True))
        medians = statistics.median(self.peer), statistics.median(self.ours)
        return Row(work, peer, version, *_short(medians), round(ratio, 3), equal, {**detail, **seconds})


def in_turn(work: str, ours: Timed, peer: Timed, repeats: int) -> Pair:
    """Ours, the peer, ours, the peer, ...: what drifts on the machine meets both alike."""
    seconds: tuple[list[float], list[float]] = ([], [])
    answers: list[Any] = [None, None]
    for repeat in range(1, repeats + 1):
        for side, (name, run) in enumerate([("ours", ours), ("peer", peer)]):
            took, answers[side] = run()
            seconds[side].append(took)
            say(f"{work}: {name} {took:.1f} s ({repeat} of {repeats})")
    return Pair(*seconds, *answers)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def say(line: str) -> None:
    print(f"  {line}", flush=True)


def _short(seconds: Iterable[float]) -> list[float]:
    return [round(s, 3) for s in seconds]


def as_text(rows: list[Row]) -> str:
    """The table as printed."""
    lines = [("work", "peer", "version", "peer s", "ours s", "ratio", "equal")]
    for r in rows:
        equal = "yes" if r.equal else "NO"
        lines.append(
            (r.work, r.peer, r.peer_version, f"{r.peer_seconds:.1f}", f"{r.our_seconds:.1f}", f"{r.ratio:.2f}", equal)
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = 3  # columns of text; the others are numbers
    return "\n".join(
        "  ".join(f"{cell:{'<' if n < left else '>'}{widths[n]}}" for n, cell in enumerate(line)) for line in lines
    )


def save(rows: list[Row], path: Path = RESULTS) -> None:
    """Write the rows into the file, in the place of those of the same work and peer; the others stay as they are."""
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    about = {"machine": machine(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    new = {(r.work, r.peer): {**asdict(r), **about} for r in rows}
    merged = [new.pop((old["work"], old["peer"]), old) for old in kept] + list(new.values())
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps({**about, "rows": merged}, indent=1, ensure_ascii=False) + "\n")
    scratch.replace(path)


def machine() -> dict[str, Any]:
    """What the seconds were measured on."""
    import torch

    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    kinds = [k for k in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if k in names.get("flags", "").split()]
    return f"{names.get('model name', platform.machine())} ({kinds[0] if kinds else 'no avx2'})"
