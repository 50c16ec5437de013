"""The fine-tuning loop: packed sequences that cannot see each other, loss on learned tokens only.

Sequences are laid end to end in one row, so that nothing is spent on padding, and kept apart inside attention
(`harness.attention`). Logits are computed only where a token is learned.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from harness import ranks
from harness.attention import Packed, fits, laid_out, reach, rows_attention
from harness.cell import OnStep, Run
from harness.clock import part
from harness.data.chat import Tokens
from harness.data.tokens import TokenSequences
from harness.errors import HarnessError
from harness.schedule import Schedule


def fine_tune(
    model: Any, sequences: TokenSequences, schedule: Schedule, *, seed: int, run: Run, on_step: OnStep
) -> dict[str, Any]:
    """Train the parameters of `model` that require gradients; return counts, seconds and losses for the record.

    The gradient of a batch is the mean over its learned tokens, however it is cut into passes of at most
    `run.tokens_per_pass` tokens and shared among the ranks. A bfloat16 model computes in bfloat16, its trained weights
    and their optimizer stay in float32. `on_step(step, steps, values)` hears each optimizer step.
    """
    started = time.perf_counter()
    if cut := int((~sequences.answered).sum()):
        raise HarnessError(f"{cut} examples are cut before their answer begins; raise method.max_length")
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=schedule.lr, betas=(0.9, 0.999), weight_decay=schedule.weight_decay, fused=True
    )
    packed = fits(model)
    longest = (reach(model) or math.inf) if packed else 0  # longer sequences get a pass of their own
    steps = schedule.steps(len(sequences))
    batches = _batches(len(sequences), schedule.batch_size, seed)
    losses: list[dict[str, float]] = []
    target_tokens = all_tokens = 0
    if ranks.mine():
        torch.manual_seed(seed + (ranks.mine() << 32))  # masks of dropout that are not the first rank's once more
    with _as_told(model, run):
        for step in range(steps):
            with part("read the batch"):
                batch = [sequences[i] for i in next(batches)]
            targets = sum(sum(s.learned[1:]) for s in batch)
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(step, steps)
            optimizer.zero_grad(set_to_none=True)
            passes = _own_passes(batch, run.tokens_per_pass, longest)
            here = torch.stack([_backward(model, p, targets, longest) for p in passes]).sum()
            with part("sum over processes"):
                total = ranks.summed(weights, here).item()
            norm = torch.nn.utils.clip_grad_norm_(weights, schedule.max_grad_norm)
            if not (math.isfinite(total) and math.isfinite(norm.item())):
                raise FloatingPointError(f"loss {total}, gradient {norm.item()} at step {step}; lower method.lr")
            with part("optimizer"):
                optimizer.step()
            if step in (0, steps - 1):
                ranks.check_same(weights)
            target_tokens += targets
            all_tokens += sum(len(s.ids) for s in batch)
            values = {"loss": total, "lr": schedule.lr_at(step, steps), "grad_norm": norm.item()}
            losses.append({"step": step, **values, "target_tokens": target_tokens})
            on_step(step, steps, values)
    return {
        "steps": steps,
        "epochs": steps / math.ceil(len(sequences) / schedule.batch_size),
        "target_tokens": target_tokens,
        "tokens": all_tokens,
        "packed": packed,
        "truncated_examples": int(sequences.truncated.sum()),
        "trained_parameters": sum(p.numel() for p in weights),
        "final_loss": losses[-1]["loss"],
        "seconds": time.perf_counter() - started,
        "losses": losses,
    }


@contextmanager
def _as_told(model: Any, run: Run) -> Iterator[None]:
    """Recompute activations instead of keeping them, compile the layers, if told to; the model leaves as it came."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers and (run.checkpoint_activations or run.compile):
        raise HarnessError("this model's layers are not known; set run.checkpoint_activations=false run.compile=false")
    for layer in layers if run.checkpoint_activations else []:
        # transformers' own switch would also leave hooks on the embeddings
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    for layer in layers if run.compile else []:  # one by one: they share their code, so it is compiled once
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            for name in ("gradient_checkpointing", "_gradient_checkpointing_func", "_compiled_call_impl"):
                vars(layer).pop(name, None)


def _batches(examples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of example indices: a fresh permutation each epoch, the last batch of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(examples, generator=generator).tolist()
        for start in range(0, examples, batch_size):
            yield order[start : start + batch_size]


def _own_passes(batch: list[Tokens], budget: int, longest: float) -> list[list[Tokens]]:
    """This rank's passes over a batch: as many as any other rank's, since sharded ones gather each layer together.

    The ranks are dealt like lengths. A pass that only fills up is one token, of which nothing is learned.
    """
    shares = ranks.deal(sorted(batch, key=lambda s: len(s.ids)))
    passes = [list(_passes(share, budget, longest)) for share in shares]
    idle = [Tokens(batch[0].ids[:1], [False])]
    own = passes[ranks.mine()]
    return own + [idle] * (max(map(len, passes)) - len(own))


def _passes(batch: list[Tokens], budget: int, longest: float) -> Iterator[list[Tokens]]:
    """Cut a batch into passes of at most `budget` tokens, at least one sequence each, like lengths together.

    A sequence of more than `longest` tokens cannot share a pass.
    """
    run: list[Tokens] = []
    used = 0
    for sequence in sorted(batch, key=lambda s: len(s.ids)):
        if run and (used + len(sequence.ids) > budget or len(sequence.ids) > longest):
            yield run
            run, used = [], 0
        run.append(sequence)
        used += len(sequence.ids)
    if run:
        yield run


def _backward(model: Any, sequences: list[Tokens], targets: int, longest: float) -> torch.Tensor:
    """Add these sequences' share of the gradient of a batch of `targets` learned tokens; return that of its loss."""
    lengths = [len(s.ids) for s in sequences]
    with kept_apart(model, lengths) if lengths[-1] <= longest else nullcontext():
        half = torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16)
        with part("forward"), half:
            loss = loss_sum(model, sequences) / targets
        with part("backward"):
            loss.backward()
    return loss.detach()


@contextmanager
def kept_apart(model: Any, lengths: list[int]) -> Iterator[None]:
    """Passes inside, backward passes too, are over sequences of these lengths laid end to end."""
    with rows_attention(model), laid_out(Packed(lengths, model.device)):
        yield


def loss_sum(model: Any, sequences: list[Tokens]) -> torch.Tensor:
    """Sum of -log p (nats) over the learned tokens of sequences laid end to end. Only their logits are computed.

    Several sequences must be `kept_apart`, or they read each other.
    """
    device = model.device
    ids = torch.tensor([t for s in sequences for t in s.ids], device=device)
    positions = torch.cat([torch.arange(len(s.ids)) for s in sequences]).to(device)
    learned = torch.tensor([flag and i > 0 for s in sequences for i, flag in enumerate(s.learned)], device=device)
    where = learned.nonzero().squeeze(1)
    # The token at t is predicted from t - 1; the first token of a sequence is never predicted, so t - 1 is its own.
    before = where - 1
    logits = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=before).logits[0]
    return cross_entropy(logits.float(), ids[where], reduction="sum")
