"""Examples that repeat one another and items that were trained on: counted, told in the report, never dropped."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.report import write_report
from harness import store
from harness.asked import items_among
from harness.cell import Data, Source
from harness.data.overlap import copies
from harness.data.subset import NOTHING, load_dataset
from harness.run import run
from tests.conftest import ITEMS, pair_form, pairs, write_jsonl

Make = Callable[..., Any]
TWIN = {"prompt": "Say it again.", "completion": "Again."}


def test_copies_are_counted_within_a_source_and_between_two(tmp_path: Path) -> None:
    sources = {}
    for name, rows in (("one", [TWIN, *pairs(3), TWIN]), ("two", [TWIN, {"prompt": "x", "completion": "y"}])):
        sources[name] = Source(path=str(write_jsonl(tmp_path / f"{name}.jsonl", rows)), form=pair_form())
    dataset = load_dataset(Data(name="both", sources=sources))
    assert copies(dataset.subset(7, 0)) == 2
    twins = [e.messages[0]["content"] == TWIN["prompt"] for e in dataset.subset(7, 0)]
    for size in range(1, 8):  # of a part only what is in it
        assert copies(dataset.subset(size, 0)) == max(0, sum(twins[:size]) - 1)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("What is the capital of France?", 1),
        ("  what is the CAPITAL\n of France? ", 1),
        ("What is the capital of France, please?", 0),
        ("Paris", 0),  # an answer is no question
    ],
)
def test_items_are_found_up_to_case_and_spacing(
    prompt: str, found: int, make_data: Make, generation_task: Make, choice_task: Make
) -> None:
    subset = load_dataset(make_data([*pairs(5), {"prompt": prompt, "completion": "Paris."}])).subset(6, 0)
    wrapped = generation_task()
    wrapped.task = {**wrapped.task, "doc_to_text": "Question: {{question}}\nAnswer:"}
    tasks = {
        "generated": generation_task(),
        "chosen": choice_task(),
        "wrapped": wrapped,
        "two": generation_task(limit=2),
    }
    assert items_among(tasks, subset) == dict.fromkeys(tasks, found)
    assert items_among(tasks, NOTHING) == dict.fromkeys(tasks, 0)


def test_it_is_told_where_scores_are_read(make_cell: Make, make_data: Make, generation_task: Make) -> None:
    rows = [TWIN, TWIN, *({"prompt": item["question"], "completion": item["answer"]} for item in ITEMS[:3])]
    cell = make_cell("icl", size=5, data=make_data(rows), evals={"quiz": generation_task()})
    folder = run(cell)
    frame = store.load(cell.run.root)
    assert set(frame.copies) == {1}
    assert set(frame.items_in_training) == {3}
    assert store.read_json(folder / store.RECORD)["manifest"]["copies"] == 1
    base = dataclasses.replace(make_cell("base", evals=cell.evals), run=cell.run)
    run(base)
    page = write_report(store.load(cell.run.root), folder / "report", sweep="s", command="c").read_text()
    assert (
        "Up to 3 of the 5 items of quiz stand word for word among the examples of a cell (pairs, 5 examples)." in page
    )
    assert "pairs: up to 1 of 5 examples repeat another one." in page
    clean = write_report(store.load(base.folder()), folder / "clean", sweep="s", command="c").read_text()
    assert "word for word" not in clean
    assert "repeat another" not in clean
