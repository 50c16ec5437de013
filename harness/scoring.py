"""Log-likelihoods of many continuations, every shared prefix computed once.

The sequences are sorted, so those that share a beginning stand together, and what a range of them shares is what its
first and its last share. From the top of that implicit tree: a beginning that saves enough is computed once and kept as
the prefix (a few-shot context); what remains is cut into rows (a question with its choices, a tree in one row), and
rows are packed into passes by their tokens. Only the path from the root is ever kept.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from harness import ranks
from harness.attention import Behind, Extend, Prefix, laid_out, rows_attention
from harness.clock import part

log = logging.getLogger(__name__)

# What a forward pass costs beyond its tokens, in tokens: below it, sharing a prefix is not worth a pass of its own.
PASS = 256
# Pairs of tokens that attention can compare in the time that one token takes in all else (2,000 to 10,000 by model).
PAIRS = 2000
LEAST = 16  # tokens a pass; where memory has no room for so few, it is not the passes that are too large


@dataclass
class Room:
    """What goes through the model at once. Where memory has no room for it, halve, and do again what is not done."""

    tokens: int  # of a pass
    rows: int = 128  # of answers in progress; more gain nothing on a CPU, and little on an accelerator

    def halve(self, running: int = 1) -> bool:
        """After torch.OutOfMemoryError with so many rows in progress; whether to try again.

        Several ranks cannot: they would have to halve together, and those that did not fail are waiting for this one.
        """
        if ranks.count() > 1 or (self.tokens <= LEAST and running == 1):
            return False
        if self.tokens > LEAST:
            self.tokens //= 2
        if running > 1:
            self.rows = running // 2
        log.warning("out of memory: from here on %d tokens a pass and at most %d rows", self.tokens, self.rows)
        return True


@dataclass(frozen=True)
class Continuation:
    """The last `answer` of `ids` are scored; the model never needs to read the very last one."""

    ids: list[int]
    answer: int

    def __post_init__(self) -> None:
        # As lm-eval's hf backend: else an empty context or an answer longer than the model's would get a wrong score.
        assert 0 < self.answer < len(self.ids), "an answer needs tokens, and a token before it"


@torch.no_grad()
def score(
    model: Any, continuations: Sequence[Continuation], room: Room, on_scored: Any = None
) -> list[tuple[float, bool]]:
    """For each continuation the sum of its answer's log-probabilities (nats), and whether greedy decoding gives it.

    `on_scored(n)` hears how many more are done.
    """
    left = sorted(range(len(continuations)), key=lambda i: continuations[i].ids[:-1])
    found: dict[int, tuple[float, bool]] = {}
    with rows_attention(model):
        while left:
            scorer = _Scorer(model, [continuations[i] for i in left], room.tokens)
            try:
                for done in scorer.run():
                    found |= {left[number]: scorer.result(number) for number in done}
                    if on_scored:
                        on_scored(len(done))
            except torch.OutOfMemoryError:
                if not room.halve():
                    raise
            left = [i for i in left if i not in found]
            if left:
                torch.cuda.empty_cache()
    return [found[i] for i in range(len(continuations))]


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    shortest = min(len(one), len(other))
    if one[:shortest] == other[:shortest]:
        return shortest
    low, high = 0, shortest  # the first low agree, the first high do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


class _Scorer:
    """Sorted sequences, a range [low, high) of which stands behind the first `depth` tokens, kept in `prefix`."""

    def __init__(self, model: Any, continuations: list[Continuation], tokens_per_pass: int) -> None:
        self.model, self.budget = model, tokens_per_pass
        self.device = next(model.parameters()).device
        self.ids = [c.ids[:-1] for c in continuations]
        self.answers = [c.ids[-c.answer :] for c in continuations]
        self.first = [len(c.ids) - 1 - c.answer for c in continuations]  # the position that predicts the answer's first
        self.common = [0, *(shared_length(a, b) for a, b in pairwise(self.ids))]
        self.logprobs = [torch.zeros(c.answer) for c in continuations]
        self.greedy = [torch.zeros(c.answer, dtype=torch.bool) for c in continuations]
        self.prefix = Prefix()

    def result(self, number: int) -> tuple[float, bool]:
        return self.logprobs[number].double().sum().item(), bool(self.greedy[number].all())

    def run(self) -> Iterator[list[int]]:
        """Yields the numbers of those that are done."""
        if self.ids:
            yield from self._below(0, len(self.ids), 0)

    def _below(self, low: int, high: int, depth: int) -> Iterator[list[int]]:
        """Score a range behind the first `depth` tokens."""
        rows, deeper = self._cut(low, high, depth)
        for a, b, shared in deeper:
            self._extend(a, b, depth, shared)
            yield from self._below(a, b, shared)
            self.prefix.length = depth
        rows.sort(key=lambda row: self._size(row[0], row[1], depth))  # neighbours of like length need little padding
        for group in self._packs(rows, depth):
            self._pass(group, depth)
            yield [number for a, b in group for number in range(a, b)]

    def _cut(self, low: int, high: int, depth: int) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
        """A range as rows to be packed, and as ranges whose shared beginning deserves to become prefix."""
        rows, deeper, waiting = [], [], [(low, high)]
        while waiting:
            a, b = waiting.pop()
            size, shared = self._size(a, b, depth), self._shared(a, b)
            parts = self._children(a, b, shared)
            saved = (shared - depth) * (len(parts) - 1)
            if size > self.budget and (saved > PASS or len(parts) == 1):
                deeper.append((a, b, shared))
            elif len(parts) == 1 or (size <= self.budget and saved * PAIRS >= size * size):
                rows.append((a, b))
            else:
                waiting += parts
        return rows, deeper

    def _shared(self, low: int, high: int) -> int:
        """Tokens that a range shares: as it is sorted, those that its first and last share."""
        return min(self.common[low + 1 : high], default=len(self.ids[low]))

    def _children(self, low: int, high: int, shared: int) -> list[tuple[int, int]]:
        """Where the range parts after `shared` tokens; one part where all its sequences are the same."""
        if len(self.ids[high - 1]) == shared:
            return [(low, high)]
        borders = [low, *(i for i in range(low + 1, high) if self.common[i] == shared), high]
        return list(pairwise(borders))

    def _size(self, low: int, high: int, depth: int) -> int:
        """Tokens of a range as one row behind the first `depth`."""
        first = len(self.ids[low]) - depth
        return first + sum(len(self.ids[i]) - self.common[i] for i in range(low + 1, high))

    def _packs(self, rows: list[tuple[int, int]], depth: int) -> Iterator[list[tuple[int, int]]]:
        pack: list[tuple[int, int]] = []
        used = 0
        for row in rows:
            size = self._size(*row, depth)
            if pack and used + size > self.budget:
                yield pack
                pack, used = [], 0
            pack.append(row)
            used += size
        if pack:
            yield pack

    def _extend(self, low: int, high: int, depth: int, shared: int) -> None:
        """Make tokens [depth, shared) of the range part of the prefix, and score the answers that lie in them."""
        for start in range(depth, shared, self.budget):
            end = min(start + self.budget, shared)
            ids = self.ids[low][start:end]
            wanted = [
                (position - start, i, position - self.first[i])
                for i in range(low, high)
                for position in range(max(self.first[i], start), min(end, len(self.ids[i])))
            ]
            with part("read a shared beginning"), laid_out(Extend(self.prefix)):
                self._forward(ids, range(start, end), wanted)
            self.prefix.length = end

    def _pass(self, rows: list[tuple[int, int]], depth: int) -> None:
        """One forward pass over rows, each the tree of a range of sequences, behind the first `depth` tokens."""
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[tuple[int, int, int]] = []
        lengths, masks = [], []
        for low, high in rows:
            start, count = len(ids), self._size(low, high, depth)
            if not count:  # all of it is in the prefix
                continue
            seen = torch.zeros(count, count, dtype=torch.bool)
            at: list[int] = []  # where, in the row, the current sequence's tokens behind `depth` stand
            for i in range(low, high):
                kept = self.common[i] - depth if i > low else 0
                used, new = len(ids) - start, len(self.ids[i]) - depth - kept
                seen[used : used + new, at[:kept]] = True
                seen[used : used + new, used : used + new] = torch.ones(new, new, dtype=torch.bool).tril()
                at = [*at[:kept], *range(used, used + new)]
                ids += self.ids[i][depth + kept :]
                positions += range(depth + kept, len(self.ids[i]))
                wanted += [
                    (start + at[p - depth], i, p - self.first[i])
                    for p in range(max(self.first[i], depth), len(self.ids[i]))
                ]
            lengths.append(count)
            masks.append(seen)
        if not ids:
            return
        with part("score"), laid_out(Behind(lengths, self.prefix, self.device, mask=self._additive(masks))):
            self._forward(ids, positions, wanted)

    def _additive(self, masks: list[torch.Tensor]) -> torch.Tensor | None:
        """[rows, 1, longest, longest], -inf where nothing is seen; None where every row is causal anyway."""
        if all(torch.equal(m, torch.ones_like(m).tril()) for m in masks):
            return None
        longest = max(len(m) for m in masks)
        # Padding sees the row's first token, as it must see something.
        whole = torch.zeros(len(masks), 1, longest, longest, dtype=torch.bool)
        whole[..., 0] = True
        for i, m in enumerate(masks):
            whole[i, 0, : len(m), : len(m)] = m
        return torch.zeros(whole.shape).masked_fill(~whole, -torch.inf).to(self.device)

    def _forward(self, ids: list[int], positions: Sequence[int], wanted: list[tuple[int, int, int]]) -> None:
        """Run the flat tokens; `wanted` holds (flat index, sequence, which token of its answer comes next)."""
        kept = sorted({index for index, _, _ in wanted}) or [0]
        logits = self.model(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.tensor([list(positions)], device=self.device),
            use_cache=False,
            logits_to_keep=torch.tensor(kept, device=self.device),
        ).logits[0]
        if not wanted:
            return
        row = {index: r for r, index in enumerate(kept)}
        rows = torch.tensor([row[index] for index, _, _ in wanted], device=self.device)
        answers = torch.tensor([self.answers[i][k] for _, i, k in wanted], device=self.device)
        logits = logits.float()
        chosen = (logits[rows, answers] - logits.logsumexp(-1)[rows]).cpu()
        greedy = (logits.argmax(-1)[rows] == answers).cpu()
        for (_, i, k), logprob, best in zip(wanted, chosen, greedy, strict=True):
            self.logprobs[i][k] = logprob
            self.greedy[i][k] = best
