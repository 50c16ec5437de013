"""NEFTune: the noise is as strong as each sequence's own length asks, only in training, and the same when resumed."""

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import store
from harness.base import LoadedBase
from harness.cell import Cell
from harness.errors import HarnessError
from harness.lowrank import LowRank
from harness.methods.sft import Sft
from harness.methods.sft_full import SftFull
from harness.neftune import Noisy, noise
from harness.objective import LIKELIHOOD
from harness.run import run
from harness.store import ADAPTER, MODEL
from harness.train import _laid_out
from harness.tuning import Lora
from tests.children import in_child
from tests.test_checkpoint import elsewhere, outcome, run_and_die_at
from tests.test_train import sequences

Make = Callable[..., Cell]
LENGTHS = (13, 2, 170)


def embedded(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.get_input_embeddings()(ids)


def test_each_sequence_has_noise_by_its_own_length(loaded: LoadedBase) -> None:
    """By the paper's formula, a sequence at a time: uniform noise in [-1, 1] times alpha / sqrt(L d)."""
    model, alpha = loaded.model, 5.0
    ids = torch.arange(sum(LENGTHS))[None] % 300
    clean = embedded(model, ids)
    torch.manual_seed(3)
    with noise(model, list(LENGTHS), alpha):
        noisy = embedded(model, ids)
    torch.manual_seed(3)
    drawn = (torch.rand(clean.shape) * 2 - 1).split(LENGTHS, dim=1)
    width = model.config.hidden_size
    for length, unit, added in zip(LENGTHS, drawn, (noisy - clean).split(LENGTHS, dim=1), strict=True):
        assert torch.allclose(added, unit * alpha / math.sqrt(length * width), atol=1e-6)
        assert added.norm() == pytest.approx(alpha / math.sqrt(3), rel=0.2)  # whatever the length: the paper's point
    assert torch.equal(embedded(model, ids), clean)
    assert not model.get_input_embeddings()._forward_hooks


def test_a_pack_gets_the_noise_that_its_sequences_would_get_alone(loaded: LoadedBase) -> None:
    """Where transformers' own hook takes the length of the pack. Their strengths, not their draws, are the same."""
    model, batch = loaded.model, sequences(loaded.model.config.vocab_size)
    heard: list[torch.Tensor] = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    for groups in ([batch], [[s] for s in batch]):
        heard.clear()
        for group in groups:
            with torch.no_grad(), _laid_out(model, group, math.inf) as together:
                Noisy(LIKELIHOOD, 5.0)(model, group, together)
        clean = embedded(model, torch.tensor([t for s in batch for t in s.ids]))
        strength = (torch.cat([h[0] for h in heard]) - clean).split([len(s.ids) for s in batch])
        assert [s.norm().item() for s in strength] == pytest.approx([5 / math.sqrt(3)] * len(batch), rel=0.1)
    hook.remove()


@pytest.mark.parametrize("method", [Sft, SftFull])
def test_training_hears_the_noise_and_evaluation_does_not(
    make_cell: Make, tmp_path: Path, loaded: LoadedBase, method: Any
) -> None:
    quiet, loud = (method(lr=1e-3, epochs=1, held_out=4, neftune_alpha=alpha) for alpha in (0.0, 100.0))
    records = [store.read_result(run(make_cell(m, size=8)) / store.RECORD)["training"] for m in (quiet, loud)]
    assert records[0]["final_loss"] != pytest.approx(records[1]["final_loss"], abs=1e-4)
    still = method(lr=0.0, epochs=1, held_out=4, neftune_alpha=100.0)  # learns nothing, so the loss is the base's
    without = method(lr=0.0, epochs=1, held_out=4)
    records = [store.read_result(run(make_cell(m, size=8)) / store.RECORD)["training"] for m in (still, without)]
    assert records[0]["final_loss"] != records[1]["final_loss"]
    assert records[0]["held_out_loss"] == records[1]["held_out_loss"]


@pytest.mark.parametrize(("method", "weights"), [(Sft, ADAPTER), (SftFull, MODEL)])
def test_resumed_it_ends_with_the_same_bits(make_cell: Make, tmp_path: Path, method: Any, weights: str) -> None:
    cell = make_cell(method(lr=1e-3, epochs=2, batch_size=3, neftune_alpha=5.0), size=8)
    cell.run.checkpoint_seconds = 0.0
    assert in_child(run_and_die_at, cell, 3, signal.SIGKILL) == -signal.SIGKILL
    assert outcome(run(cell), weights) == outcome(run(elsewhere(cell, tmp_path / "undisturbed")), weights)
    assert store.read_json(cell.folder() / store.RECORD)["training"]["resumed"] == [3]


def test_lora_in_one_step_stays(make_cell: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, apply = [], LowRank.apply
    monkeypatch.setattr(LowRank, "apply", lambda *given: calls.append(1) or apply(*given))
    run(make_cell(Sft(lr=1e-3, epochs=1, neftune_alpha=5.0, lora=Lora(rank=4)), size=4))
    assert calls


def test_a_negative_alpha_is_refused() -> None:
    with pytest.raises(HarnessError, match="neftune_alpha=-1"):
        Sft(neftune_alpha=-1).check()
