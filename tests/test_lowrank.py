"""LoRA in one step of autograd against peft's own forward and backward."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from harness.lowrank import LowRank, attach


class Two(nn.Module):
    """A linear layer with a bias behind one without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 40, bias=False), nn.Linear(40, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def pair(dtype: torch.dtype = torch.float32, **lora: Any) -> tuple[Any, Any]:
    """The same adapter on the same layers, by peft and by us; B is not zero, as it would be at first."""
    torch.manual_seed(0)
    layers = Two().to(dtype).requires_grad_(False)
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": ["first", "second"], **lora})
    theirs, ours = get_peft_model(copy.deepcopy(layers), config), attach(copy.deepcopy(layers), config)
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p, std=0.1)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def run(model: Any, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Output, gradient of the input and gradients of the adapter under a fixed, uneven loss."""
    x = x.clone().requires_grad_(True)
    out = model(x)
    (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def steps_taken(model: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many layers compute by `LowRank`."""
    calls: list[Any] = []
    apply = LowRank.apply

    def counted(*given: Any) -> Tensor:
        calls.append(given)
        return apply(*given)

    monkeypatch.setattr(LowRank, "apply", counted)
    model(torch.randn(3, 24))
    return len(calls)


@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24)])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"second": 2}}])
def test_output_and_gradients_are_pefts(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    theirs, ours = pair(**settings)
    x = torch.randn(shape)
    for a, b in zip(run(theirs, x)[:2], run(ours, x)[:2], strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=1e-5)
    (_, _, expected), (_, _, found) = run(theirs, x), run(ours, x)
    assert expected.keys() == found.keys()
    assert len(found) == 4
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5, rtol=1e-4), name


def test_in_bfloat16_it_is_no_further_from_the_truth_than_peft() -> None:
    theirs, ours = pair(torch.bfloat16)
    exact = copy.deepcopy(theirs).double()
    x = torch.randn(64, 24, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        by_peft, by_us = run(theirs, x), run(ours, x)
    truth = run(exact, x.double())

    def distance(found: Any) -> list[float]:
        tensors = zip([found[0], found[1], *found[2].values()], [truth[0], truth[1], *truth[2].values()], strict=True)
        return [((a.double() - b).norm() / b.norm()).item() for a, b in tensors]

    assert all(b < 0.02 and b < 1.5 * a for a, b in zip(distance(by_peft), distance(by_us), strict=True))
    assert all(gradient.dtype == torch.float32 for gradient in by_us[2].values())


def test_a_frozen_input_gets_no_gradient_and_nothing_is_kept_without_gradients() -> None:
    _, ours = pair()
    x = torch.randn(3, 24)
    ours(x).sum().backward()
    assert x.grad is None
    assert sum(p.grad is not None for p in ours.parameters()) == 4
    with torch.no_grad():
        assert not ours(torch.randn(3, 24)).requires_grad


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    shapes = [(2, 3, 6), (5, 6), (5,), (2, 6), (5, 2)]
    x, weight, bias, a, b = (torch.randn(s, dtype=torch.double) for s in shapes)
    for tensor in (x, a, b):
        tensor.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x, a, b: LowRank.apply(x, weight, bias, a, b, 1.7), (x, a, b))


def test_with_the_adapter_off_or_merged_it_is_pefts() -> None:
    theirs, ours = pair()
    x = torch.randn(3, 24)
    adapted = ours(x)
    with theirs.disable_adapter(), ours.disable_adapter():
        assert torch.equal(theirs(x), ours(x))
        assert not torch.allclose(ours(x), adapted)
    ours.merge_adapter()
    assert torch.allclose(ours(x), adapted, atol=1e-5)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_plain_lora_stays_pefts(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair(**settings)
    assert steps_taken(ours, monkeypatch) == 0


def test_plain_lora_takes_one_step_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair()
    assert steps_taken(ours, monkeypatch) == 2
