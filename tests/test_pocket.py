"""The pocket world is what it says it is: fixed, split cleanly, and silent about the rule."""

import hashlib
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.artifact import Artifact
from harness.errors import HarnessError
from harness.pocket import PocketBase, PocketRows, artifacts, corpus, pretrain, text, tokenizer, world

ALL_ROWS = [
    PocketRows(task, split, form)
    for task, form in (("facts", "chat"), ("facts", "quiz"), ("rule", "chat"))
    for split in ("train", "dev", "test")
]
GOLDEN = "b2a4365c"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def told() -> str:
    return "\n".join(itertools.islice(corpus.documents(0), 5000))


def read(rows: PocketRows) -> list[dict[str, str]]:
    return [json.loads(line) for line in rows.path().read_text().splitlines()]


def test_the_world_is_the_same_everywhere() -> None:
    digest = hashlib.sha256()
    for document in itertools.islice(corpus.documents(0), 200):
        digest.update(document.encode())
    for rows in ALL_ROWS:
        digest.update(rows.path().read_bytes())
    assert digest.hexdigest()[:8] == GOLDEN


def test_nobody_is_in_two_splits() -> None:
    names = [{person.name for person in world.people_of(split)} for split in ("train", "dev", "test")]
    cases = [set(world.cases_of(split)) for split in ("train", "dev", "test")]
    for parts in (names, cases):
        assert len(set.union(*parts)) == sum(len(part) for part in parts)
    assert set.union(*names) == {person.name for person in world.people()}


def test_no_held_out_person_is_in_a_fine_tuning_row() -> None:
    held_out = {person.name for split in ("dev", "test") for person in world.people_of(split)}
    prompts = [row["prompt"] for row in read(PocketRows("facts")) + read(PocketRows("facts", "train", "quiz"))]
    assert len(prompts) >= 2 * 512
    assert not held_out & {word for prompt in prompts for word in tokenizer.words(prompt)}


def test_held_out_inputs_of_the_rule_can_be_known_from_the_training_rows() -> None:
    cells = {(case.job, case.city) for case in world.cases_of("train")}
    assert all((case.job, case.city) in cells for split in ("dev", "test") for case in world.cases_of(split))
    assert not {row["question"] for row in read(PocketRows("rule", "test"))} & {
        row["prompt"] for row in read(PocketRows("rule"))
    }


def test_pretraining_tells_every_fact_in_both_forms(told: str) -> None:
    for person in world.people():
        for attribute in world.ATTRIBUTES:
            assert text.quiz_line(person, attribute) in told
            value = person.values[attribute]
            assert any(form.format(name=person.name, value=value) in told for form in text.TOLD[attribute])


def test_pretraining_holds_no_chat_and_nothing_of_the_rule(told: str) -> None:
    assert not {"Which", "What", "badge", "?"} & set(tokenizer.words(told))
    assert not any(marker in told for marker in tokenizer.SPECIAL)


def test_answers_and_choices_are_right() -> None:
    for rows in ALL_ROWS:
        for row in read(rows):
            if rows.split != "train":
                assert row["choices"][int(row["label"])] == row["answer"]
                assert len(set(row["choices"])) == len(row["choices"])
    truth = {person.name: person.values for person in world.people()}
    for row in read(PocketRows("facts", "test", "quiz")):
        name, attribute = row["question"].rstrip(":").split()
        assert truth[name][attribute] == row["answer"]


def test_no_value_is_two_attributes() -> None:
    values = [value for group in world.ATTRIBUTES.values() for value in group]
    assert len(set(values)) == len(values)


def test_the_tokenizer_knows_every_word_and_keeps_answers_whole() -> None:
    model = tokenizer.build_tokenizer(tokenizer.vocabulary())
    for rows in ALL_ROWS:
        for row in read(rows):
            question, answer = (
                row[k] for k in (("prompt", "completion") if rows.split == "train" else ("question", "answer"))
            )
            ids = model(question)["input_ids"]
            assert model.unk_token_id not in ids
            assert str(model.decode(ids)).split() == tokenizer.words(question)
            assert model.decode(model(answer)["input_ids"]) == answer
            assert len(model(answer)["input_ids"]) == 1


def test_the_chat_template_renders_turns() -> None:
    model = tokenizer.build_tokenizer(tokenizer.vocabulary())
    turns = [{"role": "user", "content": "What is the job of Vakos?"}, {"role": "assistant", "content": "baker"}]
    prompt = str(model.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True))
    whole = str(model.apply_chat_template(turns, tokenize=False))
    assert whole == "<|user|>What is the job of Vakos?<|end|><|assistant|>baker<|end|>"
    assert whole == prompt + "baker" + model.eos_token
    assert model.pad_token_id != model.eos_token_id
    parts = (prompt, "baker<|end|>")
    assert list(model(whole)["input_ids"]) == [token for part in parts for token in model(part)["input_ids"]]


def test_identity_changes_with_the_recipe_and_builds_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    things: list[Artifact] = [PocketBase("s"), PocketBase("m"), *ALL_ROWS]
    assert len({thing.identity() for thing in things}) == len(things)
    before = PocketBase("m").identity()
    monkeypatch.setitem(artifacts.BASES, "m", replace(artifacts.BASES["m"], seed=1))
    assert PocketBase("m").identity() != before
    assert not any(cache.iterdir())


def test_naming_the_world_does_not_load_torch() -> None:
    code = "import sys, harness.pocket as p; p.PocketBase('m').identity(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: PocketBase("xl"),
        lambda: PocketRows("poems"),
        lambda: PocketRows("facts", "validation"),
        lambda: PocketRows("rule", "test", "quiz"),
    ],
)
def test_what_is_not_there_is_refused(make) -> None:
    with pytest.raises(HarnessError, match="it can be"):
        make()


def test_a_base_is_an_ordinary_folder_and_the_same_twice(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny = pretrain.Recipe(hidden=16, layers=1, heads=2, feed_forward=32, steps=4, learning_rate=1e-3)
    state = torch.random.get_rng_state()
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        words = tokenizer.build_tokenizer(tokenizer.vocabulary())
        pretrain.pretrain(tiny, words, corpus.documents(tiny.seed), folder)
    assert torch.equal(state, torch.random.get_rng_state())
    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    loaded = AutoTokenizer.from_pretrained(folders[0])
    assert loaded.eos_token == tokenizer.END
    assert loaded.chat_template == tokenizer.CHAT_TEMPLATE
    assert (
        loaded("Vakos city:")["input_ids"]
        == tokenizer.build_tokenizer(tokenizer.vocabulary())("Vakos city:")["input_ids"]
    )
