"""Bits to adapt: code lengths against their definition, compression against closed forms, and what the page says."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.bits import collect, in_bits, pareto, section
from analysis.section import Evidence
from harness import base as bases
from harness import evaluate, store
from harness.cell import Adapted, Cell, Run, Task
from harness.compression import code_bits, directions, rounded, shares, squeezed
from harness.cost import Estimator
from harness.data.subset import Example
from harness.engines.local import run_cells
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
from harness.sweep import sweep_cells
from harness.tuning import Lora
from tests.sweeps import Sweep

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


@pytest.mark.parametrize(
    "method", [Sft(**QUICK), Sft(**QUICK, lora=Lora(rank=4, init="pissa")), SftFull(**{**QUICK, "lr": 1e-3})]
)
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
    """Max 1960 (IRE Trans. Inf. Theory 6:7), table II: the least mean square of 2**bits even steps, of a normal."""
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


# ------------------------------------------------------------------------------------------------- adapters, compressed


def trained(make_cell: Make, task: Task, **lora: Any) -> Cell:
    smaller = dataclasses.replace(task, probe=SMALLER, headline=None)
    return make_cell(Sft(**QUICK, lora=Lora(rank=4, **lora)), size=8, evals={"mine": task, "smaller": smaller})


def by_item(cell: Cell, task: str, metric: str, filter_: str = "none") -> list[float]:
    (path,) = (cell.folder() / "evals" / task).glob("*.json")
    kept = answers(cell.run.root, *_place(cell), task, store.read_result(path)["fingerprint"])
    return [row[metric] for row in kept if row["filter"] == filter_]


def _place(cell: Cell) -> tuple[str]:
    return (cell.folder().relative_to(cell.run.root).as_posix(),)


def likelihoods(choice_task: Any) -> Task:
    """The log-likelihood of each answer, which tells every change of the weights."""
    metrics = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    spec = {"output_type": "loglikelihood", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"}
    return dataclasses.replace(choice_task(), task={**spec, "target_delimiter": " ", "metric_list": metrics})


def test_all_directions_in_sixteen_bits_score_as_the_adapter_and_one_bit_does_not(
    make_cell: Make, choice_task: Any
) -> None:
    cell = trained(make_cell, likelihoods(choice_task))
    run(cell)
    whole = np.array(by_item(cell, "mine", "perplexity"))
    names = ("keep1_bits16", "keep0.25_bits16", "keep1_bits1", "keep0.25_bits1")
    off = {name: np.abs(np.array(by_item(cell, "smaller", name)) / whole - 1).max() for name in names}
    assert off["keep1_bits16"] < 2e-3 < 0.02 < off["keep0.25_bits1"]
    (path,) = (cell.folder() / "evals/smaller").glob("*.json")
    kept = store.read_result(path)
    assert set(kept["bits"]) == set(kept["error"]) == set(names)
    assert kept["scored"] == "perplexity/none"
    assert kept["error"]["keep1_bits16"] < 1e-2 < min(kept["error"][name] for name in names[1:])
    weights = trained_weights(cell)
    assert 15 * weights < kept["bits"]["keep1_bits16"] < 18 * weights
    assert kept["bits"]["keep0.25_bits1"] < weights / 2
    items = load_items(cell.run.root, store.load(cell.run.root))
    assert items.scores[(*_place(cell), "smaller", "keep1_bits16", "none")].shape == (5,)


def trained_weights(cell: Cell) -> float:
    return float(store.load(cell.run.root)["adapter_bits"].iloc[0]) / 32


def test_the_adapter_is_put_back_bit_for_bit_and_so_is_the_base(make_cell: Make, generation_task: Any) -> None:
    task = generation_task()
    cell = trained(make_cell, task)
    run(dataclasses.replace(cell, evals={"mine": task}))
    loaded = bases.load(cell.base, "cpu")
    before = {name: w.clone() for name, w in loaded.model.state_dict().items()}
    with cell.method.adapt(loaded, subset_of(cell), cell, _attempt(cell)) as adapted:
        own = {name: (w.data_ptr(), w.clone()) for name, w in adapted.model.state_dict().items()}
        evaluate.evaluate(loaded, adapted, "smaller", cell.evals["smaller"], Run())
        for name, weight in adapted.model.state_dict().items():
            assert (weight.data_ptr(), weight.equal(own[name][1])) == (own[name][0], True)
        found, why = lora_layers(adapted.model)
        assert (len(found), why) == (2 * 7, "")
        parts = [directions(*factors(layer)) for layer in found]
        ids = torch.arange(40)[None]
        said = adapted.model(ids).logits
        with pytest.raises(ZeroDivisionError), put_on(found, squeezed(parts, 0.1, 1)[0]):
            1 / int(adapted.model(ids).logits.equal(said))  # they differ, and whatever ends the context
        assert adapted.model(ids).logits.equal(said)
        with put_on(found, parts):  # nothing left out and nothing rounded
            torch.testing.assert_close(adapted.model(ids).logits, said, rtol=1e-4, atol=1e-4)
        with loaded.untouched() as untouched, torch.no_grad():
            alone = untouched(ids).logits
    assert all(weight.equal(before[name]) for name, weight in loaded.model.state_dict().items())
    with loaded.untouched() as untouched, torch.no_grad():
        assert untouched(ids).logits.equal(alone)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("base", "no LoRA adapter"),
        ("icl", "no LoRA adapter"),
        (SftFull(**{**QUICK, "lr": 1e-3}), "no LoRA adapter"),
        (Sft(**QUICK, lora=Lora(rank=2, dora=True)), "DoRA"),
        (Sft(**QUICK, lora=Lora(rank=2, modules_to_save=["lm_head"])), "modules_to_save"),
    ],
)
def test_what_has_no_such_adapter_says_so_and_fails_nothing(
    method: Any, why: str, make_cell: Make, generation_task: Any
) -> None:
    smaller = dataclasses.replace(generation_task(), probe=SMALLER, headline=None)
    cell = make_cell(method, evals={"smaller": smaller})
    run(cell)
    (path,) = (cell.folder() / "evals/smaller").glob("*.json")
    assert why in store.read_result(path)["why"]
    assert store.load(cell.run.root)["score"].isna().all()


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ({**SMALLER, "keep": []}, "needs keep and bits"),
        ({**SMALLER, "keep": [0.5, 0.5]}, "none of them twice"),
        ({**SMALLER, "keep": [2.0]}, r"keep=\[2\.0\] must be shares"),
        ({**SMALLER, "bits": [0]}, r"bits=\[0\] must be from 1"),
        ({**CODE, "most": 1}, "most=1 must be at least 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_runs(
    probe: Any, said: str, make_cell: Make, generation_task: Any
) -> None:
    cell = make_cell(evals={"mine": dataclasses.replace(generation_task(), probe=probe, headline=None)})
    with pytest.raises(HarnessError, match=said):
        check(to_run(plan([cell]), retry_failed=False))


def test_a_metric_that_gives_no_number_for_an_item_is_refused(make_cell: Make, choice_task: Any) -> None:
    task = choice_task()
    task.task["metric_list"] = [{"metric": "brier_score"}]
    with pytest.raises(HarnessError, match="brier_score/none gives no number"):
        run(make_cell(evals={"mine": dataclasses.replace(task, probe=SMALLER)}))


def test_a_score_that_the_task_does_not_give_is_refused(make_cell: Make, generation_task: Any) -> None:
    probe = {**SMALLER, "score": "acc/none"}
    with pytest.raises(HarnessError, match=r"acc/none.*none of what the task gives: exact_match/strict"):
        run(make_cell(evals={"mine": dataclasses.replace(generation_task(), probe=probe, headline=None)}))


def test_the_plan_counts_every_grid_point_and_every_example_read(make_cell: Make, generation_task: Any) -> None:
    def flops(**probe: Any) -> float:
        task = dataclasses.replace(generation_task(), headline=None, **({"probe": probe} if probe else {}))
        planned = plan([make_cell(Sft(**QUICK), size=8, evals={"mine": task})])
        return Estimator(planned, speed=1e12).cost(planned[0]).eval_flops

    assert flops(**SMALLER) == pytest.approx(4 * flops())
    cell = make_cell(Sft(**{**QUICK, "epochs": 1}), size=8, evals={})
    planned = plan([cell])
    training = Estimator(planned, speed=1e12).cost(planned[0])
    assert flops(**CODE) == pytest.approx(training.train_flops / 2)  # 2N of each token, where LoRA's training takes 4N
    assert flops(**CODE, most=2) == pytest.approx(training.train_flops / 8)
    assert (AdapterBits().passes(), CodeLength().passes()) == (9, 0)


# ----------------------------------------------------------------------------------------------------------- the page


def evidence_of(root: Path) -> Evidence:
    frame = store.load(root)
    return Evidence(root, frame, load_items(root, frame))


def test_the_front_is_what_no_shorter_program_scores_as_well_as() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        bits, scores = rng.integers(1, 9, 12).astype(float), rng.integers(0, 6, 12).astype(float)
        found = pareto(bits, scores)
        beaten = [any((bits[j] <= bits[i]) & (scores[j] >= scores[i]) & (j != i)
                      & ((bits[j] < bits[i]) | (scores[j] > scores[i]) | (j in found)) for j in range(12))
                  for i in range(12)]  # fmt: skip
        assert {i for i in range(12) if not beaten[i]} == set(found)
        assert list(bits[found]) == sorted(set(bits[found]))


def planted(root: Path, programs: list[tuple[str, int, float, float]], start: float = 0.0, n: int = 400) -> Evidence:
    """Programs as (kind, size, score, bits), their lengths as `CodeLength` leaves them."""
    sweep = Sweep(root, n)
    sweep.cell(0, strict=np.arange(n) < start * n)
    for kind, size, score, bits in programs:
        sweep.cell(size, strict=np.arange(n) < score * n, method={"prompt": "icl", "data": "sft"}[kind])
        code = {
            "task": "t_code",
            "probe": "CodeLength",
            "metric": "bits",
            "filter": kind,
            "score": bits,
            "stderr": None,
        }
        sweep.rows.append({**sweep.rows[-2], **code, "headline": True, "higher_is_better": False})
    return Evidence(root, sweep.frame, sweep.items())


def test_planted_programs_are_read_as_they_are(tmp_path: Path) -> None:
    programs = [
        ("data", 10, 0.2, 1000.0), ("data", 20, 0.5, 2000.0), ("data", 40, 0.85, 4000.0), ("data", 80, 0.9, 8000.0),
        ("prompt", 4, 0.6, 900.0), ("prompt", 8, 0.55, 1900.0),
    ]  # fmt: skip
    evidence = planted(tmp_path, programs)
    (known,), why = collect(evidence)
    assert why == []
    assert known.gain.value == pytest.approx(0.9)
    assert [known.bits[i] for i in known.front] == [900.0, 4000.0, 8000.0]
    half, most = known.needed(0.5), known.needed(0.9)
    assert (half.value, half.low, half.high) == (900.0, 900.0, 900.0)
    assert (most.value, most.low, most.high) == (4000.0, 4000.0, 4000.0)
    assert known.needed(0.5, "data").value == 2000.0
    assert known.needed(0.9, "prompt").value == np.inf
    page = section(evidence)
    assert page.absent == ""
    assert "half of it takes 900 [900, 900] bits, nine tenths of it takes 4,000 [4,000, 4,000] bits" in page.lines[0]
    assert "icl, 4 examples of d" in page.lines[0]
    table = page.data["bits"]
    assert sorted(table["bits"]) == sorted(p[3] for p in programs)
    assert list(table.loc[table["front"], "bits"]) == [900.0, 4000.0, 8000.0]
    assert page.tables[0].rows[0][2:] == ("any program", "0.90 [0.87, 0.93]", "900 [900, 900]", "4,000 [4,000, 4,000]")


def test_the_interval_holds_what_the_items_leave_open(tmp_path: Path) -> None:
    """A program exactly at half is enough in half of the resamples; where it is not, the next one is taken."""
    (known,), _ = collect(
        planted(tmp_path, [("data", 1, 0.4, 100.0), ("data", 2, 0.7, 200.0), ("data", 3, 0.8, 300.0)])
    )
    half = known.needed(0.5)
    assert (half.value, half.low, half.high) == (100.0, 100.0, 200.0)
    enough = (known.draws[:, 0] - known.draws[:, -1] >= 0.5 * (known.draws[:, 2] - known.draws[:, -1]) - 1e-12).mean()
    assert 0.3 < enough < 0.7


def test_where_nothing_is_gained_nothing_is_told(tmp_path: Path) -> None:
    page = section(planted(tmp_path, [("data", 1, 0.5, 100.0), ("data", 2, 0.505, 200.0)], start=0.5))
    assert "cannot be told (the gain" in page.lines[0]
    assert page.tables[0].rows[0][-1].startswith("cannot be told")


def test_absent_says_how_to_have_it(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.curve({0: 0.2, 8: 0.5})
    page = section(Evidence(tmp_path, sweep.frame, sweep.items()))
    assert "harness eval RUNS evals=chain_sum_bits" in page.absent
    assert (page.lines, page.tables, page.pictures, page.data) == ((), (), (), {})


def test_numbers_of_bits_are_said_in_three_digits() -> None:
    said = {4358.2: "4,360", 12_345_678: "12.3 million", 5e10: "50 billion", 7.0: "7", np.inf: "none"}
    assert {bits: in_bits(bits) for bits in said} == said


def test_a_real_sweep_has_all_three_kinds_on_its_page(make_cell: Make, generation_task: Any) -> None:
    """Prompt, data and adapter, each with the score of the items that the plain task asked."""
    from harness.commands.common import draw

    task = generation_task()
    evals = {
        "mine": task,
        "code": dataclasses.replace(task, probe=CODE, headline=None),
        "smaller": dataclasses.replace(task, probe={**SMALLER, "score": "exact_match/strict"}, headline=None),
        "other": dataclasses.replace(
            task, probe={**SMALLER, "bits": [16], "keep": [1.0]}, headline=None, limit=3
        ),  # of which there is no plain score
    }
    cells = [make_cell("base", evals=evals), make_cell("icl", size=2, evals=evals)]
    cells += [make_cell(Sft(**QUICK, lora=Lora(rank=4)), size=4, seed=seed, evals=evals) for seed in (0, 1)]
    for cell in cells:
        run(cell)
    root = Path(cells[0].run.root, cells[0].sweep)
    (known,), why = collect(evidence_of(root))
    assert why == []
    frame = store.load(root)
    told = {(p.kind, p.about["compression"]): p for p in known.programs}
    assert set(told) == {("prompt", ""), ("data", ""), *(("adapter", f"keep{k}_bits{b}") for k in ("1", "0.25")
                                                        for b in (16, 1))}  # fmt: skip
    code = frame[(frame["task"] == "code") & (frame["method"] == "sft")]["score"]
    assert told["data", ""].bits == pytest.approx(code.mean())
    assert told["data", ""].point.items.shape == (2, 5)  # type: ignore[union-attr]
    small = frame[(frame["task"] == "smaller") & (frame["metric"] == "keep1_bits1")]["score"]
    assert told["adapter", "keep1_bits1"].point.score == pytest.approx(small.mean())
    draw(root)
    assert (root / "report.html").read_text().count("How few bits bring it out?") == 1
    assert {path.name for path in root.glob("bits*")} >= {"bits.csv", "bits.png", "bits_needed.csv"}


@pytest.mark.full
def test_what_the_base_was_told_takes_fewer_bits_than_what_it_was_not(tmp_path: Path) -> None:
    """One seed of `sweeps/pocket_bits.yaml`: half of the gain, by examples alone, by adapters alone and by anything."""
    given = [f"run.root={tmp_path}", "wandb.mode=disabled", "run.workers=1", "seed=0", "arms.rule.size=128,512,2048"]
    _, cells = sweep_cells("pocket_bits", [*given, "arms.facts.size=4,16,64"])
    assert [outcome.error for outcome in run_cells(cells, workers=1, threads=1)] == [""] * len(cells)
    known, why = collect(evidence_of(tmp_path / "pocket_bits"))
    assert why == []
    facts, rule = (next(one for one in known if one.task == f"pocket_{task}") for task in ("facts", "rule"))
    assert facts.gain.low > 0.5 < rule.gain.low
    for kind in ("", "data", "adapter"):
        assert facts.needed(0.5, kind).high < rule.needed(0.5, kind).low
    assert facts.needed(0.5, "data").high * 5 < rule.needed(0.5, "data").low
    assert np.isinf(facts.needed(0.5, "prompt").value)  # these bases never learned to read demonstrations
