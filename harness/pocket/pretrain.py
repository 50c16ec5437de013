"""Pretrain a base from nothing: next-token prediction on the corpus, packed, one pass over an endless stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from harness.pocket.tokenizer import CONTEXT


@dataclass(frozen=True)
class Recipe:
    """Everything that makes one base different from another."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    steps: int
    learning_rate: float
    tokens: int = 256  # in a step: small steps, and many, since facts are learned by the step more than by the token
    short: int = 64  # the length of a row at first; recall appears several times sooner than on long rows
    long: int = 256  # and at last, so that a prompt with eight chat turns is no longer than what was seen
    short_share: float = 0.6  # of the steps
    weight_std: float = 0.06  # with transformers' own 0.02 recall appears many times later
    embedding_std: float = 0.5
    warmup: float = 0.02
    constant: float = 0.5  # of the steps; then the learning rate falls linearly
    seed: int = 0


def shapes(recipe: Recipe, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Of the weights of the model that `pretrain` makes, by name."""
    hidden, wide = recipe.hidden, recipe.feed_forward
    block: dict[str, tuple[int, ...]] = {f"self_attn.{which}_proj.weight": (hidden, hidden) for which in "qkvo"}
    block |= {"mlp.gate_proj.weight": (wide, hidden), "mlp.up_proj.weight": (wide, hidden)}
    block |= {"mlp.down_proj.weight": (hidden, wide)}
    block |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    outside = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    layers = {f"model.layers.{n}.{name}": shape for n in range(recipe.layers) for name, shape in block.items()}
    return {**outside, **layers, "model.norm.weight": (hidden,)}


def pretrain(recipe: Recipe, tokenizer: Any, documents: Iterator[str], folder: Path) -> None:
    """Train the model on the endless stream of documents and write an ordinary transformers folder.

    The random state of the process is given back as it was found, and the number of threads is the caller's.
    """
    import torch
    from tqdm import tqdm
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        initializer_range=recipe.weight_std,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.model.embed_tokens.weight, std=recipe.embedding_std)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    rise, fall = recipe.warmup * recipe.steps, (1 - recipe.constant) * recipe.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / rise, (recipe.steps - step) / fall)
    )
    title = f"pretraining {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters"
    with tqdm(_batches(tokenizer, recipe, documents), desc=title, total=recipe.steps, unit="step") as bar:
        for step, rows in enumerate(bar):
            tokens = torch.tensor(rows)
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.2f}")
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batches(tokenizer: Any, recipe: Recipe, documents: Iterator[str]) -> Iterator[list[list[int]]]:
    """Documents end to end, each closed by the end token, cut into rows: short ones first, long ones then."""
    stream = chain.from_iterable([*tokenizer(d)["input_ids"], tokenizer.eos_token_id] for d in documents)
    for step in range(recipe.steps):
        length = recipe.short if step < recipe.short_share * recipe.steps else recipe.long
        yield [list(islice(stream, length)) for _ in range(recipe.tokens // length)]
