"""A plan says where an adapter may be too small for the data, once for each curve, and names the control."""

from collections.abc import Callable

import pytest

from harness.capacity import warnings
from harness.cell import Cell
from harness.cost import Estimator
from harness.methods.dpo import Dpo
from harness.methods.midtrain import Midtrain
from harness.methods.sft import Sft
from harness.methods.sft_full import SftFull
from harness.plan import plan
from harness.tuning import Lora

Make = Callable[..., Cell]
SMALL = Lora(rank=1, target_modules=["q_proj"])  # 2 layers of 64 + 64 weights, so 512 bits


def told(cells: list[Cell]) -> list[str]:
    return warnings(cells, Estimator(plan(cells), speed=1e12))


def test_one_line_a_curve_with_the_control_at_its_largest_size(make_cell: Make) -> None:
    method = Sft(lora=SMALL, epochs=50)  # however often: the data hold no more for it
    cells = [make_cell(method, size=size, seed=seed) for size in (8, 32) for seed in (0, 1)]
    (line,) = told([*cells, make_cell(Sft(), size=32)])
    estimator = Estimator(plan(cells), speed=1e12)
    tokens = 32 * estimator.example_tokens(cells[-1])
    assert f"32 examples hold up to {tokens:.1e} bits (1 a token, prompts counted), the adapter 5.1e+02" in line
    assert f"enough for {512 / (tokens / 32):,.0f} examples; control: method=sft_full size=32" in line
    (line,) = told([*cells, make_cell(SftFull(), size=32)])
    assert line.endswith("its control is among these cells")


@pytest.mark.parametrize("method", [Sft(lora=Lora(rank=64)), SftFull(), Dpo(lora=SMALL)])
def test_nothing_is_said_where_there_is_room_or_no_rule(make_cell: Make, method: Cell) -> None:
    """512 bits lie between what 8 and 32 examples of this text hold."""
    assert told([make_cell(method, size=32)]) == []
    assert told([make_cell(Sft(lora=SMALL), size=8)]) == []


def test_a_published_case() -> None:
    """Llama-3.1-8B: rank 256 on all layers is 0.7e9 weights, so a million examples of 500 tokens want rank 90 or so."""
    hidden, inner, kv = 4096, 14336, 1024
    layer = {
        "q_proj": (hidden, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, hidden),
        "gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner),
    }  # fmt: skip
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(32) for name, shape in layer.items()}
    a_rank = Lora(rank=1).parameters(shapes)
    assert 256 * a_rank == pytest.approx(0.7e9, rel=0.05)
    assert 500e6 / (2 * a_rank) == pytest.approx(90, rel=0.15)


def test_documents_name_their_own_control() -> None:
    assert Midtrain.all_weights == "method=midtrain method.lora=null"
