"""Pairs of answers as two dialogues each, tokenised, kept on disk and learned as any dialogue is."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, overload

from harness.cell import Message
from harness.data.chat import Tokens
from harness.data.kinds import kind_of
from harness.data.subset import Example, Subset
from harness.data.table import Table
from harness.data.token_cache import token_sequences
from harness.data.tokens import TokenSequences


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, each with the prompt before it; only the answers' tokens are `learned`."""

    chosen: Tokens
    rejected: Tokens

    @property
    def parts(self) -> tuple[Tokens, Tokens]:
        return self.chosen, self.rejected


class Pairs(Sequence[Pair]):
    """Pairs out of two `TokenSequences`, with the same arrays about all of them at once."""

    def __init__(self, chosen: TokenSequences, rejected: TokenSequences) -> None:
        self._chosen, self._rejected = chosen, rejected
        self.lengths = chosen.lengths + rejected.lengths
        self.truncated = chosen.truncated | rejected.truncated
        self.answered = chosen.answered & rejected.answered

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Pair(self._chosen[index], self._rejected[index])


def token_pairs(tokenizer: Any, examples: Sequence[Example], max_length: int) -> Pairs:
    """The tokens of the pairs, in order; each of the two sequences is cut at `max_length` tokens."""
    chosen, rejected = (
        token_sequences(tokenizer, with_answer(examples, role), max_length) for role in ("chosen", "rejected")
    )
    return Pairs(chosen, rejected)


def with_answer(examples: Sequence[Example], role: str) -> Sequence[Example]:
    """The examples as dialogues that end with the answer of this role, chosen or rejected."""
    if isinstance(examples, Subset):
        tables = {name: cast(Table, Side(table, role)) for name, table in examples.tables.items()}
        return dataclasses.replace(examples, tables=tables)
    return [dataclasses.replace(e, messages=tuple(one_dialogue(e.messages, role))) for e in examples]


@dataclass(frozen=True, eq=False)
class Side:
    """A `Table` of pairs, read as one of dialogues."""

    table: Table
    role: str

    @property
    def content(self) -> str:
        return f"{self.table.content}:{self.role}"

    def __len__(self) -> int:
        return len(self.table)

    def id(self, row: int) -> str:
        return f"{self.table.id(row)}:{self.role}"

    def characters(self, row: int) -> int:
        return self.table.characters(row)

    def messages(self, row: int) -> list[Message]:
        return one_dialogue(self.table.messages(row), self.role)


def one_dialogue(messages: Sequence[Message], role: str) -> list[Message]:
    """The turns of a pair with the answer of this role as the assistant's."""
    *before, chosen, rejected = messages
    answer = {"chosen": chosen, "rejected": rejected}[role]
    return [*before, {"role": "assistant", "content": answer["content"]}]


def dialogues_of(messages: list[Message]) -> list[list[Message]]:
    """What is tokenised of an example: both dialogues of a pair, else its own turns."""
    if kind_of(messages) != "pair":
        return [messages]
    return [one_dialogue(messages, role) for role in ("chosen", "rejected")]
