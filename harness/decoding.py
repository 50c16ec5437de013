"""Generation for many prompts: a shared beginning is read once, and rows join and leave the batch one by one.

Prompts are grouped by what enough of them begin with. Behind that prefix every row has a slot for its own keys and
values; a row that has ended makes room for the next prompt, so no row waits for a longer neighbour. A prompt that is
asked many times, for samples, is read once, and its keys and values are held once for all rows that answer it; answers
that have said the same so far are computed once, until they part.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, count, pairwise
from typing import Any

import torch
from torch import Tensor

from harness.attention import Extend, Fill, Prefix, Samples, Slots, Step, laid_out, rows_attention
from harness.clock import part
from harness.scoring import Room, shared_length

FEWEST = 16  # prompts worth a group, and tokens worth a prefix, of their own

Row = tuple[int, int]  # a prompt's number, and how many tokens have been said after it
# (rows, their ids so far [rows, tokens], padded on the left, logits [rows, vocabulary]) -> tokens [rows]
Pick = Callable[[Sequence[Row], Tensor, Tensor], Tensor]
Ended = Callable[[list[int]], bool]  # whether what was generated is complete


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    pick: Pick,
    ended: Ended,
    room: Room,
    cache_bytes: int,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[list[int]]:
    """What the model says after each prompt: at most `max_new_tokens`, the last of which made it `ended`.

    At most `cache_bytes` hold the keys and values of running rows. `on_done(n)` hears how many more have ended.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    said: list[list[int]] = [[] for _ in prompts]
    sort = [prompts[i] for i in order]
    with rows_attention(model):
        cache_tokens = cache_bytes // bytes_per_token(model)
        for members, shared in _groups(sort):
            left = members
            while left:
                batch = _Batch(model, [sort[m] for m in left], shared, max_new_tokens, room, cache_tokens)
                numbers = [order[m] for m in left]
                try:
                    for member, tokens in batch.run(numbers, pick, ended):
                        said[numbers[member]] = tokens
                        on_done(1)
                except torch.OutOfMemoryError:  # answers in progress are begun anew
                    if not room.halve(batch.count):
                        raise
                left = [m for m in left if not said[order[m]]]
                if left:
                    torch.cuda.empty_cache()
    return said


def _groups(prompts: list[list[int]]) -> list[tuple[list[int], int]]:
    """Sorted prompts as groups of indices, each with how many tokens its members share; every prompt keeps one."""
    common = [0, *(shared_length(a, b) for a, b in pairwise(prompts))]
    number = [0, *accumulate(a != b for a, b in pairwise(prompts))]  # of each among the different ones

    def worth(low: int, high: int) -> bool:
        return number[high - 1] - number[low] + 1 >= FEWEST

    def parts_deeper(low: int, high: int, shared: int) -> bool:
        """Whether enough of a range share much more further down, e.g. one few-shot context a subject."""
        start = low
        for i in range(low + 1, high):
            start = start if common[i] >= shared + FEWEST else i
            if worth(start, i + 1):
                return True
        return False

    groups = []
    waiting = [(0, len(prompts))]
    while waiting:
        low, high = waiting.pop()
        shared = min(common[low + 1 : high], default=len(prompts[low]))
        borders = [low, *(i for i in range(low + 1, high) if common[i] == shared), high]
        rest: list[int] = []
        for a, b in pairwise(borders):
            more = min(common[a + 1 : b], default=shared) - shared
            if worth(a, b) and b - a < high - low and (more >= FEWEST or parts_deeper(a, b, shared)):
                waiting.append((a, b))
            else:
                rest += range(a, b)
        if rest:
            groups.append((rest, min(shared, *(len(prompts[i]) - 1 for i in rest))))
    return groups


class _Batch:
    """The prompts of one group behind the tokens they share."""

    def __init__(
        self,
        model: Any,
        prompts: list[list[int]],
        shared: int,
        max_new_tokens: int,
        room: Room,
        cache_tokens: int,
    ) -> None:
        self.model, self.shared, self.prompts = model, shared, prompts
        self.max_new_tokens, self.budget = max_new_tokens, room.tokens
        self.device = next(model.parameters()).device
        first = {tuple(prompt): i for i, prompt in reversed(list(enumerate(prompts)))}
        longest, often = max(map(len, prompts)) - shared, len(prompts) / len(first)
        apart = often >= 2  # prompts, from what is said after them
        # Prompts held for each row: twice as many as all rows need, as the last answers to some take long.
        held = 2 / often
        most = (cache_tokens - longest) / (held * longest + max_new_tokens)
        if not apart:
            most = cache_tokens / (longest + max_new_tokens)
        self.count = max(1, min(len(prompts), int(most), room.rows))
        self.prompt_slots: Slots | None = None
        self.alike = list(range(len(prompts)))  # of each prompt the first that is the same, and read for both
        capacity = longest + max_new_tokens
        if apart:
            self.prompt_slots = Slots(min(len(first), math.ceil(held * self.count)), longest, self.device)
            self.alike = [first[tuple(prompt)] for prompt in prompts]
            capacity = max_new_tokens
        self.place: dict[int, int] = {}  # of the prompts in `prompt_slots`
        self.opening: dict[int, Tensor] = {}  # logits after a prompt that has been read and is asked again
        self.slots = Slots(self.count, capacity, self.device)
        self.prefix = Prefix()

    def run(self, numbers: Sequence[int], pick: Pick, ended: Ended) -> Iterator[tuple[int, list[int]]]:
        """Yield (prompt, tokens) as they end. `numbers` are what `pick` knows the prompts by."""
        for start in range(0, self.shared, self.budget):
            end = min(start + self.budget, self.shared)
            with part("read a shared beginning"), laid_out(Extend(self.prefix)):
                self._forward(self.prompts[0][start:end], list(range(start, end)), [end - start - 1])
            self.prefix.length = end
        queue = sorted(range(len(self.prompts)), key=lambda i: len(self.prompts[i]))  # taken from the end
        running: list[int | None] = [None] * self.count  # by slot
        said: dict[int, list[int]] = {}
        branch: dict[int, int] = {}  # the same for prompts that are the same and have been answered the same so far
        names = count()
        while queue or said:
            free = [s for s, prompt in enumerate(running) if prompt is None]
            fresh: dict[int, Tensor] = {}
            if queue and len(free) * 8 >= len(running):
                for prompt, slot, logits in self._fill(queue, free, running):
                    running[slot], said[prompt], fresh[prompt] = prompt, [], logits
                    branch[prompt] = -1 - self.alike[prompt]
            elif not queue and len(free) * 4 > len(running):
                kept = [s for s, prompt in enumerate(running) if prompt is not None]
                self.slots.only(torch.tensor(kept, device=self.device))
                running = [running[s] for s in kept]
                self._hold_prompts_of(running)
            asked = [prompt for prompt in said if prompt in fresh or not fresh]
            if fresh:
                logits = torch.stack([fresh[p] for p in asked])
            else:
                of, computed = self._step(running, said, branch)
                logits = computed[[of[running.index(p)] for p in asked]]
            rows = [(numbers[p], len(said[p])) for p in asked]
            tokens = pick(rows, self._so_far(asked, said), logits).tolist()
            parted: dict[tuple[int, int], int] = {}
            for prompt, token in zip(asked, tokens, strict=True):
                said[prompt].append(token)
                branch[prompt] = parted.setdefault((branch[prompt], token), next(names))
                if len(said[prompt]) == self.max_new_tokens or ended(said[prompt]):
                    running[running.index(prompt)] = None
                    del branch[prompt]
                    yield prompt, said.pop(prompt)

    def _fill(self, queue: list[int], free: list[int], running: list[int | None]) -> list[tuple[int, int, Tensor]]:
        """Put the next prompts into free slots, each read once: (prompt, slot, logits of what follows)."""
        wanted = {self.alike[p] for p in running if p is not None} | self.opening.keys()
        self.place = {p: place for p, place in self.place.items() if p in wanted}
        unread: dict[int, int] = {}  # where each prompt is read to
        taken: dict[int, int] = {}
        for slot in free[: len(queue)]:
            prompt = self.alike[queue[-1]]
            if prompt not in self.opening and prompt not in unread:
                if (place := self._place(slot, {*self.place.values(), *unread.values()})) is None:
                    break
                unread[prompt] = place
            taken[queue.pop()] = slot
        waiting = list(unread)
        while waiting:
            rows = [waiting.pop(0)]
            while waiting and sum(len(self.prompts[p]) - self.shared for p in [*rows, waiting[0]]) <= self.budget:
                rows.append(waiting.pop(0))
            self.opening |= zip(rows, self._read(rows, [unread[p] for p in rows]), strict=True)
        if self.prompt_slots:
            self.place |= unread
            self.slots.held[list(taken.values())] = 0
        filled = [(p, slot, self.opening[self.alike[p]]) for p, slot in taken.items()]
        more = self.alike[queue[-1]] if queue else None  # the only one that may be asked again: equals are neighbours
        self.opening = {p: logits for p, logits in self.opening.items() if p == more}
        return filled

    def _place(self, slot: int, used: set[int]) -> int | None:
        """Where the prompt of a row in `slot` is read to: none while all places for prompts are `used`."""
        if self.prompt_slots is None:
            return slot
        return next((place for place in range(len(self.prompt_slots.held)) if place not in used), None)

    def _hold_prompts_of(self, running: list[int | None]) -> None:
        if self.prompt_slots:
            kept = sorted({self.alike[p] for p in running if p is not None})
            self.prompt_slots.only(torch.tensor([self.place[p] for p in kept], device=self.device))
            self.place = {p: place for place, p in enumerate(kept)}

    def _read(self, rows: list[int], where: list[int]) -> Tensor:
        """Read prompts into slots; the logits [rows, vocabulary] of what follows."""
        own = [self.prompts[p][self.shared :] for p in rows]
        lengths = [len(o) for o in own]
        fill = Fill(lengths, self.prefix, self.prompt_slots or self.slots, torch.tensor(where, device=self.device))
        with part("read prompts"), laid_out(fill):
            return self._forward(
                [t for o in own for t in o],
                [self.shared + i for n in lengths for i in range(n)],
                (torch.tensor(lengths).cumsum(0) - 1).tolist(),
            )

    def _step(
        self, running: list[int | None], said: dict[int, list[int]], branch: dict[int, int]
    ) -> tuple[list[int], Tensor]:
        """Which row each slot is, and logits [rows, vocabulary] of what follows; those of empty slots mean nothing."""
        empty = [slot for slot, prompt in enumerate(running) if prompt is None]
        if empty:  # as long as the longest: where no slot is shorter, attention needs no mask
            self.slots.held[empty] = 0
            self.slots.held[empty] = self.slots.held.max()
        rows, of, samples = running, list(range(len(running))), None
        if self.prompt_slots:
            first = {branch[prompt]: slot for slot, prompt in reversed([*enumerate(running)]) if prompt is not None}
            number = {name: row for row, name in enumerate(first)}
            of = [0 if prompt is None else number[branch[prompt]] for prompt in running]
            rows = [running[slot] for slot in first.values()]
            places = [self.place[self.alike[prompt]] for prompt in rows if prompt is not None]
            samples = Samples(self.prompt_slots, places, list(first.values()), of)
        positions = self.slots.held + self.shared
        if samples is not None:
            positions = positions[samples.rows] + samples.prompts.held[samples.place]
        last = [0 if prompt is None else said[prompt][-1] for prompt in rows]
        with part("next token"), laid_out(Step(self.prefix, self.slots, samples)):
            return of, self._forward(last, positions.tolist(), list(range(len(last))))

    def _so_far(self, asked: list[int], said: dict[int, list[int]]) -> Tensor:
        """Prompts and what was said, padded on the left with their own first token."""
        rows = [self.prompts[p] + said[p] for p in asked]
        longest = max(map(len, rows))
        return torch.tensor([[r[0]] * (longest - len(r)) + r for r in rows], device=self.device)

    def _forward(self, ids: list[int], positions: list[int], kept: list[int]) -> Tensor:
        return self.model(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=False,
            logits_to_keep=torch.tensor(kept, device=self.device),
        ).logits[0]


@torch.no_grad()
def bytes_per_token(model: Any) -> int:
    """Bytes that the keys and values of one token take over all layers, as found on one token.

    What a configuration says of heads and widths is not always what reaches attention, e.g. in multi-head latent
    attention (arXiv 2405.04434). To be called while `rows_attention` lasts.
    """
    token, one = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device), Prefix()
    with laid_out(Extend(one)):
        model(input_ids=token, position_ids=token, use_cache=False, logits_to_keep=token[0])
    return one.bytes()
