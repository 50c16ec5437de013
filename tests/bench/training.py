"""Training: LoRA fine-tuning of the same examples in the same order, beside TRL's SFTTrainer."""

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.base import LoadedBase
from harness.cell import Attempt, Run
from harness.data.subset import Example
from harness.data.token_cache import token_sequences
from harness.data.tokens import Store, TokenSequences
from harness.schedule import Schedule
from harness.tuning import Lora
from tests.bench import models
from tests.bench.knobs import CPU, Knobs, Place
from tests.bench.peer import Peer, interpreter, version
from tests.bench.questions import sums
from tests.bench.table import Row, in_turn, say, timed

BATCH, LR, SEED = 16, 2e-4, 0
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
NEAR = 1e-2  # largest difference of the loss at any step

# The same batches as ours: sixteen examples laid end to end.
SAME_BATCHES = {"padding_free": True, "max_length": None, "per_device_train_batch_size": BATCH}
# What could be quickest: packs of several lengths, with and without mixed precision over the bfloat16 weights.
PACKED = {"packing": True, "packing_strategy": "bfd", "per_device_train_batch_size": 1}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "padding-free, 16 examples": SAME_BATCHES,
    "padding-free, 16 examples, autocast": {**SAME_BATCHES, "bf16": True},
    "packed to 512": {**PACKED, "max_length": 512},
    "packed to 512, autocast": {**PACKED, "max_length": 512, "bf16": True},
    "packed to 1024, autocast": {**PACKED, "max_length": 1024, "bf16": True},
    "wrapped to 256, 4 a batch": {
        **PACKED,
        "packing_strategy": "wrapped",  # examples in one row see each other: not the same training, but quick
        "max_length": 256,
        "per_device_train_batch_size": 4,
    },
}


# What LLaMA-Factory could be quickest with. It keeps weights in bfloat16 only beside mixed precision.
FACTORY: dict[str, dict[str, Any]] = {
    "padded, 16 examples": {"bf16": True, "per_device_train_batch_size": BATCH},
    "neatly packed to 512": {"bf16": True, "neat_packing": True, "cutoff_len": 512, "per_device_train_batch_size": 1},
}
SYSTEM = {"role": "system", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}


def train(knobs: Knobs, place: Place = CPU) -> Iterator[Row]:
    """One epoch of short chats in bfloat16, loss on the assistant's words only.

    That both do the same is shown in float32: in bfloat16 rounding alone moves a loss over so few words by a hundredth.
    """
    place.check()
    trl = version("trl")
    work = f"train bf16{place.suffix}"
    exact, count = _losses("float32", place, 32 if knobs.tiny else 64)
    say(f"{work}: float32 losses differ by {exact:.1e} at most")
    rounded, _ = _losses("bfloat16", place, 32 if knobs.tiny else 64)
    base = models.load(place.model(), "bfloat16", place.device)
    sequences = _sequences(base, sums(32 if knobs.tiny else 128))
    tokens = sum(len(s.ids) for s in sequences)
    job = _job(sequences, "bfloat16", place)
    name = _best_configuration(work, job)
    _ours(base, _sequences(base, sums(BATCH)))  # warms up; the peer does so by itself
    with Peer("trl_train.py", {**job, "config": CONFIGURATIONS[name]}) as peer:
        pair = in_turn(work, lambda: _ours(base, sequences), peer, knobs.repeats)
    seconds = statistics.median(pair.ours)
    flops, formula = _model_flops(base, sequences)
    peak = _peak_flops(place.device)
    models.free()
    yield pair.row(
        work,
        "TRL SFTTrainer",
        trl,
        exact <= NEAR,
        rule=f"loss of every step within {NEAR} on the same batches, in float32",
        largest_difference=exact,
        largest_difference_in_bfloat16=rounded,
        steps_compared=count,
        tokens=tokens,
        our_tokens_per_second=round(tokens / seconds, 1),
        peer_tokens_per_second=round(tokens / statistics.median(pair.peer), 1),
        peer_configuration=name,
        fraction_of_peak=round(flops / seconds / peak, 4),
        matmul_peak_gflops=round(peak / 1e9, 1),
        model_flops=formula,
    )


def train_llamafactory(knobs: Knobs) -> Iterator[Row]:
    """The same beside LLaMA-Factory, which also learns the line break that the template writes after each turn."""
    python = interpreter("llamafactory")
    work = "train bf16"
    with_break = [[SYSTEM, *messages] for messages in sums(32 if knobs.tiny else 128)]
    few = with_break[:32]

    def peer(conversations: list[Any], **config: Any) -> Peer:
        job = {"model": str(CPU.model()), "device": "cpu", "seed": SEED, "lr": LR, "lora": LORA, "config": config}
        return Peer("llamafactory_train.py", {**job, "messages": in_our_order(conversations, BATCH, SEED)}, python)

    say(f"{work}: LLaMA-Factory in float32, for its losses")
    base = models.load(CPU.model(), "float32")
    _, ours = _ours(base, _and_line_breaks(base, _sequences(base, few)))
    with peer(few, per_device_train_batch_size=BATCH) as exact:
        _, its = exact()
    models.free()
    largest = max(abs(a["loss"] - b) for a, b in zip(ours["losses"], its["losses"], strict=True))
    say(f"{work}: float32 losses differ by {largest:.1e} at most")
    base = models.load(CPU.model(), "bfloat16")
    sequences = _and_line_breaks(base, _sequences(base, with_break))
    tokens = int(sequences.lengths.sum())
    name, config = _best_factory(work, lambda config: peer(few, **config))
    _ours(base, _sequences(base, few[:BATCH]))  # warms up; the peer does so by itself
    with peer(with_break, **config) as trained:
        pair = in_turn(work, lambda: _ours(base, sequences), trained, knobs.repeats)
    models.free()
    yield pair.row(
        work,
        "LLaMA-Factory",
        pair.peer_answers["version"],
        largest <= NEAR,
        rule=f"loss of every step within {NEAR} on the same batches, in float32",
        largest_difference=largest,
        tokens=tokens,
        our_tokens_per_second=round(tokens / statistics.median(pair.ours), 1),
        peer_tokens_per_second=round(tokens / statistics.median(pair.peer), 1),
        peer_configuration=name,
    )


def _best_factory(work: str, peer: Callable[[dict[str, Any]], Peer]) -> tuple[str, dict[str, Any]]:
    seconds = {}
    for name, config in FACTORY.items():
        with peer(config) as tried:
            seconds[name], _ = tried()
        say(f"{work}: LLaMA-Factory, {name}: {seconds[name]:.1f} s")
    best = min(seconds, key=seconds.__getitem__)
    return best, FACTORY[best]


def _and_line_breaks(base: LoadedBase, sequences: TokenSequences) -> TokenSequences:
    """The sequences with the template's line break after the last turn, learned."""
    (line_break,) = base.tokenizer("\n")["input_ids"]
    longer = [([*s.ids, line_break], [*s.learned, True]) for s in sequences]
    store = Store(
        ids=np.concatenate([ids for ids, _ in longer]),
        learned=np.concatenate([learned for _, learned in longer]),
        bounds=np.cumsum([0, *(len(ids) for ids, _ in longer)]),
        target=np.array([learned.index(True) for _, learned in longer]),
    )
    return TokenSequences([store], np.zeros(len(longer), np.int64), np.arange(len(longer)), 2048)


def _losses(dtype: str, place: Place, examples: int) -> tuple[float, int]:
    """The largest difference of any step's loss between us and TRL on the same batches, and the number of steps."""
    base = models.load(place.model(), dtype, place.device)
    sequences = _sequences(base, sums(examples))
    _, ours = _ours(base, sequences)
    with Peer("trl_train.py", {**_job(sequences, dtype, place), "config": SAME_BATCHES}) as peer:
        _, its = peer()
    models.free()
    pairs = list(zip([step["loss"] for step in ours["losses"]], its["losses"], strict=True))
    return max(abs(a - b) for a, b in pairs), len(pairs)


def _job(sequences: TokenSequences, dtype: str, place: Place) -> dict[str, Any]:
    return {
        "model": str(place.model()),
        "dtype": dtype,
        "device": place.device,
        "seed": SEED,
        "lr": LR,
        "lora": LORA,
        "sequences": [_as_trl_reads(s) for s in in_our_order(sequences, BATCH, SEED)],
    }


def _sequences(base: LoadedBase, conversations: list[Any]) -> TokenSequences:
    examples = [Example(str(number), "sums", tuple(messages)) for number, messages in enumerate(conversations)]
    return token_sequences(base.tokenizer, examples, 2048)


def in_our_order(examples: Sequence[Any], batch_size: int, seed: int) -> list[Any]:
    """The order in which our loop takes them in its first epoch."""
    from harness.train import _batches

    batches = _batches(len(examples), batch_size, seed)
    return [examples[i] for _ in range(0, len(examples), batch_size) for i in next(batches)]


def _as_trl_reads(sequence: Any) -> dict[str, list[int]]:
    labels = [i if learned else -100 for i, learned in zip(sequence.ids, sequence.learned, strict=True)]
    return {"input_ids": list(sequence.ids), "labels": labels}


def _best_configuration(work: str, job: dict[str, Any]) -> str:
    """The name of TRL's quickest configuration, by its tokens a second on a part of the examples."""
    some = job["sequences"][: max(2 * BATCH, len(job["sequences"]) // 2)]
    tokens = sum(len(s["input_ids"]) for s in some)
    speeds = {}
    for name, config in CONFIGURATIONS.items():
        with Peer("trl_train.py", {**job, "sequences": some, "config": config}) as peer:
            seconds, _ = peer()
        speeds[name] = tokens / seconds
        say(f"{work}: TRL, {name}: {speeds[name]:.0f} tokens/s")
    return max(speeds, key=speeds.__getitem__)


def _ours(base: LoadedBase, sequences: TokenSequences) -> tuple[float, dict[str, Any]]:
    """One epoch of a fresh adapter, which is then taken off again."""
    from transformers import set_seed

    from harness.lowrank import attach
    from harness.train import fine_tune

    set_seed(SEED)
    model = attach(base.model, Lora(rank=LORA["r"], alpha=LORA["lora_alpha"]).to_peft()).train()
    schedule = Schedule(lr=LR, epochs=1, batch_size=BATCH, warmup=0.0, decay="constant")
    unkept = Attempt(Path("unkept"), Path("unkept"))  # it is over before a checkpoint is due
    gc.collect()
    try:
        return timed(lambda: fine_tune(model, sequences, schedule, seed=SEED, run=Run(), attempt=unkept))
    finally:
        base.model = model.unload().eval().requires_grad_(False)


def _model_flops(base: LoadedBase, sequences: TokenSequences) -> tuple[float, str]:
    """What the training cannot do without: attention, norms and the optimizer are left out."""
    import torch

    layers = [m.weight for m in base.model.model.modules() if isinstance(m, torch.nn.Linear)]
    frozen, lora = sum(w.numel() for w in layers), sum(LORA["r"] * sum(w.shape) for w in layers)
    head = base.model.lm_head.weight.numel()
    tokens, learned = sum(len(s.ids) for s in sequences), sum(sum(s.learned[1:]) for s in sequences)
    formula = (
        "4 x frozen linear weights x tokens (forward, and backward through them) + 6 x LoRA weights x tokens "
        f"+ 4 x head weights x learned tokens; {frozen}, {lora}, {head} weights, {tokens} tokens, {learned} learned"
    )
    return 4.0 * frozen * tokens + 6.0 * lora * tokens + 4.0 * head * learned, formula


def _peak_flops(device: str) -> float:
    """FLOP/s of the best of several large bfloat16 matrix products: the machine's measured peak."""
    import torch

    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def product() -> None:
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()

    product()
    return 2.0 * size**3 / min(timed(product)[0] for _ in range(20))
