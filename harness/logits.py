"""One model's logits for every token of many answers: rows laid end to end, what all of them begin with read once.

`harness.scoring` gives one number an answer; this is for who compares whole distributions, token by token.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from harness.attention import Behind, Extend, Prefix, laid_out, rows_attention
from harness.by_rows import reach
from harness.scoring import Continuation, shared_length

WORTH = 16  # tokens that all rows begin with, from which reading them once pays


class AnswerLogits:
    """What a model says at the tokens of `rows`' answers.

    `by_rows`: whether attention by rows gives this model's own logits (`LoadedBase.attends_by_rows`); else, and where
    rows are longer than it reaches, each row is a pass of its own.
    """

    def __init__(self, rows: Sequence[Continuation], *, by_rows: bool) -> None:
        self.rows, self.by_rows = rows, by_rows
        self.shared = _shared(rows) if by_rows else 0
        self.prefix = Prefix()

    def length(self, number: int) -> int:
        """Tokens of a row that a pass reads."""
        return len(self.rows[number].ids) - 1 - self.prefix.length

    @torch.no_grad()
    def of(self, model: Any, numbers: Sequence[int], tokens_per_pass: int) -> Tensor:
        """[answer tokens of the rows of these numbers, one row after the other; vocabulary], in the model's type."""
        longest = max(len(row.ids) for row in self.rows)
        if not self.by_rows or ((window := reach(model)) is not None and longest > window):
            self.shared = 0
            return torch.cat([self._forward(model, [number], nullcontext()) for number in numbers])
        with rows_attention(model):
            while self.prefix.length < self.shared:
                self._extend(model, min(self.prefix.length + tokens_per_pass, self.shared))
            lengths = [self.length(number) for number in numbers]
            return self._forward(model, numbers, laid_out(Behind(lengths, self.prefix, model.device)))

    def _extend(self, model: Any, end: int) -> None:
        at = torch.arange(self.prefix.length, end, device=model.device)
        ids = torch.tensor(self.rows[0].ids, device=model.device)[at]
        with laid_out(Extend(self.prefix)):
            model(input_ids=ids[None], position_ids=at[None], use_cache=False, logits_to_keep=1)
        self.prefix.length = end

    def _forward(self, model: Any, numbers: Sequence[int], layout: AbstractContextManager[None]) -> Tensor:
        ids: list[int] = []
        positions: list[int] = []
        kept: list[int] = []
        for row in (self.rows[number] for number in numbers):
            ids += row.ids[self.prefix.length : -1]
            positions += range(self.prefix.length, len(row.ids) - 1)
            kept += range(len(ids) - row.answer, len(ids))
        flat, at, wanted = (torch.tensor(x, device=model.device) for x in (ids, positions, kept))
        with layout:
            out = model(input_ids=flat[None], position_ids=at[None], use_cache=False, logits_to_keep=wanted)
        return out.logits[0]


def _shared(rows: Sequence[Continuation]) -> int:
    """Tokens that all rows begin with, none of which predicts an answer's; 0 where they are few."""
    before = [row.ids[: len(row.ids) - row.answer - 1] for row in rows]
    shared = shared_length(min(before), max(before))  # of sorted rows, what the first and the last share
    return shared if shared >= WORTH and len(rows) > 1 else 0
