"""Processes of tests that are meant to die: forked from a server that has only imported, so quick to begin."""

import multiprocessing
from collections.abc import Callable
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
