"""lm-eval's vLLM backend, its engine kept alive while tasks and adapters come and go.

vLLM brings torch and transformers of its own choosing, so it is no dependency; `run.eval_backend=vllm` needs it
installed beside the harness.
"""

import dataclasses
from pathlib import Path
from typing import Any

from lm_eval.models.vllm_causallms import VLLM
from vllm.lora.request import LoRARequest

from harness import base as bases
from harness.artifact import remembered_hash
from harness.base import LoadedBase
from harness.cell import Adapted
from harness.errors import HarnessError
from harness.prompts import Speaks
from harness.store import ADAPTER, read_json

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can reserve room for


class VllmAsker(Speaks, VLLM):
    """The engine of one base; `prepare` it for each task and adapter."""

    def __init__(self, base: LoadedBase, max_lora_rank: int) -> None:
        place = bases.place_of(base.config)
        if base.config.gguf_file:
            raise HarnessError(
                f"run.eval_backend=vllm cannot read the GGUF file of {base.config.name!r}; save the base as an "
                "ordinary folder, or use run.eval_backend=shared"
            )
        if base.config.quantize:
            raise HarnessError(
                f"run.eval_backend=vllm would answer with the full weights of {base.config.name!r}, not those of "
                f"base.quantize={base.config.quantize}; use run.eval_backend=shared"
            )
        VLLM.__init__(
            self,
            pretrained=place["pretrained_model_name_or_path"],
            revision=place.get("revision"),
            trust_remote_code=place["trust_remote_code"],
            dtype=base.config.dtype,
            max_lora_rank=max_lora_rank,
            enable_lora=True,
            enable_prefix_caching=True,
            # The base that trains stays on the same device.
            gpu_memory_utilization=0.45,
            seed=0,
        )
        self.tokenizer, self.hf_chat_template = base.tokenizer, base.tokenizer.chat_template
        self.max_lora_rank = max_lora_rank

    def prepare(self, base: LoadedBase, adapted: Adapted, *, chat: bool) -> None:
        """Make ready for a task and an adapter."""
        self.speak(base, adapted)
        self.add_bos_token = False if chat else None
        self.lora_request = None
        if adapted.training and not adapted.adapter:
            raise HarnessError("run.eval_backend=vllm serves a base with adapters, not other weights; use shared")
        if adapted.adapter:  # vLLM keeps the weights of an id that it has seen, so the weights' own hash is the id
            digest = remembered_hash(adapted.adapter / ADAPTER)
            self.lora_request = LoRARequest(digest, int(digest[:7], 16) + 1, str(adapted.adapter))

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        asked = []
        for request in requests:
            context, settings = request.arguments
            until = settings.get("until") or []
            until = [*([until] if isinstance(until, str) else until), self.end]
            asked.append(dataclasses.replace(request, arguments=(context, {**settings, "until": until})))
            room = self.max_length - int(settings.get("max_gen_toks", self.max_gen_toks))
            self.count(len(self.tok_encode(context)) > room)
        return [answer.split(self.end)[0] for answer in super().generate_until(asked, disable_tqdm or self.quiet)]

    def _loglikelihood_tokens(self, requests: Any, *arguments: Any, **named: Any) -> list[tuple[float, bool]]:
        self.count(sum(len(context) + len(answer) > self.max_length for _, context, answer in requests))
        return super()._loglikelihood_tokens(requests, *arguments, **named)


_engine: VllmAsker | None = None


def asker(base: LoadedBase, adapted: Adapted, *, chat: bool) -> VllmAsker:
    """The living engine of this base, or a new one: for another base, or an adapter of a larger rank than before."""
    global _engine
    rank = _rank(adapted.adapter) if adapted.adapter else RANKS[0]
    if _engine is None or _engine.base is not base.model or _engine.max_lora_rank < rank:
        _engine = None  # first, so that its memory is free
        _engine = VllmAsker(base, max(rank, 16))
        _engine.base = base.model
    _engine.prepare(base, adapted, chat=chat)
    return _engine


def _rank(folder: Path) -> int:
    config = read_json(folder / "adapter_config.json")
    if config.get("use_dora") or config.get("modules_to_save"):
        raise HarnessError(f"{folder}: vLLM serves neither DoRA nor modules_to_save; use run.eval_backend=shared")
    needed = max([config["r"], *config.get("rank_pattern", {}).values()])
    return next((r for r in RANKS if r >= needed), needed)
