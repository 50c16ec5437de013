"""Rows from a file or a hub dataset, each with the place it came from, so that an error can name it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.cell import Source
from harness.errors import HarnessError

Row = dict[str, Any]


def read_file(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, row) for each row of a .jsonl, .json (a list of objects) or .parquet file; place is ``file:line``."""
    if not path.is_file():
        raise HarnessError(f"{path} is not a file; give the path of a .jsonl, .json or .parquet file")
    match path.suffix:
        case ".jsonl":
            yield from _jsonl(path)
        case ".json":
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise HarnessError(f"{path} is not valid JSON: {error}") from error
            if not isinstance(rows, list):
                raise HarnessError(f"{path} must hold a JSON list of objects, not a {type(rows).__name__}")
            for number, row in enumerate(rows, 1):
                yield _checked(f"{path}: item {number}", row)
        case ".parquet":
            import pyarrow
            import pyarrow.parquet

            number = 0
            try:
                for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
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


def _checked(place: str, row: Any) -> tuple[str, Row]:
    if not isinstance(row, dict):
        raise HarnessError(f"{place} is not a JSON object but a {type(row).__name__}; each row must be {{...}}")
    return place, row


def read_hub(source: Source) -> tuple[str, Iterator[tuple[str, Row]]]:
    """(commit, rows) of a hub dataset: the commit that its revision means now or, offline, in the hub's cache."""
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    mend = "give a local file in `path`, or check the name, the network and your login"
    try:
        commit = huggingface_hub.HfApi().dataset_info(source.path, revision=source.revision, timeout=20).sha
        place = {"path": source.path, "revision": commit}
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise HarnessError(f"{source.path!r} is neither a file here nor a hub dataset; {mend}") from error
    except Exception as error:  # offline; the error is that of whichever HTTP library the hub's client uses
        commit, folder = _cached(source)
        if folder is None:
            raise HarnessError(
                f"the hub cannot be reached for the dataset {source.path!r} ({type(error).__name__}) "
                f"and its cache has no copy; {mend}"
            ) from error
        place = {"path": folder}
    try:
        table = datasets.load_dataset(name=source.subset, split=source.split, **place)
    except Exception as error:  # whatever a download or the table's own format raises
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HarnessError(f"the hub dataset {source.path!r} cannot be loaded ({first}); {mend}") from error
    return str(commit), ((f"{source.path}[{i}]", row) for i, row in enumerate(table))


def _cached(source: Source) -> tuple[str, str | None]:
    """(commit, folder) of the copy that an earlier download left."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(source.path, repo_type="dataset", revision=source.revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return "", None
    return Path(folder).name, folder
