"""Our preparation of the same rows, as a cell does it: table, order, subset, tokens."""

import time
from pathlib import Path
from typing import Any

from serve import serve


def prepare(job: dict[str, Any]) -> Any:
    from harness.base import load_tokenizer
    from harness.cell import Base, Data, Form, Source
    from harness.data.subset import load_dataset
    from harness.data.token_cache import token_sequences

    tokenizer = load_tokenizer(Base(name="bench", path=job["model"]))
    source = Source(path=str(Path(job["file"])), form=Form(conversation="messages"))

    def work() -> dict[str, Any]:
        started = time.perf_counter()
        examples = load_dataset(Data(name="bench", sources={"rows": source})).subset(job["size"], seed=0)
        sequences = token_sequences(tokenizer, examples, job["max_length"])
        seconds = time.perf_counter() - started
        if not job["check"]:
            return {"seconds": seconds}
        tokens = [(len(s.ids), sum(s.ids), sum(s.learned)) for s in sequences]
        count, total, learned = map(sum, zip(*tokens, strict=True))
        return {"seconds": seconds, "tokens": count, "sum": total, "learned": learned}

    return work


if __name__ == "__main__":
    serve(prepare)
