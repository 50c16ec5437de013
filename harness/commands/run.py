"""`harness run`: one cell, see `harness/app.py`."""

from harness.app import run_app as main

__all__ = ["main"]
