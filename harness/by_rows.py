"""Which models can attend by rows (`harness.attention`), and how far: tried on each, since an error would be silent."""

from typing import Any

import torch
from torch import Tensor

from harness.attention import Behind, Extend, Prefix, inner, laid_out, rows_attention


def reach(model: Any) -> int | None:
    """How many tokens a row may have for attention by rows to be the model's own. None: any number.

    Limits are how far back a token can see (sliding windows, chunks), and where rotary positions change their angles
    with the longest row of a pass.
    """
    config = inner(model).config.get_text_config()
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in (rope, *(r for r in rope.values() if isinstance(r, dict))):  # of all layers, or by kind of layer
        if kind.get("rope_type") in ("longrope", "dynamic"):
            limits.append(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
    return min((n for n in limits if n), default=None)


@torch.no_grad()
def fits(model: Any) -> bool:
    """Whether attention by rows gives this model's own logits. Tried on a row behind a prefix and a neighbour.

    What a row must not see counts for exactly nothing, so another neighbour may not move a single bit; against the
    model's own attention only rounding may differ. A model that keeps a state, counts positions in its own way or has
    not been moved to transformers' attention interface does not fit.
    """
    own = inner(model)
    if own.config._attn_implementation not in ("sdpa", "eager") or not own._can_set_attn_implementation():
        return False
    if (window := reach(model)) is not None and window < 16:
        return False
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(own.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    start, ours, one, other = (torch.randint(vocabulary, (n,), generator=generator) for n in (3, 5, 7, 7))
    try:
        with rows_attention(model):
            beside = [_beside(model, start.to(device), ours.to(device), x.to(device)) for x in (one, other)]
    except (NotImplementedError, TypeError):  # refused by `_forward`, or no such argument in the model's forward
        return False
    finally:
        model.train(was_training)
    whole = torch.cat([start, ours]).to(device)
    model.eval()
    alone = model(input_ids=whole[None], use_cache=False).logits[0, len(start) :].float()
    model.train(was_training)
    if beside[0].shape != alone.shape or not torch.equal(beside[0], beside[1]):
        return False
    rounding = 1e-3 if model.dtype == torch.float32 else 0.05  # of the logits' spread; bfloat16 alone is good for 0.01
    return bool((alone - beside[0].float()).abs().mean() < rounding * alone.std())


def _beside(model: Any, start: Tensor, ours: Tensor, other: Tensor) -> Tensor:
    """The logits of `ours` behind `start`, with another row `other` before it."""
    device = start.device
    prefix = Prefix()
    with laid_out(Extend(prefix)):
        model(input_ids=start[None], position_ids=torch.arange(len(start), device=device)[None], use_cache=False)
    prefix.length = len(start)
    positions = torch.cat([torch.arange(len(x)) for x in (other, ours)]).to(device) + prefix.length
    with laid_out(Behind([len(other), len(ours)], prefix, device)):
        row = torch.cat([other, ours])[None]
        kept = torch.arange(len(other), row.shape[1], device=device)
        return model(input_ids=row, position_ids=positions[None], use_cache=False, logits_to_keep=kept).logits[0]
