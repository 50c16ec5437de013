"""The rows of one source as a table on disk: a million examples cost no memory and open at once.

A row is its turns as JSON and its id, the sha256 of that JSON; so neither the file's layout, its order nor its place
matters. A table holds what the source and its form make, and nothing of names, weights, sizes or seeds, which share it.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from harness.artifact import build_once, cache_dir, checksums, code_hash
from harness.cell import Form, Message
from harness.data import form as forms
from harness.data import rows as readers
from harness.data.rows import Row
from harness.errors import HarnessError
from harness.identity import canonical_json, fingerprint

FORMAT = 2  # of the files and of the ids of copies; raise it with a change of either
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Table:
    folder: Path
    content: str  # sha256 over all rows, in order
    ids: Array  # (rows, 32) bytes
    turns: FileIO  # one line of JSON a row; read, as the pages of a map that is walked through all stay resident
    ends: Array  # (rows,): where each row's line ends
    left_out: int  # rows of the source that the form leaves out

    def __len__(self) -> int:
        return len(self.ends)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.folder,)  # another process opens the same files

    def characters(self, row: int) -> int:
        """About how long a row is."""
        return int(self.ends[row] - (self.ends[row - 1] if row else 0))

    def id(self, row: int) -> str:
        return str(self.ids[row].tobytes().hex())

    def line(self, row: int) -> bytes:
        """The row's turns as JSON."""
        start = self.ends[row - 1] if row else 0
        return os.pread(self.turns.fileno(), self.ends[row] - start, start)

    def messages(self, row: int) -> list[Message]:
        return [{"role": turn["role"], "content": turn["content"]} for turn in json.loads(self.line(row))]


def open_table(what: Any, form: Form, rows: Iterable[tuple[str, Row]], name: str) -> Table:
    """The table of `rows` in this form; they are read only if it is not there yet. `what` says which rows these are.

    Raises HarnessError for the first row that makes no dialogue, and where there is no row; `name` is for these and for
    the progress bar.
    """
    made_by = [code_hash(forms, readers), FORMAT, importlib.metadata.version("jinja2")]
    key = fingerprint([what, dataclasses.asdict(form), made_by])
    return _opened(build_once(cache_dir() / "rows" / key[:32], lambda scratch: _write(scratch, form, rows, name)))


def _opened(folder: Path) -> Table:
    return Table(
        folder=folder,
        content=checksums(folder)["ids.npy"],
        ids=mapped(folder / "ids.npy"),
        turns=FileIO(folder / "turns.jsonl"),
        ends=mapped(folder / "ends.npy"),
        left_out=int(np.load(folder / "left_out.npy")),
    )


def mapped(file: Path) -> Array:
    """The array of an .npy file, read as it is used. Never written to."""
    return np.asarray(np.load(file, mmap_mode="r"))  # a plain array over the map: np.memmap is slow to index


def kept(table: Table, name: str, make: Callable[[], Array]) -> Array:
    """What `make` gives for the table, made once and kept on disk; `name` says what it is and of which version."""

    def write(folder: Path) -> None:
        np.save(folder / "array.npy", make())

    return mapped(build_once(cache_dir() / "tables" / f"{table.content[:32]}-{name}", write) / "array.npy")


def _write(folder: Path, form: Form, rows: Iterable[tuple[str, Row]], name: str) -> None:
    digests, ends, end, left_out = bytearray(), array("q"), 0, 0
    with (folder / "turns.jsonl").open("wb") as file:
        for place, row in tqdm(rows, desc=f"rows of {name}", unit="row", delay=2, disable=None, dynamic_ncols=True):
            if not (messages := forms.to_messages(form, row, place)):
                left_out += 1
                continue
            line = canonical_json(messages).encode()
            digests += hashlib.sha256(line).digest()
            end += file.write(line + b"\n")
            ends.append(end)
    if not ends:
        raise HarnessError(f"{name} is empty; there is nothing to train on")
    ids = np.frombuffer(digests, np.uint8).reshape(-1, 32)
    _number_copies(ids)
    np.save(folder / "ids.npy", ids)
    np.save(folder / "ends.npy", np.frombuffer(ends, np.int64))
    np.save(folder / "left_out.npy", left_out)


def _number_copies(ids: Array) -> None:
    """Give the second and later copies of a row, in place, ids of their own: the sha256 of ``<id>:<2, 3, ...>``."""
    beginnings = ids.view(np.uint64)[:, 0]
    order = np.argsort(beginnings, kind="stable")  # copies stand together, in the order of the rows
    equal = beginnings[order][1:] == beginnings[order][:-1]
    seen: dict[bytes, int] = {}
    for row in order[np.append(False, equal) | np.append(equal, False)]:
        content = ids[row].tobytes()
        copies = seen[content] = seen.get(content, 0) + 1
        if copies > 1:
            ids[row] = np.frombuffer(hashlib.sha256(f"{content.hex()}:{copies}".encode()).digest(), np.uint8)
