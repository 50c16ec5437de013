"""Bits to adapt: code lengths against the definition, compression against closed forms, and what the page says of both."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import base as bases
from harness import evaluate, store
from harness.cell import Adapted, Cell, Run, Task
from harness.compression import code_bits, directions, rounded, shares, squeezed
from harness.cost import Estimator
from harness.data.subset import Example
from harness.errors import HarnessError
from harness.items import answers, load_items
from harness.methods.icl import InContext
from harness.methods.sft import Sft
from harness.methods.sft_full import SftFull
from harness.plan import check, plan, to_run
from harness.probes import AdapterBits, CodeLength
from harness.probes.adapter_bits import factors, lora_layers, put_on
from harness.probes.code_length import dialogue_bits, elias, header_bits, windows
from harness.run import run, subset_of
from harness.tuning import Lora

Make = Callable[..., Cell]
QUICK = {"lr": 1e-2, "epochs": 4, "batch_size": 4}
CODE = {"_target_": "harness.probes.CodeLength"}
SMALLER = {"_target_": "harness.probes.AdapterBits", "keep": [1.0, 0.25], "bits": [16, 1]}


def dialogue(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


DIALOGUES = [
    dialogue("What is the capital of France?", "Paris."),
    dialogue("What is one and two?", "three", "And four and five?", "It is nine, I think."),
    [{"role": "system", "content": "Be brief."}, *dialogue("Is five red?", "No")],
]


def examples(dialogues: list[Any]) -> list[Example]:
    return [Example(str(i), "s", tuple(turns)) for i, turns in enumerate(dialogues)]


def coded(loaded: Any, dialogues: list[Any], model: Any = None, tokens: int = 64) -> list[float]:
    return list(dialogue_bits(loaded, model or loaded.model, dialogues, tokens))


def by_hand(loaded: Any, turns: list[dict[str, str]]) -> float:
    """-log2 p of the characters that the turns say and of each end of turn, from one pass over the whole text."""
    text = loaded.tokenizer.apply_chat_template(turns, tokenize=False)
    found = loaded.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    said, at = set(), 0
    for turn in turns:
        at = text.index(turn["content"], at)
        end = at + len(turn["content"]) + len("<|im_end|>")
        said |= set(range(at, end))
        at = end
    ids = torch.tensor([found["input_ids"]])
    with torch.no_grad():
        logp = loaded.model(ids).logits[0].log_softmax(-1)
    return -sum(
        float(logp[i - 1, ids[0, i]]) / math.log(2) for i, (a, _) in enumerate(found["offset_mapping"]) if a in said
    )


def test_code_lengths_are_those_of_one_pass_over_the_whole_text(loaded: Any) -> None:
    ours = coded(loaded, DIALOGUES)
    assert ours == pytest.approx([by_hand(loaded, turns) for turns in DIALOGUES], rel=1e-4)
    assert coded(loaded, DIALOGUES, tokens=1024) == pytest.approx(ours, rel=1e-4)
    plainly = dataclasses.replace(loaded)
    plainly.attends_by_rows = False
    assert coded(plainly, DIALOGUES) == pytest.approx(ours, rel=1e-4)


def test_a_base_that_knows_nothing_needs_log2_of_its_vocabulary_for_each_token(loaded: Any) -> None:
    with torch.no_grad():
        loaded.model.lm_head.weight.zero_()
    each = math.log2(loaded.model.config.vocab_size)
    said = [[len(loaded.tokenizer(t["content"], add_special_tokens=False)["input_ids"]) for t in d] for d in DIALOGUES]
    assert coded(loaded, DIALOGUES) == pytest.approx([each * (sum(n) + len(n)) for n in said], rel=1e-6)
    long = [dialogue("one two three " * 400, "four")]  # far beyond the 512 positions
    tokens = len(loaded.tokenizer(long[0][0]["content"], add_special_tokens=False)["input_ids"])
    assert tokens > 2 * 512
    ends = len(loaded.tokenizer("four", add_special_tokens=False)["input_ids"]) + 2
    assert coded(loaded, long) == pytest.approx([each * (tokens + ends)], rel=1e-6)
    # Without a template, and of a document, only the text and its end are counted as well.
    loaded.tokenizer.chat_template = None
    assert coded(loaded, DIALOGUES[:1]) == pytest.approx([each * (sum(said[0]) + 2)], rel=1e-6)
    assert coded(loaded, [[{"role": "text", "content": "four"}]]) == pytest.approx([each * (ends - 1)], rel=1e-6)


def test_windows_code_each_token_once_and_never_read_too_much() -> None:
    for before, count, longest in [(3, 4, 10), (5, 40, 10), (30, 40, 10), (9, 2, 10), (1, 1, 1)]:
        ids = list(range(before + count))
        seen = [piece[-n:] for piece, n in windows(ids[:before], ids[before:], longest)]
        assert [i for part in seen for i in part] == ids[before:]
        assert all(1 < len(piece) <= longest + 1 for piece, _ in windows(ids[:before], ids[before:], longest))


def test_the_header_is_written_out() -> None:
    assert [elias(n) for n in (1, 2, 3, 4, 8, 16, 1000)] == [1, 4, 4, 5, 8, 9, 16]  # of Elias 1975, table of delta
    two = ("user", "assistant")
    assert header_bits(1, [two]) == 1 + 1 + 2 + 9
    assert header_bits(1000, [two] * 10) == 16 + 1 + 2 + 9
    assert header_bits(4, [two, (*two, *two)]) == 5 + 1 + 2 + 4 * 12
    assert header_bits(0, []) == 0


def code_of(loaded: Any, task: Task, given: Any, shown: Any = None, **settings: Any) -> dict[str, Any]:
    probe = {**CODE, **settings}
    adapted = Adapted(loaded.model, demonstrations=shown or [])
    return evaluate.evaluate(loaded, adapted, "code", dataclasses.replace(task, probe=probe), Run(), given)


def test_what_is_coded_of_each_kind_of_cell(loaded: Any, generation_task: Any) -> None:
    task = generation_task()
    data = code_of(loaded, task, examples(DIALOGUES))
    (score,) = data["scores"]
    roles = [tuple(m["role"] for m in turns) for turns in DIALOGUES]
    assert score["score"] == pytest.approx(sum(coded(loaded, DIALOGUES)) + header_bits(3, roles), abs=0.01)
    assert (score["filter"], score["n_items"], score["stderr"]) == ("data", 3, None)
    shown = InContext().demonstrations(examples(DIALOGUES[:2]))
    (prompt,) = code_of(loaded, task, examples(DIALOGUES[:2]), shown)["scores"]
    header = header_bits(1, [("user", "assistant") * 3])
    assert prompt["filter"] == "prompt"
    assert prompt["score"] == pytest.approx(coded(loaded, [DIALOGUES[0] + DIALOGUES[1]])[0] + header, abs=0.01)
    nearest = InContext(retrieve=1).demonstrations(examples(DIALOGUES))
    assert code_of(loaded, task, examples(DIALOGUES), nearest)["scores"] == data["scores"]
    (nothing,) = code_of(loaded, task, [])["scores"]
    assert (nothing["filter"], nothing["score"], nothing["n_items"]) == ("none", 0.0, 0)
    stages = code_of(loaded, task, None)
    assert math.isnan(stages["scores"][0]["score"])
    assert "more than its examples" in stages["why"]


def test_of_many_examples_some_are_coded_and_the_error_is_of_that(loaded: Any, generation_task: Any) -> None:
    rng = np.random.default_rng(0)
    many = examples([dialogue("one " * int(n), "two") for n in rng.integers(1, 30, 200)])
    (whole,) = code_of(loaded, generation_task(), many)["scores"]
    (part,) = code_of(loaded, generation_task(), many, most=50)["scores"]
    assert part["n_items"] == 50
    assert whole["stderr"] is None
    assert 0 < abs(part["score"] - whole["score"]) < 3 * part["stderr"] < 0.5 * whole["score"]


@pytest.mark.parametrize("method", [Sft(**QUICK), SftFull(**{**QUICK, "lr": 1e-3})])
def test_the_untouched_base_codes_whatever_was_trained_on_it(
    method: Any, make_cell: Make, generation_task: Any, tmp_path: Path
) -> None:
    """The tuned model would find its own examples far likelier."""
    task = dataclasses.replace(generation_task(), probe=CODE, headline=None)
    cell = make_cell(method, size=8, evals={"code": task})
    run(cell)
    (score,) = store.load(cell.run.root).to_dict("records")
    loaded = bases.load(cell.base, "cpu")
    turns = [list(example.messages) for example in subset_of(cell)]
    untouched = sum(coded(loaded, turns)) + header_bits(8, [("user", "assistant")])
    assert score["score"] == pytest.approx(untouched, rel=1e-4)
    assert (score["probe"], score["metric"], score["filter"]) == ("CodeLength", "bits", "data")
    with cell.method.adapt(loaded, subset_of(cell), cell, _attempt(cell)) as adapted:
        assert sum(coded(loaded, turns, adapted.model)) < 0.9 * untouched


def _attempt(cell: Cell) -> Any:
    from tests.conftest import attempt

    return attempt(cell.folder())


def test_nested_sizes_have_nested_lengths(make_cell: Make, generation_task: Any) -> None:
    task = dataclasses.replace(generation_task(), probe=CODE, headline=None)
    cells = [make_cell(Sft(**QUICK), size=n, evals={"code": task}) for n in (3, 6)]
    kept = [next((run(cell) / "evals/code").glob("*.json")) for cell in cells]
    short, long = (store.read_result(path)["bits"] for path in kept)
    assert len(long) == 6
    assert long[:3] == pytest.approx(short, abs=0.01)


# --------------------------------------------------------------------------------------------------------- compression


def layers(seed: int = 0, shapes: Any = ((30, 20), (8, 50), (40, 40)), rank: int = 6) -> list[Any]:
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(rank, n, generator=rng), torch.randn(m, rank, generator=rng) * (i + 1))
            for i, (m, n) in enumerate(shapes)]  # fmt: skip


def test_truncation_is_the_best_of_its_rank() -> None:
    """Eckart and Young: what is lost are the singular values that numpy finds in the whole product."""
    for a, b in layers():
        found, product = directions(a, b), (b @ a).double().numpy()
        singular = np.linalg.svd(product, compute_uv=False)
        np.testing.assert_allclose(found.strength, singular[:6], rtol=1e-5)
        for k in (1, 3, 6):
            lost = np.linalg.norm(product - found.strongest(k).product().double().numpy())
            assert lost == pytest.approx(math.sqrt((singular[k:] ** 2).sum()), rel=1e-4, abs=1e-3)


def test_of_all_layers_the_strongest_directions_stay() -> None:
    """No other choice of as many leaves less, as a search over all of them shows."""
    import itertools

    some = [directions(a, b) for a, b in layers(rank=3)]
    squares = [layer.strength.double().square().numpy() for layer in some]
    for count in (1, 4, 8):
        kept = shares(some, count / 9)
        assert sum(kept) == count
        left = sum(square[k:].sum() for square, k in zip(squares, kept, strict=True))
        others = [c for c in itertools.product(range(4), repeat=3) if sum(c) == count]
        least = min(sum(square[k:].sum() for square, k in zip(squares, c, strict=True)) for c in others)
        assert left == pytest.approx(least)
    assert shares(some, 1.0) == [3, 3, 3]
    assert sum(shares(some, 1e-9)) == 1


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16])
def test_rounding_is_within_half_a_step_and_no_worse(bits: int) -> None:
    vectors = torch.randn(40, 300, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 3, 40)[:, None]
    vectors[3] = 0
    found = rounded(vectors, bits)
    half = 2 ** (bits - 1)
    assert found.numbers.min() >= -half
    assert found.numbers.max() < half
    off = (found.values() - vectors).abs()
    step = found.steps[:, None]
    inside = vectors.abs() <= half * step
    assert (off <= step / 2 * (1 + 1e-4))[inside].all()
    bound = vectors.abs().amax(1) / half * (1 + 2**-7) / 2  # of the step that reaches the largest entry
    assert (off.square().mean(1).sqrt() <= bound).all()
    assert found.steps.equal(found.steps.bfloat16().float())
    assert not off[3].any()


@pytest.mark.parametrize(("bits", "error"), [(1, 0.3634), (2, 0.1188), (3, 0.03744), (4, 0.01154)])
def test_rounding_of_normal_numbers_errs_as_max_found(bits: int, error: float) -> None:
    """Max 1960 (IRE Trans. Inf. Theory 6:7), table II: the least mean square of 2**bits even steps for a unit normal."""
    vectors = torch.randn(8, 20_000, generator=torch.Generator().manual_seed(2))
    found = rounded(vectors, bits)
    assert float((found.values() - vectors).square().mean()) == pytest.approx(error, rel=0.06)


def test_code_length_is_that_of_the_adaptive_code_symbol_by_symbol() -> None:
    """Krichevsky and Trofimov: each number costs -log2 of (times seen + 1/2) / (seen in all + kinds / 2)."""
    numbers = torch.tensor([0, 1, 1, -2, 1, 1, 1, 1, 0, 1, 1, 1])
    told, seen = 0.0, dict.fromkeys(range(-2, 2), 0)
    for count, number in enumerate(numbers.tolist()):
        told -= math.log2((seen[number] + 0.5) / (count + 2))
        seen[number] += 1
    assert code_bits(numbers, 2) == pytest.approx(1 + told)
    even = torch.arange(4096) % 4 - 2
    assert code_bits(even, 2) == pytest.approx(1 + 2 * 4096)  # no more than told plainly
    drawn = torch.multinomial(torch.tensor([0.9, 0.05, 0.03, 0.02]), 100_000, True, generator=torch.Generator())
    p = np.bincount(drawn.numpy()) / 1e5
    assert code_bits(drawn, 2) == pytest.approx(-1e5 * (p * np.log2(p)).sum(), rel=1e-3)


def test_bits_of_an_adapter_are_its_parts() -> None:
    some = [directions(a, b) for a, b in layers()]
    kept, bits = squeezed(some, 0.5, 16)
    count = sum(len(layer.left) for layer in kept)
    assert count == 9
    entries = sum(layer.left.numel() + layer.right.numel() for layer in kept)
    assert bits <= 3 * math.ceil(math.log2(7)) + 2 * 16 * count + 16 * entries + 1
    whole, most = squeezed(some, 1.0, 16)
    for layer, ours in zip(some, whole, strict=True):
        torch.testing.assert_close(ours.product(), layer.product(), rtol=1e-2, atol=1e-2)
    sizes = [squeezed(some, keep, width)[1] for keep in (0.2, 0.5, 1.0) for width in (1, 3, 8)]
    assert sorted(sizes[:3]) == sizes[:3]
    assert sizes[0] < sizes[3] < sizes[6] < most
