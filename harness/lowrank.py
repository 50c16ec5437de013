"""A frozen linear layer with a LoRA beside it, y = x Wᵀ + s (x Aᵀ) Bᵀ, as one step of autograd.

peft writes it as five, with a copy of x in the adapter's float32 and a sum as large as y both ways. Here the low-rank
parts are added in place, inside matrix products that accumulate in float32, and only x and x Aᵀ are kept for the
backward pass (as in Unsloth). A and B stay in float32 and are rounded to x's type for each product, as by autocast.
"""

from types import MethodType
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import Tensor


class LowRank(torch.autograd.Function):
    """`apply(x [..., in], W [out, in], bias [out] or None, A [rank, in], B [out, rank], s)` gives y [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat, a_half, b_half = x.flatten(0, -2), a.to(x.dtype), (b * scale).to(x.dtype)
        inner = flat @ a_half.t()
        out = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        out.addmm_(inner, b_half.t())
        ctx.save_for_backward(flat, inner, weight, a_half, b_half)
        ctx.scale, ctx.exact = scale, a.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, weight, a, b = ctx.saved_tensors
        grad = gradient.flatten(0, -2)
        grad_inner = grad @ b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_inner, a).view(*gradient.shape[:-1], -1)
        grad_a = (grad_inner.t() @ flat).to(ctx.exact)
        grad_b = (grad.t() @ inner).to(ctx.exact).mul_(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None


def attach(model: Any, config: LoraConfig) -> PeftModel:
    """peft's `get_peft_model`, where plain LoRA beside plain linear layers computes by `LowRank`.

    DoRA, dropout and quantised layers stay as peft has them. What changes are peft's own wrappers of the layers, which
    are thrown away with the adapter.
    """
    adapted = get_peft_model(model, config)
    for layer in adapted.modules():
        if (
            type(layer) is Linear
            and type(layer.base_layer) is torch.nn.Linear
            and type(layer.lora_dropout["default"]) is torch.nn.Identity
            and not layer.lora_variant
            and not layer.lora_bias["default"]
        ):
            layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
    return adapted


def _forward(layer: Any, x: Tensor, **others: Any) -> Tensor:
    if layer.disable_adapters or layer.merged or others:
        return Linear.forward(layer, x, **others)
    linear, a, b = layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]
    return LowRank.apply(
        x.to(linear.weight.dtype), linear.weight, linear.bias, a.weight, b.weight, layer.scaling["default"]
    )
