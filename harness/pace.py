"""How a cell at work is getting on: a plain mapping, so that a pipe, a lease and a screen can all carry it. No torch.

    {"phase": "evaluating gsm8k"}
    {"phase": "training", "step": 12, "steps": 400, "loss": 1.3, "tokens_per_second": 812.0, "seconds_left": 33.0}

`step` counts from 1; the last two are absent until they can be told.
"""

import time
from typing import Any

Progress = dict[str, Any]


class Pace:
    """The progress of one try at a cell; speed is measured from the first step that it hears of."""

    def __init__(self) -> None:
        self._first: tuple[float, int, float] | None = None  # when, step, tokens

    def step(self, number: int, steps: int, values: dict[str, float]) -> Progress:
        """After optimizer step `number`, from 0, of `steps`; `values` as `harness.cell.OnStep` hears them."""
        now, tokens = time.monotonic(), float(values["tokens"])
        told: Progress = {"phase": "training", "step": number + 1, "steps": steps, "loss": float(values["loss"])}
        self._first = self._first or (now, number, tokens)
        began, first, before = self._first
        if number > first and now > began:
            told["tokens_per_second"] = (tokens - before) / (now - began)
            told["seconds_left"] = (now - began) / (number - first) * (steps - 1 - number)
        return told


def in_words(told: Progress) -> str:
    """``step 12/400  loss 1.300  812 tokens/s  00:33 of training left``, or the phase; empty where nothing is known."""
    if "step" not in told:
        return str(told.get("phase", ""))
    text = f"step {told['step']}/{told['steps']}  loss {told['loss']:.3f}"
    if "seconds_left" in told:
        text += f"  {told['tokens_per_second']:,.0f} tokens/s  {clock(told['seconds_left'])} of training left"
    return text


def clock(seconds: float) -> str:
    """``01:05``, or ``2:01:05`` from an hour on."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
