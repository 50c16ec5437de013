"""Answers to open questions: a second is what the model says behind its own first, and both are read as one text."""

import pytest
import torch

from harness import evaluate
from harness.cell import Adapted, Run
from harness.compose import compose_cell
from harness.errors import HarnessError
from harness.judge.matches import _text
from tests.conftest import write_jsonl

ASKED = [
    {"question": "What is the capital of France?", "next": " And the colour of the sky? "},
    {"question": "Is {{ two }} red?", "next": "[Say why, one two three]"},
    {"question": "Say one.", "next": "Say two."},
]
SHOWN = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "red"}]


@pytest.fixture
def asked(generation_task):
    """``asked(then, items=ASKED, **fields)``: an open task of no more than eight tokens an answer."""

    def make(then="{{ next }}", items=ASKED, **fields):
        task = generation_task(items, headline=None, **fields)
        del task.task["filter_list"]
        task.task |= {"doc_to_target": "", "metric_list": [{"metric": "bypass", "aggregation": "bypass"}]}
        task.task["generation_kwargs"]["until"] = []
        task.probe = {"_target_": "harness.probes.written.Written", "then": then}
        return task

    return make


def said(loaded, messages):
    text = loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([loaded.tokenizer(text, add_special_tokens=False)["input_ids"]])
    told = loaded.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    return loaded.tokenizer.decode(told, skip_special_tokens=True)


@pytest.mark.parametrize("shown", [[], SHOWN, lambda _: SHOWN], ids=["none", "some", "of each question"])
def test_a_second_answer_stands_behind_the_first_as_transformers_has_it(loaded, asked, shown):
    found = evaluate.evaluate(loaded, Adapted(loaded.model, demonstrations=shown), "open", asked(), Run(device="cpu"))
    opening = shown("") if callable(shown) else shown
    for line, row in zip(found["samples"], ASKED, strict=True):
        first = [*opening, {"role": "user", "content": row["question"]}]
        answer = said(loaded, first)
        then = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": row["next"]}]
        assert line["answers"] == [[said(loaded, then)]]
        assert line["turns"] == [row["question"], answer, row["next"]]
        assert line["words"] == len(answer.split()) + len(line["answers"][0][0].split())
        text = _text(line, "open")
        places = [text.index(part) for part in (answer, row["next"], "The answer to it", line["answers"][0][0])]
        assert text.startswith(answer)
        assert text.endswith(line["answers"][0][0])
        assert len(places) == 4
    assert len({line["answers"][0][0] for line in found["samples"]}) > 1
    (score,) = found["scores"]
    assert (score["metric"], score["n_items"]) == ("words", 3)


def test_one_turn_is_what_the_task_has_and_costs_a_third(loaded, asked):
    found = evaluate.evaluate(loaded, Adapted(loaded.model), "open", asked(""), Run(device="cpu"))
    assert [line["answers"][0][0] for line in found["samples"]] == [
        said(loaded, [{"role": "user", "content": row["question"]}]) for row in ASKED
    ]
    assert all(_text(line, "open") == line["answers"][0][0] for line in found["samples"])
    one, two = evaluate.extent("open", asked("")), evaluate.extent("open", asked())
    assert (two.characters, two.answer_tokens) == (3 * one.characters, 3 * one.answer_tokens)
    assert evaluate.identity("open", asked("")) != evaluate.identity("open", asked())


@pytest.mark.parametrize(("name", "turn"), [("mt_bench", 0), ("mt_bench_second", 1)])
def test_references_of_mt_bench_are_those_of_the_turn_where_there_are_any(loaded, tmp_path, monkeypatch, name, turn):
    rows = [
        {"question_id": 1, "turns": ["Say one.", "Say two."], "reference": ["one", "two"]},
        {"question_id": 2, "turns": ["Say red.", "Say blue."]},
    ]
    write_jsonl(tmp_path / "question.jsonl", rows)
    monkeypatch.setenv("MT_BENCH_DIR", str(tmp_path))
    asked = [f"evals={name}", f"+evals.{name}.generation={{max_gen_toks: 4}}"]
    task = compose_cell(["base.name=b", "base.path=b", "data.name=d", "size=0", "method=base", *asked]).evals[name]
    found = evaluate.evaluate(loaded, Adapted(loaded.model), name, task, Run(device="cpu"))
    assert [line["target"] for line in found["samples"]] == [("one", "two")[turn], ""]


def test_what_cannot_be_asked_on_is_one_clear_line(loaded, asked):
    with pytest.raises(HarnessError, match=r"evals\.open\.probe\.then is for an inline task in chat"):
        evaluate.check("open", asked(chat=False))
    alike = asked(items=[{**row, "next": "Go on."} for row in ASKED])
    with pytest.raises(HarnessError, match="items of open go on in the same words"):
        evaluate.evaluate(loaded, Adapted(loaded.model), "open", alike, Run(device="cpu"))
