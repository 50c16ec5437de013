"""Quantised bases, by bitsandbytes itself: it works without a GPU, too."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils.integrations import dequantize_module_weight

from harness import base as bases
from harness import lowrank, plan
from harness.cell import Base
from harness.errors import HarnessError
from harness.methods.sft import Sft
from harness.methods.sft_full import SftFull
from harness.run import subset_of
from harness.tuning import Lora
from tests.conftest import attempt

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes comes with the extra `qlora`")
IDS = torch.arange(5, 45)[None]


def quantized(base: Base, **changes: Any) -> bases.LoadedBase:
    return bases.load(dataclasses.replace(base, **{"quantize": "nf4", **changes}), "cpu")


def test_the_linear_layers_are_quantised_and_answer_nearly_alike(tiny_base: Base) -> None:
    with torch.no_grad():
        full = bases.load(tiny_base, "cpu").model(IDS).logits
        loaded = quantized(tiny_base)
        near = loaded.model(IDS).logits
    layer = loaded.model.model.layers[0].mlp.up_proj  # type: ignore[union-attr,index]
    assert type(layer) is bitsandbytes.nn.Linear4bit
    assert type(loaded.model.lm_head) is torch.nn.Linear
    assert 0 < (near - full).norm() / full.norm() < 0.3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_trained_beside_it_by_peft_and_leaves_it_as_it_came(
    tiny_base: Base, make_cell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(lowrank.LowRank, "apply", None)  # ours knows full weights only
    loaded = quantized(tiny_base, dtype=dtype)
    cell = make_cell(Sft(lr=1e-2, epochs=8, lora=Lora(rank=4)), base=loaded.config, size=4)
    with torch.no_grad():
        before = loaded.model(IDS).logits
    with cell.method.adapt(loaded, list(subset_of(cell)), cell, attempt(tmp_path)) as adapted, torch.no_grad():
        trained = adapted.model(IDS).logits
        losses = [row["loss"] for row in map(json.loads, (tmp_path / "losses.jsonl").read_text().splitlines())]
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS).logits, before)
    assert not torch.allclose(trained, before, atol=1e-2)
    assert losses[-1] < 0.7 * losses[0]


def test_gradients_are_those_of_the_same_weights_in_full(tiny_base: Base) -> None:
    """After an answer without gradients, upon which bitsandbytes packs the weights of some CPUs into another form."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights="gaussian")
    loaded = quantized(tiny_base)
    full = bases.load(tiny_base, "cpu").model
    with torch.no_grad():
        loaded.model(IDS)
        for name, layer in full.named_modules():
            other = loaded.model.get_submodule(name)
            if isinstance(other, bitsandbytes.nn.Linear4bit):
                layer.weight.copy_(dequantize_module_weight(other))  # type: ignore[union-attr,operator]
    gradients = []
    for model in (loaded.model, full):
        torch.manual_seed(0)
        adapted = lowrank.attach(model, config)
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
        adapted.train()
        adapted(IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad for name, p in adapted.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 2 * 7 * 2
    for name, expected in gradients[1].items():
        assert (gradients[0][name] - expected).norm() < 1e-4 * expected.norm(), name


def test_what_cannot_be_is_refused(tiny_base: Base, make_cell: Any, tmp_path: Path, monkeypatch: Any) -> None:
    loaded = quantized(tiny_base)
    for method, message in [
        (SftFull(), "is quantised, and all its weights cannot be trained"),
        (Sft(lora=Lora(init="pissa")), r"method\.lora\.init=pissa"),
    ]:
        cell = make_cell(method, base=loaded.config)
        with (
            pytest.raises(HarnessError, match=message),
            method.adapt(loaded, list(subset_of(cell)), cell, attempt(tmp_path)),
        ):
            raise AssertionError("not reached")
    for changes, message in [({"quantize": "nf5"}, "use nf4"), ({"gguf_file": "x.gguf"}, "its own form")]:
        with pytest.raises(HarnessError, match=message):
            plan.check([make_cell("base", size=0, base=dataclasses.replace(loaded.config, **changes))])


def test_without_bitsandbytes_a_plan_says_what_to_install(
    tiny_base: Base, make_cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HarnessError, match=r"pip install 'superficial-alignment-harness\[qlora\]'"):
        bases.check_quantize(dataclasses.replace(tiny_base, quantize="nf4"))


def test_it_is_part_of_the_identity_and_absent_where_it_is_not_used(make_cell: Any, tiny_base: Base) -> None:
    plain, four = (make_cell(base=dataclasses.replace(tiny_base, quantize=q)).identity("x", "y") for q in (None, "nf4"))
    assert plain["base"].keys() == {"identity", "dtype", "chat_template"}
    assert plain != four
