"""Probes, one file each: see `harness.probe`."""

from harness.probes.token_loss import TokenLoss

__all__ = ["TokenLoss"]
