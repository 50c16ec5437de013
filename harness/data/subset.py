"""Which examples: one order per (dataset, subset seed), of which every size is a prefix.

The order comes from hashing (subset seed, example id), so the first 1,000 are inside the first 10,000 on every machine
and library version. (`numpy.random.default_rng(seed).choice` does not nest.) An example's id hashes its turns, so
neither the order of the file nor its place matters.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import hydra.utils

from harness.artifact import Artifact, sha256_file
from harness.cell import Data, Message, fingerprint
from harness.data.form import to_messages
from harness.data.rows import read_file, read_hub
from harness.errors import HarnessError


@dataclass(frozen=True)
class Example:
    id: str  # sha256 of the turns; a repeated example gets a number of its own
    source: str
    messages: tuple[Message, ...]


@dataclass
class Dataset:
    name: str
    examples: dict[str, list[Example]]  # by source
    revisions: dict[str, str]  # by source: sha256 of the file, commit of the hub dataset, or the recipe
    weights: dict[str, Fraction]

    def __len__(self) -> int:
        return sum(map(len, self.examples.values()))

    def subset(self, size: int, seed: int) -> list[Example]:
        """The first `size` examples in the order of `seed`.

        Within a source the order is that of the hashes. Sources are dealt by weight: the r-th example of a source with
        weight w stands at (r + 1/2) / w, so each prefix holds the sources in the ratio of their weights, to within one
        example for two or three sources and half their number for more, until a source runs out.
        """
        if size > len(self):
            raise HarnessError(
                f"size={size} is larger than the dataset {self.name!r}, which has {len(self)} examples; "
                "examples are never repeated silently: choose a smaller size"
            )
        dealt = []
        for source, examples in self.examples.items():
            ordered = sorted((_hash(f"{seed}:{e.id}"), e.id, e) for e in examples)
            for rank, (key, _, example) in enumerate(ordered):
                dealt.append(((rank + Fraction(1, 2)) / self.weights[source], key, example))
        dealt.sort(key=lambda item: item[:2])
        return [example for _, _, example in dealt[:size]]

    def manifest(self, subset: list[Example], seed: int) -> dict[str, Any]:
        """What the subset is and where it came from, for the record."""
        counts = {source: sum(e.source == source for e in subset) for source in self.examples}
        return {
            "dataset": self.name,
            "rule": "sha256(subset_seed, example id), sources dealt by weight",
            "subset_seed": seed,
            "examples": len(subset),
            "of": len(self),
            "subset": subset_identity(subset),
            "sources": {
                source: {
                    "revision": self.revisions[source],
                    "weight": float(self.weights[source]),
                    "rows": len(examples),
                    "taken": counts[source],
                }
                for source, examples in self.examples.items()
            },
        }


def subset_identity(subset: list[Example]) -> str:
    """Sha256 of the ids in order."""
    return _hash("\n".join(e.id for e in subset))


_loaded: dict[str, Dataset] = {}


def load_dataset(data: Data) -> Dataset:
    """Read and check every row of every source; kept in memory, since all sizes and seeds are cut from it."""
    local = [Path(s.path).expanduser() for s in data.sources.values() if s.path]
    changed = [p.stat().st_mtime_ns for p in local if p.is_file()]
    key = fingerprint([dataclasses.asdict(data), changed])
    if key not in _loaded:
        _loaded[key] = _load(data)
    return _loaded[key]


def _load(data: Data) -> Dataset:
    if not data.sources:
        raise HarnessError(f"the dataset {data.name!r} has no sources; name a file under data.sources")
    examples: dict[str, list[Example]] = {}
    revisions, weights = {}, {}
    for name, source in data.sources.items():
        if not 1e-6 <= source.weight <= 1e6:
            raise HarnessError(
                f"data.sources.{name}.weight={source.weight} must lie between 1e-6 and 1e6; or leave the source out"
            )
        if source.make:
            artifact: Artifact = hydra.utils.instantiate(source.make)
            revisions[name], rows = artifact.identity(), read_file(artifact.path())
        elif Path(source.path).suffix in (".jsonl", ".json", ".parquet"):
            path = Path(source.path).expanduser()
            rows = read_file(path)
            revisions[name] = sha256_file(path) if path.is_file() else ""
        elif source.path:
            revisions[name], rows = read_hub(source)
        else:
            raise HarnessError(f"data.sources.{name} has neither `path` nor `make`; set data.sources.{name}.path")
        examples[name] = []
        seen: dict[str, int] = {}
        for place, row in rows:
            messages = to_messages(source.form, row, place)
            content = fingerprint(messages)
            copies = seen[content] = seen.get(content, 0) + 1
            identity = content if copies == 1 else _hash(f"{content}:{copies}")
            examples[name].append(Example(identity, name, tuple(messages)))
        if not examples[name]:
            raise HarnessError(f"data.sources.{name} ({source.path or 'made'}) is empty; there is nothing to train on")
        weights[name] = Fraction(source.weight).limit_denominator(10**6)
    return Dataset(data.name, examples, revisions, weights)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
