"""What a plan says a cell will take, against what it then took."""

import dataclasses
import math

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from harness import weights
from harness.cell import Base, Form, Turn
from harness.compose import compose_cell
from harness.cost import Estimator, total
from harness.history import Rates
from harness.methods.base import BaseModel
from harness.methods.dpo import Dpo
from harness.methods.sft import Sft
from harness.plan import DONE, MISSING, PARTLY, plan
from harness.pocket.artifacts import BASES
from harness.pocket.corpus import documents
from harness.pocket.pretrain import pretrain
from harness.pocket.tokenizer import build_tokenizer, vocabulary
from harness.run import run
from harness.shapes import linear, parameters
from harness.store import ADAPTER, RECORD, read_json
from harness.tuning import Lora

BRIEF = {"lr": 1e-3, "epochs": 2, "batch_size": 3}


def test_shapes_come_from_the_headers(tiny_base, tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert weights.shapes(tiny_base) == {name: tuple(w.shape) for name, w in model.state_dict().items()}
    assert parameters(weights.shapes(tiny_base)) == model.num_parameters()


def test_a_pocket_base_tells_its_shapes_before_it_is_made(tmp_path):
    pretrain(dataclasses.replace(BASES["s"], steps=1), build_tokenizer(vocabulary()), documents(0), tmp_path)
    told = weights.shapes(compose_cell(["base=pocket_s"]).base)
    assert told == weights.shapes(Base(name="made", path=str(tmp_path)))


def test_a_gguf_file_tells_its_shapes():
    """SmolLM2-135M, whose head is its embedding; 134,515,008 by its model card's own count."""
    shapes = weights.shapes(compose_cell(["base=smollm2_135m_instruct"]).base)
    assert parameters(shapes) == 134_515_008
    assert len(linear(shapes)) == 30 * 7


@pytest.mark.parametrize("lora", [Lora(rank=4), Lora(rank=2, target_modules=["q_proj", "down_proj"])])
def test_what_a_plan_counts_is_what_the_record_counts(make_cell, choice_task, lora):
    """Tokens, trained weights and bytes on disk are no estimates where all examples fit the sample."""
    cell = make_cell(Sft(lora=lora, **BRIEF), size=7, evals={"quiz": choice_task()})
    (planned,) = plan([cell])
    said = Estimator([planned]).cost(planned)
    folder = run(cell)
    training = read_json(folder / RECORD)["training"]
    assert (said.examples, said.tokens) == (7, training["tokens"])
    assert said.train_flops == 4 * parameters(weights.shapes(cell.base)) * training["tokens"]
    with safe_open(folder / ADAPTER, "numpy") as file:
        stored = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    assert said.disk_bytes == 4 * stored == 4 * training["trained_parameters"]
    (planned,) = plan([cell])
    assert planned.state == DONE
    took = Estimator([planned]).cost(planned)
    assert (took.tokens, took.train_flops, took.eval_flops) == (said.tokens, said.train_flops, said.eval_flops)


def test_a_plan_counts_both_answers_of_a_pair(make_cell, make_data):
    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}. " * (i % 3 + 1), "rejected": "No."} for i in range(8)]
    form = Form(turns=[Turn("user", "{{prompt}}"), Turn("chosen", "{{chosen}}"), Turn("rejected", "{{rejected}}")])
    cell = make_cell(Dpo(**BRIEF), data=make_data(rows, form=form), size=7)
    (planned,) = plan([cell])
    said = Estimator([planned]).cost(planned)
    training = read_json(run(cell) / RECORD)["training"]
    assert (said.tokens, said.train_flops) == (training["tokens"], training["flops"])


def test_times_come_from_finished_cells(make_cell):
    cells = [make_cell(Sft(**BRIEF), size=size) for size in (4, 8, 16, 32)]
    for cell in cells[:3]:
        run(cell)
    planned = plan(cells)
    estimator = Estimator(planned)
    assert estimator.basis() == "times and memory from 3 finished cells on cpu"
    guess = estimator.cost(planned[-1])
    run(cells[-1])
    record = read_json(cells[-1].folder() / RECORD)
    assert guess.tokens == pytest.approx(record["training"]["tokens"], rel=0.1)
    assert guess.seconds == pytest.approx(record["wall_seconds"], rel=1)  # a guard: a busy machine is no clock
    assert guess.memory_bytes == pytest.approx(record["peak_memory_bytes"], rel=0.5)


def test_memory_foretold_grows_with_the_longest_example(make_cell, make_data):
    """Also where another cell of the base was measured; its own kind's measure then stands."""
    short = [{"prompt": f"What is {i}?", "completion": "two"} for i in range(8)]
    long = [{"prompt": f"What is {i}?", "completion": "two " * 4000} for i in range(8)]
    form = Form(turns=[Turn("user", "{{prompt}}"), Turn("assistant", "{{completion}}")])
    cells = [
        make_cell(Sft(**BRIEF, max_length=8000), data=make_data(rows, form=form, name=name), size=7)
        for name, rows in (("short", short), ("long", long))
    ]
    few, many = (Estimator(plan(cells), 1e12).cost(p).memory_bytes for p in plan(cells))
    assert many > few + 8 * 3000 * 100, "logits alone"
    run(cells[0])
    measured = read_json(cells[0].folder() / RECORD)["peak_memory_bytes"]
    done, left = plan(cells)
    said = Estimator([done, left], 1e12).cost(left).memory_bytes
    assert said >= measured
    run(cells[1])
    (_, again) = plan(cells)
    assert Estimator(plan(cells), 1e12).cost(again).memory_bytes == pytest.approx(
        read_json(cells[1].folder() / RECORD)["peak_memory_bytes"]
    )


def test_rates_recover_what_made_them():
    """0.01 s a step and 1e-12 s a FLOP, seen at small sizes, foretell a large one; what nobody saw goes by its like."""
    rates = Rates()
    for steps, flops in ((3, 1e9), (10, 4e10), (50, 1e12), (90, 9e12)):
        rates.add(("m", "sft", "facts"), steps, flops, 0.01 * steps + 1e-12 * flops)
    rates.add(("other", "sft", "facts"), 1, 1e9, 50.0)
    assert rates.seconds(("m", "sft", "facts"), 9000, 1e15) == pytest.approx(90 + 1000, rel=1e-6)
    assert rates.seconds(("m", "sft", "rule"), 9000, 1e15) == pytest.approx(90 + 1000, rel=1e-6)
    assert rates.seconds(("unseen", "sft", "facts"), 3, 1e9) is not None
    assert Rates().seconds(("m",), 1, 1) is None


def test_of_a_cell_trained_already_only_the_scoring_is_left(make_cell, choice_task):
    cell = make_cell(Sft(**BRIEF), evals={"quiz": choice_task()})
    folder = run(cell)
    (folder / RECORD).unlink()
    (planned,) = plan([cell])
    left = Estimator([planned], speed=1e12).cost(planned)
    assert planned.state == PARTLY
    assert (left.tokens, left.train_flops, left.eval_flops) == (0, 0, 0)  # scored, too: only the record is missing
    next(folder.glob("evals/quiz/*.json")).unlink()
    (planned,) = plan([cell])
    assert Estimator([planned], speed=1e12).cost(planned).eval_flops > 0


def test_the_rule_where_nothing_was_measured(make_cell, choice_task):
    cells = [make_cell(BaseModel(), evals={"quiz": choice_task()}), make_cell(Sft(**BRIEF), size=16)]
    planned = plan(cells)
    slow, fast = (Estimator(planned, speed=speed) for speed in (1e6, 1e12))
    base, tuned = (slow.cost(p) for p in planned)
    assert [p.state for p in planned] == [MISSING, MISSING]
    assert base.eval_flops > 0
    assert base.train_flops == 0
    assert tuned.seconds == pytest.approx(1.0 + 12 * 0.02 + tuned.train_flops / 0.4e6)
    assert total([base, tuned]).seconds > total(fast.cost(p) for p in planned).seconds
    assert "TFLOP/s" in fast.basis()


def test_weights_that_nothing_tells_of_are_unknown_not_zero(make_cell, tiny_folder, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save(AutoModelForCausalLM.from_pretrained(tiny_folder).state_dict(), folder / "pytorch_model.bin")
    (planned,) = plan([make_cell(Sft(**BRIEF), base=Base(name="pickled", path=str(folder), dtype="float32"))])
    cost = Estimator([planned], speed=1e12).cost(planned)
    assert math.isnan(cost.train_flops)
    assert math.isnan(cost.seconds)
    assert cost.tokens > 0
