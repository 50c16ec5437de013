"""One cell's training as people script it: TRL's SFTTrainer on a file of prompts and completions, the adapter saved.

``python trl_cell.py MODEL ROWS SEED FOLDER``
"""

import sys


def main(model: str, rows: str, seed: int, folder: str) -> None:
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=folder,
        learning_rate=5e-4,
        num_train_epochs=1,
        per_device_train_batch_size=16,
        padding_free=True,  # the sixteen examples of a batch laid end to end, as ours are
        max_length=None,
        train_sampling_strategy="sequential",  # the file's order, which is ours
        lr_scheduler_type="constant",
        seed=seed,
        gradient_checkpointing=False,
        bf16=False,  # no mixed precision over weights that are bfloat16 already
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        model_init_kwargs={"dtype": torch.bfloat16, "attn_implementation": "sdpa"},
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=load_dataset("json", data_files=rows, split="train", cache_dir=f"{folder}/rows"),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model(folder)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
