"""Files that appear whole or not at all, also after a power cut."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished"


@contextmanager
def whole(path: Path, *, once: bool = False) -> Iterator[Path]:
    """``with whole(path) as scratch:`` write `scratch`, a file beside `path`, which then takes that name.

    `once`: an exclusive link, which raises FileExistsError if the name is taken; of several processes one gets it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=UNFINISHED, dir=path.parent)
    os.fchmod(handle, 0o644)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        sync(scratch)
        if once:
            os.link(scratch, path)
        else:
            scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    sync(path.parent)


def clear_unfinished(folder: Path) -> None:
    """Remove what processes that were killed have left of files in the making. Only for who alone writes there."""
    for scratch in folder.rglob(f".*{UNFINISHED}"):
        scratch.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
