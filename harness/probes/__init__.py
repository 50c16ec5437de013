"""Probes, one file each: see `harness.probe`."""

from harness.probes.token_shift import TokenShift

__all__ = ["TokenShift"]
