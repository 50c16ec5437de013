"""Rows from a file or a hub dataset, one at a time, each with the place it came from, so that an error can name it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.cell import Source
from harness.errors import HarnessError
from harness.hub import Commit, commit_of, copy_of

Row = dict[str, Any]
_MEND = "give a local file in `path`, or check the name, the network and your login"


def read_file(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, row) for each row of a .jsonl, .json (a list of objects) or .parquet file; place is ``file:line``."""
    if not path.is_file():
        raise HarnessError(f"{path} is not a file; give the path of a .jsonl, .json or .parquet file")
    match path.suffix:
        case ".jsonl":
            yield from _jsonl(path)
        case ".json":
            yield from _json(path)
        case ".parquet":
            import pyarrow
            import pyarrow.parquet

            number = 0
            try:
                for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=4096):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{path}: row {number}", row
            except (pyarrow.ArrowException, OSError) as error:  # a broken page is an OSError
                raise HarnessError(f"{path} cannot be read as Parquet: {error}") from error
        case _:
            raise HarnessError(f"{path}: unknown kind of file; convert it to .jsonl, .json or .parquet")


def _jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise HarnessError(
                        f"{path}:{number} is not valid JSON ({error}); mend or remove the line"
                    ) from error
                yield _checked(f"{path}:{number}", row)


def _json(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        text = path.read_text(encoding="utf-8")
        if not text.startswith("[", _after_space(text, 0)):
            raise HarnessError(f"{path} must hold a JSON list of objects, not a {type(json.loads(text)).__name__}")
        for number, row in enumerate(_items(text), 1):
            yield _checked(f"{path}: item {number}", row)
    except ValueError as error:
        raise HarnessError(f"{path} is not valid JSON: {error}") from error


def _items(text: str) -> Iterator[Any]:
    """The items of a JSON list, one at a time: all of them as Python objects would take several times the text."""
    decode = json.JSONDecoder().raw_decode
    at = _after_space(text, text.index("[") + 1)
    while text[at : at + 1] != "]":
        value, end = decode(text, at)
        yield value
        at = _after_space(text, end)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
            if text[at : at + 1] == "]":
                raise json.JSONDecodeError("Illegal trailing comma before end of array", text, at)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if (end := _after_space(text, at + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)


_SPACE = re.compile(r"[ \t\n\r]*")


def _after_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing at all, too


def _checked(place: str, row: Any) -> tuple[str, Row]:
    if not isinstance(row, dict):
        raise HarnessError(f"{place} is not a JSON object but a {type(row).__name__}; each row must be {{...}}")
    return place, row


def read_hub(source: Source) -> tuple[str, Iterator[tuple[str, Row]]]:
    """(commit, rows) of a hub dataset: the commit that its revision means. The first row asked for downloads them."""
    commit = commit_of("dataset", source.path, source.revision)
    return commit.sha, _load_hub(source, commit)


def _load_hub(source: Source, commit: Commit) -> Iterator[tuple[str, Row]]:
    import datasets

    copy = None if commit.online else copy_of("dataset", source.path, commit.sha)
    place = {"path": str(copy)} if copy else {"path": source.path, "revision": commit.sha}
    try:
        table = datasets.load_dataset(name=source.subset, split=source.split, **place)
    except Exception as error:  # whatever a download or the table's own format raises
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HarnessError(f"the hub dataset {source.path!r} cannot be loaded ({first}); {_MEND}") from error
    yield from ((f"{source.path}[{i}]", row) for i, row in enumerate(table))
