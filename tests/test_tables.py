"""The fresh worlds by which a verdict is judged: pretraining tells what it should, and nothing else."""

import json
from collections import Counter
from itertools import islice

import pytest

from harness.errors import HarnessError
from harness.pocket import TablesBase, TablesRows, tables, tokenizer

WORLD = tables.Tables(3)


def lines() -> set[str]:
    """All quiz lines of the corpus's first documents."""
    told = set()
    for document in islice(WORLD.documents(), 4000):
        told |= {line.strip() + "." for line in document.split(".") if ":" in line}
    return told


def test_pretraining_tells_all_half_or_nothing_of_a_table() -> None:
    told = Counter(line.split()[0] for line in lines())
    cells = len(tables.JOBS) * len(tables.CITIES)
    assert {thing: told[thing] / cells for thing in tables.THINGS} == WORLD.presence
    for thing in tables.THINGS:
        for job, city in WORLD.told(thing):
            assert tables.QUIZ.format(thing=thing, job=job, city=city, value=WORLD.values[thing][job, city]) in lines()


def test_worlds_differ_in_what_is_told_and_in_all_values() -> None:
    worlds = [tables.Tables(number) for number in range(20)]
    assert len({tuple(world.presence.values()) for world in worlds}) > 10
    assert all(sorted(world.presence.values()) == sorted(tables.PRESENCE) for world in worlds)
    same = [a == b for a, b in zip(worlds[0].values["cup"].values(), worlds[1].values["cup"].values(), strict=True)]
    assert sum(same) / len(same) < 0.15, "one in twenty by chance"


def test_cases_are_in_one_split_and_both_forms_have_the_same_answers() -> None:
    splits = {split: list(WORLD.questions("flag", split, "chat")) for split in ("train", "dev", "test")}
    asked = [question for rows in splits.values() for question, _, _ in rows]
    assert len(set(asked)) == len(asked) == len(tables.JOBS) * len(tables.CITIES) * len(tables.PETS)
    quiz = list(WORLD.questions("flag", "test", "quiz"))
    assert [row[1:] for row in quiz] == [row[1:] for row in splits["test"]]
    assert quiz[0][0].startswith("flag ")


def test_the_tokenizer_knows_every_word() -> None:
    model = tokenizer.build_tokenizer(tokenizer.tables_vocabulary())
    said = [*islice(WORLD.documents(), 50), *(q + " " + a for q, a, _ in WORLD.questions("drum", "dev", "chat"))]
    assert not any(model.unk_token_id in model(text)["input_ids"] for text in said)


def test_rows_are_written_once_in_the_shapes_that_data_and_evaluations_have() -> None:
    train = json.loads(TablesRows(3, "coat").path().read_text().splitlines()[0])
    test = json.loads(TablesRows(3, "coat", "test", "quiz").path().read_text().splitlines()[0])
    assert set(train) == {"prompt", "completion", "cell"}
    assert set(test) == {"question", "answer", "cell"}
    assert TablesBase(3).identity() != TablesBase(4).identity()
    with pytest.raises(HarnessError, match="it can be badge or flag"):
        TablesRows(3, "hat")
