"""A peer's end of the line: be ready once, then do the work each time a line comes in, and answer in JSON."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def serve(prepare: Callable[[Job], Callable[[], Job]]) -> None:
    """``prepare(job)`` loads what the work needs and returns the work; seconds of both are measured here.

    The job comes as JSON from the file named on the command line. Answers go to the standard output we were given;
    whatever else is printed goes to the standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(started: float, result: Job) -> None:
        print(json.dumps({"seconds": time.perf_counter() - started, **result}), file=answers, flush=True)

    started = time.perf_counter()
    work = prepare(json.loads(Path(sys.argv[1]).read_text()))
    answer(started, {})
    for _ in sys.stdin:
        started = time.perf_counter()
        answer(started, work())
