"""The items of evaluations as texts, compared with examples and with each other: what is asked twice, or was shown."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from omegaconf import OmegaConf

from harness.cell import Task
from harness.data import overlap as overlaps
from harness.data.contamination import Index
from harness.data.overlap import texts_of, users_say
from harness.data.subset import Subset
from harness.data.words import mark
from harness.evaluate import identity, item_hash, load_task
from harness.identity import fingerprint


def items_among(evals: dict[str, Task], subset: Subset) -> dict[str, int]:
    """How many of each task's items users ask in the examples, by `harness.data.overlap`'s marks."""
    known = {name: [set(map(mark, texts)) for texts in _texts_of(name, task)] for name, task in evals.items()}
    said = users_say(subset, set().union(*(item for items in known.values() for item in items)))
    return {name: sum(not item.isdisjoint(said) for item in items) for name, items in known.items()}


def overlap(name: str, task: Task, subset: Subset, words: int) -> dict[str, int]:
    """How many of the examples and of the task's items have so many words in a row in common, or a whole question."""
    key = fingerprint([identity(name, task), words])
    if key not in _indexes:
        _indexes[key] = Index(_texts_of(name, task), words)
    return {"words": words, **overlaps.overlap(subset, _indexes[key])}


def _texts_of(name: str, task: Task) -> list[list[str]]:
    """Of each item, the texts by which it would be known."""
    key = fingerprint(identity(name, task))
    if key not in _texts:
        members = load_task(name, task)["tasks"].values()
        docs = ((member, doc) for member in members for doc in islice(member.eval_docs, task.limit))
        _texts[key] = [texts_of(doc, member.doc_to_text(doc)) for member, doc in docs]
    return _texts[key]


def shared_items(one: tuple[str, Task], other: tuple[str, Task]) -> int:
    """How many items of one evaluation (name, task) are asked in the other too, in the same words."""
    return sum(item in _items_asked(*other) for item in _items_asked(*one))


def _items_asked(name: str, task: Task) -> list[bytes]:
    """A mark of each item: of its question or, where it has none of its own, of the answer."""
    key = fingerprint(identity(name, task))
    if key not in _asked:
        docs = [(m, d) for m in load_task(name, task)["tasks"].values() for d in islice(m.eval_docs, task.limit)]
        texts = [(member.doc_to_text(doc), member.doc_to_target(doc)) for member, doc in docs]
        _asked[key] = [mark(str(question if str(question).strip() else answer)) for question, answer in texts]
    return _asked[key]


_asked: dict[str, list[bytes]] = {}
_texts: dict[str, list[list[str]]] = {}  # made once per process
_indexes: dict[str, Index] = {}


def questions(name: str, task: Task) -> dict[tuple[str, int], tuple[str, str]]:
    """By member task and item, as kept answers name them: the question by itself, without examples or a chat template,
    and lm-eval's hash of the item."""
    found = {}
    for member_name, member in load_task(name, task)["tasks"].items():
        for item, doc in enumerate(islice(member.eval_docs, task.limit)):
            found[member_name, item] = str(member.doc_to_text(doc)), item_hash(doc)
    return found


@dataclass
class Items:
    """All items of a task, as `data.contamination` compares examples with them."""

    name: str
    task: Any
    file: str | None = None
    make: dict[str, Any] | None = None
    unsafe_code: bool = False

    def texts(self) -> list[list[str]]:
        given: Any = OmegaConf.to_container(self.task) if OmegaConf.is_config(self.task) else self.task
        make: Any = OmegaConf.to_container(self.make) if OmegaConf.is_config(self.make) else self.make
        return _texts_of(self.name, Task(given, self.file, make, unsafe_code=self.unsafe_code))
