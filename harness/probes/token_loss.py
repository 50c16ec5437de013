"""Loss of whole documents in nats a token: how well a model still foretells text like that of its pretraining."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.cell import Task
from harness.errors import HarnessError
from harness.probe import Asking, Measured, Probe

ROLLING = "loglikelihood_rolling"


@dataclass
class TokenLoss(Probe):
    """Of each document -log p / tokens (nats a token, natural logarithm), all tokens scored, the first after the
    token that lm-eval begins with (bos or eos); beyond the model's context in lm-eval's disjoint windows.

    The score is the mean over documents, each counted once, so that it can be compared document by document. lm-eval's
    own word and byte perplexities weigh documents by their length, and know no tokens.
    """

    def check(self, name: str, task: Task) -> None:
        if isinstance(task.task, Mapping) and task.task.get("output_type") != ROLLING:
            raise HarnessError(_mend(name))

    def measure(self, asking: Asking) -> Measured:
        samples = [self._measured(asking, row) for row in asking.ask(asking.adapted)["samples"]]
        return Measured(samples, {"loss": False})

    def _measured(self, asking: Asking, row: dict[str, Any]) -> dict[str, Any]:
        (likelihood,) = row["answers"][0]
        if not isinstance(likelihood, float):
            raise HarnessError(_mend(asking.name))
        tokens = len(asking.base.tokenizer(row["prompts"][0])["input_ids"])
        kept = {key: row[key] for key in ("task", "item", "item_hash", "filter", "target", "answers", "extracted")}
        return {**kept, "loss": -likelihood / tokens, "tokens": tokens}


def _mend(name: str) -> str:
    return f"evals.{name}.probe=TokenLoss is for documents: give it a task with output_type: {ROLLING}"
