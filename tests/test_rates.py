"""`method.lr=auto`: the published values, where they hold, and that what is trained with is in the record."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from harness import search, store
from harness.cell import Base, Cell
from harness.commands import show
from harness.cost import Estimator
from harness.errors import HarnessError
from harness.methods.dpo import Dpo
from harness.methods.grpo import Grpo
from harness.methods.midtrain import Midtrain
from harness.methods.sft import Sft
from harness.methods.sft_full import SftFull
from harness.plan import check, plan
from harness.rates import family, published
from harness.run import run
from harness.tuning import Lora

Make = Callable[..., Cell]
LONG, SHORT = 1000, 99


@pytest.mark.parametrize(
    ("name", "width", "steps", "lora", "lr"),
    [
        ("Llama-3.1-8B", 4096, LONG, True, 2.8564e-4),
        ("Llama-3.1-8B", 4096, LONG, False, 2.8564e-5),
        ("Llama-3.1-8B", 4096, SHORT, True, 4.2846e-4),
        ("Llama-3.1-8B", 4096, SHORT, False, 2.8564e-5),
        ("Llama-3.1-8B", 4096, 100, True, 2.8564e-4),
        ("Qwen3-8B", 4096, LONG, True, 4.7297e-4),
        ("Qwen3-8B-Base", 4096, LONG, False, 4.7297e-5),
        ("Llama-3.2-1B", 2048, LONG, True, 4.9082e-4),
    ],
)
def test_golden_values(name: str, width: int, steps: int, lora: bool, lr: float) -> None:
    """By hand from 5e-5 * M * (2000 / width) ^ p; for Llama-3.1-8B Tinker's own code gives 2.86e-4."""
    assert published(family([name]), width, steps, lora=lora) == pytest.approx(lr, rel=1e-4)


@pytest.mark.parametrize("names", [["SmolLM2-135M"], ["mistral-7b"], ["tiny", "OLMo-2"], ["llama-distilled-into-qwen"]])
def test_other_families_have_no_rule(names: list[str]) -> None:
    """SmolLM2 is built like a Llama, and nobody has fitted it."""
    with pytest.raises(HarnessError, match="published for Llama and Qwen models"):
        family(names)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Dpo(lr="auto"), "published for supervised fine-tuning only"),
        (Midtrain(lr="auto"), "published for supervised fine-tuning only"),
        (Grpo(lr="auto"), "published for supervised fine-tuning only"),
        (Sft(lr="auto", lora=Lora(alpha=16)), "alpha 32"),
        (Sft(lr="auto", lora=Lora(rslora=True)), "alpha 32"),
        (Sft(lr="auto", lora=Lora(target_modules=["q_proj"])), "all linear layers"),
        (Sft(lr="auto", lora=Lora(dora=True)), "as peft initialises it"),
    ],
)
def test_what_the_rule_is_not_for_is_refused(make_cell: Make, tiny_base: Base, method: Any, message: str) -> None:
    cell = make_cell(method, base=dataclasses.replace(tiny_base, name="tiny-llama"))
    with pytest.raises(HarnessError, match=message):
        search.check(cell)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": "best"}, "no number; use one, or auto or search"),
        ({"lr": "search", "held_out": 5}, "two rates or more"),
        ({"lr": "search", "search": search.Search(lrs=[1e-3, 1e-3]), "held_out": 5}, "two rates or more"),
        ({"lr": "search", "search": search.Search(lrs=[1e-3, 1e-2])}, "by the loss on examples held out"),
        ({"search": search.Search(lrs=[1e-3, 1e-2])}, "set method.lr=search"),
        ({"held_out": -1}, "number of examples"),
        ({"lr": "auto", "trunk": True, "decay": "wsd", "epochs": 1, "warmup": 2}, "one rate for all sizes"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        Sft(**settings).check()


@pytest.mark.parametrize(("method", "times"), [(Sft, 15), (SftFull, 1)])
def test_auto_is_in_the_identity_and_its_value_in_the_record(
    make_cell: Make, tiny_base: Base, method: Any, times: int
) -> None:
    cell = make_cell(method(lr="auto", epochs=1), base=dataclasses.replace(tiny_base, name="tiny-llama"))
    record = store.read_result(run(cell) / store.RECORD)
    lr = 5e-5 * times * (2000 / 64) ** 0.781
    assert record["training"]["lr"] == pytest.approx(lr)
    assert record["identity"]["method"]["lr"] == record["cell"]["method"]["lr"] == "auto"
    assert (record["row"]["lr"], record["row"]["lr_rule"]) == (record["training"]["lr"], "auto")
    by_hand = dataclasses.replace(cell, method=method(lr=lr, epochs=1))
    again, once = store.read_result(run(by_hand) / store.RECORD)["training"], record["training"]
    hashed = "model_sha256" if method is SftFull else "adapter_sha256"
    assert once[hashed] == again[hashed]
    assert again["lr_rule"] == "given"


def test_a_short_run_is_told_by_the_steps_it_will_have(make_cell: Make, tiny_base: Base) -> None:
    """Also where tokens are held fixed, and the number of steps follows from their lengths."""
    base = dataclasses.replace(tiny_base, name="tiny-llama")
    each = {"lr": "auto", "batch_size": 1}
    long = Sft(**each, hold="steps", budget=100)
    by_tokens = Sft(**each, hold="tokens", budget=100.0)
    lrs = [store.read_result(run(make_cell(m, base=base)) / store.RECORD)["training"]["lr"] for m in (long, by_tokens)]
    assert lrs[1] == pytest.approx(1.5 * lrs[0])


def test_plan_and_show_tell_what_auto_means(make_cell: Make, tiny_base: Base, capsys: Any) -> None:
    cell = make_cell(Sft(lr="auto"), base=dataclasses.replace(tiny_base, name="tiny-llama"))
    planned = plan([cell])
    check([cell])
    said = Estimator(planned).lr(cell)
    assert said == store.read_result(run(cell) / store.RECORD)["training"]["lr"]
    show.main([str(cell.folder())])
    assert f"## learning rate {said:.3g}, as published" in capsys.readouterr().out
