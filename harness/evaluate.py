"""Scores of a model on a task, by lm-eval: the only file that calls its evaluator.

lm-eval builds the prompts, filters the answers and computes metrics and standard errors; base and tuned models come
through the same call. Its response cache is never used: the cache's key leaves the model out.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import hydra.utils

from harness import samples
from harness.artifact import Artifact, local, sha256_file
from harness.base import LoadedBase
from harness.cell import EVALUATION_SEMANTICS, Adapted, Run, Shown, Task
from harness.errors import HarnessError
from harness.identity import fingerprint
from harness.probe import Asking, Probe
from harness.tasks import build, check_consent

if TYPE_CHECKING:
    from lm_eval.tasks.manager import TaskDict

FEWSHOT_SEED = 1234  # lm-eval's own default
ANSWER_TOKENS = 256  # lm-eval's own default, where a task says nothing


def identity(name: str, task: Task) -> dict[str, Any]:
    """Every field that changes a score of a given model, and none that does not. Its fingerprint names the score."""
    items = None
    if task.make:
        artifact: Artifact = hydra.utils.instantiate(task.make)
        items = artifact.identity()
    elif task.file:
        path = local(task.file)
        if not path.is_file():
            raise HarnessError(f"evals.{name}.file={task.file} is not a file; give the path of the task's items")
        items = sha256_file(path)
    return {
        "semantics": EVALUATION_SEMANTICS,
        "lm_eval": importlib.metadata.version("lm_eval"),
        "name": name,
        "task": task.task,
        "items": items,
        "num_fewshot": task.num_fewshot,
        "limit": task.limit,
        "chat": task.chat,
        **({"generation": task.generation} if task.generation else {}),
        **({"samples": samples.identity(task)} if task.samples != 1 else {}),
        **({"probe": _probe(name, task).identity()} if task.probe else {}),
    }


def check(name: str, task: Task) -> None:
    """Build the task, items and all, so that what is wrong with it shows before anything trains."""
    members = load_task(name, task)["tasks"].values()
    passes = [f"pass@{k}" for k in samples.shown(name, task)] if task.samples > 1 else None
    given = {f"{x}/{f.name}" for m in members for x in passes or getattr(m, "_metric_fn_list", {}) for f in m._filters}
    if task.probe and task.samples != 1:
        raise HarnessError(f"evals.{name}.samples is for a task's own scores; leave it out beside a probe")
    if task.probe:
        _probe(name, task).check(name, task)
        load_task(name, _probe(name, task).asks(replace(task, probe=None)))
    elif task.headline and given and samples.headline(task) not in given:
        raise HarnessError(f"evals.{name}.headline={task.headline!r} is none of what the task gives: {sorted(given)}")


@dataclass(frozen=True)
class Extent:
    """How much a task asks, as plain text."""

    items: int
    characters: float  # of one item's prompt, its choices counted, what they share counted once
    answer_tokens: float  # that one item's answer may at most have, where the model writes one; of all its samples


SAMPLE = 8  # items from which an extent is told


def extent(name: str, task: Task) -> Extent:
    """From the first items of each part of the task; no model is needed. A probe's passes are counted.

    A prompt is read once, however many answers are drawn.
    """
    passes = _probe(name, task).passes() if task.probe else 1.0
    items, characters, answers = 0, 0.0, 0.0
    for member in load_task(name, task)["tasks"].values():
        count = min(len(member.eval_docs), task.limit or sys.maxsize)
        sample = min(count, SAMPLE)
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            member.build_all_requests(limit=sample)
        prompts = {(r.doc_id, r.args[0]) for r in member.instances}
        behind = [r.args[1] for r in member.instances if len(r.args) > 1]
        items += count
        characters += sum(len(p) for _, p in prompts) * count / sample
        characters += sum(len(c) for c in behind if isinstance(c, str)) * count / sample
        most = [c.get("max_gen_toks", ANSWER_TOKENS) for c in behind if isinstance(c, dict)]
        answers += task.samples * sum(most) * count / sample
    return Extent(items, passes * characters / items, passes * answers / items)


def examples_read(name: str, task: Task, size: int) -> int:
    """How many of a cell's examples its probe reads, in one forward pass each."""
    return _probe(name, task).examples(size) if task.probe else 0


def for_a_judge(name: str, task: Task) -> bool:
    """Whether its answers are kept for `harness judge`."""
    return bool(task.probe) and _probe(name, task).for_a_judge


def evaluate(
    base: LoadedBase, adapted: Adapted, name: str, task: Task, run: Run, examples: Sequence[Any] | None = None
) -> dict[str, Any]:
    """Ask the model every item of the task and, where it has a probe, measure what that asks for.

    `examples` as in `harness.probe.Asking`. Returns what `_ask` does; scores and samples of a probe are the probe's.
    """
    started = time.perf_counter()
    if not task.probe:
        return _ask(base, adapted, name, task, run)
    probe = _probe(name, task)
    plain = probe.asks(replace(task, probe=None, headline=None))
    asking = Asking(
        base, adapted, name, plain, run,
        ask=functools.partial(_ask, base, name=name, task=plain, run=run, prompts=True),
        read=functools.partial(_read, base, name=name, task=plain, run=run),
        examples=examples,
    )  # fmt: skip
    measured = probe.measure(asking)
    return {
        "scores": measured.scores(task.headline),
        "samples": measured.samples,
        **measured.about,
        "identity": identity(name, task),
        "seconds": time.perf_counter() - started,
    }


def _probe(name: str, task: Task) -> Probe:
    probe = hydra.utils.instantiate(task.probe, _convert_="all")  # its lists as plain lists
    if not isinstance(probe, Probe):
        raise HarnessError(f"evals.{name}.probe makes a {type(probe).__name__}, which is no Probe; see harness/probes/")
    return probe


def _ask(
    base: LoadedBase, adapted: Adapted, name: str, task: Task, run: Run, *, prompts: bool = False
) -> dict[str, Any]:
    """Ask the model every item of the task, through lm-eval.

    Returns ``scores`` (one mapping for each metric and filter, with lm-eval's standard error over items), ``samples``
    (one for each item and filter: answer as given and as extracted, target, of a written answer whether it was `cut` at
    the most tokens it may have; with `prompts`, the prompts too, as the model was given them, and the very `tokens` of
    prompt and answer, None where they are not known), ``truncated_prompts`` (how many lost their beginning, being
    longer than the model's context), ``identity``, ``seconds``.
    """
    import lm_eval.evaluator
    import numpy
    import torch

    from harness.prompts import as_plain_text

    started = time.perf_counter()
    loaded = load_task(name, task)
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(0)  # sampled generation, where a task asks for it
    lm = _backend(base, adapted, task, run)
    lm.spoken = {} if prompts else None
    plain = "" if task.chat else as_plain_text(adapted.demonstrations)
    with _opened_with(loaded, plain):
        results = lm_eval.evaluator.evaluate(
            lm=lm,
            task_dict=loaded,
            limit=task.limit,
            log_samples=True,
            apply_chat_template=task.chat,
            fewshot_as_multiturn=task.chat,
            confirm_run_unsafe_code=task.unsafe_code,
        )
    assert results is not None  # None is for the other ranks of a distributed run
    return {
        "scores": _scores(name, replace(task, headline=samples.headline(task)), results),
        "samples": [
            _sample(m, loaded["tasks"][m], row, lm.spoken) for m, rows in results["samples"].items() for row in rows
        ],
        "task_versions": results["versions"],
        "truncated_prompts": lm.truncated,
        "backend": run.eval_backend,
        "tokens_per_pass": lm.room.tokens if run.eval_backend == "shared" else None,  # less where memory ran out
        "identity": identity(name, task),
        "seconds": time.perf_counter() - started,
    }


def check_backend(run: Run) -> None:
    """Raise HarnessError where the backend is unknown or not installed."""
    if run.eval_backend not in ("shared", "hf", "vllm"):
        raise HarnessError(f"run.eval_backend={run.eval_backend!r} is unknown; use shared, hf or vllm")
    if run.eval_backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise HarnessError("run.eval_backend=vllm needs vLLM, which is not installed here; use run.eval_backend=shared")


def _backend(base: LoadedBase, adapted: Adapted, task: Task, run: Run) -> Any:
    """lm-eval's interface to the model."""
    check_backend(run)
    if run.eval_backend == "vllm":
        from harness.vllm import asker

        return asker(base, adapted, chat=task.chat)
    from harness.lm import Asker

    return Asker(base, adapted, chat=task.chat, run=run)


def first_prompt(tokenizer: Any, demonstrations: Shown, name: str, task: Task) -> str:
    """The text of the first item as the model is asked it."""
    return next(iter(_prompts(tokenizer, demonstrations, name, replace(task, limit=1)).values()))


def _prompts(tokenizer: Any, demonstrations: Shown, name: str, task: Task) -> dict[tuple[str, int], str]:
    """By member task and item, the first text that the model is asked of each item."""
    from harness.prompts import Prompter, as_plain_text

    loaded = load_task(name, task)
    asked: dict[tuple[str, int], str] = {}
    with _opened_with(loaded, "" if task.chat else as_plain_text(demonstrations)):
        for member_name, member in loaded["tasks"].items():
            member.build_all_requests(
                limit=task.limit,
                apply_chat_template=task.chat,
                fewshot_as_multiturn=task.chat,
                chat_template=Prompter(tokenizer, demonstrations).apply_chat_template if task.chat else None,
                tokenizer_name="",
            )
            for request in member.instances:
                asked.setdefault((member_name, request.doc_id), request.args[0])
    return asked


def _read(base: LoadedBase, adapted: Adapted, name: str, task: Task, run: Run) -> dict[tuple[str, int], list[int]]:
    """By member task and item, the tokens of what `_ask` would ask this model first; nothing is asked."""
    lm = _backend(base, adapted, task, run)
    prompts = _prompts(base.tokenizer, adapted.demonstrations, name, task)
    return {item: lm.tok_batch_encode([prompt])[0][0].tolist() for item, prompt in prompts.items()}


_loaded: dict[str, "TaskDict"] = {}


def load_task(name: str, task: Task) -> "TaskDict":
    """lm-eval's task objects, built once per process, their few-shot generator as new."""
    if not task.unsafe_code:
        check_consent(name, task)
    key = fingerprint(identity(name, task))
    if key not in _loaded:
        built = build(name, task)
        for member in built["tasks"].values() if task.generation else ():
            if member.OUTPUT_TYPE != "generate_until":
                why = "is for tasks in which the model writes, and so is a probe that sets it; leave it out"
                raise HarnessError(f"evals.{name}.generation {why}")
            member.set_config("generation_kwargs", {**member.config.generation_kwargs, **task.generation})
        if task.samples != 1:
            samples.ask_often(name, task, built["tasks"].values())
        _loaded[key] = built
    for member in _loaded[key]["tasks"].values():
        if task.num_fewshot is not None:
            member.set_config("num_fewshot", task.num_fewshot)
        member.set_fewshot_seed(FEWSHOT_SEED)
    return _loaded[key]


@contextlib.contextmanager
def _opened_with(loaded: "TaskDict", text: str) -> Any:
    """Let every prompt of the tasks begin with `text`, for as long as the context lasts.

    A task's description is a Jinja template, so the text goes in as a string literal: braces in it stay what they are.
    """
    literal = f"{{{{{text!r}}}}}" if text else ""
    before = {name: member.config.description for name, member in loaded["tasks"].items()}
    try:
        for name, member in loaded["tasks"].items():
            member.config.description = (before[name] or "") + literal
        yield
    finally:
        for name, member in loaded["tasks"].items():
            member.config.description = before[name]


def _scores(name: str, task: Task, results: Any) -> list[dict[str, Any]]:
    key = task.task if isinstance(task.task, str) else name
    if key not in results["results"]:
        if len(results["results"]) > 1:
            raise HarnessError(f"evals.{name} is a tag of several lm-eval tasks; name a group, or the tasks one by one")
        key = next(iter(results["results"]))
    values = results["results"][key]
    counts = results["n-samples"]
    members = [key] if key in counts else list(counts)
    better = results["higher_is_better"].get(key, {})
    scores = []
    for label, value in values.items():
        metric, _, chosen = label.partition(",")
        if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{metric}_stderr,{chosen}")
        scores.append(
            {
                "metric": metric,
                "filter": chosen,
                "headline": f"{metric}/{chosen}" == task.headline,
                "score": float(value),
                "stderr": float(stderr) if isinstance(stderr, int | float) else None,
                "n_items": sum(counts[m]["effective"] for m in members),
                "higher_is_better": better.get(metric, True) is not False,
            }
        )
    if not scores:
        raise HarnessError(f"evals.{name} gave no metric; check its metric_list")
    if task.headline is None:
        scores[0]["headline"] = True
    elif not any(s["headline"] for s in scores):
        have = "; ".join(f"{s['metric']}/{s['filter']}" for s in scores)
        raise HarnessError(f"evals.{name}.headline={task.headline!r} is none of what the task gives: {have}")
    return scores


def item_hash(doc: Any) -> str:
    """lm-eval's `doc_hash` of a sample."""
    from lm_eval.utils import handle_non_serializable, hash_string

    return str(hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)))


def _sample(name: str, member: Any, sample: dict[str, Any], spoken: dict[str, Any] | None) -> dict[str, Any]:
    """One item under one filter. The prompt is kept by its hash: `harness show` writes it out again."""
    prompts = [request[0] for request in sample["arguments"]]
    shown = {} if spoken is None else {"prompts": prompts, "tokens": [spoken.get(prompt) for prompt in prompts]}
    column = (member.config.metadata or {}).get("cluster")
    cut = [answer.cut for answers in sample["resps"] for answer in answers if hasattr(answer, "cut")]
    return (
        {
            "task": name,
            "item": sample["doc_id"],
            "filter": sample["filter"],
            "target": sample["target"],
            "answers": sample["resps"],
            "extracted": sample["filtered_resps"],
            **{metric: sample[metric] for metric in sample["metrics"]},
            "prompt_hash": sample["prompt_hash"],
            "item_hash": sample["doc_hash"],
        }
        | shown
        | ({"cut": cut} if cut else {})
        | ({"cluster": sample["doc"][column]} if column else {})
    )
