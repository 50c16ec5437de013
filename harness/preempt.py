"""Being told to stop: SIGTERM or SIGUSR2, as Slurm and clouds send before they take a machine away, or Ctrl-C.

A training step is ended and a checkpoint kept; whatever else a cell is doing ends at once, since it is made again as it
was. A second signal ends the process in any case. No torch here.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class PreemptedError(BaseException):
    """Not an Exception: the cell did not fail, and nothing on the way may take it for a failure."""


class _State:
    asked = False  # whether a signal has come
    patient = 0  # how many parts of the program are running that end by themselves


_now = _State()


def asked() -> bool:
    """Whether this process was told to stop."""
    return _now.asked


def listen() -> None:
    """From here on the signals are heard. Main thread only."""
    for number in SIGNALS:
        signal.signal(number, _hear)


def _hear(number: int, frame: FrameType | None) -> None:
    if _now.asked:  # for the second time: whoever sends it does not want to wait
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _now.asked = True
    if not _now.patient:
        raise PreemptedError


@contextmanager
def ends_by_itself() -> Iterator[None]:
    """The part inside looks at `asked` often enough; elsewhere the signal raises PreemptedError where it comes."""
    _now.patient += 1
    try:
        yield
    finally:
        _now.patient -= 1
