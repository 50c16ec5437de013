"""`harness export`: the merged model is what was evaluated, for anybody's transformers and lm-eval."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import __main__ as cli
from harness import base as bases
from harness import store
from harness.cell import Attempt, Base, Cell
from harness.methods.sft import Sft
from harness.run import run
from harness.store import ADAPTER
from harness.tuning import Lora

Make = Callable[..., Any]
Harness = Callable[..., tuple[int, str, str]]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Harness:
    """``export(cell folder, target)`` -> (exit status, output, errors)."""

    def command(*arguments: Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return command


def learnt(**lora: Any) -> Sft:
    """Enough of it that what the adapter adds is no trifle."""
    return Sft(lr=1e-2, min_steps=10, batch_size=4, lora=Lora(**lora))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 40)[None]).logits.float()


def beside(cell: Cell) -> torch.Tensor:
    """The logits of base and adapter side by side, as they are evaluated."""
    loaded = bases.load(cell.base, "cpu")
    with cell.method.adapt(loaded, [], cell, Attempt(cell.folder(), cell.folder())) as adapted:
        return logits(adapted.model)


KINDS = {
    "lora": {},
    "rslora": {"rslora": True, "target_modules": ["q_proj", "down_proj"]},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
    "whole modules": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_computes_what_was_evaluated(
    make_cell: Make, export: Harness, tmp_path: Path, kind: str
) -> None:
    cell = make_cell(learnt(**KINDS[kind]))
    folder, target = run(cell), tmp_path / "models" / "mine"
    untouched, wanted = logits(bases.load(cell.base, "cpu").model), beside(cell)
    status, out, err = export(folder, target)
    assert (status, out.startswith(f"{target}\non ")) == (0, True), err
    found = logits(AutoModelForCausalLM.from_pretrained(target))
    assert (found - wanted).abs().max() < 1e-4
    assert (untouched - wanted).abs().max() > 0.5
    assert [p.name for p in target.parent.iterdir()] == ["mine"]


def test_the_base_in_memory_is_not_left_merged(make_cell: Make, export: Harness, tmp_path: Path) -> None:
    cell = make_cell(learnt())
    folder = run(cell)
    before = logits(bases.load(cell.base, "cpu").model)
    assert export(folder, tmp_path / "mine")[0] == 0
    assert torch.equal(logits(bases.load(cell.base, "cpu").model), before)


def test_a_bfloat16_base_is_merged_in_float32_and_rounded_once(
    make_cell: Make, export: Harness, tiny_base: Base, tmp_path: Path
) -> None:
    cell = make_cell(learnt(), base=dataclasses.replace(tiny_base, dtype="bfloat16"))
    folder, target = run(cell), tmp_path / "mine"
    status, out, _ = export(folder, target)
    assert status == 0
    model = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    assert model.dtype == torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(cell.base.path, dtype=torch.bfloat16).float()
    weights = {name: w for name, w in base.state_dict().items() if "self_attn.q_proj" in name}
    from safetensors.torch import load_file

    adapter = load_file(folder / ADAPTER)
    scale = cell.method.lora.alpha / cell.method.lora.rank
    for name, weight in weights.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        delta = scale * adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
        assert torch.equal(model.state_dict()[name], (weight + delta).bfloat16())
    said = [float(x) for x in re.findall(r"[\d.]+e[-+]\d+", out)]
    assert said[0] < 1e-4 < said[1]
    found, wanted = logits(model).log_softmax(-1), beside(cell).log_softmax(-1)  # bfloat16 also while computing
    assert (found - wanted).gather(-1, wanted.argmax(-1, keepdim=True)).abs().max() < 0.1


def test_lm_eval_scores_it_as_the_cell_was_scored(
    make_cell: Make, export: Harness, generation_task: Make, choice_task: Make, tmp_path: Path
) -> None:
    """As a base of its own, by lm-eval's hf backend; chat template, stop tokens and all."""
    evals = {"quiz": generation_task(), "choice": choice_task()}
    cell = make_cell(learnt(), evals=evals)
    folder, target = run(cell), tmp_path / "mine"
    assert export(folder, target)[0] == 0
    again = make_cell("base", base=Base(name="mine", path=str(target), dtype="float32"), evals=evals)
    again.run.eval_backend = "hf"
    other = run(again)
    assert store.newest_scores(other) == store.newest_scores(folder)
    answers = [
        [json.loads(line)["extracted"] for line in next(place.glob("evals/quiz/*.jsonl")).read_text().splitlines()]
        for place in (folder, other)
    ]
    assert answers[0] == answers[1]


def test_tokenizer_template_generation_and_card(make_cell: Make, export: Harness, tmp_path: Path) -> None:
    cell = make_cell(learnt())
    cell.data.licence = "CC-BY-4.0"
    cell.base.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}"
    folder, target = run(cell), tmp_path / "mine"
    assert export(folder, target)[0] == 0
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "Yes."}], tokenize=False) == "<user>Yes.<|im_end|>"
    )
    stops = AutoModelForCausalLM.from_pretrained(target).generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (stops if isinstance(stops, list) else [stops])
    record, card = store.read_json(folder / store.RECORD), (target / "README.md").read_text()
    for said in ("# mine", "tiny", "4 examples of pairs", record["fingerprint"], "CC-BY-4.0"):
        assert said in card
    assert record["training"]["adapter_sha256"] in card
    kept = [p.read_text() for p in target.iterdir() if p.suffix != ".safetensors"]
    assert not [text for text in kept if str(cell.base.path) in text or str(tmp_path) in text]


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
def test_a_head_trained_apart_from_tied_embeddings_stays_apart(
    make_cell: Make, export: Harness, tiny_folder: Path, tmp_path: Path
) -> None:
    """Saved as the one weight that they were, they would be another model."""
    AutoModelForCausalLM.from_pretrained(tiny_folder, tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "tied")
    base = Base(name="tied", path=str(tmp_path / "tied"), dtype="float32")
    cell = make_cell(learnt(modules_to_save=["lm_head"], target_modules=["q_proj"]), base=base)
    folder = run(cell)
    wanted = beside(cell)
    assert export(folder, tmp_path / "out")[0] == 0
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) - wanted).abs().max() < 1e-4


def test_what_cannot_be_exported_is_told_in_one_line(make_cell: Make, export: Harness, tmp_path: Path) -> None:
    cell = make_cell(learnt())
    folder = run(cell)
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("mine")

    def refused(why: str, source: Path = folder, target: Path = tmp_path / "out") -> None:
        status, out, err = export(source, target)
        assert (status, len(err.splitlines()), why in err, out) == (2, 1, True, ""), err
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out-*"))

    refused("holds no record.json", tmp_path)
    refused("not an empty folder", target=full)
    refused("its model is the base itself (", run(make_cell("base", data=cell.data)))
    refused("with its examples in the prompt", run(make_cell("icl", data=cell.data)))

    content = (folder / ADAPTER).read_bytes()
    (folder / ADAPTER).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("does not match its checksum")
    (folder / ADAPTER).unlink()
    refused("were not kept")
    (folder / ADAPTER).write_bytes(content)

    record = store.read_result(folder / store.RECORD)
    record["identity"]["base"]["identity"] = "sha256:another"
    (folder / store.RECORD).unlink()
    store.write_result(folder / store.RECORD, record)
    refused("is not the one that was trained on: sha256:another -> sha256:")
