"""Processes of tests, forked from a server that has only imported, so quick to begin: an import of torch and of what
stands on it takes seconds, and a spawned process begins with one."""

import multiprocessing
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

# Not from the test's own process, whose threads a fork would not take along.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "peft", "transformers", "harness.run", "harness.train", "tests.conftest"])


def in_child(work: Callable[..., None], *given: Any) -> int | None:
    """Run `work` in a process of its own, on one thread; its exit code, negative for a signal."""
    process = SERVER.Process(target=_alone, args=(work, given))
    process.start()
    process.join(timeout=120)
    assert not process.is_alive()
    return process.exitcode


def _alone(work: Callable[..., None], given: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    work(*given)


def _process(*, target: Callable[..., None], args: tuple[Any, ...], name: str) -> Any:
    return SERVER.Process(target=_as_spawned, args=(dict(os.environ), target, args), name=name)


def _as_spawned(environment: dict[str, str], target: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*args)


# In the place of the context from which `harness.engines.process` spawns its workers; they find the environment of who
# starts them, as spawned ones do.
WORKERS = SimpleNamespace(Pipe=SERVER.Pipe, Process=_process)
