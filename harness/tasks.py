"""lm-eval's task objects, built from the configuration of an evaluation."""

import functools
import logging
from typing import TYPE_CHECKING, Any

import hydra.utils

from harness.artifact import Artifact, local
from harness.cell import Task
from harness.consent import refuse_code
from harness.data.rows import read_file
from harness.errors import HarnessError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.manager import TaskDict


@functools.cache
def _all_tasks() -> "TaskManager":
    """lm-eval's own tasks; listing them reads some thousands of files."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def check_consent(name: str, task: Task) -> None:
    """Raise HarnessError where the task would run code that nobody has agreed to."""
    import lm_eval.api.metrics  # noqa: F401  which fills the registry
    from lm_eval.api.registry import metric_registry

    if isinstance(task.task, str):
        refuse_code(name, task.task, _all_tasks().task_index)
    else:
        refuse_code(name, task.task, metrics=metric_registry)


def build(name: str, task: Task) -> "TaskDict":
    """The tasks, items and all. Raises HarnessError for whatever lm-eval finds wrong with them."""
    import datasets
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(
        logging.ERROR
    )  # it warns of what is meant here, e.g. a model handed over loaded
    if isinstance(task.task, str):
        manager = _all_tasks()
        if task.task not in manager.all_tasks:
            raise HarnessError(
                f"evals.{name}.task={task.task!r} is not an lm-eval task; `lm_eval ls tasks` lists them, "
                "or give an inline task (a mapping)"
            )
        spec: Any = task.task
    else:
        manager = TaskManager(include_defaults=False)
        spec = {**task.task, "task": name}
        if task.make or task.file:
            # Named as the pool of few-shot examples too, or lm-eval would draw the question itself among them.
            spec = {"fewshot_split": "test", **spec, "custom_dataset": _items(name, task), "test_split": "test"}
    try:
        return manager.load([spec])
    except HarnessError:
        raise
    except (
        Exception
    ) as error:  # a task is configuration: whatever its building raises is the user's to see, in one line
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise HarnessError(f"evals.{name} cannot be built by lm-eval: {lines[-1]}") from error


def _items(name: str, task: Task) -> Any:
    """A function that gives lm-eval the task's items as its test split."""
    import datasets

    artifact: Artifact | None = hydra.utils.instantiate(task.make) if task.make else None
    path = artifact.path() if artifact else local(str(task.file))
    rows = [row for _, row in read_file(path)]
    if not rows:
        raise HarnessError(f"evals.{name}: {path} is empty; a score needs items")
    if task.limit is not None and task.limit > len(rows):
        raise HarnessError(f"evals.{name}.limit={task.limit} is more than the {len(rows)} items of {path}; lower it")
    table = datasets.Dataset.from_list(rows)
    return lambda **_: {"test": table}
