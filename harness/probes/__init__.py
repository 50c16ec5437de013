"""Probes, one file each: see `harness.probe`."""
