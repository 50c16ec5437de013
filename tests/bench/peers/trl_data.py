"""TRL's own preparation of a dataset: read the file, apply the chat template, tokenise, mask, pack."""

import time
from typing import Any

from serve import serve


def prepare(job: dict[str, Any]) -> Any:
    import datasets
    import pyarrow
    import pyarrow.compute
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))  # the trainer wants one

    def work() -> dict[str, Any]:
        started = time.perf_counter()
        rows = datasets.load_dataset("json", data_files=job["file"], split="train", cache_dir=job["folder"])
        config = SFTConfig(
            output_dir=job["folder"],
            packing=True,
            max_length=job["max_length"],
            dataset_num_proc=job["processes"],
            use_cpu=True,
            bf16=False,
            report_to="none",
        )
        trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
        seconds = time.perf_counter() - started
        packed = trainer.train_dataset.with_format("arrow")
        count = total = learned = 0
        for table in packed.iter(batch_size=10_000):
            ids, labels = (combined(table[name]) for name in ("input_ids", "labels"))
            count, total = count + len(ids), total + pyarrow.compute.sum(ids).as_py()
            learned += pyarrow.compute.sum(pyarrow.compute.not_equal(labels, -100)).as_py()
        return {"seconds": seconds, "packs": len(packed), "tokens": count, "sum": total, "learned": learned}

    def combined(column: Any) -> Any:
        return column.combine_chunks().flatten()

    return work


if __name__ == "__main__":
    serve(prepare)
