"""GRPO on the resident base by TRL's GRPOTrainer.

TRL's are the advantages, the loss and the passes. Ours are the prompts' tokens and the samples, by the code that
evaluation asks with, the order of prompts, the learning rate, the record and the checkpoints. What a step draws follows
from the seed and its number alone, so a training that was killed goes on to the same bits.
"""

import copy
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import trl
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from transformers import PrinterCallback

from harness import preempt, ranks
from harness.cell import Attempt, Cell, Message
from harness.checkpoint import Checkpoints
from harness.clock import part
from harness.data.chat import end_of_turn, render
from harness.data.encode import encode
from harness.decoding import generate
from harness.errors import DivergedError, HarnessError
from harness.identity import fingerprint
from harness.preempt import PreemptedError
from harness.rewards import Reward
from harness.scoring import Room
from harness.train import as_told

Prompt = tuple[list[Message], str]  # the turns before the answer, and the reference


class Settings(Protocol):
    """How to train: a `harness.schedule.Schedule` with these, see `harness.methods.grpo`."""

    batch_size: int
    weight_decay: float
    max_grad_norm: float
    generations: int
    max_completion_length: int
    temperature: float
    rollouts: str
    beta: float
    loss: str
    scale_rewards: str

    @property
    def rate(self) -> float: ...

    def steps(self, examples: int) -> int: ...

    def lr_at(self, step: int, steps: int) -> float: ...


def reinforce(
    base: Any, model: Any, prompts: list[Prompt], terms: dict[str, Reward], how: Settings, cell: Cell, attempt: Attempt
) -> dict[str, Any]:
    """Train the adapter of `model` on answers that it samples itself; counts, seconds and losses for the record.

    Goes on from the attempt's newest checkpoint. Raises HarnessError for a reference that a reward cannot read,
    DivergedError where the loss is no number, PreemptedError, after a checkpoint, where the process was told to stop.
    """
    if ranks.count() > 1:
        raise HarnessError("method=grpo runs in one process; start it without accelerate launch")
    for name, term in terms.items():
        for _, reference in prompts:
            try:
                term.check(reference)
            except HarnessError as error:
                raise HarnessError(f"method.rewards.{name}: {error}") from error
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=how.rate, betas=(0.9, 0.999), weight_decay=how.weight_decay, fused=True)
    steps, batch = how.steps(len(prompts)), min(how.batch_size, len(prompts))
    told: dict[str, Any] = {"losses": [], "target_tokens": 0, "tokens": 0, "seconds": 0.0, "resumed": []}
    checkpoints = Checkpoints(attempt.checkpoints, cell.run.checkpoint_seconds)
    done, kept = checkpoints.load(model, optimizer)
    told |= kept
    if done:
        told["resumed"].append(done)
    order = _order(len(prompts), steps * batch, cell.seed)[done * batch :]
    started = time.perf_counter() - told["seconds"]

    def after_step(step: int, values: dict[str, float]) -> None:
        nonlocal started
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise DivergedError(
                f"loss {values['loss']}, gradient {values['grad_norm']} at step {step}; lower method.lr"
            )
        told["losses"].append({"step": step, **values, "target_tokens": told["target_tokens"]})
        attempt.on_step(step, steps, {**values, "tokens": told["tokens"]})
        looked = time.perf_counter()
        attempt.along(step + 1, steps, model.get_base_model())  # with the adapter, without the trainer's casts
        started += time.perf_counter() - looked
        stop = preempt.asked()
        if stop or checkpoints.due():
            told["seconds"] = time.perf_counter() - started
            with part("checkpoint"):
                attempt.still_ours()
                checkpoints.save(step + 1, model, optimizer, told)
        if stop:
            raise PreemptedError(f"told to stop after step {step}; the same command goes on from there")

    if done < steps:
        with (
            _left_as_found(base),
            as_told(model, cell.run),
            preempt.ends_by_itself(),
            part("train"),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing`")  # of transformers 5
            rows = Dataset.from_list([{"prompt": prompts[i][0], "reference": prompts[i][1]} for i in order])
            longest = _longest(base, prompts, how)
            args = _arguments(base, how, cell, batch * how.generations, longest)
            args.output_dir, args.max_steps = str(attempt.checkpoints), steps - done
            trainer = _Trainer(base, how, cell, (done, steps), terms, model, args, rows, optimizer)
            trainer.told, trainer.after_step, trainer.longest = told, after_step, longest
            trainer.train()
    return {
        "steps": steps,
        "epochs": steps * batch / len(prompts),
        "prompts_a_step": batch,
        "trained_parameters": sum(p.numel() for p in weights),
        "final_loss": told["losses"][-1]["loss"],
        **told,
        "seconds": time.perf_counter() - started,
    }


def _order(prompts: int, count: int, seed: int) -> list[int]:
    """The first `count` places of permutations of the prompts, one after the other."""
    generator, order = torch.Generator().manual_seed(seed), list[int]()
    while len(order) < count:
        order += torch.randperm(prompts, generator=generator).tolist()
    return order[:count]


def _longest(base: Any, prompts: list[Prompt], how: Settings) -> int:
    """Tokens of the longest prompt with an answer. Raises HarnessError where that is more than the base reads."""
    longest = max(len(_asked(base.tokenizer, messages)) for messages, _ in prompts) + how.max_completion_length
    room = getattr(base.model.config.get_text_config(), "max_position_embeddings", None) or longest
    if longest > room:
        raise HarnessError(
            f"prompts and answers of up to {longest} tokens do not fit into the base's context of {room}; lower "
            "method.max_completion_length or leave out the longest prompts"
        )
    return longest


def _arguments(base: Any, how: Settings, cell: Cell, answers: int, longest: int) -> trl.GRPOConfig:
    """TRL's, for steps of so many answers, each of at most `longest` tokens with its prompt."""
    together = max(1, cell.run.tokens_per_pass // longest)
    a_pass = max(n for n in range(1, answers + 1) if answers % n == 0 and n <= together)
    return trl.GRPOConfig(
        per_device_train_batch_size=a_pass,
        gradient_accumulation_steps=answers // a_pass,
        num_generations=how.generations,
        max_completion_length=how.max_completion_length,
        temperature=how.temperature,
        beta=0.0,  # set on the trainer, see there
        loss_type=how.loss,
        scale_rewards=how.scale_rewards,
        max_grad_norm=how.max_grad_norm,
        shuffle_dataset=False,
        seed=cell.seed,
        bf16=base.config.dtype == "bfloat16",
        use_cpu=base.model.device.type == "cpu",
        gradient_checkpointing=False,  # by `as_told`
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
    )


class _Trainer(trl.GRPOTrainer):
    """From step `stretch[0]` to `stretch[1]`; the rows are those of these steps, in order."""

    told: dict[str, Any]  # counts tokens
    after_step: Callable[[int, dict[str, float]], None]  # hears step, {loss, lr, grad_norm, rewards ...}
    longest: int  # tokens of a prompt and its answer
    model: Any

    def __init__(
        self,
        base: Any,
        how: Settings,
        cell: Cell,
        stretch: tuple[int, int],
        terms: dict[str, Reward],
        model: Any,
        args: trl.GRPOConfig,
        rows: Dataset,
        optimizer: Any,
    ) -> None:
        self.base, self.how, self.cell, (self.done, self.steps) = base, how, cell, stretch
        exact = [(p, p.data) for p in model.parameters() if p.requires_grad]
        args.reward_weights = [term.weight for term in terms.values()]
        super().__init__(
            model=model,
            reward_funcs=[self._term(name, term) for name, term in terms.items()],
            args=args,
            train_dataset=rows,
            processing_class=base.tokenizer,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)),
        )
        for parameter, data in exact:  # which TRL rounds to bfloat16 on a quantised base
            parameter.data = data
        self.remove_callback(PrinterCallback)
        # Had TRL known of it, it would have taken a copy of the adapter for the reference; so it switches it off.
        self.beta = how.beta

    @property
    def step(self) -> int:
        return self.done + self.state.global_step

    def _rate(self, step: int) -> float:
        return self.how.lr_at(min(self.done + step, self.steps - 1), self.steps) / self.how.rate

    def _send_telemetry(self) -> None:
        """Nothing is told to anybody."""

    def _term(self, name: str, term: Reward) -> Any:
        def score(completion_ids: list[list[int]], reference: list[str], **_: Any) -> list[float]:
            values = [term(self._text(ids), right) for ids, right in zip(completion_ids, reference, strict=True)]
            if not all(0 <= value <= 1 for value in values):
                raise HarnessError(f"method.rewards.{name} gave {min(values)} to {max(values)}; it must be from 0 to 1")
            return values

        score.__name__ = name
        return score

    def _text(self, ids: list[int]) -> str:
        tokenizer = self.base.tokenizer
        return str(tokenizer.decode(ids, skip_special_tokens=True)).split(end_of_turn(tokenizer))[0]

    def _tokenize_prompts(self, prompts: list[list[Message]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [_asked(self.base.tokenizer, messages) for messages in prompts], None, {}

    def training_step(self, *given: Any, **named: Any) -> Any:
        if self._step % self.args.gradient_accumulation_steps == 0:
            mark = fingerprint([self.cell.seed, self.step])
            torch.manual_seed(int(mark[:15], 16))
        return super().training_step(*given, **named)

    def _generate_single_turn(self, prompt_ids: list[list[int]], *given: Any, **named: Any) -> Any:
        with part("sample"):
            if self.how.rollouts == "vllm":
                said = self._sample_by_vllm(prompt_ids), None
            elif self.base.attends_by_rows:
                said = self._sample(prompt_ids), None
            else:
                said = super()._generate_single_turn(prompt_ids, *given, **named)
        learned = sum(map(len, said[0]))
        self.told["target_tokens"] += learned
        self.told["tokens"] += learned + sum(map(len, prompt_ids))
        return said

    def _sample_by_vllm(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        from harness.rollouts import rollouts

        engine = rollouts(self.base, max(c.r for c in self.model.peft_config.values()), self.longest)
        return engine.sample(
            self.model,
            prompt_ids,
            seed=int(torch.randint(2**31, ()).item()),  # which follows from the cell's and the step
            temperature=self.how.temperature,
            most=self.how.max_completion_length,
            ends=set(self.eos_token_ids),
            end=end_of_turn(self.base.tokenizer),
        )

    def _sample(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        ends, tokenizer = set(self.eos_token_ids), self.base.tokenizer
        text = end_of_turn(tokenizer)
        tail = 2 + len(encode(tokenizer, text))

        def pick(_rows: Any, _ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            if not logits.isfinite().all():
                raise DivergedError(f"no finite logits at step {self.step}; lower method.lr")
            return torch.multinomial((logits.float() / self.how.temperature).softmax(-1), 1).squeeze(1)

        def ended(said: list[int]) -> bool:
            return said[-1] in ends or text in tokenizer.decode(said[-tail:])

        self.model.eval()
        try:
            return generate(
                self.model.get_base_model(),  # with the adapter inside, without the trainer's casts around it
                prompt_ids,
                max_new_tokens=self.how.max_completion_length,
                pick=pick,
                ended=ended,
                room=Room(self.cell.run.tokens_per_pass),
                cache_bytes=int(self.cell.run.kv_cache_gib * 2**30),
            )
        finally:
            self.model.train()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hears of every step, after it."""
        super().log(logs, start_time)  # which adds TRL's metrics
        if "loss" not in logs:  # of the whole training
            return
        step = self.step - 1
        values = {"loss": logs["loss"], "lr": self.how.lr_at(step, self.steps), "grad_norm": logs["grad_norm"]}
        values |= {name: logs[theirs] for name, theirs in _TOLD.items() if theirs in logs}
        values |= {f"reward_{name}": logs[f"rewards/{name}/mean"] for name in self.reward_func_names}
        self.after_step(step, values)


_TOLD = {
    "reward": "reward",  # the weighted sum
    "kl": "kl",
    "entropy": "entropy",
    "completion_length": "completions/mean_length",
    "cut": "completions/clipped_ratio",  # share of the answers that did not end
    "no_signal": "frac_reward_zero_std",  # share of the prompts all of whose answers got the same
}


def _asked(tokenizer: Any, messages: list[Message]) -> list[int]:
    return encode(tokenizer, render(tokenizer, messages, ask=True))


@contextmanager
def _left_as_found(base: Any) -> Iterator[None]:
    """Take off whatever TRL, transformers and accelerate put on the base's modules, configurations and environment."""
    model = base.model
    modules = {module: dict(vars(module)) for module in model.modules()}
    configs = [model.config, model.generation_config]
    settings = [copy.deepcopy(vars(config)) for config in configs]
    environment = dict(os.environ)
    try:
        yield
    finally:
        for module, before in modules.items():
            vars(module).clear()
            vars(module).update(before)
        for config, before in zip(configs, settings, strict=True):
            vars(config).clear()
            vars(config).update(before)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in environment.items() if os.environ.get(name) != value})
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
