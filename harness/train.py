"""The fine-tuning loop: packed sequences that cannot see each other, loss on learned tokens only.

Sequences are laid end to end in one row. In transformers 5 they stay apart when, and only when, position ids restart at
each of them and neither an attention mask nor a cache is given; `packing_is_safe` checks that on the model itself, since a
leak would be silent. A model that fails the check gets one sequence a pass.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from harness.cell import OnStep
from harness.data.chat import Tokens
from harness.schedule import Schedule


def fine_tune(
    model: torch.nn.Module,
    sequences: list[Tokens],
    schedule: Schedule,
    *,
    seed: int,
    tokens_per_pass: int,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train the parameters of `model` that require gradients; return counts, seconds and losses for the record.

    The gradient of a batch is the mean over its learned tokens, however it is cut into passes of at most
    `tokens_per_pass` tokens. `on_step(step, steps, values)` hears each optimizer step.
    """
    started = time.perf_counter()
    device = next(model.parameters()).device
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=schedule.lr, betas=(0.9, 0.999), weight_decay=schedule.weight_decay)
    packed = packing_is_safe(model, device)
    steps = schedule.steps(len(sequences))
    batches = _batches(len(sequences), schedule.batch_size, seed)
    losses: list[dict[str, float]] = []
    target_tokens = all_tokens = 0
    for step in range(steps):
        batch = [sequences[i] for i in next(batches)]
        targets = sum(sum(s.learned[1:]) for s in batch)
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step, steps)
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for group_of_sequences in _passes(batch, tokens_per_pass if packed else 0):
            loss = _loss_sum(model, group_of_sequences, device) / targets
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(weights, schedule.max_grad_norm)
        optimizer.step()
        target_tokens += targets
        all_tokens += sum(len(s.ids) for s in batch)
        values = {"loss": total.item(), "lr": schedule.lr_at(step, steps), "grad_norm": norm.item()}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"the loss is {values['loss']} at step {step}; lower method.lr")
        losses.append({"step": step, **values, "target_tokens": target_tokens})
        on_step(step, steps, values)
    return {
        "steps": steps,
        "epochs": steps / math.ceil(len(sequences) / schedule.batch_size),
        "target_tokens": target_tokens,
        "tokens": all_tokens,
        "packed": packed,
        "truncated_examples": sum(s.truncated for s in sequences),
        "trained_parameters": sum(p.numel() for p in weights),
        "final_loss": losses[-1]["loss"],
        "seconds": time.perf_counter() - started,
        "losses": losses,
    }


def _batches(examples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of example indices: a fresh permutation each epoch, the last batch of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(examples, generator=generator).tolist()
        for start in range(0, examples, batch_size):
            yield order[start : start + batch_size]


def _passes(batch: list[Tokens], budget: int) -> Iterator[list[Tokens]]:
    """Cut a batch into runs of at most `budget` tokens, at least one sequence each."""
    run: list[Tokens] = []
    used = 0
    for sequence in batch:
        if run and used + len(sequence.ids) > budget:
            yield run
            run, used = [], 0
        run.append(sequence)
        used += len(sequence.ids)
    yield run


def _loss_sum(model: torch.nn.Module, sequences: list[Tokens], device: torch.device) -> torch.Tensor:
    """Sum of -log p over the learned tokens of sequences laid end to end. Logits are computed only where a token is learned."""
    ids = torch.tensor([t for s in sequences for t in s.ids], device=device)
    positions = torch.cat([torch.arange(len(s.ids)) for s in sequences]).to(device)
    learned = torch.tensor([flag and i > 0 for s in sequences for i, flag in enumerate(s.learned)], device=device)
    where = learned.nonzero().squeeze(1)
    # The token at t is predicted from t - 1; the first token of a sequence is never predicted, so t - 1 is its own.
    logits = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=where - 1).logits[0]
    return cross_entropy(logits.float(), ids[where], reduction="sum")


@torch.no_grad()
def packing_is_safe(model: torch.nn.Module, device: torch.device) -> bool:
    """Whether a sequence's logits stay the same when another one is laid before it. Tried on the model in question."""
    was_training = model.training
    model.eval()
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(vocabulary, (n,), generator=generator).to(device) for n in (7, 9))
    positions = torch.cat([torch.arange(7), torch.arange(9)]).to(device)
    alone = model(input_ids=second[None], use_cache=False).logits[0]
    beside = model(input_ids=torch.cat([first, second])[None], position_ids=positions[None], use_cache=False).logits[0, 7:]
    model.train(was_training)
    # Rounding moves logits by about 1% of their spread in bfloat16; a leak moves them by the spread itself.
    return bool((alone - beside).float().abs().mean() < 0.05 * alone.float().std())
