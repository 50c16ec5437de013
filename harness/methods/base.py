"""The base as it is: size 0, the reference line of every curve, evaluated by the same path as all else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from harness.cell import Adapted, Attempt, Cell, Method


@dataclass
class BaseModel(Method):
    name: ClassVar[str] = "base"
    uses_data: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    @contextmanager
    def adapt(self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt) -> Iterator[Adapted]:
        yield Adapted(base.model, untouched=partial(nullcontext, base.model))
