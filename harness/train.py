"""The fine-tuning loop: packed sequences that cannot see each other, loss on learned tokens only.

Sequences are laid end to end in one row. In transformers 5 they stay apart when, and only when, position ids restart at
each of them and neither an attention mask nor a cache is given; `packing_is_safe` checks that on the model itself,
since a leak would be silent. A model that fails the check gets one sequence a pass.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from harness.cell import OnStep
from harness.data.chat import Tokens
from harness.errors import HarnessError
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
    if cut := sum(not any(s.learned[1:]) for s in sequences):
        raise HarnessError(f"{cut} examples are cut before their answer begins; raise method.max_length")
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=schedule.lr, betas=(0.9, 0.999), weight_decay=schedule.weight_decay, fused=True
    )
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
        if not (math.isfinite(total.item()) and math.isfinite(norm.item())):
            raise FloatingPointError(f"loss {total.item()}, gradient {norm.item()} at step {step}; lower method.lr")
        optimizer.step()
        target_tokens += targets
        all_tokens += sum(len(s.ids) for s in batch)
        values = {"loss": total.item(), "lr": schedule.lr_at(step, steps), "grad_norm": norm.item()}
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
    """Sum of -log p over the learned tokens of sequences laid end to end. Only their logits are computed."""
    ids = torch.tensor([t for s in sequences for t in s.ids], device=device)
    positions = torch.cat([torch.arange(len(s.ids)) for s in sequences]).to(device)
    learned = torch.tensor([flag and i > 0 for s in sequences for i, flag in enumerate(s.learned)], device=device)
    where = learned.nonzero().squeeze(1)
    # The token at t is predicted from t - 1; the first token of a sequence is never predicted, so t - 1 is its own.
    before = where - 1
    logits = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=before).logits[0]
    return cross_entropy(logits.float(), ids[where], reduction="sum")


@torch.no_grad()
def packing_is_safe(model: torch.nn.Module, device: torch.device) -> bool:
    """Whether a sequence's logits are the same whatever is laid before it. Tried on the model in question."""
    was_training = model.training
    model.eval()
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    one, other, ours = (torch.randint(vocabulary, (n,), generator=generator).to(device) for n in (7, 7, 9))
    positions = torch.cat([torch.arange(7), torch.arange(9)]).to(device)[None]

    def ours_after(neighbour: torch.Tensor) -> torch.Tensor:
        row = torch.cat([neighbour, ours])[None]
        return model(input_ids=row, position_ids=positions, use_cache=False).logits[0, 7:]

    alone = model(input_ids=ours[None], use_cache=False).logits[0]
    beside_one, beside_other = ours_after(one), ours_after(other)
    model.train(was_training)
    # What is masked counts for exactly nothing, so another neighbour must not move a single bit, in any precision: even
    # a faint leak shows. Another length does move rounding, by about 1% of the logits' spread in bfloat16.
    near = (alone - beside_one).float().abs().mean() < 0.05 * alone.float().std()
    return torch.equal(beside_one, beside_other) and bool(near)
