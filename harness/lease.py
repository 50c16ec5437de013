"""Who works on a place (a cell's folder, an artifact), so that several sweeps over one output share the work.

    <place>/.lease-000003.json    the third lease of this place: its owner, and a count that grows as long as it lives

A lease is taken by linking the next number, which only one can; it is held by a thread that raises its `beat`. Another
process takes the place over once the beat has stood still for `LIFETIME` by *its own* clock, so clocks need not agree,
or at once where it can see that the owner's process is gone. An owner that was paused, and wakes after that, finds a
higher number and must not commit (`check`): that is fencing (Kleppmann 2016,
martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html). Works over a network file system that links
exclusively and lets a reopened file be read anew, as NFS does. No torch here.
"""

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import whole

BEAT = 5.0  # seconds between two beats
LIFETIME = 60.0  # seconds without a beat after which an owner is taken for dead


class LostError(HarnessError):
    """Somebody else has taken the place over; whatever this process still has of it must not be committed."""


class BusyError(HarnessError):
    """Somebody else is at work there."""


@dataclass
class Lease:
    place: Path
    number: int
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _writing: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _beats: int = 0
    _told: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return _file(self.place, self.number)

    def check(self) -> None:
        """Raise LostError unless this is still the newest lease of its place."""
        newest = _newest(self.place)
        if newest != self.number:
            raise LostError(f"{self.place} was taken over by another process while this one did not answer")

    def tell(self, progress: dict[str, Any]) -> None:
        """What the next beat says of the work, for whoever looks on; plain data."""
        self._told = progress

    def release(self) -> None:
        """Let go. The file stays, marked free: its number must not be given again."""
        self._stop.set()
        with contextlib.suppress(OSError):  # the place may be gone, or the disk full; then the lease runs out
            self._write(free=True)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            self._beats += 1
            with contextlib.suppress(OSError):  # a disk that is full now may not be so at the next beat
                self._write(free=False)

    def _write(self, *, free: bool) -> None:
        with self._writing:
            if free or not self._stop.is_set():
                with whole(self.file) as scratch:
                    told = {} if free else {"told": self._told}
                    scratch.write_text(json.dumps({**_myself(), "beat": self._beats, "free": free, **told}))


def take(place: Path) -> Lease | None:
    """A lease of `place`, held until released; None where somebody is at work there.

    An owner on another machine may have died: it is given up to `LIFETIME` seconds to show a beat.
    """
    number = _newest(place)
    if number and not _abandoned(_file(place, number)):
        return None
    lease = Lease(place, number + 1)
    try:
        with whole(lease.file, once=True) as scratch:
            scratch.write_text(json.dumps({**_myself(), "beat": 0, "free": False}))
    except FileExistsError:  # another process was quicker
        return None
    if _newest(place) != lease.number:  # much quicker: its lease came and went, and one more was taken
        lease.file.unlink(missing_ok=True)
        return None
    threading.Thread(target=lease._beat, name=f"lease of {place}", daemon=True).start()
    for old in range(max(1, number - 1), number + 1):
        _file(place, old).unlink(missing_ok=True)
    return lease


def _abandoned(file: Path) -> bool:
    first, since = "", time.monotonic()
    while time.monotonic() - since < LIFETIME:
        try:
            text = file.read_text()
        except FileNotFoundError:  # it was followed by another one, just now
            return False
        told = json.loads(text)
        if told["free"] or _is_gone(told):
            return True
        if first and text != first:
            return False
        first = text
        time.sleep(BEAT / 10)
    return True


def owner(place: Path) -> str:
    """Who holds the place, for people: ``process 4711 on node3``; empty where nobody seems to."""
    told = holder(place)
    return f"process {told['pid']} on {told['host']}" if told else ""


def holder(place: Path) -> dict[str, Any]:
    """What the lease of who holds the place says: `pid`, `host`, `beat`, `told`; empty where nobody seems to."""
    number = _newest(place)
    with contextlib.suppress(FileNotFoundError):
        if number:
            told: dict[str, Any] = json.loads(_file(place, number).read_text())
            if not told["free"] and not _is_gone(told):
                return told
    return {}


@contextmanager
def held(place: Path) -> Iterator[Lease]:
    """Wait until the place is free, and hold it inside."""
    while (lease := take(place)) is None:
        time.sleep(BEAT / 10)
    try:
        yield lease
    finally:
        lease.release()


def _file(place: Path, number: int) -> Path:
    return place / f".lease-{number:06d}.json"


def _newest(place: Path) -> int:
    """The highest number given so far; 0 if none was."""
    names = [entry.name for entry in os.scandir(place)] if place.is_dir() else []
    return max((int(n[7:13]) for n in names if n.startswith(".lease-") and n.endswith(".json")), default=0)


def _myself() -> dict[str, Any]:
    return {"host": platform.node(), "pid": os.getpid(), "started": _started(os.getpid()), "kernel": _kernel()}


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner's process surely no longer runs: only to be told on the same machine, in the same container."""
    if not owner["kernel"] or owner["kernel"] != _kernel():
        return False
    return _started(owner["pid"]) != owner["started"]


def _kernel() -> str:
    """Names the running kernel and the process numbering in it; empty where /proc does not say (not Linux)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When the process started, in the kernel's ticks, so that a number used again is not mistaken; empty if gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in "ZX" else after_name[19]
