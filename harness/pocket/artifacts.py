"""What a configuration names: two bases, and the rows of two tasks. Built on first use, then only read."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from harness.artifact import build_once, cache_dir
from harness.errors import HarnessError
from harness.pocket import corpus, newfacts, pretrain, rows, tables, text, tokenizer, world

VERSION = 1
"""Raised by hand when code changes a result that no constant below shows."""

BASES = {
    "s": pretrain.Recipe(hidden=80, layers=3, heads=4, feed_forward=240, steps=4000, learning_rate=3e-3),
    "m": pretrain.Recipe(hidden=144, layers=3, heads=4, feed_forward=432, steps=2600, learning_rate=1.5e-3),
    "lists": pretrain.Recipe(hidden=80, layers=3, heads=4, feed_forward=240, steps=1500, learning_rate=3e-3),
}
TABLES = replace(BASES["m"], steps=3200)
FRIENDS = BASES["m"]
HELD_OUT = 1  # the seed of documents that no base was pretrained on
TASKS, SPLITS, FORMS = ("facts", "rule"), ("train", "dev", "test"), ("chat", "quiz", "list", "sentence")


@dataclass(frozen=True)
class PocketBase:
    """A base model of about 0.3M (``s``) or 1M (``m``) parameters that knows the facts and not the rule.

    Or of 0.3M that learned them from lists (``lists``), and so learns in context, which the others do not.
    """

    size: str = "m"

    def __post_init__(self) -> None:
        _one_of("size", self.size, tuple(BASES))

    def identity(self) -> str:
        return _digest(
            kind="base",
            recipe=asdict(BASES[self.size]),
            vocabulary=tokenizer.vocabulary(),
            chat_template=tokenizer.CHAT_TEMPLATE,
            context=tokenizer.CONTEXT,
            corpus=corpus.constants(),
            **({"list": text.LIST} if self.size == "lists" else {}),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its weights, by name; nothing is built."""
        return pretrain.shapes(BASES[self.size], len(tokenizer.vocabulary()))

    def path(self) -> Path:
        folder = cache_dir() / "pocket" / f"base-{self.size}-{self.identity()[:12]}"
        return build_once(folder, self._pretrain)

    def _pretrain(self, folder: Path) -> None:
        recipe = BASES[self.size]
        words = tokenizer.build_tokenizer(tokenizer.vocabulary())
        documents = corpus.lists if self.size == "lists" else corpus.documents
        pretrain.pretrain(recipe, words, documents(recipe.seed), folder)


@dataclass(frozen=True)
class PocketRows:
    """A JSONL file: rows with a prompt and a completion to ``train`` on, items to be asked in ``dev`` and ``test``.

    The facts have these forms: a ``chat`` question, which pretraining never saw; a ``quiz`` line as pretraining told
    it, to be asked without the chat template; and a ``list`` of jobs, in which a question is no more than a name. Of
    both tasks a ``sentence`` is the chat question, to which the answer to train on is a sentence that ends with what
    was asked for. Every choice is made on ``dev``; ``test`` is for reporting.
    """

    task: str
    split: str = "train"
    form: str = "chat"

    def __post_init__(self) -> None:
        _one_of("task", self.task, TASKS)
        _one_of("split", self.split, SPLITS)
        _one_of("form", self.form, FORMS if self.task == "facts" else ("chat", "sentence"))

    def identity(self) -> str:
        listed = {"listed": rows.LISTED} if self.form == "list" else {}
        listed |= {"likes": text.LIKES} if self.form == "sentence" else {}
        return _digest(
            kind="rows", **asdict(self), **listed, text=text.constants(), world=world.constants(), choices=rows.CHOICES
        )

    def path(self) -> Path:
        folder = cache_dir() / "pocket" / f"{self.task}-{self.split}-{self.form}-{self.identity()[:12]}"
        return build_once(folder, self._write) / "rows.jsonl"

    def _write(self, folder: Path) -> None:
        make = rows.train_rows if self.split == "train" else rows.test_items
        lines = [json.dumps(row) + "\n" for row in make(self.task, self.split, self.form)]
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True)
class PocketDocuments:
    """A JSONL file of documents as pretraining had them, drawn anew: the same facts in other words and company."""

    count: int = 100

    def identity(self) -> str:
        return _digest(kind="documents", count=self.count, seed=HELD_OUT, corpus=corpus.constants())

    def path(self) -> Path:
        folder = cache_dir() / "pocket" / f"documents-{self.count}-{self.identity()[:12]}"
        return build_once(folder, self._write) / "rows.jsonl"

    def _write(self, folder: Path) -> None:
        lines = [json.dumps({"text": text}) + "\n" for text in islice(corpus.documents(HELD_OUT), self.count)]
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True)
class PocketPairs:
    """A JSONL file of a task's questions with two answers: the right one is `chosen`, a wrong one `rejected`."""

    task: str
    split: str = "train"

    def __post_init__(self) -> None:
        _one_of("task", self.task, TASKS)
        _one_of("split", self.split, SPLITS)

    def identity(self) -> str:
        return _digest(kind="pairs", **asdict(self), text=text.constants(), world=world.constants())

    def path(self) -> Path:
        folder = cache_dir() / "pocket" / f"{self.task}-{self.split}-pairs-{self.identity()[:12]}"
        return build_once(folder, self._write) / "rows.jsonl"

    def _write(self, folder: Path) -> None:
        lines = [json.dumps(row) + "\n" for row in rows.pairs(self.task, self.split)]
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True)
class TablesBase:
    """A base of about 1M parameters that knows what pretraining told of the six tables of a world."""

    world: int

    def identity(self) -> str:
        return _digest(
            kind="tables base",
            world=self.world,
            recipe=asdict(TABLES),
            vocabulary=tokenizer.tables_vocabulary(),
            chat_template=tokenizer.CHAT_TEMPLATE,
            context=tokenizer.CONTEXT,
            tables=tables.constants(),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its weights, by name; nothing is built."""
        return pretrain.shapes(TABLES, len(tokenizer.tables_vocabulary()))

    def path(self) -> Path:
        folder = cache_dir() / "pocket" / f"tables-{self.world}-{self.identity()[:12]}"
        return build_once(folder, self._pretrain)

    def _pretrain(self, folder: Path) -> None:
        words = tokenizer.build_tokenizer(tokenizer.tables_vocabulary())
        pretrain.pretrain(TABLES, words, tables.Tables(self.world).documents(), folder)


@dataclass(frozen=True)
class TablesRows:
    """A JSONL file about one thing of a world: rows to ``train`` on, items to be asked in ``dev`` and ``test``."""

    world: int
    thing: str
    split: str = "train"
    form: str = "chat"

    def __post_init__(self) -> None:
        _one_of("thing", self.thing, tables.THINGS)
        _one_of("split", self.split, SPLITS)
        _one_of("form", self.form, ("chat", "quiz"))

    def identity(self) -> str:
        return _digest(kind="tables rows", **asdict(self), tables=tables.constants())

    def path(self) -> Path:
        folder = (
            cache_dir() / "pocket" / f"tables-{self.world}-{self.thing}-{self.split}-{self.form}-{self.identity()[:12]}"
        )
        return build_once(folder, self._write) / "rows.jsonl"

    def _write(self, folder: Path) -> None:
        names = ("prompt", "completion", "cell") if self.split == "train" else ("question", "answer", "cell")
        asked = tables.Tables(self.world).questions(self.thing, self.split, self.form)
        lines = [json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in asked]
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True)
class FriendsBase:
    """A base of about 1M parameters that knows old people, their city, job and friend, and of no newcomer."""

    def identity(self) -> str:
        return _digest(
            kind="friends base",
            recipe=asdict(FRIENDS),
            vocabulary=tokenizer.friends_vocabulary(),
            chat_template=tokenizer.CHAT_TEMPLATE,
            context=tokenizer.CONTEXT,
            newfacts=newfacts.constants(),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its weights, by name; nothing is built."""
        return pretrain.shapes(FRIENDS, len(tokenizer.friends_vocabulary()))

    def path(self) -> Path:
        folder = cache_dir() / "pocket" / f"friends-{self.identity()[:12]}"
        return build_once(folder, self._pretrain)

    def _pretrain(self, folder: Path) -> None:
        words = tokenizer.build_tokenizer(tokenizer.friends_vocabulary())
        pretrain.pretrain(FRIENDS, words, newfacts.documents(FRIENDS.seed), folder)


@dataclass(frozen=True)
class FriendsRows:
    """A JSONL file: rows to train on (``news``, ``reasoning``, ``recall``) or items to ask (``direct``, ``multihop``).

    Of the items there are those of ``dev``, by which every choice is made, and of ``test``, which is for reporting.
    """

    what: str
    split: str = "train"

    def __post_init__(self) -> None:
        _one_of("what", self.what, (*newfacts.TRAINED, *newfacts.ASKED))
        _one_of("split", self.split, ("dev", "test") if self.what in newfacts.ASKED else ("train",))

    def identity(self) -> str:
        return _digest(kind="friends rows", **asdict(self), newfacts=newfacts.constants())

    def path(self) -> Path:
        folder = cache_dir() / "pocket" / f"friends-{self.what}-{self.split}-{self.identity()[:12]}"
        return build_once(folder, self._write) / "rows.jsonl"

    def _write(self, folder: Path) -> None:
        lines = [json.dumps(row) + "\n" for row in newfacts.rows(self.what, self.split)]
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


def _digest(**recipe: object) -> str:
    canonical = json.dumps({"version": VERSION, **recipe}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise HarnessError(f"pocket {field} is {value!r}; it can be {' or '.join(allowed)}")
