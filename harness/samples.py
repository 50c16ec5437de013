"""Many answers to every prompt: how often one of k is right, pass@k.

lm-eval asks a prompt n times (its `repeats`) but then scores one answer of them. Here every filter of a task extracts
each answer, and the task's own metric scores each, as if it were the only one; an item's c right answers of n become

    pass@k = 1 - C(n-c, k) / C(n, k)

the unbiased estimate of the chance that one of k answers is right (Chen et al. 2021, arXiv 2107.03374).
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from harness.cell import Task
from harness.errors import HarnessError


def pass_at_k(n: int, right: int, k: int) -> float:
    """From `right` right answers of `n`. Raises HarnessError for k > n, of which n answers say nothing."""
    if not 1 <= k <= n:
        raise HarnessError(
            f"pass@{k} cannot be told from {n} answers to a prompt; ask for at least {k}, or a smaller k"
        )
    return float(curve(n)[right, k - 1])


def curve(n: int) -> np.ndarray:
    """[n + 1, n]: pass@k of c right answers of n, at c and k - 1. As a product, in which nothing overflows."""
    wrong, asked = n - np.arange(n + 1)[:, None], np.arange(n)
    return 1 - np.cumprod(np.maximum(wrong - asked, 0) / (n - asked), axis=1)


def identity(task: Task) -> dict[str, Any]:
    """How many answers, and which of the task's metrics makes one right, or which k is wanted besides."""
    return {"n": task.samples, "metric": (task.headline or "").rpartition("/")[0]}


def shown(name: str, task: Task) -> list[int]:
    """The k of a task's scores: powers of two, n itself, and that of the headline, if it is ``pass@k/filter``."""
    wanted, kind = {2**i for i in range(task.samples.bit_length())} | {task.samples}, _named(task)
    if kind is not None and kind > task.samples:
        raise HarnessError(
            f"evals.{name}.headline={task.headline!r} needs at least {kind} answers to a prompt, and "
            f"evals.{name}.samples is {task.samples}; raise the one or lower the other"
        )
    return sorted(wanted | ({kind} if kind else set()))


def headline(task: Task) -> str | None:
    """What leads: a task's own metric that is named there is what makes an answer right, and stands for pass@1."""
    if task.samples == 1 or task.headline is None or _named(task):
        return task.headline
    return f"pass@1/{task.headline.rpartition('/')[2]}"


def _named(task: Task) -> int | None:
    metric = (task.headline or "").rpartition("/")[0]
    number = metric.removeprefix("pass@")
    return int(number) if metric.startswith("pass@") and number.isdecimal() else None


def ask_often(name: str, task: Task, members: Iterable[Any]) -> None:
    """Let lm-eval's task (there must be one) ask every prompt `task.samples` times, and score every answer.

    Raises HarnessError where answers are not written, are all the same, or are asked for many times anyway. Without
    ``top_k`` or ``top_p`` in its settings all tokens can be drawn; transformers itself would keep the likeliest 50.
    """
    if task.samples < 1:
        raise HarnessError(f"evals.{name}.samples={task.samples} asks for no answer; use 1 or more")
    member, *others = members
    if others:
        raise HarnessError(f"evals.{name}.samples is for one task, and this is a group of them; name them one by one")
    if member.OUTPUT_TYPE != "generate_until":
        raise HarnessError(f"evals.{name}.samples is for tasks in which the model writes; leave it out")
    if member.config.repeats != 1:
        raise HarnessError(f"evals.{name}: the task itself asks {member.config.repeats} times; leave samples out")
    settings = member.config.generation_kwargs
    if not (settings.get("do_sample") and float(settings.get("temperature") or 0) > 0):
        raise HarnessError(
            f"evals.{name}.samples={task.samples} would be the same answer over and over; set "
            f"evals.{name}.generation={{do_sample: true, temperature: 0.6, top_p: 0.95}}"
        )
    metrics, named = list(getattr(member, "_metric_fn_list", {})), (task.headline or "").rpartition("/")[0]
    if named and _named(task) is None and named not in metrics:
        raise HarnessError(f"evals.{name}.headline={task.headline!r}: {named} is no metric of the task ({metrics})")
    member.set_config("repeats", task.samples)
    member.set_config("generation_kwargs", {"top_k": 0, "top_p": 1.0, **settings})
    member._filters = [Each(ensemble) for ensemble in member._filters]
    metric = named if named in metrics else metrics[0] if metrics else ""
    member.process_results = _Scored(name, metric, shown(name, task), member.process_results)


class Each:
    """One of lm-eval's chains of filters, applied to every answer by itself."""

    def __init__(self, ensemble: Any) -> None:
        self.name, self.ensemble = ensemble.name, ensemble

    def apply(self, instances: Iterable[Any]) -> None:
        """Leaves a list, one for each answer, where the chain would leave one answer's."""
        instances = list(instances)
        alone = [[replace(one, resps=[answer], filtered_resps={}) for answer in one.resps] for one in instances]
        self.ensemble.apply([one for answers in alone for one in answers])
        for instance, answers in zip(instances, alone, strict=True):
            instance.filtered_resps[self.name] = [one.filtered_resps[self.name] for one in answers]


class _Scored:
    """A task's `process_results` for every extracted answer of an item, as pass@k."""

    def __init__(self, name: str, metric: str, ks: list[int], one: Callable[[Any, list[Any]], dict[str, Any]]) -> None:
        self.name, self.metric, self.ks, self.one = name, metric, ks, one

    def __call__(self, doc: Any, results: list[list[Any]]) -> dict[str, float]:
        (answers,) = results
        right = sum(self._right(self.one(doc, [answer])) for answer in answers)
        return {f"pass@{k}": pass_at_k(len(answers), right, k) for k in self.ks}

    def _right(self, scores: dict[str, Any]) -> int:
        score = next(iter(scores.values())) if len(scores) == 1 else scores.get(self.metric)
        if score not in (0, 1):
            raise HarnessError(
                f"evals.{self.name}.samples needs a metric that says right or wrong, and {self.metric or scores} gave "
                f"{score}; name another one as evals.{self.name}.headline=metric/filter"
            )
        return int(score)
