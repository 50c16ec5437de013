"""In-context learning: which demonstrations, in which order, before which question."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from harness import evaluate
from harness.cell import Adapted, Data, Form, Run, Source, Turn
from harness.data.nearest import Nearest
from harness.data.subset import Example, load_dataset
from harness.data.urial import UrialPrompt
from harness.errors import HarnessError
from harness.methods.icl import InContext
from harness.prompts import as_plain_text, with_demonstrations
from tests.conftest import ITEMS, pair_form, pairs, write_jsonl

TEXTS = ["the cat sat", "a dog sat on the big red mat", "cat and cat", "", "the dog"]


def example(*turns: str) -> Example:
    """Of alternating turns; a first one in brackets is the system's."""
    roles = ("system", "user", "assistant") if turns[0].startswith("[") else ("user", "assistant")
    return Example("x", "s", tuple({"role": r, "content": t} for r, t in zip(roles, turns, strict=True)))


def test_nearest_is_bm25() -> None:
    """Against the formula, written out for one word: of "cat", in 2 of 5 texts, the text with more of it wins."""
    mean = (3 + 8 + 3 + 0 + 2) / 5
    once, twice = (n * 2.5 / (n + 1.5 * (0.25 + 0.75 * 3 / mean)) for n in (1, 2))
    assert twice > once
    assert Nearest(TEXTS)("CAT?", 5) == [2, 0, 1, 3, 4]  # then those that share nothing, in their order
    rarity = {"the": math.log(1 + 2.5 / 3.5), "sat": math.log(1 + 3.5 / 2.5)}
    assert rarity["sat"] > rarity["the"]
    assert Nearest(TEXTS)("the sat", 2) == [0, 1]
    assert Nearest(TEXTS)("nothing of these", 2) == [0, 1]
    assert Nearest([])("cat", 2) == []


def test_each_question_is_shown_the_examples_nearest_to_it_the_nearest_last() -> None:
    examples = [example(q, f"answer {i}") for i, q in enumerate(TEXTS[:3])]
    shown = InContext(retrieve=2).demonstrations(examples)
    assert callable(shown)
    assert [m["content"] for m in shown("cat cat")] == ["the cat sat", "answer 0", "cat and cat", "answer 2"]
    assert [m["content"] for m in shown("big mat")][-1] == "answer 1"
    history = [{"role": "user", "content": "dog mat?"}, {"role": "assistant", "content": "It"}]  # an answer's beginning
    assert with_demonstrations(history, shown)[-4:] == [*examples[1].messages, *history]
    assert len(InContext(retrieve=9).demonstrations(examples)("cat")) == 6  # type: ignore[operator]
    with pytest.raises(HarnessError, match="works in chat only"):
        as_plain_text(shown)
    with pytest.raises(HarnessError, match=r"method\.retrieve=-1"):
        InContext(retrieve=-1).check()


def test_retrieved_demonstrations_reach_the_model(loaded: Any, generation_task: Any) -> None:
    examples = [example("Which capital has France?", "Paris."), example("Which colour has the sky?", "blue.")]
    shown = InContext(retrieve=1).demonstrations(examples)
    task = generation_task(ITEMS[:2])
    first = evaluate.first_prompt(loaded.tokenizer, shown, "mine", task)
    assert "Which capital has France?" in first
    assert "Which colour has the sky?" not in first
    result = evaluate.evaluate(loaded, Adapted(loaded.model, shown), "mine", task, Run())
    alone = evaluate.evaluate(loaded, Adapted(loaded.model), "mine", task, Run())
    hashes = [[s["prompt_hash"] for s in r["samples"] if s["filter"] == "strict"] for r in (result, alone)]
    assert len({*hashes[0], *hashes[1]}) == 4


def test_a_shared_system_turn_opens_the_dialogue_if_asked_for() -> None:
    examples = [example("[be brief]", "a", "b"), example("[be brief]", "c", "d")]
    opened = InContext(system=True).demonstrations(examples)
    assert [m["role"] for m in opened] == ["system", *["user", "assistant"] * 2]  # type: ignore[union-attr]
    assert InContext(system=True, retrieve=1).demonstrations(examples)("c")[0]["role"] == "system"  # type: ignore[operator]
    assert as_plain_text(opened) == "[be brief]\n\na b\n\nc d\n\n"
    for others in ([example("[else]", "c", "d")], [example("c", "d")]):
        with pytest.raises(HarnessError, match="one and the same system turn"):
            InContext(system=True).demonstrations([*examples, *others])
    history = [{"role": "system", "content": "the task's"}, {"role": "user", "content": "q"}]
    with pytest.raises(HarnessError, match=r"set method\.system=false"):
        with_demonstrations(history, opened)


def test_a_dataset_in_the_order_of_its_file(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(9))
    source = Source(path=str(file), form=pair_form())
    fixed = load_dataset(Data("fixed", {"a": source}, order="file"))
    for seed in (0, 1):
        told = [e.messages[0]["content"] for e in fixed.subset(4, seed)]
        assert told == [row["prompt"] for row in pairs(4)]
    assert fixed.manifest(fixed.subset(4, 0), 0)["rule"] == "as in the file"
    for wrong in (Data("x", {"a": source, "b": source}, order="file"), Data("x", {"a": source}, order="sorted")):
        with pytest.raises(HarnessError, match=r"data\.order="):
            load_dataset(wrong)


PROMPT = """# Instruction

Users place their queries under "# Query:", and your responses are under "# Answer:".
Be kind.

# Query:
```What is red?```

# Answer:
```
Red is a colour.

# Not a heading of ours
```

# Query:
```
And blue?
```

# Answer:
```
Another.
```
"""


def test_a_prompt_file_of_urial(tmp_path: Path) -> None:
    file = tmp_path / "inst.txt"
    file.write_text(PROMPT)
    prompt = UrialPrompt(str(file))
    rows = [json.loads(line) for line in prompt.path().read_text().splitlines()]
    assert [r["question"] for r in rows] == ["What is red?", "And blue?"]
    assert [r["answer"] for r in rows] == ["Red is a colour.\n\n# Not a heading of ours", "Another."]
    assert {r["system"].splitlines()[-1] for r in rows} == {"Be kind."}
    before = prompt.identity()
    file.write_text(PROMPT.replace("Another.", "A colour."))
    assert prompt.identity() != before
    file.write_text(PROMPT.replace("# Answer:\n```\nAnother.\n```\n", "# Query:\n"))
    with pytest.raises(HarnessError, match="has not URIAL's form"):
        prompt.path()
    with pytest.raises(HarnessError, match=r"is not a file; .*Re-Align/URIAL"):
        UrialPrompt(str(tmp_path / "none.txt")).identity()


def test_texts_of_user_and_assistant_by_turns_and_rows_left_out(tmp_path: Path) -> None:
    """As in LIMA's own file; and as in Alpaca, some of whose outputs are empty."""
    rows: list[dict[str, Any]] = [{"conversations": ["a", "b", "c", "d"]}, {"conversations": ["e", " "]}]
    file = write_jsonl(tmp_path / "lima.jsonl", rows)
    form = Form(conversation="conversations", role_key="from", content_key="value", drop_empty=True)
    data = load_dataset(Data("lima", {"lima": Source(path=str(file), form=form)}))
    (only,) = data.subset(1, 0)
    assert [m["content"] for m in only.messages] == ["a", "b", "c", "d"]
    assert [m["role"] for m in only.messages] == ["user", "assistant"] * 2
    assert len(data) == 1
    assert data.manifest(data.subset(1, 0), 0)["sources"]["lima"]["left_out"] == 1
    form.drop_empty = False
    with pytest.raises(HarnessError, match=r"lima\.jsonl:2: the last turn .* form\.drop_empty"):
        load_dataset(Data("lima", {"lima": Source(path=str(file), form=form)}))
    both = Form(
        turns=[Turn("user", "{{ q }}"), Turn("chosen", "{{ c }}"), Turn("rejected", "{{ r }}")], drop_empty=True
    )
    pair = write_jsonl(tmp_path / "pairs.jsonl", [{"q": "a", "c": "", "r": "x"}, {"q": "a", "c": "b", "r": "c"}])
    assert len(load_dataset(Data("pairs", {"p": Source(path=str(pair), form=both)}))) == 1
