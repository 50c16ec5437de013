"""Answers of finished cells compared or rated by a language model. See `settings` for the interface; no torch here."""

from harness.judge.settings import Judge, Judging, Prompt

__all__ = ["Judge", "Judging", "Prompt"]
