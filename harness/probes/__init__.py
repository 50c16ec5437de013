"""What is measured of a model beside a task's own scores; see `harness.probe`."""

from harness.probes.token_shift import TokenShift

__all__ = ["TokenShift"]
