"""Where a sweep runs: one file an engine, each an `Engine` dataclass and what it does."""

from harness.cell import Engine


def engines() -> dict[str, type[Engine]]:
    """All engines by name."""
    from harness.engines.local import LocalEngine
    from harness.engines.ray import RayEngine
    from harness.engines.slurm import SlurmEngine

    return {cls.name: cls for cls in (LocalEngine, RayEngine, SlurmEngine)}
