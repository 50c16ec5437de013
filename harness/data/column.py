"""A column of a source's rows, beside its table: what a row has and its turns do not tell, such as its score."""

import dataclasses
import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifact import build_once, cache_dir
from harness.cell import Form
from harness.data.form import to_messages
from harness.data.rows import Row
from harness.data.table import Array, Table, mapped
from harness.errors import HarnessError
from harness.identity import canonical_json, fingerprint


@dataclass(frozen=True, eq=False)
class Column:
    name: str
    codes: Array  # (rows of the table,): which of the values
    values: list[Any]  # all different

    def numbers(self) -> Array:
        """(rows,) as float64. Raises HarnessError where a value is no finite number."""
        numbers = []
        for value in self.values:
            try:
                number = float("nan" if isinstance(value, bool) or value is None else value)
            except (TypeError, ValueError):
                number = float("nan")
            if not np.isfinite(number):
                raise HarnessError(
                    f"data.select.column={self.name} holds {value!r:.60}, which is no number to order by; name a "
                    "column of numbers, or mend the rows"
                )
            numbers.append(number)
        return np.array(numbers)[self.codes]


def read_column(what: Any, form: Form, rows: Iterable[tuple[str, Row]], name: str, table: Table) -> Column:
    """The column of the rows that made `table`, of which `what` and `form` say which they are; read once, kept on disk.

    Raises HarnessError, naming the place, where a row has no such column.
    """
    key = fingerprint([what, dataclasses.asdict(form), table.content, name])
    folder = build_once(cache_dir() / "columns" / key[:32], lambda scratch: _write(scratch, form, rows, name, table))
    values = json.loads((folder / "values.json").read_text())
    return Column(name, mapped(folder / "codes.npy"), values)


def _write(folder: Path, form: Form, rows: Iterable[tuple[str, Row]], name: str, table: Table) -> None:
    known: dict[str, int] = {}
    codes = array("I")
    for place, row in rows:
        if form.drop_empty and not to_messages(form, row, place):
            continue  # it is not in the table either
        if name not in row:
            raise HarnessError(
                f"{place}: the row has no column {name!r} (data.select.column); it has: {', '.join(sorted(row))}"
            )
        try:
            value = canonical_json(row[name])
        except TypeError as error:
            raise HarnessError(f"{place}: the column {name!r} cannot be ordered by ({error}); name another") from error
        codes.append(known.setdefault(value, len(known)))
    assert len(codes) == len(table), "the same rows make the table and its column"
    np.save(folder / "codes.npy", np.frombuffer(codes, np.uint32))
    (folder / "values.json").write_text("[" + ",".join(known) + "]")
