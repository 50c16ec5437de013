"""Things made once and then only read: a pocket base, a generated dataset, a file inside a package.

A configuration names one under ``make:`` with Hydra's ``_target_``; whoever needs the file calls ``path()``.
Planning calls only ``identity()``, which must be cheap and must not build anything.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

from harness.errors import HarnessError
from harness.lease import Lease, held

CHECKSUMS = "SHA256SUMS"
SMALL = 8 * 2**20  # bytes that are hashed as quickly as a note of their hash is found


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


def local(path: str) -> Path:
    """The path with `~` expanded. Raises HarnessError for what no file can be called, e.g. a name of 300 letters."""
    try:
        found = Path(path).expanduser()
        found.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RuntimeError) as error:
        raise HarnessError(f"{path[:60]!r} cannot be a path here: {error.args[-1]}; check its spelling") from error
    return found


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_hash(file: Path) -> str:
    """`sha256_file`, read only once for a large file: remembered by its path, size, inode and times of change.

    A file changed in the last two seconds is not remembered, since it could change again within the clock's grain.
    """
    stat = file.stat()
    if stat.st_size < SMALL:
        return sha256_file(file)
    note = _note(file)
    if note.exists():
        return note.read_text()
    digest = sha256_file(file)
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > 2 * 10**9:
        _remember(note, digest)
    return digest


def _note(file: Path) -> Path:
    stat = file.stat()
    key = json.dumps([str(file.absolute()), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns])
    return cache_dir() / "sha256" / hashlib.sha256(key.encode()).hexdigest()


def _remember(note: Path, digest: str) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    scratch = note.with_suffix(f".{os.getpid()}")
    scratch.write_text(digest)
    scratch.rename(note)


def code_hash(*modules: ModuleType) -> str:
    """Sha256 over the source of `modules`: what they made before a change of them is not taken for what they make."""
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)).hexdigest()


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return ``folder``, calling ``build(empty folder)`` if it is not there yet.

    The folder appears by one rename after all of it, checksums included, is on disk, so its existence means it is
    whole; a lease beside it keeps two processes from building it twice. A folder whose bytes no longer match its
    checksums is refused.
    """
    if not folder.exists():
        with held(folder.with_name(f".{folder.name}.making")) as lease:
            _build(folder, build, lease)
    for name, digest in checksums(folder).items():
        if not (folder / name).is_file() or remembered_hash(folder / name) != digest:
            raise HarnessError(f"{folder / name} does not match its checksum; delete {folder} to build it again")
    return folder


def _build(folder: Path, build: Callable[[Path], None], lease: Lease) -> None:
    if folder.exists():  # made while this process waited
        return
    for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(scratch)
        digests = {str(f.relative_to(scratch)): _on_disk(f) for f in _files(scratch)}
        (scratch / CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
        scratch.chmod(0o755)
        lease.check()
        scratch.rename(folder)
        for name, digest in digests.items():  # else the next process would read all of it again
            if (folder / name).stat().st_size >= SMALL:
                _remember(_note(folder / name), digest)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _on_disk(file: Path) -> str:
    """Sha256 of a file, which is on disk by then: what is remembered of it must still hold after a power cut."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    return sha256_file(file)


def checksums(folder: Path) -> dict[str, str]:
    """Sha256 by file name, as `build_once` wrote them."""
    lines = (folder / CHECKSUMS).read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())
