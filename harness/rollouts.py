"""Answers sampled by vLLM, for GRPO where it is installed: `method.rollouts=vllm`.

vLLM holds the base a second time, in a process of its own, and is given the adapter as it is at each step. It rounds in
another way than the policy that learns from its answers; that difference is not corrected for.
"""

import tempfile
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from harness import base as bases
from harness.errors import HarnessError

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can reserve room for


class Rollouts:
    """The engine of one base, for answers that fit into `longest` tokens with their prompts."""

    def __init__(self, base: bases.LoadedBase, rank: int, longest: int) -> None:
        if base.config.gguf_file or base.config.quantize:
            raise HarnessError(
                f"method.rollouts=vllm needs the whole weights of {base.config.name!r} in a folder; use rollouts=own"
            )
        self.model, self.rank, self.longest, self.adapters = base.model, rank, longest, 0
        place = bases.place_of(base.config)
        self.engine = LLM(
            model=place["pretrained_model_name_or_path"],
            revision=place.get("revision"),
            trust_remote_code=place["trust_remote_code"],
            dtype=base.config.dtype,
            enable_lora=True,
            max_lora_rank=next((r for r in RANKS if r >= rank), rank),
            max_model_len=longest,
            enable_prefix_caching=True,
            gpu_memory_utilization=0.45,  # the base that trains stays on the same device
            seed=0,
        )

    def sample(
        self, adapted: Any, prompts: list[list[int]], *, seed: int, temperature: float, most: int, ends: set[int],
        end: str,
    ) -> list[list[int]]:  # fmt: skip
        """At most `most` tokens after each prompt by `adapted`, a peft model; the last is in `ends`, or makes `end`."""
        self.adapters += 1  # vLLM keeps the weights of a number that it has seen
        with tempfile.TemporaryDirectory() as folder:
            adapted.save_pretrained(folder)
            settings = [
                SamplingParams(
                    temperature=temperature, max_tokens=most, seed=(seed + number) % 2**31, stop=[end],
                    stop_token_ids=sorted(ends), detokenize=True, skip_special_tokens=False,
                )
                for number in range(len(prompts))
            ]  # fmt: skip
            answers = self.engine.generate(
                [{"prompt_token_ids": ids} for ids in prompts],
                settings,
                use_tqdm=False,
                lora_request=LoRARequest(f"step {self.adapters}", self.adapters, folder),
            )
        return [list(answer.outputs[0].token_ids) for answer in answers]


_engine: Rollouts | None = None


def rollouts(base: bases.LoadedBase, rank: int, longest: int) -> Rollouts:
    """The living engine of this base, or a new one where it is too small or another base's."""
    global _engine
    if _engine is None or _engine.model is not base.model or _engine.rank < rank or _engine.longest < longest:
        _engine = None  # first, so that its memory is free
        _engine = Rollouts(base, rank, longest)
    return _engine
