"""GRPO: what is asked, what is rewarded, that the base comes back as it was, and exact resume."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("trl", reason="TRL comes with the extra `rl`")

from harness import preempt, store
from harness.base import LoadedBase
from harness.cell import Cell, Data, Form, Turn
from harness.compose import compose_cell
from harness.cost import Estimator
from harness.data.chat import render
from harness.errors import DivergedError, HarnessError
from harness.methods.dpo import Dpo
from harness.methods.grpo import Grpo
from harness.plan import check, plan, to_run
from harness.preempt import PreemptedError
from harness.rewards import Reward
from harness.rl import _asked
from harness.run import run
from harness.show import show_cell
from harness.tuning import Lora
from tests.children import in_child
from tests.conftest import make_tokenizer
from tests.test_chat_tokens import needs_smollm2
from tests.test_checkpoint import elsewhere, outcome, run_and_die_at
from tests.test_methods import everything, logits

Make = Callable[..., Cell]


@dataclass
class Letters(Reward):
    """The share of the characters that are in the set: something that any sampling of a random model varies in."""

    which: str = "aeiou"

    def __call__(self, completion: str, reference: str) -> float:
        heard.append((completion, reference))
        return sum(c in self.which for c in completion) / max(1, len(completion))


@dataclass
class TooMuch(Reward):
    def __call__(self, completion: str, reference: str) -> float:
        return 2.0


heard: list[tuple[str, str]] = []  # by rewards in this process
LETTERS = {"_target_": "tests.test_grpo.Letters"}
EXACT = {"_target_": "harness.rewards.ExactMatch"}


def quick(**changes: Any) -> Grpo:
    """Four steps over two permutations of eight prompts, with all that has a state of its own."""
    settings: dict[str, Any] = {
        "lr": 0.01,
        "epochs": 2,
        "batch_size": 4,
        "generations": 4,
        "max_completion_length": 6,
        "warmup": 0.3,
        "rewards": {"letters": LETTERS, "exact": {**EXACT, "weight": 0.5}},
        "lora": Lora(rank=4, dropout=0.1),
    }
    return Grpo(**settings | changes)


@pytest.fixture
def cell(make_cell: Make) -> Cell:
    made = make_cell(quick(), size=8)
    made.run.checkpoint_seconds = 0.0
    return made


def training(folder: Path) -> dict[str, Any]:
    return store.read_json(folder / store.RECORD)["training"]


def steps_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def whole(loaded: LoadedBase) -> Any:
    """All that could be left behind, here in the configurations and the environment too."""
    configs = loaded.model.config.to_dict(), loaded.model.generation_config.to_dict()
    return everything(loaded.model), configs, dict(os.environ), loaded.tokenizer.init_kwargs


@pytest.mark.parametrize(
    "method",
    [quick(), quick(beta=0.1, loss="grpo"), quick(lora=Lora(dora=True)), quick(lora=Lora(init="pissa"))],
    ids=["plain", "reference", "dora", "pissa"],
)
def test_the_base_comes_back_bit_for_bit_and_the_adapter_gives_the_same_logits(
    make_cell: Make, loaded: LoadedBase, tmp_path: Path, method: Grpo
) -> None:
    """TRL patches the model's forward, its configurations and the environment, and would add a second adapter."""
    from tests.test_methods import adapt

    weights = {name: w.clone() for name, w in loaded.model.state_dict().items()}
    before, said = whole(loaded), logits(loaded.model)
    cell, seen = make_cell(method, size=8), []
    for _ in range(2):  # trained, then loaded from the folder
        with adapt(loaded, cell, tmp_path / "cell") as adapted:
            seen.append(logits(adapted.model))
            assert list(adapted.model.peft_config) == ["default"]
        assert whole(loaded) == before
        assert all(torch.equal(w, weights[name]) for name, w in loaded.model.state_dict().items())
        assert not any(p.requires_grad or p.grad is not None for p in loaded.model.parameters())
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], said)
    assert torch.equal(logits(loaded.model), said)


def test_the_base_comes_back_when_training_fails(make_cell: Make, loaded: LoadedBase) -> None:
    before, said = whole(loaded), logits(loaded.model)
    for method, message in [
        (quick(rewards={"much": {"_target_": "tests.test_grpo.TooMuch"}}), "it must be from 0 to 1"),
        (quick(max_completion_length=1000), "do not fit into the base's context of 512"),
    ]:
        with pytest.raises(HarnessError, match=message):
            run(make_cell(method, size=8))
        assert whole(loaded) == before
        assert torch.equal(logits(loaded.model), said)


def test_killed_it_ends_with_the_same_bits(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By SIGKILL in its third step, then told to stop as SIGTERM does."""
    undisturbed = outcome(run(elsewhere(cell, tmp_path / "undisturbed")))
    assert in_child(run_and_die_at, cell, 2, signal.SIGKILL) == -signal.SIGKILL
    monkeypatch.setattr(preempt._now, "asked", True)
    with pytest.raises(PreemptedError, match="told to stop after step 2"):
        run(cell)
    monkeypatch.undo()
    folder = run(cell)
    assert training(folder)["resumed"] == [2, 3]
    assert outcome(folder) == undisturbed


def test_a_cell_does_not_depend_on_what_ran_before_it_but_on_its_seed(make_cell: Make, tmp_path: Path) -> None:
    data = make_cell().data

    def sha(place: str, **fields: Any) -> str:
        cell = make_cell(fields.pop("method", quick()), size=8, data=data, **fields)
        return str(training(run(elsewhere(cell, tmp_path / place)))["adapter_sha256"])

    alone = sha("alone")
    other = sha("other", seed=1, method=quick(beta=0.1))
    assert sha("after") == alone != other


def test_rewards_compare_what_was_said_with_the_reference_of_its_prompt(make_cell: Make, loaded: LoadedBase) -> None:
    heard.clear()
    cell = make_cell(quick(rewards={"letters": LETTERS, "also": {**LETTERS, "which": "xyz", "weight": 0.5}}), size=8)
    folder = run(cell)
    rows = {f"It is {2 * i}." for i in range(32)}
    assert len(heard) == 2 * 4 * 16
    assert {reference for _, reference in heard} <= rows
    assert len({reference for _, reference in heard}) == 8
    for start in range(0, len(heard), 4):  # of a group, all answers are to one prompt
        assert len({reference for _, reference in heard[start : start + 4]}) == 1
    assert not any("<|im_end|>" in said for said, _ in heard)
    told = steps_of(folder)
    assert len(told) == 4
    for number, step in enumerate(told):
        one, two = heard[32 * number : 32 * number + 16], heard[32 * number + 16 : 32 * number + 32]
        assert one == two
        letters = [sum(c in "aeiou" for c in said) / max(1, len(said)) for said, _ in one]
        also = [sum(c in "xyz" for c in said) / max(1, len(said)) for said, _ in one]
        assert step["reward_letters"] == pytest.approx(sum(letters) / 16, abs=1e-6)
        assert step["reward_also"] == pytest.approx(sum(also) / 16, abs=1e-6)
        assert step["reward"] == pytest.approx(step["reward_letters"] + 0.5 * step["reward_also"], abs=1e-6)
    record = training(folder)
    said_tokens = sum(16 * step["completion_length"] for step in told)
    assert record["target_tokens"] == pytest.approx(said_tokens)
    assert record["flops"] == 6 * loaded.model.num_parameters() * record["tokens"]
    assert (record["steps"], record["epochs"], record["prompts_a_step"]) == (4, 2.0, 4)


def test_the_reference_is_the_base_with_its_adapter_off(make_cell: Make) -> None:
    """TRL would have copied the adapter, and our layers would have computed the policy in the copy's place: KL 0."""
    told = steps_of(run(make_cell(quick(beta=0.05, epochs=4, lora=Lora(rank=4)), size=8)))
    assert told[0]["kl"] == pytest.approx(0, abs=1e-7)
    assert told[-1]["kl"] > 1e-4


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo"])
def test_a_step_is_the_same_however_it_is_cut_into_passes(make_cell: Make, tmp_path: Path, loss: str) -> None:
    """TRL divides some losses by what happens to be in a pass; these it does not."""
    data, norms = make_cell().data, []
    for budget in (40, 10_000):
        cell = make_cell(quick(loss=loss, epochs=1, batch_size=8, lora=Lora(rank=4)), size=8, data=data)
        cell.run.tokens_per_pass = budget
        norms.append(steps_of(run(elsewhere(cell, tmp_path / str(budget))))[0])
    assert norms[0]["grad_norm"] > 0
    assert norms[0] == pytest.approx(norms[1], rel=1e-4, abs=1e-6)


def test_a_model_that_cannot_be_laid_out_in_rows_samples_by_transformers(make_cell: Make, loaded: LoadedBase) -> None:
    loaded.__dict__["attends_by_rows"] = False
    before = whole(loaded)
    told = steps_of(run(make_cell(quick(), size=8)))
    assert len(told) == 4
    assert whole(loaded) == before


def test_an_adapter_on_a_quantised_base_stays_in_float32(
    make_cell: Make, loaded: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL would round it to bfloat16, where small steps are lost. Of quantising, here is only what TRL asks for."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes comes with the extra `qlora`")
    cell = make_cell(quick(), size=8)
    wanted = outcome(run(elsewhere(cell, tmp_path / "plain")))
    monkeypatch.setattr(loaded.model, "is_loaded_in_4bit", True, raising=False)
    assert outcome(run(cell)) == wanted


@needs_smollm2
@pytest.mark.full
def test_a_base_from_a_gguf_file_is_trained(make_cell: Make) -> None:
    """transformers calls it quantised, and its trainer would refuse it; its weights are plain numbers once loaded."""
    base = compose_cell(["base=smollm2_135m_instruct"]).base
    cell = make_cell(quick(epochs=1, batch_size=1, generations=2, max_completion_length=2), base=base, size=1)
    assert training(run(cell))["steps"] == 1


def test_prompts_are_asked_as_evaluation_asks_them(loaded: LoadedBase) -> None:
    """Up to where the assistant begins, and BOS at most once, also where template and tokenizer both write one."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is red?"}]
    for tokenizer in (
        loaded.tokenizer,
        make_tokenizer(chat_template="{{ bos_token }}" + loaded.tokenizer.chat_template),
    ):
        ids = _asked(tokenizer, messages)
        assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ids.count(tokenizer.bos_token_id) == (tokenizer is not loaded.tokenizer)
        assert tokenizer.decode(ids) == render(tokenizer, messages, ask=True)


def test_diverged_is_told(make_cell: Make) -> None:
    with pytest.raises(DivergedError, match=r"lower method\.lr"):
        run(make_cell(quick(lr=1e30, warmup=0), size=8))


def test_examples_with_a_reference_turn_are_prompts(
    make_cell: Make, make_data: Callable[..., Data], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"q": f"What is {i}?", "a": str(i)} for i in range(8)]
    data = make_data(rows, form=Form(turns=[Turn("user", "{{ q }}"), Turn("reference", "{{ a }}")]))
    cell = make_cell(quick(epochs=1), size=8, data=data)
    check(to_run(plan([cell]), retry_failed=False))
    heard.clear()
    run(cell)
    assert {reference for _, reference in heard} == {row["a"] for row in rows}
    show_cell(cell, examples=1)
    assert "## prompt" in capsys.readouterr().out
    with pytest.raises(HarnessError, match="method=dpo needs pair examples"):
        check(to_run(plan([make_cell(Dpo(), data=data)]), retry_failed=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": {}}, "needs a reward; choose one, e.g. reward=exact"),
        ({"rewards": {"exact": {**EXACT, "weight": 0.0}}}, "needs a reward"),
        ({"rewards": {"mine": {"_target_": "harness.rewards.Nothing"}}}, "method.rewards.mine: .*Nothing"),
        ({"rewards": {"mine": {"_target_": "harness.cell.Turn"}}}, "method.rewards.mine is no reward"),
        ({"rewards": {"form": {"_target_": "harness.rewards.RegexMatch"}}}, "method.rewards.form: .*needs a pattern"),
        ({"hold": "tokens", "budget": 1e6}, "cannot know how many tokens"),
        ({"loss": "bnpo"}, "method.loss='bnpo' is unknown"),
        ({"scale_rewards": "mean"}, "method.scale_rewards='mean' is unknown"),
        ({"generations": 1}, "2 or more"),
        ({"beta": 0.1, "lora": Lora(init="pissa")}, "is the reference here"),
    ],
)
def test_what_does_not_go_together_is_refused_in_the_plan(
    make_cell: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HarnessError, match=message):
        check(to_run(plan([make_cell(quick(**changes))]), retry_failed=False))


def test_a_reference_that_a_reward_cannot_read_is_told_before_training(make_cell: Make) -> None:
    rewards = {"follows": {"_target_": "harness.rewards.Constraints"}}
    with pytest.raises(HarnessError, match=r"method\.rewards\.follows: .*no JSON object of constraints"):
        run(make_cell(quick(rewards=rewards)))


def test_several_processes_are_refused(make_cell: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from harness.rl import reinforce

    monkeypatch.setattr("harness.ranks.count", lambda: 2)
    with pytest.raises(HarnessError, match="runs in one process"):
        reinforce(None, None, [], {}, quick(), make_cell(), None)  # type: ignore[arg-type]


def test_a_plan_foretells_at_most_the_tokens_that_are_written(cell: Cell) -> None:
    (planned,) = plan([cell])
    said = Estimator([planned], speed=1e12).cost(planned)
    record = training(run(cell))
    assert record["tokens"] <= said.tokens <= 2 * record["tokens"]
    assert said.train_flops == pytest.approx(record["flops"] * said.tokens / record["tokens"])


def test_a_head_that_is_trained_whole_is_trained(make_cell: Make, loaded: LoadedBase) -> None:
    """TRL multiplies with the head's weight by itself."""
    before = loaded.model.lm_head.weight.clone()
    folder = run(make_cell(quick(beta=0.05, lora=Lora(rank=4, modules_to_save=["lm_head"])), size=8))
    assert not torch.equal(load_file(folder / store.ADAPTER)["base_model.model.lm_head.weight"], before)
    assert torch.equal(loaded.model.lm_head.weight, before)
    assert steps_of(folder)[0]["kl"] == pytest.approx(0, abs=1e-7)
