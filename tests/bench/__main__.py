"""``python -m tests.bench [work ...]``: measure the works beside their peers, print the table, keep results.json."""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator

# Set before anything imports transformers or datasets, which read the environment once.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from tests.bench import asking, preparing, sweeping, training
from tests.bench.knobs import CUDA, Knobs
from tests.bench.peer import AbsentError
from tests.bench.table import Row, as_text, save

WORKS: dict[str, Callable[[Knobs], Iterator[Row]]] = {
    "choice": asking.choice,
    "choice_vllm": asking.choice_vllm,
    "generate": asking.generate,
    "generate_vllm": asking.generate_vllm,
    "samples": asking.samples,
    "zero_shot": asking.zero_shot,
    "train": training.train,
    "train_llamafactory": training.train_llamafactory,
    "sweep": sweeping.sweep,
    "sweep_drawn": sweeping.sweep_drawn,
    "data": preparing.data,
    "choice_cuda": functools.partial(asking.choice, place=CUDA),
    "generate_cuda": functools.partial(asking.generate, place=CUDA),
    "samples_cuda": functools.partial(asking.samples, place=CUDA),
    "zero_shot_cuda": functools.partial(asking.zero_shot, place=CUDA),
    "train_cuda": functools.partial(training.train, place=CUDA),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure the harness beside its peers.")
    parser.add_argument("work", nargs="*", choices=[*WORKS, []], metavar="work", help=f"of: {', '.join(WORKS)}")
    parser.add_argument("--repeats", type=int, default=Knobs.repeats, help="pairs of runs, ours and the peer's in turn")
    parser.add_argument("--rows", type=int, default=Knobs.rows, help="examples of the work `data`")
    parser.add_argument("--tiny", action="store_true", help="hardly any work: tries the runner, keeps no results")
    given = parser.parse_args(arguments)
    knobs = Knobs(given.repeats, given.rows, given.tiny)
    rows: list[Row] = []
    for name in given.work or WORKS:
        print(name, flush=True)
        try:
            for row in WORKS[name](knobs):
                rows.append(row)
                if not knobs.tiny:
                    save([row])
        except AbsentError as reason:
            print(f"  left out: {reason}", flush=True)
    print()
    print(as_text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
