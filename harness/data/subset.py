"""Which examples: one order per (dataset, subset seed), of which every size is a prefix.

The order comes from hashing (subset seed, example id), so the first 1,000 are inside the first 10,000 on every machine
and library version. (`numpy.random.default_rng(seed).choice` does not nest.) An example's id hashes its turns, so
neither the order of the file nor its place matters.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, overload

import hydra.utils
import numpy as np

from harness.artifact import Artifact, local, remembered_hash
from harness.cell import Cell, Data, Message, Source
from harness.choice import Select
from harness.data.column import Column, read_column
from harness.data.order import deal, hashed
from harness.data.rows import Row, read_file, read_hub
from harness.data.screen import Screened, check_policies, screen
from harness.data.select import check_select, needs_column, selected
from harness.data.table import Array, Table, open_table
from harness.errors import HarnessError
from harness.identity import fingerprint

RULE = "sha256(subset_seed, example id), sources dealt by weight"


@dataclass(frozen=True)
class Example:
    id: str  # sha256 of the turns; a repeated example gets a number of its own
    source: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, eq=False)
class Subset(Sequence[Example]):
    """Examples by their places in the dataset's tables; each is read when it is asked for."""

    tables: dict[str, Table]  # by source
    source: Array  # (examples,): which of the tables
    row: Array  # (examples,): which of its rows

    def __len__(self) -> int:
        return len(self.row)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Subset": ...
    def __getitem__(self, index: int | slice) -> "Example | Subset":
        if isinstance(index, slice):
            return Subset(self.tables, self.source[index], self.row[index])
        name, table = list(self.tables.items())[self.source[index]]
        row = int(self.row[index])
        return Example(table.id(row), name, tuple(table.messages(row)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == its for mine, its in zip(self, other, strict=True))

    @functools.cached_property
    def identity(self) -> str:
        """`subset_identity`, without reading the examples."""
        digest = hashlib.sha256()
        for start in range(0, len(self), 4096):
            source, row = self.source[start : start + 4096], self.row[start : start + 4096]
            ids = np.empty((len(row), 32), np.uint8)
            for number, table in enumerate(self.tables.values()):
                ids[source == number] = table.ids[row[source == number]]
            digest.update((b"\n" if start else b"") + ids.tobytes().hex("\n", 32).encode())
        return digest.hexdigest()


NOTHING = Subset({}, np.empty(0, np.uint16), np.empty(0, np.uint32))


@dataclass
class Dataset:
    name: str
    tables: dict[str, Table]  # by source
    revisions: dict[str, str]  # by source: sha256 of the file, commit of the hub dataset, or the recipe
    weights: dict[str, Fraction]
    order: str = "hash"
    screened: Screened = dataclasses.field(default_factory=lambda: Screened([]))
    select: Select = dataclasses.field(default_factory=Select)
    columns: dict[str, Column] = dataclasses.field(default_factory=dict)  # by source, where the rule needs one
    _orders: dict[int, Subset] = dataclasses.field(default_factory=dict)  # by seed
    _ruled: dict[int, list[int]] = dataclasses.field(default_factory=dict)  # by seed, see `_ordered`
    _subsets: dict[tuple[int, int], Subset] = dataclasses.field(default_factory=dict)  # by (size, or -held out; seed)

    def __len__(self) -> int:
        return sum(map(len, self.tables.values())) - self.screened.dropped

    def subset(self, size: int, seed: int) -> Subset:
        """The first `size` examples in the order of `seed`: `harness.data.order` says which order that is."""
        if size > len(self):
            raise HarnessError(
                f"size={size} is larger than the dataset {self.name!r}, which has {len(self)} examples"
                f"{f' ({self.screened.dropped} more were dropped)' * bool(self.screened.dropped)}; "
                "examples are never repeated silently: choose a smaller size"
            )
        if (size, seed) not in self._subsets:
            self._subsets[size, seed] = self._whole(seed)[:size]
        return self._subsets[size, seed]

    def held_out(self, count: int, size: int, seed: int) -> Subset:
        """The last `count` examples in the order of `seed`, from which no size learns; refuses one that would."""
        if self.select.rule not in ("random", "stratified"):
            raise HarnessError(
                f"method.held_out={count} would be the examples that data.select.rule={self.select.rule} likes least, "
                "and no measure of the others; name a development evaluation in method.search.evals instead"
            )
        if size + count > len(self):
            raise HarnessError(
                f"size={size} and method.held_out={count} are together more than the {len(self)} examples of the "
                f"dataset {self.name!r}; lower one of them"
            )
        if (-count, seed) not in self._subsets:
            self._subsets[-count, seed] = self._whole(seed)[len(self) - count :]
        return self._subsets[-count, seed]

    def _whole(self, seed: int) -> Subset:
        if seed not in self._orders:
            self._orders[seed] = self._ordered(seed)
        return self._orders[seed]

    def _ordered(self, seed: int) -> Subset:
        """All examples in the order of the seed; notes how many of each source the rule of selection has put first."""
        if self.order == "file":
            return Subset(self.tables, np.zeros(len(self), np.uint16), np.arange(len(self), dtype=np.uint32))
        orders, self._ruled[seed] = [], []
        for (source, table), stays in zip(self.tables.items(), self.screened.stays, strict=True):
            rows, keys = hashed(table, seed)
            if not stays.all():
                rows, keys = rows[stays[rows]], keys[stays[rows]]
            order, ruled = selected(table, rows, self.select, self.columns.get(source), seed)
            orders.append((rows, keys) if order is None else (rows[order], keys[order]))
            self._ruled[seed].append(ruled)
        return Subset(self.tables, *deal(orders, [self.weights[source] for source in self.tables]))

    def manifest(self, subset: Subset, seed: int) -> dict[str, Any]:
        """What the subset is and where it came from, for the record."""
        counts = np.bincount(subset.source, minlength=len(self.tables)).tolist()
        chosen = self.select != Select()
        ruled = self._ruled.get(seed) or [0] * len(counts)
        return {
            "dataset": self.name,
            "rule": "as in the file" if self.order == "file" else f"{self.select.rule}, " * chosen + RULE,
            **({"select": dataclasses.asdict(self.select)} if chosen else {}),
            "subset_seed": seed,
            "examples": len(subset),
            "of": len(self),
            "subset": subset.identity,
            **({"found": self.screened.found, "dropped": self.screened.dropped} if self.screened.found else {}),
            "sources": {
                source: {
                    "revision": self.revisions[source],
                    "weight": float(self.weights[source]),
                    "rows": len(table),
                    "left_out": table.left_out,
                    "taken": taken,
                    **({"taken_by_rule": min(taken, first)} if chosen else {}),
                }
                for (source, table), taken, first in zip(self.tables.items(), counts, ruled, strict=True)
            },
        }


def subset_identity(subset: Sequence[Example]) -> str:
    """Sha256 of the ids in order."""
    if isinstance(subset, Subset):
        return subset.identity
    return hashlib.sha256("\n".join(e.id for e in subset).encode()).hexdigest()


def held_out(cell: Cell, count: int) -> Subset:
    """The `count` examples that no size of the cell's data and subset seed learns from."""
    return load_dataset(cell.data).held_out(count, cell.size, cell.subset_seed)


_loaded: dict[str, Dataset] = {}


def load_dataset(data: Data) -> Dataset:
    """Read and check every row of every source, once for all sizes and seeds, which are cut from it."""
    here = [local(s.path) for s in data.sources.values() if s.path]
    changed = [p.stat().st_mtime_ns for p in here if p.is_file()]
    key = fingerprint([dataclasses.asdict(data), changed])
    if key not in _loaded:
        _loaded[key] = _load(data)
    return _loaded[key]


def _load(data: Data) -> Dataset:
    if not data.sources:
        raise HarnessError(f"the dataset {data.name!r} has no sources; name a file under data.sources")
    if data.order not in ("hash", "file") or (data.order == "file" and len(data.sources) > 1):
        raise HarnessError(f"data.order={data.order!r} must be hash or, with one source, file")
    check_select(data)
    check_policies(data)
    tables, revisions, weights = {}, {}, {}
    columns: dict[str, Column] = {}
    for name, source in data.sources.items():
        if not 1e-6 <= source.weight <= 1e6:
            raise HarnessError(
                f"data.sources.{name}.weight={source.weight} must lie between 1e-6 and 1e6; or leave the source out"
            )
        what, revisions[name], rows = _rows(name, source)
        label = f"data.sources.{name} ({source.path or 'made'})"
        tables[name] = open_table(what, source.form, rows, label)
        weights[name] = Fraction(source.weight).limit_denominator(10**6)
        if needs_column(data.select):
            what, _, rows = _rows(name, source)
            columns[name] = read_column(what, source.form, rows, data.select.column, tables[name])
    return Dataset(data.name, tables, revisions, weights, data.order, screen(data, tables), data.select, columns)


def _rows(name: str, source: Source) -> tuple[list[Any], str, Iterable[tuple[str, Row]]]:
    """What the source's rows are, their revision for the record, and the rows, read only once they are asked for."""
    path = local(source.path)
    if source.make:
        artifact: Artifact = hydra.utils.instantiate(source.make)
        revision = artifact.identity()
        return ["made", source.make["_target_"], revision], revision, _read_artifact(artifact)
    if path.suffix in (".jsonl", ".json", ".parquet"):
        revision = remembered_hash(path) if path.is_file() else ""
        return ["file", path.suffix, revision], revision, read_file(path)
    if source.path:
        revision, rows = read_hub(source)
        return ["hub", source.path, source.subset, source.split, revision], revision, rows
    raise HarnessError(f"data.sources.{name} has neither `path` nor `make`; set data.sources.{name}.path")


def _read_artifact(artifact: Artifact) -> Iterator[tuple[str, Row]]:
    yield from read_file(artifact.path())  # only now is it built, if it is not there yet
