"""Where the time of a cell goes: named parts inside named parts, kept only while a clock runs."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Clock:
    """Seconds and calls of each part, by its place, e.g. ``("evaluate gsm8k", "decode")``."""

    seconds: dict[tuple[str, ...], float] = field(default_factory=dict)
    calls: dict[tuple[str, ...], int] = field(default_factory=dict)

    def table(self) -> str:
        """One line a part: its seconds and its share of all, what is inside it indented below it."""
        whole = sum(s for place, s in self.seconds.items() if len(place) == 1) or 1.0
        lines = [f"{'seconds':>9}  share  {'calls':>7}  part"]
        for place in self._below(()):
            seconds = self.seconds[place]
            name = "  " * (len(place) - 1) + place[-1]
            lines.append(f"{seconds:9.2f}  {seconds / whole:5.0%}  {self.calls[place]:7,}  {name}")
        return "\n".join(lines)

    def _below(self, place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        inside = [p for p in self.seconds if p[:-1] == place]
        for p in sorted(inside, key=lambda p: -self.seconds[p]):
            yield p
            yield from self._below(p)

    def as_dict(self) -> dict[str, Any]:
        return {" / ".join(p): {"seconds": s, "calls": self.calls[p]} for p, s in self.seconds.items()}


_running: Clock | None = None
_place: tuple[str, ...] = ()


@contextmanager
def running(clock: Clock) -> Iterator[Clock]:
    """Let the parts of what runs inside be kept in `clock`."""
    global _running
    before, _running = _running, clock
    try:
        yield clock
    finally:
        _running = before


@contextmanager
def part(name: str) -> Iterator[None]:
    """A part of the work. Costs nothing worth speaking of where no clock runs."""
    global _place
    if _running is None:
        yield
        return
    before, _place = _place, (*_place, name)
    # Parts come to be in the order in which they begin, so a part stands before what is inside it.
    _running.seconds.setdefault(_place, 0.0)
    started = time.perf_counter()
    try:
        yield
    finally:
        _wait_for_the_device()
        _running.seconds[_place] += time.perf_counter() - started
        _running.calls[_place] = _running.calls.get(_place, 0) + 1
        _place = before


def _wait_for_the_device() -> None:
    """An accelerator works on after a call has returned; its time belongs to the part that asked."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
