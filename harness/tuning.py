"""Weights trained for one cell: put on the resident base, kept beside its record, taken off again.

Either a LoRA adapter (Hu et al. 2021, arXiv 2106.09685) or all weights. What the cell's folder holds already is loaded
instead of trained again.
"""

import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness import ranks
from harness.artifact import sha256_file
from harness.cell import Adapted, Attempt, Cell
from harness.clock import part
from harness.data.subset import held_out
from harness.data.tokens import TokenSequences
from harness.errors import DivergedError, HarnessError
from harness.files import whole
from harness.retention import check_kept
from harness.schedule import Schedule
from harness.shapes import Shapes, linear
from harness.store import ADAPTER, LOSSES, MODEL, TRAINED, read_result, write_jsonl

if TYPE_CHECKING:
    from peft import LoraConfig

    from harness.data.pairs import Pairs
    from harness.objective import Objective

log = logging.getLogger(__name__)

GLANCE = 64  # tokens on which an adapter is seen to act
Train = Callable[[Any], dict[str, Any]]  # trains what requires gradients of a model; gives the record, with "losses"


@dataclass
class Lora:
    """peft's LoraConfig, as far as it changes a result."""

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0  # above 0 its masks also depend on run.tokens_per_pass and the number of processes
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])  # or names, e.g. [q_proj,v_proj]
    rslora: bool = False  # scale by alpha / sqrt(rank) instead of alpha / rank
    dora: bool = False
    init: str = "default"  # peft's init_lora_weights: default, gaussian, pissa, olora, ...
    modules_to_save: list[str] = field(default_factory=list)  # trained whole, e.g. [embed_tokens,lm_head]

    @property
    def rewrites_base(self) -> bool:
        """Whether the initialisation takes a part of the base's weights away, so that they mean nothing alone."""
        return self.init not in ("default", "gaussian", "orthogonal")

    def check_published(self) -> None:
        """Raise HarnessError where the published learning rate is for another kind of LoRA."""
        default = Lora(rank=self.rank, dropout=self.dropout)
        if self != default:
            raise HarnessError(
                "method.lr=auto is published for LoRA of any rank on all linear layers, alpha 32 over the rank, as "
                "peft initialises it; leave method.lora as it is but for its rank, or set method.lr=search"
            )

    def check_reference(self) -> None:
        """Raise HarnessError if the base, with the adapter switched off, is not the policy that training began with."""
        if self.rewrites_base:
            raise HarnessError(
                f"method.lora.init={self.init} takes a part of the base's weights into the adapter, and the base is "
                "the reference here; use method.lora.init=default"
            )

    def to_peft(self) -> "LoraConfig":
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft takes fractions too
            lora_dropout=self.dropout,
            target_modules="all-linear" if self.target_modules == ["all-linear"] else list(self.target_modules),
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights=True if self.init == "default" else self.init,  # type: ignore[arg-type]
            modules_to_save=list(self.modules_to_save) or None,
        )

    def parameters(self, of: Shapes) -> int:
        """How many weights the adapter has on a base of these shapes, modules_to_save left out."""
        layers = linear(of)
        named = [s for name, s in layers.items() if any(target in name for target in self.target_modules)]
        return sum(self.rank * sum(shape) for shape in named or layers.values())


class Learner(Schedule):
    """A method that learns from sequences by the project's own loop, by default to make them likely."""

    neftune_alpha: float = 0.0  # a field of the methods that offer it
    all_weights: ClassVar[str] = ""  # how the same is asked for without LoRA, where its data may outgrow an adapter

    def tokens(self, tokenizer: Any, examples: Sequence[Any]) -> "TokenSequences | Pairs":
        """What is learned from these examples, in order."""
        raise NotImplementedError

    def objective(self) -> "Objective":
        from harness.objective import LIKELIHOOD

        return LIKELIHOOD


def check_noise(alpha: float) -> None:
    if alpha < 0:
        raise HarnessError(f"method.neftune_alpha={alpha} must be above 0, e.g. 5, or 0 for no noise")


def learning(base: Any, examples: Sequence[Any], method: Learner, cell: Cell, attempt: Attempt) -> Train:
    """Training on the examples; afterwards, where some are held out, the loss on these."""
    flops_a_token = cell.method.flops_a_token * base.model.num_parameters()
    half = base.config.dtype == "bfloat16"

    def train(model: Any) -> dict[str, Any]:
        from harness.train import fine_tune, mean_loss

        with part("tokens"):
            sequences = method.tokens(base.tokenizer, examples)
        objective, learned = method.objective(), method.objective()
        if method.neftune_alpha:
            from harness.neftune import Noisy

            learned = Noisy(objective, method.neftune_alpha)
        model.train()
        with part("train"):
            record = fine_tune(
                model,
                sequences,
                method,
                seed=cell.seed,
                run=cell.run,
                attempt=attempt,
                half=half,
                flops_a_token=flops_a_token,
                objective=learned,
            )
        if method.held_out:
            model.eval()
            with part("held-out loss"):
                others = method.tokens(base.tokenizer, held_out(cell, method.held_out))
                record["held_out_loss"] = mean_loss(model, others, objective, cell.run, half)
                record["held_out_tokens"] = int(others.lengths.sum())
        return {**record, "held": method.hold, "flops": flops_a_token * record["tokens"]}

    return train


@contextmanager
def adapter(base: Any, lora: Lora, cell: Cell, attempt: Attempt, train: Train) -> Iterator[Adapted]:
    """The base with a trained LoRA adapter on it, for as long as the context lasts."""
    from peft import get_peft_model_state_dict
    from transformers import set_seed

    from harness.lowrank import attach

    if lora.modules_to_save and base.config.dtype != "float32":
        raise HarnessError(
            f"method.lora.modules_to_save trains whole modules in the base's {base.config.dtype}, where small "
            "steps are rounded away; set base.dtype=float32"
        )
    if ranks.sharded() and (lora.rewrites_base or lora.dora):
        raise HarnessError(
            "method.lora.dora and an init that reads the base's weights need them whole; leave out --use_fsdp"
        )
    if base.config.quantize and lora.rewrites_base:
        raise HarnessError(f"method.lora.init={lora.init} changes the base's weights, and these are quantised")
    set_seed(cell.seed)  # initialisation of the adapter, dropout
    with _as_it_came(base.model, copy=lora.rewrites_base) as before:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # peft's, of transformers 5
                model = attach(base.model, lora.to_peft())
        except ValueError as error:
            raise HarnessError(f"method.lora does not fit the base {base.config.name!r}: {error}") from error
        _check_targets(lora, model)
        ranks.refuse_sharded([p for p in model.parameters() if p.requires_grad], "method.lora.modules_to_save")
        if ranks.agree((attempt.folder / TRAINED).exists):
            record, weights = ranks.agree(lambda: _saved(attempt.folder, ADAPTER))
            _put(model, weights, attempt.folder)
        else:
            record = train(model)

            def save() -> dict[str, Any]:
                state = get_peft_model_state_dict(model, save_embedding_layers=False)
                told = _save(state, record, attempt, ADAPTER)
                model.peft_config["default"].save_pretrained(str(attempt.folder))
                return told

            record = ranks.agree(save)
        model.eval()
        _check_change(_logit_change(model), record, attempt.folder)
        merge = partial(model.merge_and_unload, safe_merge=True)  # which refuses what is no finite number
        with base.lends(partial(_without_adapter, model, before)):
            yield Adapted(model, training=record, adapter=attempt.folder, merge=merge)


@contextmanager
def existing(base: Any, folder: Path) -> Iterator[Adapted]:
    """The base with somebody's LoRA adapter on it, in peft's form, for as long as the context lasts."""
    from peft import LoraConfig, PeftConfig
    from safetensors.torch import load_file

    from harness.lowrank import attach

    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise HarnessError(f"{folder} is an adapter of the kind {config.peft_type}; only LoRA is read")
    config.inference_mode = True
    with _as_it_came(base.model, copy=isinstance(config.init_lora_weights, str)) as before:
        try:
            model = attach(base.model, config)
        except ValueError as error:
            raise HarnessError(f"{folder} does not fit the base {base.config.name!r}: {error}") from error
        _put(model, load_file(folder / ADAPTER), folder)
        model.eval()
        if not _logit_change(model):
            log.warning("%s changes no logit", folder)
        with base.lends(partial(_without_adapter, model, before)):
            yield Adapted(model, adapter=folder, merge=partial(model.merge_and_unload, safe_merge=True))


def _put(model: Any, weights: dict[str, Any], folder: Path) -> None:
    """Load an adapter's weights. peft itself would only warn of what is missing, and leave it as it was initialised."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if odd := sorted(wanted ^ set(weights)):
        raise HarnessError(
            f"{folder / ADAPTER} is no adapter of this method and base: {len(odd)} weights such as {odd[0]}"
        )
    set_peft_model_state_dict(model, weights)


def _check_change(change: float, record: dict[str, Any], folder: Path) -> None:
    """Keep how much the adapter changes logits with its record or, if that was kept before, compare with it."""
    if not math.isfinite(change):
        raise DivergedError("with the adapter, logits are no finite numbers; lower method.lr")
    before = record.setdefault("logit_change", change)
    if not math.isclose(change, before, rel_tol=0.5):  # devices and types differ by far less
        raise HarnessError(
            f"the adapter in {folder} changes logits by {change:.3g}, but by {before:.3g} when it was trained; "
            "peft or transformers read it in another way than they wrote it"
        )
    if not change and ranks.first():
        log.warning("%s: the adapter changes no logit: nothing was learned, or too little to count", folder)


def _logit_change(model: Any) -> float:
    """How much the adapter changes the logits of some tokens, at most."""
    import torch

    ids = torch.arange(GLANCE, device=model.device)[None] * 97 % model.config.get_text_config().vocab_size
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        with model.disable_adapter():
            without = model(input_ids=ids, use_cache=False).logits
    return float((logits.float() - without.float()).abs().max())


def _check_targets(lora: Lora, model: Any) -> None:
    """peft only complains if none of the names is found."""
    found = model.targeted_module_names
    for name in lora.target_modules:
        if name != "all-linear" and not any(f == name or f.endswith(f".{name}") for f in found):
            raise HarnessError(f"method.lora.target_modules: the base has no module named {name!r}")


@contextmanager
def all_weights(base: Any, cell: Cell, attempt: Attempt, train: Train) -> Iterator[Adapted]:
    """The base with all its weights trained, for as long as the context lasts.

    They are trained in float32, computing in the base's own type, and rounded to it once at the end; that is what is
    kept and evaluated. The base's own weights are set aside meanwhile, so both must fit into memory.
    """
    import torch
    from transformers import set_seed

    model = base.model
    before = {name: (p, p.data) for name, p in model.named_parameters()}
    ranks.refuse_sharded([p for p, _ in before.values()], "training all weights")
    if any(not torch.is_floating_point(data) for _, data in before.values()):
        raise HarnessError(f"the base {base.config.name!r} is quantised, and all its weights cannot be trained")
    set_seed(cell.seed)
    try:
        if ranks.agree((attempt.folder / TRAINED).exists):
            record, weights = ranks.agree(lambda: _saved(attempt.folder, MODEL))
            for name, (parameter, data) in before.items():
                parameter.data = weights[name].to(data.device, data.dtype)
        else:
            for parameter, data in before.values():
                parameter.data = data.to(torch.float32, copy=True)
                parameter.requires_grad_(True)
            record = train(model)
            model.requires_grad_(False)
            for parameter, data in before.values():
                parameter.grad, parameter.data = None, parameter.data.to(data.dtype)
            weights = {name: p.data for name, (p, _) in before.items()}
            record = ranks.agree(lambda: _save(weights, record, attempt, MODEL))
        model.eval()
        with base.lends(partial(lent, nullcontext(model), before.values())):
            yield Adapted(model, training=record, merge=lambda: model)
    finally:
        for parameter, data in before.values():
            parameter.grad, parameter.data = None, data
        model.eval().requires_grad_(False)


def _save(weights: dict[str, Any], record: dict[str, Any], attempt: Attempt, name: str) -> dict[str, Any]:
    """Write weights and losses; return the record, with the hash of the weights in place of the losses."""
    from safetensors.torch import save

    folder = attempt.folder
    attempt.still_ours()
    with whole(folder / name) as scratch:  # safetensors' own writer hides why it failed
        scratch.write_bytes(save({n: w.contiguous().cpu() for n, w in weights.items()}, metadata={"format": "pt"}))
    write_jsonl(folder / LOSSES, record.pop("losses"))
    return {**record, "adapter_sha256" if name == ADAPTER else "model_sha256": sha256_file(folder / name)}


def _saved(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `_save` left: the record and the weights by name."""
    from safetensors.torch import load_file

    record = read_result(folder / TRAINED)["training"]
    check_kept(folder)
    if sha256_file(folder / name) != record["adapter_sha256" if name == ADAPTER else "model_sha256"]:
        raise HarnessError(f"{folder / name} does not match its checksum; delete {folder} to train again")
    return record, load_file(folder / name)


@contextmanager
def lent(what: AbstractContextManager[Any], weights: Collection[tuple[Any, Any]]) -> Iterator[Any]:
    """The model that `what` gives, its parameters holding other values, given as (parameter, values)."""
    with what as model:
        now = [(parameter, parameter.data) for parameter, _ in weights]
        try:
            for parameter, values in weights:
                parameter.data = values
            yield model
        finally:
            for parameter, values in now:
                parameter.data = values


@contextmanager
def _without_adapter(model: Any, before: Collection[tuple[Any, Any]]) -> Iterator[Any]:
    """The model as it was without its adapter; `before` are weights that putting it on has changed."""
    with model.disable_adapter(), lent(nullcontext(model), before) as base:
        yield base


@contextmanager
def _as_it_came(model: Any, *, copy: bool) -> Iterator[list[tuple[Any, Any]]]:
    """Give `model` back with the modules and weights it had, whatever peft did to it.

    peft's own `unload` leaves the trained copies of `modules_to_save` in place, and the weights that an initialisation
    such as PiSSA has changed; for these, `copy` keeps the weights aside. Gives its parameters with what was kept.
    """
    modules = {module: dict(module._modules) for module in model.modules()}
    weights = {name: w.clone() for name, w in model.state_dict().items()} if copy else None
    try:
        yield [(p, weights[name]) for name, p in model.named_parameters()] if weights else []
    finally:
        for module, children in modules.items():
            module._modules = children
        if weights is not None:
            model.load_state_dict(weights)
        if hasattr(model, "peft_config"):  # the next adapter must not find it
            del model.peft_config
        model.eval().requires_grad_(False)
