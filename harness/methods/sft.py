"""Supervised fine-tuning with LoRA (Hu et al. 2021, arXiv 2106.09685) on the resident base.

Defaults follow LoRA Without Regret (thinkingmachines.ai/blog/lora): all linear layers, alpha 32, a learning rate about
ten times that of full fine-tuning.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness import ranks
from harness.artifact import sha256_file
from harness.cell import Adapted, Attempt, Cell, Method
from harness.clock import part
from harness.errors import DivergedError, HarnessError
from harness.files import whole
from harness.schedule import Schedule
from harness.store import TRAINED, read_result, write_jsonl

if TYPE_CHECKING:
    from peft import LoraConfig

log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
GLANCE = 64  # tokens on which an adapter is seen to act


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


@dataclass
class Sft(Method, Schedule):
    name: ClassVar[str] = "sft"

    max_length: int = 2048  # tokens of one example; what is longer is cut and counted in the record
    lora: Lora = field(default_factory=Lora)

    @contextmanager
    def adapt(self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt) -> Iterator[Adapted]:
        from transformers import set_seed

        from harness.lowrank import attach

        copies = self.lora.init not in ("default", "gaussian", "orthogonal")
        if self.lora.modules_to_save and base.config.dtype != "float32":
            raise HarnessError(
                f"method.lora.modules_to_save trains whole modules in the base's {base.config.dtype}, where small "
                "steps are rounded away; set base.dtype=float32"
            )
        if ranks.sharded() and (copies or self.lora.dora):
            raise HarnessError(
                "method.lora.dora and an init that reads the base's weights need them whole; leave out --use_fsdp"
            )
        set_seed(cell.seed)  # initialisation of the adapter, dropout
        with _as_it_came(base.model, copy=copies):
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings(
                        "ignore", message="`is_gradient_checkpointing`"
                    )  # peft's, of transformers 5
                    model = attach(base.model, self.lora.to_peft())
            except ValueError as error:
                raise HarnessError(f"method.lora does not fit the base {base.config.name!r}: {error}") from error
            self._check_targets(model)
            ranks.refuse_sharded([p for p in model.parameters() if p.requires_grad], "method.lora.modules_to_save")
            if ranks.agree((attempt.folder / TRAINED).exists):
                record, weights = ranks.agree(lambda: _saved(attempt.folder))
                _put(model, weights, attempt.folder)
            else:
                record = self._train(model, base, examples, cell, attempt)
            model.eval()
            _check_change(_logit_change(model, base.tokenizer, examples[0]), record, attempt.folder)
            yield Adapted(model, training=record, adapter=attempt.folder)

    def _check_targets(self, model: Any) -> None:
        """peft only complains if none of the names is found."""
        found = model.targeted_module_names
        for name in self.lora.target_modules:
            if name != "all-linear" and not any(f == name or f.endswith(f".{name}") for f in found):
                raise HarnessError(f"method.lora.target_modules: the base has no module named {name!r}")

    def _train(self, model: Any, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt) -> dict[str, Any]:
        from harness.data.token_cache import token_sequences
        from harness.train import fine_tune

        with part("tokens"):
            sequences = token_sequences(base.tokenizer, examples, self.max_length)
        model.train()
        with part("train"):
            record = fine_tune(model, sequences, self, seed=cell.seed, run=cell.run, attempt=attempt)
        return ranks.agree(lambda: _save(model, record, attempt))


def _save(model: Any, record: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
    """Write adapter and losses; return the record, with the adapter's hash in place of the losses."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    folder = attempt.folder
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    weights = {name: w.contiguous().cpu() for name, w in state.items()}
    attempt.still_ours()
    with whole(folder / WEIGHTS) as scratch:
        scratch.write_bytes(save(weights, metadata={"format": "pt"}))  # safetensors' own writer hides why it failed
    model.peft_config["default"].save_pretrained(str(folder))
    write_jsonl(folder / "losses.jsonl", record.pop("losses"))
    return {**record, "adapter_sha256": sha256_file(folder / WEIGHTS)}


def _put(model: Any, weights: dict[str, Any], folder: Path) -> None:
    """Load an adapter's weights. peft itself would only warn of what is missing, and leave it as it was initialised."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if odd := sorted(wanted ^ set(weights)):
        raise HarnessError(
            f"{folder / WEIGHTS} is no adapter of this method and base: {len(odd)} weights such as {odd[0]}"
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


def _logit_change(model: Any, tokenizer: Any, example: Any) -> float:
    """How much the adapter changes the logits of an example's first tokens, at most."""
    import torch

    from harness.data.chat import tokenize

    ids = torch.tensor([tokenize(tokenizer, list(example.messages), GLANCE).ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        with model.disable_adapter():
            without = model(input_ids=ids, use_cache=False).logits
    return float((logits.float() - without.float()).abs().max())


def _saved(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `_save` left: the record and the adapter's weights by name."""
    from safetensors.torch import load_file

    record = read_result(folder / TRAINED)["training"]
    if not (folder / WEIGHTS).is_file() or sha256_file(folder / WEIGHTS) != record["adapter_sha256"]:
        raise HarnessError(f"{folder / WEIGHTS} does not match its checksum; delete {folder} to train again")
    return record, load_file(folder / WEIGHTS)


@contextmanager
def _as_it_came(model: Any, *, copy: bool) -> Iterator[None]:
    """Give `model` back with the modules and weights it had, whatever peft did to it.

    peft's own `unload` leaves the trained copies of `modules_to_save` in place, and the weights that an initialisation
    such as PiSSA has changed; for these, `copy` keeps the weights aside.
    """
    modules = {module: dict(module._modules) for module in model.modules()}
    weights = {name: w.clone() for name, w in model.state_dict().items()} if copy else None
    try:
        yield
    finally:
        for module, children in modules.items():
            module._modules = children
        if weights is not None:
            model.load_state_dict(weights)
        if hasattr(model, "peft_config"):  # the next adapter must not find it
            del model.peft_config
        model.eval().requires_grad_(False)
