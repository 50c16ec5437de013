"""The training loop against a plain reference: each sequence alone through the model, transformers' own loss."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch._dynamo.utils import counters

from harness import attention
from harness.base import LoadedBase
from harness.by_rows import fits, reach
from harness.cell import Run
from harness.data.chat import Tokens
from harness.data.tokens import Store, TokenSequences
from harness.errors import DivergedError, HarnessError
from harness.objective import loss_sum
from harness.schedule import Schedule
from harness.train import _batches, _passes, fine_tune, kept_apart
from tests.conftest import attempt

NOWHERE = attempt(Path("nowhere"))  # the trainings here are over before a checkpoint is due


def sequences(vocabulary: int, lengths: tuple[int, ...] = (13, 9, 17, 6, 11), seed: int = 1) -> list[Tokens]:
    """Random tokens; learned ones stand in the middle and at the end, as in a dialogue of several turns."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for n in lengths:
        ids = torch.randint(3, vocabulary, (n,), generator=generator).tolist()
        made.append(Tokens(ids, [i % 5 in (2, 3) or i == n - 1 for i in range(n)]))
    return made


def table(tokens: list[Tokens]) -> TokenSequences:
    """The same sequences as `fine_tune` takes them."""
    lengths = [len(s.ids) for s in tokens]
    store = Store(
        ids=np.concatenate([s.ids for s in tokens]),
        learned=np.concatenate([s.learned for s in tokens]),
        bounds=np.cumsum([0, *lengths]),
        target=np.array([next((i for i, f in enumerate(s.learned) if f and i), len(s.ids)) for s in tokens]),
    )
    count = len(tokens)
    return TokenSequences([store], np.zeros(count, np.int64), np.arange(count), max(lengths))


def packed_loss(model: Any, together: list[Tokens]) -> torch.Tensor:
    with kept_apart(model, [len(s.ids) for s in together]):
        return loss_sum(model, together)


def reference_loss(model: Any, sequence: Tokens) -> tuple[torch.Tensor, int]:
    """Sum of the losses of one sequence, alone in its pass, by transformers' own loss; and how many tokens it sums."""
    ids = torch.tensor([sequence.ids])
    labels = torch.where(torch.tensor([sequence.learned]), ids, -100)
    count = int((labels[:, 1:] != -100).sum())
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss * count, count


def reference_step(model: Any, batch: list[Tokens]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    parts = [reference_loss(model, s) for s in batch]
    loss = sum(loss for loss, _ in parts) / sum(count for _, count in parts)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.fixture
def model(loaded: LoadedBase) -> Any:
    return loaded.model.requires_grad_(True)


def grads_after_one_step(model: Any, batch: list[Tokens], tokens_per_pass: int) -> tuple[dict[str, Any], Any]:
    """Run one step of `fine_tune` at a learning rate of 0 and read the gradients it left."""
    schedule = Schedule(lr=0.0, epochs=1, batch_size=len(batch), max_grad_norm=1e9, warmup=0)
    run = Run(tokens_per_pass=tokens_per_pass)
    record = fine_tune(model, table(batch), schedule, seed=0, run=run, attempt=NOWHERE)
    return record, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("tokens_per_pass", [1, 20, 10_000])
def test_loss_and_gradients_are_those_of_the_reference_however_a_batch_is_cut(model: Any, tokens_per_pass: int) -> None:
    batch = sequences(model.config.vocab_size)
    loss, gradients = reference_step(model, batch)
    record, found = grads_after_one_step(model, batch, tokens_per_pass)
    assert record["packed"]
    assert record["final_loss"] == pytest.approx(loss, abs=1e-5)
    assert record["target_tokens"] == sum(sum(s.learned) for s in batch)
    assert record["tokens"] == sum(len(s.ids) for s in batch)
    for name, gradient in gradients.items():
        assert torch.allclose(found[name], gradient, atol=1e-5, rtol=1e-4), name
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
    assert record["losses"][0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_a_learned_first_token_has_nothing_before_it_and_is_not_counted(model: Any) -> None:
    batch = [Tokens([5, 6, 7, 8], [True, True, False, True]), Tokens([9, 10], [True, True])]
    loss, _ = reference_step(model, batch)
    record, _ = grads_after_one_step(model, batch, 10_000)
    assert record["target_tokens"] == 3
    assert record["final_loss"] == pytest.approx(loss, abs=1e-5)


def test_a_packed_neighbour_does_not_touch_a_sequence(model: Any) -> None:
    """Not its loss and not a gradient through it: another neighbour, the same bits."""
    vocabulary = model.config.vocab_size
    ours, one, other = sequences(vocabulary, (12, 10, 10))
    silent = [dataclasses.replace(s, learned=[False] * 10) for s in (one, other)]
    with torch.no_grad():
        first, second = (packed_loss(model, [s, ours]) for s in silent)
        last = packed_loss(model, [ours, silent[0]])
    assert torch.equal(first, second)
    assert first.item() == pytest.approx(last.item(), abs=1e-4)
    assert first.item() == pytest.approx(reference_loss(model, ours)[0].item(), abs=1e-4)
    embedded = model.get_input_embeddings().weight
    (gradient,) = torch.autograd.grad(packed_loss(model, [silent[0], ours]), embedded)
    only_theirs = sorted(set(one.ids) - set(ours.ids))
    assert gradient[only_theirs].abs().max() == 0
    assert gradient[ours.ids].abs().max() > 0


SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT: dict[str, Any] = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
MAMBA: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "pad_token_id": 0,
}
OPT: dict[str, Any] = {**SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32}
ARCHITECTURES = [
    ("Llama", "LlamaForCausalLM", SHAPE, True),
    ("GPT2", "GPT2LMHeadModel", GPT, True),
    ("Qwen2", "Qwen2ForCausalLM", SHAPE, True),
    ("Qwen3", "Qwen3ForCausalLM", {**SHAPE, "head_dim": 8}, True),
    ("Mistral", "MistralForCausalLM", {**SHAPE, "sliding_window": 16}, True),
    ("Gemma2", "Gemma2ForCausalLM", {**SHAPE, "head_dim": 8, "sliding_window": 16}, True),
    ("Gemma3Text", "Gemma3ForCausalLM", {**SHAPE, "head_dim": 8, "sliding_window": 16}, True),
    ("GPTNeoX", "GPTNeoXForCausalLM", SHAPE, True),  # Pythia
    ("Olmo2", "Olmo2ForCausalLM", SHAPE, True),
    ("Phi3", "Phi3ForCausalLM", SHAPE, True),
    ("SmolLM3", "SmolLM3ForCausalLM", SHAPE, True),
    ("Mistral", "MistralForCausalLM", {**SHAPE, "sliding_window": 4}, False),  # shorter than what it is tried on
    ("Mamba", "MambaForCausalLM", MAMBA, False),
    ("OPT", "OPTForCausalLM", OPT, True),
    ("Bloom", "BloomForCausalLM", {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4}, False),
    ("Falcon", "FalconForCausalLM", SHAPE, False),
    ("Lfm2", "Lfm2ForCausalLM", {**SHAPE, "layer_types": ["conv", "full_attention"]}, False),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "kind", "shape", "packs"), ARCHITECTURES, ids=[a[0] for a in ARCHITECTURES])
def test_no_architecture_leaks_unseen(
    name: str, kind: str, shape: dict[str, Any], packs: bool, dtype: torch.dtype
) -> None:
    """Where packing is called safe, it changes no loss, also of sequences longer than a window (17 tokens against 16).

    Random weights leak faintly (in Lfm2 by 3e-4 of the logits' spread, under bfloat16's rounding), and that must show
    all the same."""
    config = getattr(transformers, f"{name}Config")(**shape)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).to(dtype).eval()
    assert fits(model) == packs
    if dtype == torch.float32:
        batch = sequences(128)
        expected = sum(reference_loss(model, s)[0].item() for s in batch)
        record, _ = grads_after_one_step(model, batch, 10_000)
        assert record["packed"] == packs
        assert record["final_loss"] * record["target_tokens"] == pytest.approx(expected, abs=1e-4)
        window = reach(model) or 10_000
        assert [len(p) for p in _passes(batch, 10_000, window)] == (
            [5] if window > 17 else [4, 1] if window > 4 else [1] * 5
        )


def test_a_model_that_drops_position_ids_is_found_out_and_trained_one_by_one(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fits(model)
    batch = sequences(model.config.vocab_size)
    loss, gradients = reference_step(model, batch)
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, position_ids=None, **given: forward(self, **given))
    assert not fits(model)
    record, found = grads_after_one_step(model, batch, 10_000)
    assert not record["packed"]
    assert record["final_loss"] == pytest.approx(loss, abs=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(found[name], gradient, atol=1e-5, rtol=1e-4), name


def test_recomputed_activations_give_the_same_gradients_and_leave_no_trace(model: Any) -> None:
    batch = sequences(model.config.vocab_size)
    _, kept = grads_after_one_step(model.train(), batch, 40)
    before = {name: set(vars(m)) for name, m in model.named_modules()}
    schedule = Schedule(lr=0.0, epochs=1, batch_size=len(batch), max_grad_norm=1e9, warmup=0)
    run = Run(tokens_per_pass=40, checkpoint_activations=True)
    asked: list[bool] = []
    layer = model.model.layers[0]
    hook = layer.register_forward_hook(lambda *_: asked.append(layer.gradient_checkpointing))
    fine_tune(model, table(batch), schedule, seed=0, run=run, attempt=NOWHERE)
    hook.remove()
    assert any(asked)
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, kept[name]), name
    assert not layer.gradient_checkpointing
    assert {name: set(vars(m)) for name, m in model.named_modules()} == before


def test_long_rows_take_the_kernel_to_the_same_gradients(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = sequences(model.config.vocab_size)
    _, by_formula = grads_after_one_step(model, batch, 10_000)
    monkeypatch.setattr(attention, "SHORT", 0)
    monkeypatch.setattr(attention, "_by_formula", None)
    _, by_kernel = grads_after_one_step(model, batch, 10_000)
    for name, gradient in by_formula.items():
        assert torch.allclose(by_kernel[name], gradient, atol=1e-5, rtol=1e-4), name


@pytest.mark.parametrize("short", [0, 512], ids=["kernel", "formula"])
def test_queries_of_another_type_than_the_values_are_attended(short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast a model's norms may leave queries and keys in float32 beside values in bfloat16."""
    monkeypatch.setattr(attention, "SHORT", short)
    query, key, value = torch.randn(3, 1, 2, 9, 8).unbind()
    how = {"scale": 0.3, "softcap": None, "dropout": 0.0}
    exact = attention.Packed([4, 5], query.device).attend(0, query, key, value, **how)
    found = attention.Packed([4, 5], query.device).attend(0, query, key, value.bfloat16(), **how)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), exact, atol=0.03)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_give_the_same_gradients_and_leave_no_trace(model: Any) -> None:
    batch = sequences(model.config.vocab_size)
    _, plain = grads_after_one_step(model.train(), batch, 40)
    before = {name: set(vars(m)) for name, m in model.named_modules()}
    schedule = Schedule(lr=0.0, epochs=1, batch_size=len(batch), max_grad_norm=1e9, warmup=0)
    counters.clear()
    run = Run(tokens_per_pass=40, compile=True)
    fine_tune(model, table(batch), schedule, seed=0, run=run, attempt=NOWHERE)
    assert counters["stats"]["calls_captured"] > 0
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, plain[name], atol=1e-5, rtol=1e-4), name
    assert {name: set(vars(m)) for name, m in model.named_modules()} == before


def test_the_check_leaves_the_mode_and_the_random_state_alone(model: Any) -> None:
    model.train()
    before = torch.get_rng_state()
    fits(model)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


def test_steps_follow_epochs_batches_and_the_floor() -> None:
    schedule = Schedule(epochs=3, batch_size=16)
    assert [schedule.steps(n) for n in (1, 15, 16, 17, 32, 1000)] == [3, 3, 3, 6, 6, 189]
    floored = Schedule(epochs=3, batch_size=16, min_steps=20)
    assert [floored.steps(n) for n in (1, 96, 112, 1000)] == [20, 20, 21, 189]


def test_steps_for_a_budget_that_every_size_gets() -> None:
    """100 steps; 6,400 tokens in batches of 16 examples of 40; 8e9 FLOPs at 1e6 a token make 8,000 tokens."""
    assert [Schedule(hold="steps", budget=100).steps(n, 40, 1e6) for n in (4, 1000)] == [100, 100]
    assert [Schedule(hold="tokens", budget=6400).steps(n, 40, 1e6) for n in (4, 16, 1000)] == [40, 10, 10]
    assert [Schedule(hold="flops", budget=8e9).steps(n, 40, 1e6) for n in (4, 16, 1000)] == [50, 12, 12]
    assert [Schedule().drawn(n, steps) for n, steps in ((4, 5), (16, 5), (40, 4), (40, 2))] == [20, 80, 56, 32]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hold": "hours"}, "method.hold='hours' is unknown"),
        ({"hold": "tokens"}, "method.hold=tokens needs method.budget"),
        ({"decay": "wsd", "trunk": True}, "method.trunk shares the beginning"),
        ({"decay": "linear", "trunk": True, "epochs": 1, "warmup": 5}, "method.trunk shares the beginning"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        Schedule(**fields).check()
    Schedule(decay="wsd", trunk=True, epochs=1, warmup=5).check()


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [1 / 3, 2 / 3] + [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]),
        ("wsd", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1 - math.sqrt(0.5)]),
    ],
)
def test_the_learning_rate_rises_and_falls_as_written(decay: str, expected: list[float]) -> None:
    schedule = Schedule(lr=2.0, warmup=0.2, decay=decay)
    assert [schedule.lr_at(i, 10) / 2 for i in range(10)] == pytest.approx(expected)


def test_schedules_without_warm_up_and_of_one_step_use_the_full_rate() -> None:
    assert Schedule(lr=1.0, warmup=0).lr_at(0, 5) == 1.0
    assert Schedule(lr=1.0).lr_at(0, 1) == 1.0
    assert all(Schedule(lr=1.0).lr_at(i, 3) > 0 for i in range(3))  # no step is for nothing
    with pytest.raises(HarnessError, match=r"method\.decay='square'"):
        Schedule(decay="square").lr_at(5, 10)


def test_each_epoch_sees_every_example_once_in_its_own_order() -> None:
    batches = _batches(10, 4, seed=3)
    epochs = [[next(batches) for _ in range(3)] for _ in range(4)]
    assert all([len(b) for b in epoch] == [4, 4, 2] for epoch in epochs)
    orders = [[i for b in epoch for i in b] for epoch in epochs]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert next(_batches(10, 10, seed=3)) == orders[0]  # the seed's order, whatever the batch size
    assert next(_batches(10, 10, seed=4)) != orders[0]
    assert orders[0] == [6, 0, 3, 7, 8, 5, 1, 9, 2, 4]  # pinned: torch's randperm must not change under us
    assert sorted(next(_batches(3, 16, seed=0))) == [0, 1, 2]  # fewer than a batch: all of them


def test_passes_keep_every_sequence_within_the_budget() -> None:
    batch = sequences(100, (5, 5, 30, 5, 9))
    for budget in (0, 1, 10, 14, 40, 1000):
        runs = list(_passes(batch, budget, math.inf))
        assert [s for run in runs for s in run] == sorted(batch, key=lambda s: len(s.ids))
        assert all(len(run) == 1 or sum(len(s.ids) for s in run) <= budget for run in runs)
    assert [len(run) for run in _passes(batch, 14, math.inf)] == [2, 2, 1]
    assert [len(run) for run in _passes(batch, 0, math.inf)] == [1] * 5
    assert [len(run) for run in _passes(batch, 1000, 0)] == [1] * 5
    assert [len(run) for run in _passes(batch, 1000, 8)] == [3, 1, 1]  # what is too long to share stands alone


def trained(loaded: LoadedBase, seed: int, **changes: Any) -> tuple[dict[str, Any], torch.Tensor, list[Any]]:
    import copy

    model = copy.deepcopy(loaded.model).requires_grad_(True).train()
    schedule = Schedule(**{"lr": 1e-2, "epochs": 2, "batch_size": 2} | changes)
    heard: list[Any] = []
    data = sequences(model.config.vocab_size)
    record = fine_tune(
        model,
        table(data),
        schedule,
        seed=seed,
        run=Run(),
        attempt=attempt(Path("nowhere"), lambda *given: heard.append(given)),
    )
    return record, torch.cat([p.detach().flatten() for p in model.parameters()]), heard


def test_the_same_seed_gives_the_same_bits_and_another_does_not(loaded: LoadedBase) -> None:
    one, first, _ = trained(loaded, 5)
    torch.manual_seed(99)  # the state of the process is nothing to it
    two, second, _ = trained(loaded, 5)
    _, other, _ = trained(loaded, 6)
    assert torch.equal(first, second)
    assert one["losses"] == two["losses"]
    assert not torch.equal(first, other)


def test_the_record_adds_up_and_each_step_is_heard(loaded: LoadedBase) -> None:
    record, _, heard = trained(loaded, 0)
    assert [(step, steps) for step, steps, _ in heard] == [(i, 6) for i in range(6)]
    assert record["steps"] == 6
    assert record["epochs"] == 2
    assert record["target_tokens"] == 2 * sum(sum(s.learned) for s in sequences(loaded.model.config.vocab_size))
    assert record["tokens"] == 2 * (13 + 9 + 17 + 6 + 11)
    assert record["final_loss"] < record["losses"][0]["loss"]
    assert [x["lr"] for x in record["losses"]] == [values["lr"] for _, _, values in heard]
    assert record["losses"][-1]["target_tokens"] == record["target_tokens"]
    floored, _, _ = trained(loaded, 0, min_steps=9)
    assert (floored["steps"], floored["epochs"]) == (9, 3)


def test_weight_decay_and_clipping_reach_the_optimizer(loaded: LoadedBase) -> None:
    _, plain, _ = trained(loaded, 0, max_grad_norm=1e9)
    _, decayed, _ = trained(loaded, 0, max_grad_norm=1e9, weight_decay=0.5)
    _, clipped, _ = trained(loaded, 0, max_grad_norm=1e-9)
    start = torch.cat([p.detach().flatten() for p in loaded.model.parameters()])
    assert not torch.equal(plain, decayed)
    assert decayed.norm() < plain.norm()
    assert (clipped - start).abs().max() < (plain - start).abs().max()


def test_a_loss_that_is_not_finite_stops_the_training(loaded: LoadedBase) -> None:
    with pytest.raises(DivergedError, match=r"lower method\.lr"):
        trained(loaded, 0, lr=1e30, warmup=0, decay="constant")


def test_a_gradient_that_is_not_finite_stops_the_training_also_at_the_last_step(model: Any) -> None:
    """The loss of the last step is still finite, yet the weights it leaves would not be."""
    model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    batch = sequences(model.config.vocab_size)
    schedule = Schedule(lr=1e-3, epochs=1, batch_size=16)
    with pytest.raises(DivergedError, match="gradient"):
        fine_tune(model, table(batch), schedule, seed=0, run=Run(), attempt=NOWHERE)
    assert all(p.isfinite().all() for p in model.parameters())


def test_examples_cut_before_their_answer_are_refused(model: Any) -> None:
    """They would count as examples and teach nothing; a batch of them would divide by zero."""
    cut = Tokens([1, 2, 3], [False, False, False], truncated=True)
    with pytest.raises(HarnessError, match="1 examples are cut before their answer"):
        grads_after_one_step(model, [*sequences(100), cut], 99)


def test_out_of_memory_halves_the_pass_and_keeps_the_batch(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The effective batch, the order and so the result are those of a run that was told to make the smaller passes."""
    data = sequences(model.config.vocab_size, (20, 18, 16, 14, 12, 10))
    schedule = Schedule(lr=1e-2, epochs=2, batch_size=3, warmup=0)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    told = fine_tune(model, table(data), schedule, seed=0, run=Run(tokens_per_pass=25), attempt=NOWHERE)
    wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.load_state_dict(kept)

    def small(module: Any, given: Any, named: dict[str, Any]) -> None:
        if named["input_ids"].numel() > 25:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = model.register_forward_pre_hook(small, with_kwargs=True)
    got = fine_tune(model, table(data), schedule, seed=0, run=Run(tokens_per_pass=100), attempt=NOWHERE)
    hook.remove()
    assert got["tokens_per_pass"] == told["tokens_per_pass"] == 25
    assert caplog.text.count("out of memory") == 1
    assert got["losses"] == told["losses"]
    for name, p in model.named_parameters():
        assert torch.equal(p, wanted[name]), name


def test_out_of_memory_with_one_sequence_is_the_end(model: Any) -> None:
    def none(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = model.register_forward_pre_hook(none)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            fine_tune(model, table(sequences(model.config.vocab_size)), Schedule(), seed=0, run=Run(), attempt=NOWHERE)
    finally:
        hook.remove()
