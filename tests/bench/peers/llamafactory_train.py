"""LLaMA-Factory's supervised fine-tuning with a LoRA adapter, on the conversations of the job."""

import importlib.machinery
import importlib.metadata
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from serve import serve


def prepare(job: dict[str, Any]) -> Any:
    # It imports torchaudio for sounds, of which the index has no build for a CPU's torch.
    sounds = types.ModuleType("torchaudio")
    sounds.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = sounds
    from llamafactory.train.tuner import run_exp

    folder = Path(sys.argv[1]).parent
    names = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    description = {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {**names, "system_tag": "system"},
    }
    rows = {"rows": job["messages"], "some": job["messages"][:16]}
    for name, messages in rows.items():
        (folder / f"{name}.json").write_text(json.dumps([{"messages": m} for m in messages]))
    about = {name: {**description, "file_name": f"{name}.json"} for name in rows}
    (folder / "dataset_info.json").write_text(json.dumps(about))

    def train(name: str) -> dict[str, Any]:
        out = Path(tempfile.mkdtemp(dir=folder))
        run_exp(
            {
                "stage": "sft",
                "do_train": True,
                "model_name_or_path": job["model"],
                "finetuning_type": "lora",
                "lora_rank": job["lora"]["r"],
                "lora_alpha": job["lora"]["lora_alpha"],
                "lora_target": "all",
                "dataset": name,
                "dataset_dir": str(folder),
                "template": "smollm2",
                "cutoff_len": 1024,
                "output_dir": str(out),
                "learning_rate": job["lr"],
                "num_train_epochs": 1,
                "lr_scheduler_type": "constant",
                "optim": "adamw_torch_fused",
                "max_grad_norm": 1.0,
                "seed": job["seed"],
                "disable_shuffling": True,
                "disable_gradient_checkpointing": True,
                "flash_attn": "sdpa",
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "use_cpu": job["device"] == "cpu",
                "overwrite_cache": True,
                **job["config"],
            }
        )
        logs = json.loads((out / "trainer_state.json").read_text())["log_history"]
        return {
            "seconds": json.loads((out / "all_results.json").read_text())["train_runtime"],
            "losses": [log["loss"] for log in logs if "loss" in log],
            "version": importlib.metadata.version("llamafactory"),
        }

    train("some")  # warms up
    return lambda: train("rows")


if __name__ == "__main__":
    serve(prepare)
