"""Tasks marked elsewhere, and the loss of documents in nats a token."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import evaluate
from harness.cell import Adapted, Task
from harness.errors import HarnessError
from harness.evaluate import identity
from harness.sweep import sweep_cells
from tests.conftest import write_jsonl
from tests.test_sweep import config_dir  # noqa: F401  (a fixture)

DOCUMENTS = ["What is the capital of France?", "one two three four five six seven eight nine ten. " * 3, "red", "été"]


def documents(path: Path, **fields: Any) -> Task:
    """A task of documents in a file, as conf/evals/corpus.yaml has them."""
    metric = {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    task = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    file = str(write_jsonl(path / "documents.jsonl", [{"text": text} for text in DOCUMENTS]))
    return Task(task={**task, "metric_list": [metric]}, file=file, chat=False, **fields)


def test_the_mark_is_no_part_of_what_is_measured(config_dir):  # noqa: F811
    task = Task(task="arc_easy")
    assert identity("a", task) == identity("a", Task(task="arc_easy", elsewhere=True))
    # one arm is for the quiz, for the other it is elsewhere; both start from the one untouched base
    given = ["base=tiny", "arms.icl.evals.quiz.elsewhere=true", "~arms.again", "arms.sft.size=4", "arms.sft.seed=0"]
    _, cells = sweep_cells("mine", given, config_dir)
    assert [c.method.name for c in cells].count("base") == 1
    assert {c.method.name: c.evals["quiz"].elsewhere for c in cells if c.method.name != "base"} == {
        "sft": False, "icl": True,
    }  # fmt: skip


def test_token_loss_is_what_the_model_says_of_each_document(tmp_path: Path, loaded: Any, make_cell: Callable[..., Any]):
    probe = {"_target_": "harness.probes.TokenLoss"}
    task, run = documents(tmp_path, probe=probe), make_cell(method="base").run
    evaluate.check("d", task)
    found = evaluate.evaluate(loaded, Adapted(loaded.model), "d", task, run)
    tokenizer, by_hand = loaded.tokenizer, []
    for text in DOCUMENTS:
        ids = tokenizer(text)["input_ids"]
        whole = torch.tensor([[tokenizer.bos_token_id, *ids]])
        with torch.no_grad():
            logits = loaded.model(whole).logits[0, :-1].double().log_softmax(-1)
        by_hand.append(-logits.gather(1, whole[0, 1:, None]).mean().item())
    rows = sorted(found["samples"], key=lambda row: row["item"])
    assert [row["loss"] for row in rows] == pytest.approx(by_hand, rel=1e-4)
    (score,) = found["scores"]
    assert score["score"] == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)
    assert (score["metric"], score["headline"], score["higher_is_better"]) == ("loss", True, False)
    spread = math.sqrt(sum((x - score["score"]) ** 2 for x in by_hand) / (len(by_hand) - 1) / len(by_hand))
    assert score["stderr"] == pytest.approx(spread, rel=1e-3)


def test_token_loss_refuses_what_is_no_document(generation_task: Callable[..., Task]):
    task = generation_task(probe={"_target_": "harness.probes.TokenLoss"}, headline=None)
    with pytest.raises(HarnessError, match=r"evals\.d\.probe=TokenLoss is for documents"):
        evaluate.check("d", task)
