"""How small a trained adapter can be made before the score drops: scores under each compression, and their bits.

The parameters as a program in the sense of task complexity (arXiv 2602.15829): whatever bits are enough to say the
weights are enough to say the task. `harness.compression` says how they are cut, rounded and counted.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harness.cell import Task
from harness.errors import HarnessError
from harness.probe import Asking, Measured, Probe


@dataclass
class AdapterBits(Probe):
    """The cell's LoRA adapter with each share of its directions kept and each width of its numbers, asked the task.

    A metric for each, named ``keep0.25_bits4``: the mean over items of what the task's own metric says of each. `about`
    has the bits of each (``bits``), and how far the weights are from the trained ones (``error``: Frobenius norms). The
    untouched base, demonstrations and fully trained weights have no adapter and so no values: `why` says so.
    """

    keep: list[float] = field(default_factory=lambda: [1.0, 0.25, 0.05])  # of the directions of all layers together
    bits: list[int] = field(default_factory=lambda: [8, 3, 1])  # of an entry, before entropy coding
    score: str = ""  # the "metric/filter" that is kept; the task's first

    def check(self, name: str, task: Task) -> None:
        if not self.keep or not self.bits or len({*self.keep}) < len(self.keep) or len({*self.bits}) < len(self.bits):
            raise HarnessError(
                f"evals.{name}.probe needs keep and bits, none of them twice, e.g. keep=[1,0.25] bits=[4]"
            )
        if not all(0 < share <= 1 for share in self.keep):
            raise HarnessError(f"evals.{name}.probe.keep={self.keep} must be shares above 0, at most 1, e.g. [1,0.25]")
        if not all(1 <= width <= 16 for width in self.bits):
            raise HarnessError(f"evals.{name}.probe.bits={self.bits} must be from 1 to 16 bits, e.g. [8,3,1]")

    def passes(self) -> float:
        return float(len(self.keep) * len(self.bits))

    def measure(self, asking: Asking) -> Measured:
        from harness.compression import directions, squeezed

        if asking.run.eval_backend == "vllm":
            raise HarnessError("AdapterBits changes the resident adapter, which vLLM does not ask; "
                               "set run.eval_backend=shared")  # fmt: skip
        layers, why = lora_layers(asking.adapted.model)
        grid = {f"keep{keep:g}_bits{bits}": (keep, bits) for keep in self.keep for bits in self.bits}
        about: dict[str, Any] = {"bits": {}, "error": {}, "scored": self.score, "why": why}
        if why:
            return Measured([], dict.fromkeys(grid, True), about=about)
        trained = [directions(*factors(layer)) for layer in layers]
        samples: list[dict[str, Any]] = []
        better = True
        for name, setting in grid.items():
            kept, about["bits"][name] = squeezed(trained, *setting)
            about["error"][name] = _distance(trained, kept)
            with put_on(layers, kept):
                result = asking.ask(asking.adapted)
            chosen = _chosen(result["scores"], self.score, asking.name)
            about["scored"], better = f"{chosen['metric']}/{chosen['filter']}", chosen["higher_is_better"]
            rows = [row for row in result["samples"] if row["filter"] == chosen["filter"]]
            if not samples:
                samples = [_bare(row, result["scores"]) for row in rows]
            for sample, row in zip(samples, rows, strict=True):
                sample[name] = _number(row[chosen["metric"]], about["scored"], asking.name)
        return Measured(samples, dict.fromkeys(grid, better), about=about)


def lora_layers(model: Any) -> tuple[list[Any], str]:
    """peft's layers that hold a LoRA, in order; or why their weights are not all that was trained."""
    modules = list(model.modules())
    layers = [m for m in modules if "default" in getattr(m, "lora_A", ())]
    if not layers:
        return [], "no LoRA adapter was trained"
    if any(layer.lora_variant for layer in layers):
        return [], "DoRA's magnitudes are no product of low rank"
    if any(getattr(m, "modules_to_save", None) for m in modules):
        return [], "whole modules were trained beside the adapter (modules_to_save)"
    return layers, ""


def factors(layer: Any) -> tuple[Any, Any]:
    """A [rank, in] and B [out, rank] of a layer, its scaling in B."""
    return layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data * layer.scaling["default"]


@contextmanager
def put_on(layers: Sequence[Any], kept: Sequence[Any]) -> Iterator[None]:
    """Let each layer add these directions in place of its adapter's, for as long as the context lasts.

    The tensors that were there are set aside and put back, so the adapter is bit for bit what it was.
    """
    import torch

    weights = [(layer.lora_A["default"].weight, layer.lora_B["default"].weight) for layer in layers]
    before = [(a.data, b.data) for a, b in weights]
    try:
        for layer, (a, b), these in zip(layers, weights, kept, strict=True):
            count, right, left = len(these.left), torch.zeros_like(a.data), torch.zeros_like(b.data)
            right[:count] = these.right
            left[:, :count] = these.left.T / layer.scaling["default"]
            a.data, b.data = right, left
        yield
    finally:
        for (a, b), (right, left) in zip(weights, before, strict=True):
            a.data, b.data = right, left


def _distance(trained: Sequence[Any], kept: Sequence[Any]) -> float:
    """Frobenius norm of the difference of all layers' products over that of the trained ones."""
    off = whole = 0.0
    for one, other in zip(trained, kept, strict=True):
        product = one.product()
        off += float((other.product() - product).square().sum())
        whole += float(product.square().sum())
    return math.sqrt(off / whole) if whole else 0.0


def _chosen(scores: list[dict[str, Any]], wanted: str, name: str) -> dict[str, Any]:
    found = [s for s in scores if (f"{s['metric']}/{s['filter']}" == wanted if wanted else s["headline"])]
    if not found:
        have = "; ".join(f"{s['metric']}/{s['filter']}" for s in scores)
        raise HarnessError(f"evals.{name}.probe.score={wanted!r} is none of what the task gives: {have}")
    return found[0]


def _number(value: Any, scored: str, name: str) -> float:
    if not isinstance(value, int | float):  # a bool is an int
        raise HarnessError(f"evals.{name}.probe: {scored} gives no number for an item; name another one in probe.score")
    return float(value)


def _bare(row: dict[str, Any], scores: list[dict[str, Any]]) -> dict[str, Any]:
    """What is the item's own of a line, not the model's."""
    dropped = {"prompts", "tokens", "extracted", *(s["metric"] for s in scores)}
    return {k: v for k, v in row.items() if k not in dropped} | {"filter": "none", "extracted": []}
