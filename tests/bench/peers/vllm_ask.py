"""lm-eval's vllm backend on vLLM's CPU build, asked the requests of the job."""

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

from serve import serve

CPU = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "auto", "VLLM_LOGGING_LEVEL": "WARNING"}


def name_the_cpu_build() -> None:
    """lm-eval asks for the version of the distribution `vllm`, which the CPU build does not call itself."""
    known = importlib.metadata.version
    importlib.metadata.version = lambda name: known("vllm-cpu") + "+cpu" if name == "vllm" else known(name)


def prepare(job: dict[str, Any]) -> Any:
    os.environ |= CPU
    name_the_cpu_build()
    from lm_eval.api.instance import Instance
    from lm_eval.models.vllm_causallms import VLLM

    lm = VLLM(
        pretrained=job["model"],
        dtype=job["dtype"],
        max_model_len=2048,
        batch_size="auto",
        enforce_eager=True,
        enable_prefix_caching=True,
        lora_local_path=job.get("adapter"),
    )
    kind = job["kind"]
    requests = [Instance(kind, {}, tuple(arguments), i) for i, arguments in enumerate(job["requests"])]
    ask = getattr(lm, kind)

    def work() -> dict[str, Any]:
        return {"answers": ask(requests, disable_tqdm=True)}

    return work


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        print(json.dumps({name: importlib.metadata.version(name) for name in ("vllm-cpu", "lm_eval")}))
    else:
        Path(sys.argv[1])
        serve(prepare)
