"""An accelerator that runs out of memory in an evaluation: smaller passes, the same answers, and it is told.

There is none here. A layer in the middle of the model raises torch's own error for passes above a size, as a device
does whose memory ends there: part of the pass is done then, and what it has kept of it must do no harm.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from harness import scoring
from harness.base import LoadedBase
from harness.cell import Adapted, Run
from harness.evaluate import evaluate
from harness.scoring import LEAST, Room
from tests.test_sharing import GREEDY, asker, prompts, questions, requests, small, text  # noqa: F401  (a fixture)


@contextmanager
def memory_for(model: Any, tokens: int) -> Iterator[list[int]]:
    """Room for so many tokens in a pass; yields the sizes of passes that were tried."""
    tried: list[int] = []

    def check(layer: Any, given: tuple[Any, ...]) -> None:
        tried.append(given[0].shape[1])
        if tried[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = model.model.layers[1].register_forward_pre_hook(check)
    try:
        yield tried
    finally:
        hook.remove()


def test_likelihoods_are_the_same_in_halved_passes(
    small: LoadedBase,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = requests("loglikelihood", questions())
    wanted = asker(small, tokens_per_pass=400).loglikelihood(asked)
    asking = asker(small, tokens_per_pass=400)
    with memory_for(small.model, 60) as tried:
        got = asking.loglikelihood(asked)
    assert [logprob for logprob, _ in got] == pytest.approx([logprob for logprob, _ in wanted], abs=1e-4)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in wanted]
    assert asking.room.tokens == 50
    assert sum(size > 60 for size in tried) == caplog.text.count("out of memory") == 3  # 400, 200, 100


def test_what_is_scored_before_is_not_scored_again(small: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(scoring, "PASS", 10**6)  # no prefixes: every pass scores
    asked = [scoring.Continuation([i, *range(3, length)], 2) for i in range(3, 9) for length in (10, 30, 60)]
    done: list[int] = []
    with memory_for(small.model, 64) as tried:
        scoring.score(small.model, asked, Room(100), done.append)
    assert sum(done) == len(asked)
    fitted = sum(size for size in tried if size <= 64)
    assert fitted < sum(len(a.ids) for a in asked) + 64


def test_answers_are_the_same_in_halved_passes_and_fewer_rows(small: LoadedBase) -> None:  # noqa: F811
    asked = requests("generate_until", [(p, GREEDY) for p in (*prompts(), *(text(9, seed) for seed in range(60, 100)))])
    wanted = asker(small, tokens_per_pass=400).generate_until(asked)
    asking = asker(small, tokens_per_pass=400)
    with memory_for(small.model, 125) as tried:  # one prompt alone is 122 tokens, and never cut
        assert asking.generate_until(asked) == wanted
    assert asking.room == Room(100, 9)  # of a group of 37
    assert sum(size > 125 for size in tried) == 2


def test_no_room_for_anything_is_the_end(small: LoadedBase) -> None:  # noqa: F811
    for kind, arguments in (("loglikelihood", questions()[-1]), ("generate_until", (text(9, 50), GREEDY))):
        asking = asker(small)
        with memory_for(small.model, 1), pytest.raises(torch.OutOfMemoryError):
            getattr(asking, kind)(requests(kind, [arguments]))
        assert asking.room.tokens <= LEAST
        assert asking.shares


def test_several_processes_cannot_halve_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert not Room(1024).halve()


def test_the_score_file_says_so(loaded: LoadedBase, generation_task: Callable[..., Any]) -> None:
    def scored() -> dict[str, Any]:
        run = Run(tokens_per_pass=64)
        return evaluate(loaded, Adapted(loaded.model), "quiz", generation_task(), run)

    free = scored()
    with memory_for(loaded.model, 40):
        tight = scored()
    assert (free["tokens_per_pass"], tight["tokens_per_pass"]) == (64, 32)
    assert (tight["scores"], tight["samples"]) == (free["scores"], free["samples"])
