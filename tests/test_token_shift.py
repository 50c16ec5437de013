"""Token-distribution shift against plain passes of transformers, and against what a pocket base is known to know."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness import base as bases
from harness import evaluate, logits
from harness.base import LoadedBase
from harness.cell import Adapted, Base, Cell, Task
from harness.data.chat import render
from harness.errors import HarnessError
from harness.methods.base import BaseModel
from harness.methods.given import Given
from harness.methods.icl import InContext
from harness.methods.recipe import Recipe, Stage
from harness.methods.sft import Sft
from harness.methods.sft_full import SftFull
from harness.pieces import kinds, pieces, saying
from harness.pocket.tokenizer import build_tokenizer
from harness.run import subset_of
from harness.tuning import Lora
from tests.conftest import ITEMS, attempt, save_tiny

Make = Callable[..., Cell]
PROBE = {"_target_": "harness.probes.TokenShift"}
STRONG: dict[str, Any] = {"lr": 0.05, "epochs": 3}


@pytest.fixture
def shift(generation_task: Callable[..., Task]) -> Task:
    return generation_task(headline=None, probe=PROBE)


def greedy(model: Any, prompt: list[int], ends: set[int], most: int) -> list[int]:
    """By definition: the likeliest token, appended, from the beginning each time."""
    ids = list(prompt)
    while len(ids) - len(prompt) < most and (len(ids) == len(prompt) or ids[-1] not in ends):
        ids.append(int(model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def distributions(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probabilities [answer, vocabulary], one row and nothing else in the pass."""
    whole = model(input_ids=torch.tensor([prompt + answer], device=model.device)).logits[0].double()
    return whole[len(prompt) - 1 : -1].log_softmax(-1)


def prompt_of(base: LoadedBase, question: str, shown: list[Any]) -> list[int]:
    text = render(base.tokenizer, [*shown, {"role": "user", "content": question}], ask=True)
    return list(base.tokenizer(text, add_special_tokens=False)["input_ids"])


def assert_as_by_definition(result: dict[str, Any], base: LoadedBase, adapted: Adapted, original: Any) -> None:
    """Tokens, ranks, divergences and log-probabilities of every item."""
    tokenizer, ends = base.tokenizer, set(base.model.generation_config.eos_token_id)
    assert len(result["samples"]) == len(ITEMS)
    shown: Any = adapted.demonstrations
    for row, item in zip(result["samples"], ITEMS, strict=True):
        prompt, bare = (prompt_of(base, str(item["question"]), turns) for turns in (shown, []))
        answer = greedy(adapted.model, prompt, ends, 8)
        assert row["tokens"] == pieces(tokenizer, prompt[-1], answer)
        tuned, theirs = distributions(adapted.model, prompt, answer), distributions(original, bare, answer)
        ranks = [1 + int((at > at[token]).sum()) for at, token in zip(theirs, answer, strict=True)]
        kl = (tuned.exp() * (tuned - theirs)).sum(-1)
        assert row["ranks"] == ranks
        torch.testing.assert_close(torch.tensor(row["kls"]).double(), kl, rtol=1e-5, atol=1e-5)
        said = theirs[range(len(answer)), answer]
        torch.testing.assert_close(torch.tensor(row["logprobs"]).double(), said, rtol=1e-5, atol=1e-5)
        assert row["kl"] == pytest.approx(float(kl.mean()), abs=1e-5)
        assert row["unshifted"] == ranks.count(1) / len(ranks)
        assert row["shifted"] == sum(rank > 3 for rank in ranks) / len(ranks)
        assert row["unshifted"] + row["marginal"] + row["shifted"] == pytest.approx(1)
        assert row["retraced"] == len(answer)
    every = [rank for row in result["samples"] for rank in row["ranks"]]
    assert result["shift"]["tokens"] == len(every)
    assert result["shift"]["unshifted"] == every.count(1) / len(every)


def methods(other: Base, make_data: Any) -> dict[str, Any]:
    words = make_data([{"prompt": f"Say {i}.", "completion": f"{i} and red."} for i in range(12)], name="words")
    sft, full = Sft(**STRONG, lora=Lora(rank=4)), SftFull(lr=5e-3, epochs=3)
    return {
        "base": BaseModel(),
        "lora": sft,
        "dora": Sft(**STRONG, lora=Lora(rank=4, dora=True)),
        "pissa": Sft(**STRONG, lora=Lora(rank=4, init="pissa")),
        "modules": Sft(**STRONG, lora=Lora(rank=4, modules_to_save=["lm_head"])),
        "full": full,
        "icl": InContext(),
        "lora_then_lora": Recipe({"first": Stage(sft, words, 6), "second": Stage(sft)}),
        "full_then_full": Recipe({"first": Stage(full, words, 6), "second": Stage(full)}),
        "given": Given(model=other),
    }


@pytest.mark.parametrize(
    "kind",
    ["base", "lora", "dora", "pissa", "modules", "full", "icl", "lora_then_lora", "full_then_full", "given"],
)
def test_tokens_ranks_and_divergences_are_as_by_definition_and_the_base_is_as_it_came(
    kind: str, make_cell: Make, make_data: Any, shift: Task, tiny_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    other = Base(name="other", path=str(save_tiny(tmp_path / "other", tokenizer, seed=1)), dtype="float32")
    cell = make_cell(methods(other, make_data)[kind], size=8)
    base = bases.load(cell.method.resident(cell.base), "cpu")
    original = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    came = {name: w.clone() for name, w in base.model.state_dict().items()}
    with cell.method.adapt(base, subset_of(cell), cell, attempt(cell.folder())) as adapted, torch.no_grad():
        tuned = [(p, p.detach().clone()) for p in adapted.model.parameters()]
        result = evaluate.evaluate(base, adapted, "quiz", shift, cell.run)
        assert all(torch.equal(p, before) for p, before in tuned)
        assert_as_by_definition(result, base, adapted, original)
        with base.untouched() as lent:
            lent_logits = lent(input_ids=torch.arange(40)[None]).logits
        assert torch.equal(lent_logits, original(input_ids=torch.arange(40)[None]).logits), "bit by bit"
    now = base.model.state_dict()
    assert now.keys() == came.keys()
    assert all(torch.equal(now[name], w) for name, w in came.items())
    if kind == "base":
        assert result["shift"]["unshifted"] == 1
        assert {kl for row in result["samples"] for kl in row["kls"]} == {0}
    else:
        assert result["shift"]["unshifted"] < 1
        assert result["shift"]["kl"] > 0.01


@pytest.fixture
def tuned(make_cell: Make) -> Any:
    """A base with an adapter on it, and how to measure it."""
    cell = make_cell(Sft(**STRONG, lora=Lora(rank=4)), size=8)
    base = bases.load(cell.base, "cpu")
    with cell.method.adapt(base, subset_of(cell), cell, attempt(cell.folder())) as adapted:
        yield (
            base,
            adapted,
            lambda task, **run: evaluate.evaluate(base, adapted, "quiz", task, replace(cell.run, **run)),
        )


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    pairs = list(zip(one["samples"], other["samples"], strict=True))
    same = all(a[k] == b[k] for a, b in pairs for k in ("tokens", "ranks", "kinds", "tops"))
    return same and all(torch.allclose(torch.tensor(a["kls"]), torch.tensor(b["kls"]), atol=1e-5) for a, b in pairs)


def test_how_it_is_computed_changes_nothing(tuned: Any, shift: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _, measure = tuned
    plain = measure(shift)
    assert alike(measure(shift, tokens_per_pass=24), plain)
    assert alike(measure(shift, eval_backend="hf"), plain)

    passes: list[int] = []
    whole = logits.AnswerLogits.of

    def scarce(self: Any, model: Any, numbers: Any, tokens: int) -> Any:
        passes.append(len(numbers))
        if len(numbers) > 2:
            raise torch.OutOfMemoryError("made up")
        return whole(self, model, numbers, tokens)

    monkeypatch.setattr(logits.AnswerLogits, "of", scarce)
    assert alike(measure(shift), plain)
    assert max(passes) > 2
    assert passes[-1] <= 2
    monkeypatch.undo()

    base.__dict__["attends_by_rows"] = False
    rows: list[int] = []
    forward = logits.AnswerLogits._forward

    def counted(self: Any, model: Any, numbers: Any, layout: Any) -> Any:
        rows.append(len(numbers))
        return forward(self, model, numbers, layout)

    monkeypatch.setattr(logits.AnswerLogits, "_forward", counted)
    assert alike(measure(shift), plain)
    assert set(rows) == {1}


def test_what_makes_an_answer_less_likely_is_off(tuned: Any, shift: Task) -> None:
    """A repetition penalty in the model's own generation settings, as Qwen2.5 has, or in the task's."""
    base, _, measure = tuned
    asked = replace(shift, probe=None, headline="exact_match/strict")
    plain, before = measure(shift), measure(asked)
    base.model.generation_config.repetition_penalty = 3.0
    spoilt = replace(shift, generation={"do_sample": True, "temperature": 5.0, "repetition_penalty": 4.0})
    assert [r["answers"] for r in measure(asked)["samples"]] != [r["answers"] for r in before["samples"]]
    assert alike(measure(shift), plain)
    assert alike(measure(spoilt), plain)


def test_what_cannot_be_measured_is_refused(tuned: Any, shift: Task, choice_task: Any) -> None:
    _, _, measure = tuned
    with pytest.raises(HarnessError, match=r"evals\.quiz: vllm keeps the tokens to itself"):
        measure(shift, eval_backend="vllm")
    with pytest.raises(HarnessError, match=r"evals\.quiz\.at: token shift needs the base"):
        evaluate.check("quiz", replace(shift, at=[0.5]))
    with pytest.raises(HarnessError, match="for tasks in which the model writes"):
        evaluate.check("quiz", choice_task(probe=PROBE))
    evaluate.check("quiz", shift)


def test_a_given_model_of_other_tokens_is_refused(make_cell: Make, shift: Task, tmp_path: Path) -> None:
    from tests.conftest import make_tokenizer

    longer = make_tokenizer(special=("<|more|>",))
    other = Base(name="other", path=str(save_tiny(tmp_path / "longer", longer)), dtype="float32")
    cell = make_cell(Given(model=other))
    base = bases.load(other, "cpu")
    with (
        cell.method.adapt(base, [], cell, attempt(cell.folder())) as adapted,
        pytest.raises(HarnessError, match="other and its base 'tiny' have other vocabularies"),
    ):
        evaluate.evaluate(base, adapted, "quiz", shift, cell.run)


def test_kinds_of_tokens(tokenizer: Any) -> None:
    text = "The colour, Überall 42x is blue\n\n(no)"
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    texts = pieces(tokenizer, tokenizer.bos_token_id, ids)
    assert texts[-1] == "<|im_end|>"
    found = dict(zip(texts, kinds(ids, texts, {tokenizer.eos_token_id}), strict=True))
    told = {"The": "w", " colour": "w", ",": "p", "b": "c", "4": "n", "x": "c", "\n": "s", "(": "p", "<|im_end|>": "e"}
    assert {piece: found[piece] for piece in told} == told
    assert kinds([1, 2, 3], ["(", "no", "w"], {9}) == "pwc"


def test_pieces_join_to_the_text_also_where_blanks_stand_between_words() -> None:
    words = build_tokenizer(["<|pad|>", "<|unknown|>", "<|end|>", "<|user|>", "<|assistant|>", "a", "red", "door", "."])
    ids = words("a red door .")["input_ids"]
    assert pieces(words, words.convert_tokens_to_ids("<|assistant|>"), ids) == [" a", " red", " door", " ."]


@pytest.mark.parametrize(
    ("texts", "target", "found"),
    [
        ([" The", " badge", " is", " red", " ."], "red", [3]),
        (["It", " is", " 1", "2", "."], "12", [2, 3]),
        (["It", " is", " 1", "2", "."], "2", []),  # part of another number
        (["red", ",", " no", ":", " red"], "red", [4]),  # where it stands last
        (["It", " is", " New", " York", "<|im_end|>"], " New York ", [2, 3]),
        (["It"], "", []),
        (["b", "red"], "red", []),
        (["red", " b", "red"], "red", [0]),
        (["12"], 12, [0]),
    ],
)
def test_tokens_that_say_the_right_answer(texts: list[str], target: Any, found: list[int]) -> None:
    assert saying(texts, target) == found
