"""The methods: one file each. Dropping a file with a `Method` dataclass in here makes `method=<its name>` valid."""

import functools
import importlib
import pkgutil

from harness.cell import Method


@functools.cache
def methods() -> dict[str, type[Method]]:
    """All methods by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {cls.name: cls for cls in Method.__subclasses__()}
