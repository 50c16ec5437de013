"""The fine-tuning loop: packed sequences that cannot see each other, loss on learned tokens only.

Sequences are laid end to end in one row, so that nothing is spent on padding, and kept apart inside attention
(`harness.attention`). Logits are computed only where a token is learned.
"""

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from harness import preempt, ranks
from harness.attention import Packed, laid_out, rows_attention
from harness.by_rows import fits, reach
from harness.cell import Attempt, Run
from harness.checkpoint import Checkpoints
from harness.clock import part
from harness.data.chat import Tokens
from harness.data.pairs import Pair, Pairs
from harness.data.tokens import TokenSequences
from harness.errors import DivergedError, HarnessError
from harness.objective import LIKELIHOOD, Objective, targets
from harness.preempt import PreemptedError
from harness.schedule import Schedule
from harness.trunk import Trunk

log = logging.getLogger(__name__)


def fine_tune(
    model: Any,
    sequences: TokenSequences | Pairs,
    schedule: Schedule,
    *,
    seed: int,
    run: Run,
    attempt: Attempt,
    half: bool | None = None,
    flops_a_token: float = 0.0,
    objective: Objective = LIKELIHOOD,
) -> dict[str, Any]:
    """Train the parameters of `model` that require gradients; return counts, seconds and losses for the record.

    The gradient of a batch is the objective's, by default the mean over its learned tokens, however it is cut into
    passes of at most `run.tokens_per_pass` tokens and shared among the ranks. A bfloat16 model, or any if `half` says
    so, computes in bfloat16; its trained weights and their optimizer stay in float32. Goes on from the attempt's newest
    checkpoint, to the same result bit for bit where the device computes the same twice. Raises DivergedError where the
    loss is no number, PreemptedError, after a checkpoint, where the process was told to stop.
    """
    if cut := int((~sequences.answered).sum()):
        raise HarnessError(f"{cut} examples are cut before their answer begins; raise method.max_length")
    weights = [p for p in model.parameters() if p.requires_grad]
    half = model.dtype == torch.bfloat16 if half is None else half
    optimizer = torch.optim.AdamW(
        weights, lr=schedule.rate, betas=(0.9, 0.999), weight_decay=schedule.weight_decay, fused=True
    )
    packed = fits(model)
    longest = _longest(model, sequences, packed)
    steps = schedule.steps(len(sequences), float(sequences.lengths.mean()), flops_a_token)
    batches = _batches(len(sequences), schedule.batch_size, None if schedule.trunk else seed)
    told: dict[str, Any] = {"losses": [], "target_tokens": 0, "tokens": 0, "seconds": 0.0, "resumed": []}
    told["tokens_per_pass"] = run.tokens_per_pass
    if ranks.mine():
        torch.manual_seed(seed + (ranks.mine() << 32))  # masks of dropout that are not the first rank's once more
    checkpoints = Checkpoints(attempt.checkpoints, run.checkpoint_seconds)
    with contextlib.ExitStack() as during:
        trunk = during.enter_context(Trunk(attempt, schedule, steps)) if schedule.trunk else None
        done, kept = checkpoints.load(model, optimizer)
        told |= kept
        if done:
            told["resumed"].append(done)
            attempt.on_resumed(told["losses"])
        elif trunk:
            done, kept = trunk.load(model, optimizer)
            told |= {**kept, "branched_at": done, "shared_seconds": kept.get("seconds", 0.0)}
            attempt.on_resumed(told["losses"])
        next(islice(batches, done, done), None)
        budget = told["tokens_per_pass"] = min(told["tokens_per_pass"], run.tokens_per_pass)
        started = time.perf_counter() - told["seconds"]
        during.enter_context(as_told(model, run))
        during.enter_context(preempt.ends_by_itself())
        for step in range(done, steps):
            with part("read the batch"):
                batch = [sequences[i] for i in next(batches)]
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(step, steps)
            here, budget = _gradient(model, batch, objective, budget, longest, half)
            if budget < told["tokens_per_pass"]:
                told["tokens_per_pass"] = budget
                log.warning("out of memory at step %d: from here on %d tokens a pass", step, budget)
            with part("sum over processes"):
                total, *others = ranks.summed(weights, here).tolist()
            norm = torch.nn.utils.clip_grad_norm_(weights, schedule.max_grad_norm)
            if not (math.isfinite(total) and math.isfinite(norm.item())):
                raise DivergedError(f"loss {total}, gradient {norm.item()} at step {step}; lower method.lr")
            with part("optimizer"):
                optimizer.step()
            if step in (done, steps - 1):
                ranks.check_same(weights)
            told["target_tokens"] += sum(map(targets, batch))
            told["tokens"] += sum(map(_length, batch))
            values = {"loss": total, "lr": schedule.lr_at(step, steps), "grad_norm": norm.item()}
            values |= zip(objective.names[1:], others, strict=True)
            values |= {"tokens": told["tokens"], "target_tokens": told["target_tokens"]}
            told["losses"].append({"step": step, **values})
            attempt.on_step(step, steps, values)
            looked = time.perf_counter()
            with part("evaluate along the run"):
                attempt.along(step + 1, steps, model)
            started += time.perf_counter() - looked  # which is no time of the training
            if trunk:
                told["seconds"] = time.perf_counter() - started
                trunk.save(step + 1, model, optimizer, told)
            stop, due = ranks.agree(lambda: (preempt.asked(), checkpoints.due()))
            if stop or due:
                told["seconds"] = time.perf_counter() - started
                with part("checkpoint"):
                    attempt.still_ours()
                    checkpoints.save(step + 1, model, optimizer, told)
            if stop:
                raise PreemptedError(f"told to stop after step {step}; the same command goes on from there")
    return {
        "steps": steps,
        "epochs": steps / math.ceil(len(sequences) / schedule.batch_size),
        "packed": packed,
        "truncated_examples": int(sequences.truncated.sum()),
        "trained_parameters": sum(p.numel() for p in weights),
        "final_loss": told["losses"][-1]["loss"],
        **told,
        "seconds": time.perf_counter() - started,
    }


@torch.no_grad()
def mean_loss(
    model: Any, sequences: TokenSequences | Pairs, objective: Objective, run: Run, half: bool, batch_size: int = 64
) -> float:
    """The objective over all sequences: -log p (nats) a learned token, or the mean over pairs. In evaluation mode.

    Raises DivergedError where it is no number.
    """
    if cut := int((~sequences.answered).sum()):
        raise HarnessError(f"{cut} examples held out are cut before their answer begins; raise method.max_length")
    longest = _longest(model, sequences, fits(model))
    total, count = torch.zeros(len(objective.names)), 0
    for start in range(0, len(sequences), batch_size):
        batch = sequences[start : start + batch_size]
        for examples in _own_passes(batch, run.tokens_per_pass, longest):
            with (
                _laid_out(model, examples, longest) as together,
                torch.autocast(model.device.type, torch.bfloat16, enabled=half),
            ):
                total += objective(model, examples, together).float().cpu()
        count += objective.divisor(batch)
    loss = ranks.summed([], total)[0].item() / count
    if not math.isfinite(loss):
        raise DivergedError(f"a loss of {loss} on the examples held out; lower method.lr")
    return loss


@contextmanager
def as_told(model: Any, run: Run) -> Iterator[None]:
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


def _batches(examples: int, batch_size: int, seed: int | None) -> Iterator[list[int]]:
    """Endless batches of example indices: a fresh permutation each epoch, the last batch of an epoch may be smaller.

    Without a seed in the order that they have, which is random already: by the hash of each example.
    """
    generator = torch.Generator().manual_seed(seed or 0)
    while True:
        order = torch.arange(examples) if seed is None else torch.randperm(examples, generator=generator)
        for start in range(0, examples, batch_size):
            yield order[start : start + batch_size].tolist()  # of ten million, a list would be 0.4 GiB


def _longest(model: Any, sequences: TokenSequences | Pairs, packed: bool) -> float:
    """Up to how many tokens sequences may lie beside others; longer ones get a pass of their own."""
    longest = (reach(model) or math.inf) if packed else 0
    if ranks.sharded() and isinstance(sequences, Pairs) and (sequences.lengths > longest).any():
        return 0  # answers that are read one by one take two passes, and every rank must make as many
    return longest


def _length(example: Tokens | Pair) -> int:
    return sum(len(s.ids) for s in example.parts)


def _own_passes(batch: list[Any], budget: int, longest: float) -> list[list[Any]]:
    """This rank's passes over a batch: as many as any other rank's, since sharded ones gather each layer together.

    The ranks are dealt like lengths. A pass that only fills up is one token, of which nothing is learned.
    """
    shares = ranks.deal(sorted(batch, key=_length))
    passes = [list(_passes(share, budget, longest)) for share in shares]
    own = passes[ranks.mine()]
    nothing = Tokens(batch[0].parts[0].ids[:1], [False])
    idle = [nothing if isinstance(batch[0], Tokens) else Pair(nothing, nothing)]
    return own + [idle] * (max(map(len, passes)) - len(own))


def _passes(batch: list[Any], budget: int, longest: float) -> Iterator[list[Any]]:
    """Cut a batch into passes of at most `budget` tokens, at least one example each, like lengths together.

    An example with a sequence of more than `longest` tokens cannot share a pass.
    """
    run: list[Any] = []
    used = 0
    for example in sorted(batch, key=_length):
        if run and (used + _length(example) > budget or not (_shares(example, longest) and _shares(run[-1], longest))):
            yield run
            run, used = [], 0
        run.append(example)
        used += _length(example)
    if run:
        yield run


def _shares(example: Tokens | Pair, longest: float) -> bool:
    """Whether its sequences may lie beside others."""
    return all(len(s.ids) <= longest for s in example.parts)


def _gradient(
    model: Any, batch: list[Any], objective: Objective, budget: int, longest: float, half: bool
) -> tuple[torch.Tensor, int]:
    """The batch's gradient, in place, this rank's share of what the objective gives, and the tokens a pass had room
    for.

    Out of memory, the batch is cut into passes of half the size, down to one example each, and done again.
    """
    divisor = objective.divisor(batch)
    while True:
        before = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        model.zero_grad(set_to_none=True)
        try:
            passes = _own_passes(batch, budget, longest)
            return torch.stack([_backward(model, p, objective, divisor, longest, half) for p in passes]).sum(0), budget
        except torch.OutOfMemoryError:
            # Several processes would have to halve together, and those that did not fail are waiting for this one.
            if ranks.count() > 1 or max(len(p) for p in passes) == 1:
                raise
            budget //= 2
        torch.set_rng_state(before[0])
        if before[1] is not None:
            torch.cuda.set_rng_state(before[1])
            torch.cuda.empty_cache()


def _backward(
    model: Any, examples: list[Any], objective: Objective, divisor: int, longest: float, half: bool
) -> torch.Tensor:
    """Add these examples' share of a batch's gradient; return that of what the objective gives."""
    with _laid_out(model, examples, longest) as together:
        with part("forward"), torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            values = objective(model, examples, together) / divisor
        with part("backward"):
            values[0].backward()
    return values.detach()


@contextmanager
def _laid_out(model: Any, examples: list[Any], longest: float) -> Iterator[bool]:
    """Whether these examples' sequences may lie end to end; if so, they are kept apart inside."""
    lengths = [len(s.ids) for example in examples for s in example.parts]
    together = max(lengths) <= longest
    with kept_apart(model, lengths) if together else nullcontext():
        yield together


@contextmanager
def kept_apart(model: Any, lengths: list[int]) -> Iterator[None]:
    """Passes inside, backward passes too, are over sequences of these lengths laid end to end."""
    with rows_attention(model), laid_out(Packed(lengths, model.device)):
        yield
