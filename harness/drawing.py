"""Tokens drawn at random: each row with random numbers of its own, whatever is beside it in a batch.

The t-th number of a row follows from the seed, the row's prompt and how many rows before it have the same prompt, and
from nothing else. So an answer does not depend, but for rounding, on what else is asked, in which order or how much at
once; and two models that are asked the same draw by the same numbers, so that what luck they share cancels in their
difference (common random numbers).
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 256  # numbers of a row made at once
LIKELIEST = 256  # tokens among which a nucleus is looked for at first


class Streams:
    """A stream of uniform numbers in [0, 1) for each of some prompts, by Philox (Salmon et al. 2011), which counts."""

    def __init__(self, prompts: Sequence[Sequence[int]], seed: int) -> None:
        before: Counter[bytes] = Counter()
        self.keys: list[int] = []
        for prompt in prompts:
            mark = hashlib.sha256(np.asarray(prompt, "<i8").tobytes()).digest()
            own = hashlib.sha256(b"%d %d " % (seed, before[mark]) + mark).digest()
            self.keys.append(int.from_bytes(own[:16], "big"))
            before[mark] += 1
        self.blocks: dict[tuple[int, int], np.ndarray] = {}

    def at(self, rows: Sequence[tuple[int, int]]) -> np.ndarray:
        """[rows] numbers: of each (prompt's number, t) the t-th of its stream."""
        wanted = [(number, t // BLOCK) for number, t in rows]
        self.blocks = {w: self.blocks[w] if w in self.blocks else self._block(*w) for w in wanted}
        return np.array([self.blocks[w][t % BLOCK] for w, (_, t) in zip(wanted, rows, strict=True)])

    def _block(self, number: int, block: int) -> np.ndarray:
        counter = block * BLOCK // 4  # of four numbers each
        return np.random.Generator(np.random.Philox(key=self.keys[number], counter=counter)).random(BLOCK)


def draw(scores: Tensor, uniform: np.ndarray, top_p: float = 1.0, likeliest: int = LIKELIEST) -> Tensor:
    """Tokens [rows] by the softmax of `scores` [rows, vocabulary], by inversion of `uniform` [rows] in [0, 1).

    With `top_p` below 1, from the nucleus: the fewest likeliest tokens whose probabilities reach it (Holtzman et al.
    2020, arXiv 1904.09751). It is found without sorting the vocabulary where it lies among the `likeliest`, exactly.
    """
    total = scores.logsumexp(-1, keepdim=True)
    if top_p >= 1:
        return _invert((scores - total).exp().double(), uniform)
    few = likeliest < scores.shape[-1]
    best, tokens = scores.topk(likeliest) if few else scores.sort(descending=True)
    probabilities = (best - total).exp().double()
    reached = probabilities.cumsum(-1)
    chosen = _invert(probabilities * (reached - probabilities < top_p), uniform)
    drawn = tokens.gather(-1, chosen[:, None]).squeeze(1)
    wider = (reached[:, -1] < top_p).nonzero().squeeze(1)
    if few and len(wider):
        drawn[wider] = draw(scores[wider], uniform[wider.cpu().numpy()], top_p, 16 * likeliest)
    return drawn


def _invert(weights: Tensor, uniform: np.ndarray) -> Tensor:
    """The first place at which the running sum of `weights` [rows, n] exceeds that share of the whole sum."""
    running = weights.cumsum(-1)
    wanted = torch.from_numpy(uniform).to(running.device)[:, None] * running[:, -1:]
    last = weights.shape[-1] - 1 - weights.flip(-1).ne(0).int().argmax(-1)  # rounding may reach the whole sum
    return torch.minimum(torch.searchsorted(running, wanted, right=True).squeeze(1), last)
