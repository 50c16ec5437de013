"""Probes, one file each: see `harness.probe`."""

from harness.probes.adapter_bits import AdapterBits
from harness.probes.code_length import CodeLength
from harness.probes.token_loss import TokenLoss
from harness.probes.token_shift import TokenShift

__all__ = ["AdapterBits", "CodeLength", "TokenLoss", "TokenShift"]
