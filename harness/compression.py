"""Weights in fewer bits: fewer directions, coarser numbers, and how long their code is.

An adapter's product B A is cut to its strongest directions, which no other choice of as many approximates better in the
sum of squares (Eckart & Young 1936, Psychometrika 1:211); their entries are rounded to 2**bits even steps, symmetric
about zero, each vector with a step of its own; and the numbers of the steps are counted as an arithmetic coder writes
them that learns their frequencies as it goes (Krichevsky & Trofimov 1981, IEEE Trans. Inf. Theory 27:199): their
empirical entropy, and about half a log2 of their count for each number that they can have. Nothing is sent beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEP_BITS = 16  # of a vector's step, a bfloat16
TRIES = 15  # steps tried for each vector, from the one that reaches its largest entry down to `LEAST` of it
LEAST = 0.3


@dataclass(frozen=True)
class Directions:
    """A product of low rank as a sum over k of ``outer(left[k], right[k])``, the strongest first, in float32."""

    left: Tensor  # [k, out]
    right: Tensor  # [k, in]
    strength: Tensor  # [k]: singular values; each of the two vectors has the length of its root

    def strongest(self, count: int) -> "Directions":
        return Directions(self.left[:count], self.right[:count], self.strength[:count])

    def product(self) -> Tensor:
        """[out, in]."""
        return self.left.T @ self.right


def directions(a: Tensor, b: Tensor) -> Directions:
    """Of B A, with `a` [rank, in] and `b` [out, rank]: its singular value decomposition, without making the product."""
    q_out, r_out = torch.linalg.qr(b.double())
    q_in, r_in = torch.linalg.qr(a.double().T)
    u, strength, vt = torch.linalg.svd(r_out @ r_in.T)
    left, right = (q_out @ u) * strength.sqrt(), (q_in @ vt.T) * strength.sqrt()
    return Directions(left.T.float(), right.T.float(), strength.float())


def shares(layers: Sequence[Directions], keep: float) -> list[int]:
    """How many directions of each layer are among the strongest `keep` (0 to 1) of all layers together, at least one
    of all: the best approximation of all layers at once by so many."""
    every = torch.cat([layer.strength for layer in layers])
    count = max(1, math.ceil(keep * len(every) - 1e-9))
    chosen = torch.zeros(len(every), dtype=torch.bool)
    chosen[every.argsort(descending=True, stable=True)[:count]] = True
    return [int(part.sum()) for part in chosen.split([len(layer.strength) for layer in layers])]


@dataclass(frozen=True)
class Rounded:
    """Vectors whose entries are ``(number + 1/2) * step``, number from -2**(bits-1) to 2**(bits-1) - 1."""

    numbers: Tensor  # [k, n] whole
    steps: Tensor  # [k]
    bits: int

    def values(self) -> Tensor:
        return (self.numbers + 0.5) * self.steps[:, None]


def rounded(vectors: Tensor, bits: int) -> Rounded:
    """Each of the vectors [k, n] with the step, of `TRIES`, that leaves the least sum of squares. The first of them
    reaches the largest entry, so that no vector is left further from the truth than rounding by it would, which is half
    a step an entry."""
    half = 2 ** (bits - 1)
    reach = vectors.abs().amax(1, keepdim=True) / half
    best, steps, numbers = torch.full_like(reach, torch.inf), torch.zeros_like(reach), torch.zeros_like(vectors)
    for share in torch.linspace(1, LEAST, TRIES).tolist():
        step = (reach * share * (1 + 2**-8)).bfloat16().float()  # no rounding of the step makes it less than `reach`
        tried = (vectors / step.clamp_min(1e-30)).floor().clamp(-half, half - 1)
        error = ((tried + 0.5) * step - vectors).square().sum(1, keepdim=True)
        better = error < best
        best, steps, numbers = best.where(~better, error), steps.where(~better, step), numbers.where(~better, tried)
    return Rounded(numbers, steps[:, 0], bits)


def code_bits(numbers: Tensor, bits: int) -> float:
    """Length of the whole numbers' code in bits, `bits` each where that is less; one more says which it is."""
    count, kinds = numbers.numel(), 2**bits
    times = torch.unique(numbers, return_counts=True)[1].double()
    learned = torch.lgamma(times + 0.5).sum() - len(times) * math.lgamma(0.5)
    nats = math.lgamma(count + kinds / 2) - math.lgamma(kinds / 2) - float(learned)
    return 1 + min(float(count * bits), nats / math.log(2))


def squeezed(layers: Sequence[Directions], keep: float, bits: int) -> tuple[list[Directions], float]:
    """The layers' strongest directions with rounded entries, and the bits that all of it takes: how many are kept of
    each layer, a step for each vector, and the numbers of the steps."""
    counts = shares(layers, keep)
    kept, told, numbers = [], 0.0, []
    for layer, count in zip(layers, counts, strict=True):
        left, right = (rounded(part[:count], bits) for part in (layer.left, layer.right))
        kept.append(Directions(left.values(), right.values(), layer.strength[:count]))
        told += math.ceil(math.log2(len(layer.strength) + 1)) + 2 * count * STEP_BITS
        numbers += [left.numbers.flatten(), right.numbers.flatten()]
    return kept, told + code_bits(torch.cat(numbers), bits)
