"""Probes, one file each: see `harness.probe`."""

from harness.probes.adapter_bits import AdapterBits
from harness.probes.code_length import CodeLength
from harness.probes.token_loss import TokenLoss

__all__ = ["AdapterBits", "CodeLength", "TokenLoss"]
