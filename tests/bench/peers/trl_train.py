"""TRL's SFTTrainer with a LoRA adapter, on the token sequences of the job."""

import sys
import time
from pathlib import Path
from typing import Any

from serve import serve


def prepare(job: dict[str, Any]) -> Any:
    import torch
    from datasets import Dataset, disable_caching, disable_progress_bars
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import SFTConfig, SFTTrainer

    disable_caching()
    disable_progress_bars()
    scratch = str(Path(sys.argv[1]).parent)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    dtype = getattr(torch, job["dtype"])

    def train(sequences: list[Any]) -> dict[str, Any]:
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, attn_implementation="sdpa")
        model.to(job["device"])
        set_seed(job["seed"])
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **job["lora"]))
        config = {
            "output_dir": scratch,
            "learning_rate": job["lr"],
            "num_train_epochs": 1,
            "seed": job["seed"],
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "max_grad_norm": 1.0,
            "weight_decay": 0.0,
            "optim": "adamw_torch_fused",
            "train_sampling_strategy": "sequential",  # the job's order
            "gradient_checkpointing": False,  # TRL's default recomputes what fits into memory here
            "bf16": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": job["device"] == "cpu",
        }
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**{**config, **job["config"]}),
            train_dataset=Dataset.from_list(sequences),
            processing_class=tokenizer,
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        logs = trainer.state.log_history
        return {"seconds": seconds, "losses": [log["loss"] for log in logs if "loss" in log]}

    train(job["sequences"][:16])  # warms up
    return lambda: train(job["sequences"])


if __name__ == "__main__":
    serve(prepare)
