"""DPO: TRL's loss and gradients, the tokens of evaluation, the policy that entered as reference, and exact resume."""

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import store
from harness.base import LoadedBase
from harness.cell import Cell, Data, Form, Source, Turn
from harness.data.chat import Tokens, tokenize
from harness.data.pairs import Pair, token_pairs, with_answer
from harness.data.subset import load_dataset
from harness.errors import HarnessError
from harness.lowrank import attach
from harness.methods.dpo import Dpo
from harness.objective import Preference
from harness.plan import check, plan, to_run
from harness.run import run
from harness.show import show_cell
from harness.train import _gradient
from harness.tuning import Lora
from tests.children import in_child
from tests.conftest import write_jsonl
from tests.test_checkpoint import elsewhere, outcome, run_and_die_at
from tests.test_methods import everything

WORDS = ["red", "green", "blue", "one", "two", "three"]
PAIR = Form(
    turns=[
        Turn("system", "{{ system }}"),
        Turn("user", "{{ prompt }}"),
        Turn("chosen", "{{ chosen }}"),
        Turn("rejected", "{{ rejected }}"),
    ]
)
Make = Callable[..., Cell]


def rows(count: int) -> list[dict[str, str]]:
    """Pairs of unlike lengths, some with a system turn."""
    return [
        {
            "system": "Be brief." if i % 3 == 0 else "",
            "prompt": f"What is {WORDS[i % 6]} {i}?",
            "chosen": f"{WORDS[i % 5]} is {i}. " * (1 + i % 4),
            "rejected": f"No, {WORDS[(i + 1) % 6]}. " * (1 + i % 3),
        }
        for i in range(count)
    ]


@pytest.fixture
def pairs(tmp_path: Path) -> Data:
    file = write_jsonl(tmp_path / "preferences.jsonl", rows(12))
    return Data(name="preferences", sources={"preferences": Source(path=str(file), form=PAIR)})


def tokens(loaded: LoadedBase, pairs: Data, count: int = 6) -> list[Pair]:
    return list(token_pairs(loaded.tokenizer, load_dataset(pairs).subset(count, 0), 1000))


def adapted(loaded: LoadedBase, **lora: Any) -> Any:
    """The base with an adapter that already does something, so that neither rewards nor their gradients are 0."""
    torch.manual_seed(3)
    model = attach(loaded.model, Lora(rank=4, **lora).to_peft())
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model.train()


def ours(model: Any, batch: list[Pair], loss: str, budget: int = 10_000, longest: float = math.inf) -> Any:
    """What the objective gives over a batch, by name, and the gradients."""
    objective = Preference(0.3, loss)
    values, _ = _gradient(model, batch, objective, budget, longest, half=False)
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(objective.names, values.tolist(), strict=True)), grads


def theirs(loaded: LoadedBase, model: Any, batch: list[Pair], loss: str, folder: Path) -> Any:
    """The same by TRL's DPOTrainer, of the same model and tokens."""
    trl = pytest.importorskip("trl", reason="TRL comes with the extra `rl`")
    from datasets import Dataset

    config = trl.DPOConfig(
        output_dir=str(folder),
        beta=0.3,
        loss_type=loss,
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
        max_length=None,
        disable_dropout=False,
    )
    text = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
    # Else it would copy this adapter, which has learned already, and take the copy for the reference.
    reference = type(loaded.model).from_pretrained(loaded.config.path)
    trainer = trl.DPOTrainer(
        model, ref_model=reference, args=config, train_dataset=text, processing_class=loaded.tokenizer
    )
    each = []
    for pair in batch:
        start = pair.chosen.learned.index(True)
        assert pair.rejected.learned.index(True) == start
        each.append(
            {
                "prompt_ids": pair.chosen.ids[:start],
                "chosen_ids": pair.chosen.ids[start:],
                "rejected_ids": pair.rejected.ids[start:],
            }
        )
    model.zero_grad(set_to_none=True)
    value = trainer.compute_loss(model, trainer.data_collator(each))
    value.backward()
    said = {name: sum(v) / len(v) for name, v in trainer._metrics["train"].items()}
    named = {
        "loss": value.item(),
        "accuracy": said["rewards/accuracies"],
        "margin": said["rewards/margins"],
        "chosen_reward": said["rewards/chosen"],
        "rejected_reward": said["rewards/rejected"],
    }
    return named, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def close(gradient: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Within float32's rounding of sums in another order."""
    return torch.allclose(gradient, wanted, atol=1e-5 * wanted.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "ipo"])
def test_loss_rewards_and_gradients_are_those_of_trl(
    loaded: LoadedBase, pairs: Data, loss: str, tmp_path: Path
) -> None:
    batch, model = tokens(loaded, pairs), adapted(loaded)
    values, grads = ours(model, batch, loss)
    expected, wanted = theirs(loaded, model, batch, loss, tmp_path)
    assert abs(values["margin"]) > 1e-3
    assert values == pytest.approx(expected, abs=1e-5, rel=1e-4)
    assert grads.keys() == wanted.keys()
    for name, gradient in grads.items():
        assert close(gradient, wanted[name]), name


@pytest.mark.parametrize(("budget", "longest"), [(60, math.inf), (0, math.inf), (0, 0), (10_000, 20)])
def test_however_a_batch_is_cut_into_passes_it_gives_the_same(
    loaded: LoadedBase, pairs: Data, budget: int, longest: float
) -> None:
    """In small passes, pair by pair, and answer by answer where a model's attention cannot be laid out in rows."""
    batch, model = tokens(loaded, pairs), adapted(loaded)
    values, grads = ours(model, batch, "sigmoid")
    again, others = ours(model, batch, "sigmoid", budget, longest)
    assert again == pytest.approx(values, abs=1e-5)
    for name, gradient in grads.items():
        assert close(gradient, others[name]), name


def test_golden_tokens_are_those_of_a_dialogue_with_that_answer(loaded: LoadedBase, pairs: Data) -> None:
    """The prompt as evaluation asks it, BOS at most once, the answer learned up to and with its end of turn."""
    examples = load_dataset(pairs).subset(12, 0)
    for given in (examples, list(examples)):
        for example, pair in zip(examples, token_pairs(loaded.tokenizer, given, 1000), strict=True):
            *prompt, chosen, rejected = example.messages
            for answer, sequence in ((chosen, pair.chosen), (rejected, pair.rejected)):
                dialogue = [*prompt, {"role": "assistant", "content": answer["content"]}]
                assert sequence == tokenize(loaded.tokenizer, dialogue, 1000)
                asked = loaded.tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
                assert sequence.ids[: len(asked)] == asked
                assert not any(sequence.learned[: len(asked)])
                said = [t for t, learned in zip(sequence.ids, sequence.learned, strict=True) if learned]
                assert loaded.tokenizer.decode(said) == answer["content"] + "<|im_end|>"
    assert with_answer(examples, "chosen")[0].messages[-1]["role"] == "assistant"


def test_the_policy_that_entered_is_the_reference(make_cell: Make, pairs: Data, loaded: LoadedBase) -> None:
    """At step 0 no answer is more likely than under the reference; later the chosen ones are."""
    cell = make_cell(Dpo(lr=5e-3, epochs=20, batch_size=4), data=pairs, size=8)
    shape, weights = everything(loaded.model), {n: w.clone() for n, w in loaded.model.state_dict().items()}
    folder = run(cell)
    told = [store.json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    first, last = told[0], told[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for name in ("margin", "chosen_reward", "rejected_reward"):
        assert first[name] == pytest.approx(0, abs=1e-6)
    assert last["accuracy"] == 1.0
    assert last["margin"] > 1
    record = store.read_json(folder / store.RECORD)["training"]
    assert record["steps"] == 40
    sequences = [s for pair in tokens(loaded, pairs, 8) for s in pair.parts]
    assert record["tokens"] == 20 * sum(len(s.ids) for s in sequences)
    assert record["target_tokens"] == 20 * sum(sum(s.learned) for s in sequences)
    assert record["flops"] == 6 * loaded.model.num_parameters() * record["tokens"]
    assert everything(loaded.model) == shape
    assert all(torch.equal(w, weights[n]) for n, w in loaded.model.state_dict().items())


def test_killed_it_ends_with_the_same_bits(make_cell: Make, pairs: Data, tmp_path: Path) -> None:
    cell = make_cell(Dpo(lr=0.01, epochs=2, batch_size=3, lora=Lora(rank=4, dropout=0.2)), data=pairs, size=8)
    cell.run.checkpoint_seconds = 0.0
    assert in_child(run_and_die_at, cell, 3, signal.SIGKILL) == -signal.SIGKILL
    assert outcome(run(cell)) == outcome(run(elsewhere(cell, tmp_path / "undisturbed")))
    assert store.read_json(cell.folder() / store.RECORD)["training"]["resumed"] == [3]


def test_a_cut_answer_is_counted_and_one_cut_away_refused(make_cell: Make, pairs: Data, loaded: LoadedBase) -> None:
    lengths = sorted(max(len(s.ids) for s in pair.parts) for pair in tokens(loaded, pairs, 12))
    cell = make_cell(Dpo(max_length=lengths[6]), data=pairs, size=12)
    record = store.read_json(run(cell) / store.RECORD)["training"]
    assert record["truncated_examples"] == sum(n > lengths[6] for n in lengths) > 0
    with pytest.raises(HarnessError, match=r"raise method\.max_length"):
        run(make_cell(Dpo(max_length=8), data=pairs, size=12))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Dpo(loss="hinge"), "method.loss='hinge' is unknown"),
        (Dpo(beta=0), "must be above 0"),
        (Dpo(lora=Lora(init="pissa")), "is the reference here"),
    ],
)
def test_what_does_not_go_together_is_refused(make_cell: Make, pairs: Data, method: Dpo, message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        check(to_run(plan([make_cell(method, data=pairs)]), retry_failed=False))


def test_dialogues_are_no_pairs_and_pairs_no_dialogues(make_cell: Make, pairs: Data) -> None:
    for method, data, needs in [("dpo", {}, "pair"), ("sft", {"data": pairs}, "dialogue")]:
        with pytest.raises(HarnessError, match=f"method={method} needs {needs} examples"):
            check(to_run(plan([make_cell(method, **data)]), retry_failed=False))


def test_show_prints_both_answers(make_cell: Make, pairs: Data, capsys: pytest.CaptureFixture[str]) -> None:
    show_cell(make_cell("dpo", data=pairs), examples=1)
    said = capsys.readouterr().out
    assert "## chosen answer" in said
    assert "## rejected answer" in said


def test_a_pass_that_only_fills_up_adds_nothing(loaded: LoadedBase) -> None:
    """Of several processes, one may have nothing to learn from; sharded ones must make as many passes all the same."""
    nothing = Tokens([5], [False])
    values, grads = ours(adapted(loaded), [Pair(nothing, nothing)], "sigmoid")
    assert set(values.values()) == {0.0}
    assert not any(gradient.any() for gradient in grads.values())
