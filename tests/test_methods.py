"""The methods on a real, tiny model: what is learned, what is saved, and that the base comes back untouched."""

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from harness import base as bases
from harness import evaluate
from harness.base import LoadedBase
from harness.by_rows import fits
from harness.cell import Adapted, Base, Cell, Data, Method, Run, Task
from harness.data.chat import tokenize
from harness.data.subset import Example, load_dataset
from harness.errors import HarnessError
from harness.methods import methods
from harness.methods.base import BaseModel
from harness.methods.icl import InContext
from harness.methods.sft import Sft
from harness.methods.sft_full import SftFull
from harness.store import ADAPTER, MODEL, TRAINED, write_result
from harness.tuning import Lora
from tests.conftest import attempt, save_tiny

Make = Callable[..., Cell]
QUICK = {"lr": 1e-2, "epochs": 1, "batch_size": 4}
COLOURS = ["red", "green", "blue", "Paris", "three", "nine", "Yes", "No"]


def lessons() -> list[dict[str, str]]:
    return [{"prompt": f"What is {i}?", "completion": f"{c} {c}."} for i, c in enumerate(COLOURS)]


def examples_of(cell: Cell) -> list[Example]:
    return load_dataset(cell.data).subset(cell.size, cell.subset_seed)


def adapt(loaded: LoadedBase, cell: Cell, folder: Path) -> AbstractContextManager[Adapted]:
    """As `run` does it: adapt, and note what was trained."""
    import contextlib

    @contextlib.contextmanager
    def adapted() -> Any:
        with cell.method.adapt(loaded, examples_of(cell), cell, attempt(folder)) as result:
            if not (folder / TRAINED).exists():
                write_result(folder / TRAINED, {"training": result.training})
            yield result

    return adapted()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 40)[None]).logits


def sha256(loaded: LoadedBase, cell: Cell, folder: Path) -> str:
    with adapt(loaded, cell, folder) as adapted:
        return adapted.training["adapter_sha256"]


def everything(model: Any) -> dict[str, Any]:
    """All that could be left behind: weights, modules, attributes, hooks, modes."""
    return {
        name: (
            type(module),
            sorted(module._modules),
            sorted(vars(module)),
            len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks),
            module.training,
        )
        for name, module in model.named_modules()
    }


def test_methods_are_found_by_name() -> None:
    assert methods()["sft"] is Sft
    assert methods()["icl"] is InContext
    assert methods()["base"] is BaseModel


@pytest.mark.slow
def test_sft_learns_its_examples_and_where_they_end(
    loaded: LoadedBase,
    make_cell: Make,
    make_data: Callable[..., Data],
    generation_task: Callable[..., Task],
    tmp_path: Path,
) -> None:
    """The whole way round: the answers come back word for word and end by themselves, in the words of evaluation."""
    rows = lessons()
    cell = make_cell(Sft(lr=5e-3, epochs=60, batch_size=8, decay="constant"), data=make_data(rows), size=8)
    task = generation_task([{"question": r["prompt"], "answer": r["completion"]} for r in rows], max_gen_toks=16)
    before = evaluate.evaluate(loaded, Adapted(loaded.model), "mine", task, Run())
    assert before["scores"][0]["score"] == 0.0
    with adapt(loaded, cell, tmp_path / "cell") as adapted:
        result = evaluate.evaluate(loaded, adapted, "mine", task, Run())
        prompt = loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": rows[0]["prompt"]}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        generated = adapted.model.generate(input_ids=prompt, max_new_tokens=50, do_sample=False)[0, prompt.shape[1] :]
    strict = next(s for s in result["scores"] if s["filter"] == "strict")
    assert (strict["score"], strict["stderr"], strict["n_items"]) == (1.0, 0.0, 8)
    assert generated[-1] == loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert loaded.tokenizer.decode(generated) == rows[0]["completion"] + "<|im_end|>"
    after = evaluate.evaluate(loaded, Adapted(loaded.model), "mine", task, Run())
    assert [s["answers"] for s in after["samples"]] == [s["answers"] for s in before["samples"]]


LORAS = [
    Lora(),
    Lora(dropout=0.3),
    Lora(modules_to_save=["lm_head"]),
    Lora(modules_to_save=["embed_tokens"]),
    Lora(init="pissa"),
    Lora(init="olora"),
    Lora(dora=True),
    Lora(target_modules=["q_proj", "down_proj"], rslora=True),
]
LEAVES_NO_TRACE: list[Method] = [SftFull(**QUICK), *(Sft(**QUICK, lora=lora) for lora in LORAS)]


@pytest.mark.parametrize("method", LEAVES_NO_TRACE, ids=[str(i) for i in range(len(LEAVES_NO_TRACE))])
def test_the_base_comes_back_bit_for_bit_and_what_is_saved_gives_the_same_logits(
    loaded: LoadedBase, make_cell: Make, tmp_path: Path, method: Method
) -> None:
    """peft's own `unload` keeps trained copies of modules_to_save, and PiSSA and OLoRA rewrite the base's weights."""
    model = loaded.model
    weights = {name: w.clone() for name, w in model.state_dict().items()}
    shape, said, settings = everything(model), logits(model), model.generation_config.to_dict()
    cell = make_cell(method)
    seen = []
    for _ in range(2):  # trained, then loaded from the folder
        with adapt(loaded, cell, tmp_path) as adapted:
            seen.append(logits(adapted.model))
            adapted.model.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False)
            assert not adapted.model.training
        assert everything(model) == shape
        assert model.state_dict().keys() == weights.keys()
        assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
        assert torch.equal(logits(model), said)
        assert model.generation_config.to_dict() == settings
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], said)


def test_the_base_comes_back_when_training_fails(loaded: LoadedBase, make_cell: Make, tmp_path: Path) -> None:
    shape, said = everything(loaded.model), logits(loaded.model)
    for lora, error in [
        (Lora(target_modules=["nothing"]), HarnessError),
        (Lora(target_modules=["q_proj", "nothing"]), HarnessError),
        (Lora(), KeyboardInterrupt),
    ]:
        cell = make_cell(Sft(**QUICK, lora=lora))

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        with pytest.raises(error), cell.method.adapt(loaded, examples_of(cell), cell, attempt(tmp_path, stop)):
            pass
        assert everything(loaded.model) == shape
        assert torch.equal(logits(loaded.model), said)
        assert not (tmp_path / ADAPTER).exists()


def test_a_misspelt_target_is_refused_even_beside_one_that_exists(
    loaded: LoadedBase, make_cell: Make, tmp_path: Path
) -> None:
    """peft trains what it finds and says nothing of the rest."""
    cell = make_cell(Sft(**QUICK, lora=Lora(target_modules=["q_proj", "w_proj"])))
    with pytest.raises(HarnessError, match="no module named 'w_proj'"), adapt(loaded, cell, tmp_path):
        pass


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_cell_does_not_depend_on_what_ran_before_it(
    loaded: LoadedBase, make_cell: Make, tmp_path: Path, dropout: float
) -> None:
    data = make_cell().data
    first = make_cell(Sft(**QUICK, lora=Lora(rank=4, modules_to_save=["lm_head"])), data=data, seed=1)
    second = make_cell(Sft(**QUICK, lora=Lora(dropout=dropout)), data=data, seed=2)
    alone = sha256(loaded, second, tmp_path / "alone")
    sha256(loaded, first, tmp_path / "first")
    assert sha256(loaded, second, tmp_path / "after") == alone


def test_how_a_base_is_asked_does_not_depend_on_what_is_trained_on_it(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained model may round worse in bfloat16 than the trial of attention by rows tolerates; here it is changed so
    that the trial fails for certain."""
    loaded = bases.load(tiny_base, "cpu")
    forward = type(loaded.model).forward
    monkeypatch.setattr(type(loaded.model), "forward", lambda self, position_ids=None, **given: forward(self, **given))
    assert not fits(loaded.model)
    assert loaded.attends_by_rows


def test_seeds_are_told_apart(loaded: LoadedBase, make_cell: Make, tmp_path: Path) -> None:
    """The training seed moves the start, the order and the dropout; the subset seed only which examples."""
    data = make_cell().data
    shas = {
        (seed, subset_seed): sha256(
            loaded,
            make_cell(Sft(**QUICK), data=data, seed=seed, subset_seed=subset_seed),
            tmp_path / f"{seed}-{subset_seed}",
        )
        for seed in (0, 1)
        for subset_seed in (0, 1)
    }
    assert len(set(shas.values())) == 4


def test_dropout_changes_the_training_and_follows_the_seed(loaded: LoadedBase, make_cell: Make, tmp_path: Path) -> None:
    data = make_cell().data

    def run(dropout: float, name: str) -> str:
        return sha256(loaded, make_cell(Sft(**QUICK, lora=Lora(dropout=dropout)), data=data), tmp_path / name)

    assert run(0.5, "a") == run(0.5, "b") != run(0.0, "c")


def test_the_whole_model_is_in_training_mode_while_it_trains(
    loaded: LoadedBase, make_cell: Make, tmp_path: Path
) -> None:
    """Some bases have dropout of their own (GPT-2), which belongs to fine-tuning and not to evaluation."""
    cell, modes = make_cell(Sft(**QUICK)), set()

    def look(*_: Any) -> None:
        modes.update(module.training for module in loaded.model.modules())

    with cell.method.adapt(loaded, examples_of(cell), cell, attempt(tmp_path, look)) as adapted:
        assert modes == {True}
        assert not any(module.training for module in adapted.model.modules())


def test_a_corrupted_or_missing_adapter_is_refused(loaded: LoadedBase, make_cell: Make, tmp_path: Path) -> None:
    cell = make_cell(Sft(**QUICK))
    sha256(loaded, cell, tmp_path)
    file = tmp_path / ADAPTER
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    said = logits(loaded.model)
    with pytest.raises(HarnessError, match="checksum"), adapt(loaded, cell, tmp_path):
        pass
    file.unlink()
    with pytest.raises(HarnessError, match="were not kept"), adapt(loaded, cell, tmp_path):
        pass
    assert torch.equal(logits(loaded.model), said)


def test_a_finished_adapter_is_loaded_and_not_trained_again(
    loaded: LoadedBase, make_cell: Make, tmp_path: Path
) -> None:
    cell = make_cell(Sft(**QUICK))
    with adapt(loaded, cell, tmp_path) as adapted:
        record = adapted.training
    heard: list[Any] = []
    with cell.method.adapt(
        loaded, examples_of(cell), cell, attempt(tmp_path, lambda *given: heard.append(given))
    ) as again:
        assert again.training == record
    assert not heard


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        (Lora(rank=3, alpha=7, dropout=0.25), {"r": 3, "lora_alpha": 7, "lora_dropout": 0.25}),
        (Lora(target_modules=["q_proj", "v_proj"]), {"target_modules": ["q_proj", "v_proj"]}),
        (Lora(rslora=True), {"use_rslora": True, "use_dora": False}),
        (Lora(dora=True), {"use_dora": True, "use_rslora": False}),
        (Lora(init="gaussian"), {"init_lora_weights": "gaussian"}),
        (Lora(modules_to_save=["lm_head"]), {"modules_to_save": ["lm_head"]}),
    ],
)
def test_lora_options_reach_peft(
    loaded: LoadedBase, make_cell: Make, tmp_path: Path, lora: Lora, expected: dict[str, Any]
) -> None:
    with adapt(loaded, make_cell(Sft(**QUICK, lora=lora)), tmp_path) as adapted:
        layer = adapted.model.base_model.model.model.layers[0].self_attn.q_proj
        scale = lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)
        assert layer.scaling["default"] == pytest.approx(scale)
        assert layer.lora_A["default"].out_features == lora.rank
        trained = sum(p.numel() for p in adapted.model.parameters() if p.requires_grad)
        assert adapted.training["trained_parameters"] == trained
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    for key, value in expected.items():
        assert (sorted(saved[key]) if isinstance(value, list) else saved[key]) == value
    names = load_file(tmp_path / ADAPTER).keys()
    projections = {name.split(".lora_")[0].rpartition(".")[2] for name in names if ".lora_" in name}
    everywhere = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert projections == (everywhere if lora.target_modules == ["all-linear"] else set(lora.target_modules))


def test_a_bfloat16_base_is_trained_in_float32(tiny_base: Any, make_cell: Make, tmp_path: Path) -> None:
    """A step of 2e-4 on a weight of bfloat16 would mostly round to nothing."""
    loaded = bases.load(dataclasses.replace(tiny_base, dtype="bfloat16"), "cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    with adapt(loaded, make_cell(Sft(**QUICK)), tmp_path) as adapted:
        assert {p.dtype for p in adapted.model.parameters() if p.requires_grad} == {torch.float32}
    assert {w.dtype for w in load_file(tmp_path / ADAPTER).values()} == {torch.float32}


def test_all_weights_of_a_bfloat16_base_with_tied_embeddings(tokenizer: Any, make_cell: Make, tmp_path: Path) -> None:
    """Trained in float32, kept and asked in bfloat16; steps of 1e-5 on weights of 0.05 would be lost in bfloat16."""
    config = LlamaConfig.from_pretrained(save_tiny(tmp_path / "base", tokenizer))
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    loaded = bases.load(Base(name="tied", path=str(tmp_path / "base"), dtype="bfloat16"), "cpu")
    before = {name: w.clone() for name, w in loaded.model.state_dict().items()}
    types: set[Any] = set()

    def watch(*_: Any) -> None:
        types.update(p.dtype for p in loaded.model.parameters())

    cell = make_cell(SftFull(lr=1e-5, epochs=40, batch_size=4, decay="constant"), base=loaded.config)
    with cell.method.adapt(loaded, examples_of(cell), cell, attempt(tmp_path / "cell", watch)) as adapted:
        assert types == {torch.float32}
        assert {p.dtype for p in adapted.model.parameters()} == {torch.bfloat16}
        changed = adapted.model.state_dict()
        assert any(not torch.equal(w, before[name]) for name, w in changed.items())
        assert changed["lm_head.weight"].data_ptr() == changed["model.embed_tokens.weight"].data_ptr()
        kept = load_file(tmp_path / "cell" / MODEL)
        assert "lm_head.weight" not in kept
        assert all(torch.equal(w, changed[name]) for name, w in kept.items())
        record = adapted.training
        assert record["trained_parameters"] == adapted.model.num_parameters()
        assert record["flops"] == 6 * adapted.model.num_parameters() * record["tokens"]
    assert all(torch.equal(w, before[name]) for name, w in loaded.model.state_dict().items())


def test_all_weights_learn_their_examples(loaded: LoadedBase, make_cell: Make, tmp_path: Path) -> None:
    with adapt(loaded, make_cell(SftFull(lr=3e-3, epochs=60, batch_size=4)), tmp_path) as adapted:
        assert adapted.training["final_loss"] < 0.1  # from 6 on random weights


def test_truncated_examples_are_counted(loaded: LoadedBase, make_cell: Make, tmp_path: Path) -> None:
    examples = examples_of(make_cell(size=32))
    lengths = sorted(len(tokenize(loaded.tokenizer, list(e.messages), 999).ids) for e in examples)
    assert lengths[0] < lengths[8] < lengths[-1]
    with adapt(loaded, make_cell(Sft(**QUICK, max_length=lengths[8]), size=32), tmp_path) as adapted:
        assert adapted.training["truncated_examples"] == sum(n > lengths[8] for n in lengths) > 0
        assert adapted.training["tokens"] == sum(min(n, lengths[8]) for n in lengths)


def test_in_context_learning_shows_our_subset_in_order_and_trains_nothing(
    loaded: LoadedBase, make_cell: Make, tmp_path: Path
) -> None:
    cell = make_cell("icl", size=3)
    examples = examples_of(cell)
    said = logits(loaded.model)
    with adapt(loaded, cell, tmp_path) as adapted:
        assert adapted.model is loaded.model
        assert adapted.demonstrations == [turn for e in examples for turn in e.messages]
        assert [t["role"] for t in adapted.demonstrations] == ["user", "assistant"] * 3
        assert torch.equal(logits(adapted.model), said)
    assert not (tmp_path / ADAPTER).exists()


def test_system_turns_of_demonstrations_are_left_out() -> None:
    turns = (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    )
    assert InContext().demonstrations([Example("x", "s", turns)]) == list(turns[1:])


def test_the_base_method_is_the_base(loaded: LoadedBase, make_cell: Make, tmp_path: Path) -> None:
    cell = make_cell("base", size=0)
    with cell.method.adapt(loaded, [], cell, attempt(tmp_path)) as adapted:
        assert adapted.model is loaded.model
        assert adapted.demonstrations == []
