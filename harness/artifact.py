"""Things made once and then only read: a pocket base, a generated dataset, a file inside a package.

A configuration names one under ``make:`` with Hydra's ``_target_``; whoever needs the file calls ``path()``.
Planning calls only ``identity()``, which must be cheap and must not build anything.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from filelock import FileLock

from harness.errors import HarnessError

CHECKSUMS = "SHA256SUMS"


@runtime_checkable
class Artifact(Protocol):
    def identity(self) -> str:
        """What the artifact is, whoever builds it: a recipe's hash or a version. Equal recipes, equal strings."""
        ...

    def path(self) -> Path:
        """The file or folder, built first if need be."""
        ...


def cache_dir() -> Path:
    """Where artifacts live: ``$HARNESS_CACHE``, else ``~/.cache/superficial-alignment-harness``."""
    default = Path.home() / ".cache" / "superficial-alignment-harness"
    return Path(os.environ.get("HARNESS_CACHE") or default).expanduser()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return ``folder``, calling ``build(empty folder)`` if it is not there yet.

    The folder appears by one rename after all of it, checksums included, is on disk, so its existence means it is
    whole; a lock beside it keeps two processes from building it twice. A folder whose bytes no longer match its
    checksums is refused.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                build(scratch)
                lines = [f"{sha256_file(f)}  {f.relative_to(scratch)}\n" for f in _files(scratch)]
                (scratch / CHECKSUMS).write_text("".join(lines))
                scratch.chmod(0o755)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    for line in (folder / CHECKSUMS).read_text().splitlines():
        digest, name = line.split("  ", 1)
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise HarnessError(f"{folder / name} does not match its checksum; delete {folder} to build it again")
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())
