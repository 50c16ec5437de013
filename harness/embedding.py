"""Examples as a model sees them: its hidden states as the vectors of `harness.data.embed`."""

import importlib.metadata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from harness import base as bases
from harness import ranks
from harness.cell import Base
from harness.errors import HarnessError
from harness.identity import fingerprint

TOKENS_A_PASS = 4096  # padding counted


@dataclass
class HiddenStates:
    """The mean of a base's last hidden states over a text's first `tokens` tokens, less the mean of all texts.

    Without the latter all texts lie in one narrow cone (Ethayarajh 2019, arXiv 1909.00512). These are floats: another
    machine may round one otherwise, and an order made from them is then another, of which a record's subset tells.
    """

    base: Any  # the fields of a Base
    tokens: int = 512

    def _base(self) -> Base:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Base), self.base))  # type: ignore[return-value]

    def identity(self) -> str:
        base = self._base()
        versions = [importlib.metadata.version(library) for library in ("torch", "transformers")]
        return fingerprint(["hidden states", 1, bases.identity(base), base.dtype, base.quantize, self.tokens, versions])

    def embed(self, texts: Iterable[str]) -> Any:
        """(texts, d) float32. Costs one forward pass of all tokens; loads the base in place of the resident one."""
        if ranks.count() > 1:
            raise HarnessError(
                "vectors are made by one process: run harness plan first, which keeps them for the others"
            )
        loaded = bases.load(self._base())
        ids = [loaded.tokenizer(text, truncation=True, max_length=self.tokens)["input_ids"] or [0] for text in texts]
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        found = np.empty((len(ids), loaded.model.config.hidden_size), np.float32)
        for some in _passes(order, ids):
            found[some] = _means(loaded.model, [ids[number] for number in some])
        bases.forget()
        return found - found.mean(axis=0)


def _passes(order: Sequence[int], ids: Sequence[Sequence[int]]) -> Iterable[list[int]]:
    """Texts of about one length, so many that they fill a pass."""
    some: list[int] = []
    for number in order:
        if some and (len(some) + 1) * len(ids[number]) > TOKENS_A_PASS:
            yield some
            some = []
        some.append(number)
    yield some


def _means(model: Any, ids: Sequence[Sequence[int]]) -> Any:
    import torch

    longest = max(map(len, ids))
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=model.device)
    padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=model.device)
    with torch.no_grad():
        states = model.base_model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state.float()
    weights = mask[..., None].float()
    return ((states * weights).sum(1) / weights.sum(1)).cpu().numpy()
