"""Copies, near copies and what is asked: found where they were planted, dropped or refused as the policy says."""

import dataclasses
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import findings, store
from harness.cell import Cell, Data, Source, canonical
from harness.choice import Contamination, Dedupe
from harness.commands import eval as eval_command
from harness.data import contamination, duplicates, subset
from harness.data.contamination import COMMON, Index
from harness.data.duplicates import exact_copies, near_copies
from harness.data.overlap import overlap
from harness.data.subset import Dataset, load_dataset
from harness.errors import HarnessError
from harness.identity import fingerprint
from harness.methods import methods
from harness.methods.icl import InContext
from harness.methods.recipe import Recipe, Stage
from harness.run import identity_of, run, subset_of
from tests.conftest import ITEMS, pair_form, pairs, write_jsonl

Make = Callable[..., Any]
ANSWERS = "a longer answer that says something of its own in words which no other row has".split()


def words(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(5000)}" for _ in range(count)]


def planted(rng: random.Random, count: int = 150) -> tuple[list[dict[str, str]], dict[int, int]]:
    """Rows of random words; every third one again with some words changed: (rows, number of a copy -> its original)."""
    rows = [{"prompt": " ".join(words(rng, 60)), "completion": " ".join(words(rng, 5))} for _ in range(count)]
    twins = {}
    for number in range(0, count, 3):
        text = rows[number]["prompt"].split()
        for _ in range(number % 4):  # 0 to 3 of 65 words: an index of 1 to about 0.6
            text[rng.randrange(len(text))] = "other"
        twins[len(rows)] = number
        rows.append({"prompt": " ".join(text).upper(), "completion": rows[number]["completion"] + " !"})
    return rows, twins


def dataset(folder: Path, *sources: list[dict[str, str]], dedupe: Dedupe | None = None) -> Dataset:
    its = {}
    for number, rows in enumerate(sources):
        path = write_jsonl(folder / f"{number}.jsonl", rows)
        its[f"s{number}"] = Source(path=str(path), form=pair_form())
    return load_dataset(Data("rows", its, dedupe=dedupe or Dedupe()))


def jaccard(one: dict[str, str], other: dict[str, str]) -> float:
    def sets(row: dict[str, str]) -> set[tuple[str, ...]]:
        said = "".join(c if c.isalnum() else " " for c in f"{row['prompt']} {row['completion']}".lower()).split()
        return {tuple(said[i : i + 5]) for i in range(len(said) - 4)}

    a, b = sets(one), sets(other)
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_planted_near_copies_are_found_and_nothing_else_is(threshold: float, tmp_path: Path) -> None:
    rows, twins = planted(random.Random(0))
    near = {n for n, original in twins.items() if jaccard(rows[n], rows[original]) >= threshold}
    tables = list(dataset(tmp_path, rows[:100], rows[100:]).tables.values())  # also between two sources
    found = set(np.flatnonzero(near_copies(tables, threshold, np.ones(len(rows), bool))).tolist())
    groups = {frozenset((n, twins[n])) for n in near}
    assert len(found) == len(near) == sum(not group.isdisjoint(found) for group in groups) > 5
    assert len(near) < len(twins) or threshold == 0.5


def test_the_index_of_two_texts_is_that_of_their_sets_of_five_words(tmp_path: Path) -> None:
    rows, _ = planted(random.Random(1), 30)
    texts = duplicates._Texts(list(dataset(tmp_path, rows).tables.values()))
    for one, other in itertools.combinations(range(len(rows)), 2):
        exact = jaccard(rows[one], rows[other])
        if exact:
            assert duplicates._alike(texts, exact - 1e-9, one, other)
            assert not duplicates._alike(texts, exact + 1e-9, one, other)


def test_at_the_threshold_most_pairs_share_a_band() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        width = duplicates._width(threshold)
        assert 1 - (1 - threshold**width) ** (duplicates.PERMUTATIONS // width) >= duplicates.FOUND
    assert duplicates._width(0.8) == 8  # as few proposals as that allows


def test_of_a_chain_one_stays_and_it_is_the_same_wherever_the_rows_stand(tmp_path: Path) -> None:
    base = words(random.Random(2), 80)
    chain = [" ".join([*base[4 * i :], *(f"tail{j}" for j in range(4 * i))]) for i in range(4)]
    rows = [{"prompt": text, "completion": "x"} for text in chain] + pairs(10)
    drop = Dedupe("drop", "drop", 0.8)
    one = dataset(tmp_path / "one", rows, dedupe=drop)
    two = dataset(tmp_path / "two", rows[::-1], dedupe=drop)
    assert len(one) == len(two) == 11
    assert one.subset(11, 0).identity == two.subset(11, 0).identity
    assert jaccard(rows[0], rows[3]) < 0.8 < jaccard(rows[0], rows[1])  # near to a near one


@pytest.mark.parametrize("start", range(8))
def test_of_copies_and_near_copies_of_one_text_one_stays(start: int, tmp_path: Path) -> None:
    """Whatever their ids: a numbered copy's is any hash, and may be smaller than that of the first of its kind."""
    text = " ".join(words(random.Random(start), 60))
    same = {"prompt": text, "completion": "x"}
    data = dataset(
        tmp_path, [same, same, {**same, "prompt": text + " !"}, same, *pairs(5)], dedupe=Dedupe("drop", "drop")
    )
    assert len(data) == 6
    assert data.screened.found == {"exact": 2, "near": 1}
    assert sum(text in e.messages[0]["content"] for e in data.subset(6, 0)) == 1


def test_copies_are_dropped_before_the_order_is_made(tmp_path: Path) -> None:
    twin = {"prompt": "twin", "completion": "twin"}
    rows = [twin, *pairs(8), twin, twin]
    dropped = dataset(tmp_path, rows, [twin, *pairs(3)], dedupe=Dedupe(exact="drop"))
    assert len(dropped) == 9
    assert sum(e.messages[0]["content"] == "twin" for e in dropped.subset(9, 3)) == 1
    assert {e.source for e in dropped.subset(9, 0)} == {"s0"}
    once = dataset(tmp_path / "once", [twin, *pairs(8)])
    assert dropped.subset(9, 5).identity == once.subset(9, 5).identity
    manifest = dropped.manifest(dropped.subset(4, 0), 0)
    assert manifest["found"] == {"exact": 6}
    assert manifest["dropped"] == 6
    assert manifest["of"] == 9
    with pytest.raises(HarnessError, match=r"size=10 is larger than .* which has 9 examples \(6 more were dropped\)"):
        dropped.subset(10, 0)


def test_the_default_drops_nothing_and_says_nothing_new(tmp_path: Path) -> None:
    data = dataset(tmp_path, pairs(4) * 2)
    assert len(data) == 8
    assert not {"found", "dropped"} & set(data.manifest(data.subset(3, 0), 0))


@pytest.mark.parametrize(
    ("dedupe", "said"),
    [
        (Dedupe(exact="fail"), r"2 of the 6 examples of rows repeat another one, and data\.dedupe\.exact is fail"),
        (Dedupe(near="fail"), r"1 of the 6 examples of rows are nearly another one, and data\.dedupe\.near is fail"),
        (Dedupe(exact="throw"), r"data\.dedupe\.exact='throw' is unknown; use report, drop, fail"),
        (Dedupe(near="yes"), r"data\.dedupe\.near='yes' is unknown; use report, drop, fail, or off"),
        (Dedupe(near="drop"), r"set data\.dedupe\.exact=drop beside it"),
        (Dedupe(threshold=0.1), r"data\.dedupe\.threshold=0\.1 must lie between 0\.3 and 1"),
    ],
)
def test_fail_fails_and_what_is_no_policy_is_refused(dedupe: Dedupe, said: str, tmp_path: Path) -> None:
    long = " ".join(ANSWERS)
    rows = [*pairs(3), pairs(3)[0], {"prompt": long, "completion": "x"}, {"prompt": long + ".", "completion": "x"}]
    rows[0] = rows[3] = {"prompt": long, "completion": "x"}
    with pytest.raises(HarnessError, match=said):
        dataset(tmp_path, rows, dedupe=dedupe)


def brute(rows: list[str], items: list[str], count: int) -> set[tuple[int, int]]:
    def grams(text: str) -> set[tuple[str, ...]]:
        said = text.lower().replace(",", " ").split()
        return {tuple(said[i : i + count]) for i in range(len(said) - count + 1)}

    return {(r, i) for r, row in enumerate(rows) for i, item in enumerate(items) if grams(row) & grams(item)}


@pytest.mark.parametrize("count", [5, 6, 13])
def test_words_in_a_row_are_found_wherever_they_stand(count: int) -> None:
    """All that a comparison of every window with every window finds, and no more."""
    rng = random.Random(count)
    items = [" ".join(words(rng, rng.randint(3, 40))) for _ in range(60)]
    rows = []
    for number in range(400):
        text = words(rng, rng.randint(0, 40))
        if number % 2:
            item = rng.choice(items).split()
            length = rng.randint(max(1, count - 3), count + 3)
            start = rng.randint(0, max(0, len(item) - length))
            text[5:5] = [word.upper() + "," for word in item[start : start + length]]
        rows.append(" ".join(text))
    index = Index([[item] for item in items], count)
    found = {(r, i) for r, row in enumerate(rows) for i in index.found_in([{"role": "assistant", "content": row}])}
    assert found == brute(rows, items, count)
    assert 50 < len(found) < 200


def test_what_stands_in_many_items_tells_none_of_them() -> None:
    form = " ".join(f"form{i}" for i in range(13))
    for count in (COMMON, COMMON + 1):
        index = Index([[f"{form} item{i}"] for i in range(count)], 13)
        assert len(index.found_in([{"role": "assistant", "content": form}])) == (count if count == COMMON else 0)


def test_words_do_not_run_on_from_turn_to_turn_and_a_short_question_is_known_whole() -> None:
    said = words(random.Random(4), 14)
    index = Index([[" ".join(said)], ["What is 2 + 3?"]], 13)
    halves = [{"role": "user", "content": " ".join(said[:7])}, {"role": "assistant", "content": " ".join(said[7:])}]
    assert not index.found_in(halves)
    assert index.found_in([{"role": "user", "content": " what is 2 +  3?"}]) == {1}
    assert not index.found_in([{"role": "assistant", "content": "What is 2 + 3?"}])  # an answer is no question


@pytest.mark.parametrize("large", [False, True])
def test_an_overlap_is_of_the_examples_that_are_taken(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contamination, "LARGE", 1 if large else 10**9)
    monkeypatch.setattr("harness.data.overlap.LARGE", 1 if large else 10**9)
    items = [" ".join(words(random.Random(i), 20)) for i in range(5)]
    rows = [{"prompt": f"{i} {items[i % 5]}", "completion": "x"} for i in range(10)] + pairs(10)
    data, index = dataset(tmp_path, rows), Index([[item] for item in items], 13)
    for size in (1, 4, 11, 20):
        some = data.subset(size, 0)
        held = [int(e.messages[0]["content"].split()[0]) % 5 for e in some if " w" in e.messages[0]["content"]]
        assert overlap(some, index) == {"examples": len(held), "items": len(set(held))}
    assert overlap(data.subset(20, 0), index) == {"examples": 10, "items": 5}


@pytest.fixture
def contaminated(make_cell: Make, make_data: Make, generation_task: Make) -> Callable[..., Cell]:
    """``contaminated(policy)``: icl from 30 clean rows and three that ask what the evaluation asks."""

    def make(policy: str, **fields: Any) -> Cell:
        asked = [{"prompt": item["question"], "completion": "x"} for item in ITEMS[:3]]
        data = make_data([*pairs(30), *asked], "mixed")
        data.contamination = Contamination(policy)
        method = InContext(retrieve=1)
        default = {"method": method, "data": data, "size": 8, "evals": {"quiz": generation_task()}}
        return canonical(make_cell(**default | fields))

    return make


def test_planted_items_are_told_dropped_or_refused(contaminated: Callable[..., Cell]) -> None:
    reported = contaminated("report", size=33)
    (found,) = findings.findings([contaminated("report"), reported])
    assert found["overlap"] == {"quiz": {"words": 13, "examples": 3, "items": 3}}
    assert "mixed, 33 examples (subset seed 0): 0 repeat another one; 3 hold 13 words" in findings.line(found)
    dropped = contaminated("drop", size=30)
    questions = {item["question"] for item in ITEMS}
    assert not questions & {e.messages[0]["content"] for e in subset_of(dropped)}
    (found,) = findings.findings([dropped])
    assert (found["found"], found["dropped"]) == ({"contaminated": 3}, 3)
    assert found["overlap"]["quiz"]["examples"] == 0
    assert findings.line(found).endswith("; of all rows 3 contaminated, 3 dropped")
    with pytest.raises(HarnessError, match=r"3 of the 33 examples of mixed hold what quiz asks, and .* is fail"):
        subset_of(contaminated("fail"))
    with pytest.raises(HarnessError, match="size=31 is larger"):
        subset_of(contaminated("drop", size=31))


def test_the_policy_is_in_the_identity_where_it_is_not_the_default(contaminated: Callable[..., Cell]) -> None:
    plain, dropped = contaminated("report"), contaminated("drop")
    assert set(identity_of(plain, subset_of(plain))["data"]) == {"name", "subset"}
    assert identity_of(dropped, subset_of(dropped))["data"]["contamination"] == {
        "policy": "drop",
        "words": 13,
        "against": ["quiz"],
    }
    for rule in (Dedupe(exact="drop"), Dedupe(near="report")):
        other = dataclasses.replace(plain, data=dataclasses.replace(plain.data, dedupe=rule))
        assert identity_of(other, subset_of(other))["data"]["dedupe"] == dataclasses.asdict(rule)


def test_an_evaluation_added_later_is_reported_and_changes_no_subset(
    contaminated: Callable[..., Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`harness eval` keeps the data as the record has it; in the configuration it would be another cell, as is said."""
    cell = contaminated("drop", size=30)
    folder = run(cell)
    manifest = store.read_json(folder / store.RECORD)["manifest"]
    assert (manifest["found"], manifest["dropped"]) == ({"contaminated": 3}, 3)
    assert manifest["overlap"] == {"quiz": {"words": 13, "examples": 0, "items": 0}}
    items = [{"question": pairs(30)[7]["prompt"], "answer": "x"}]
    (more := tmp_path / "conf" / "evals").mkdir(parents=True)
    file = write_jsonl(tmp_path / "more.jsonl", items)
    task = dataclasses.asdict(cell.evals["quiz"])["task"]
    (more / "more.yaml").write_text(f"more: {{task: {dict(task)!r}, file: {file}}}".replace("True", "true"))
    monkeypatch.setattr(subset, "_loaded", {})
    arguments = [cell.run.root, "evals=more", "run.device=cpu", "run.threads=1", "wandb.mode=disabled"]
    assert eval_command.main([*arguments, "--config-dir", str(tmp_path / "conf")]) == 0
    (score,) = folder.glob("evals/more/*.json")
    assert store.read_result(score)["overlap"] == {"words": 13, "examples": 1, "items": 1}
    again = canonical(dataclasses.replace(cell, evals={**cell.evals, "more": dataclasses.replace(cell.evals["quiz"])}))
    with pytest.raises(HarnessError, match=r"data\.contamination\.against: quiz -> more,quiz"):
        run(again)


def test_stages_of_a_recipe_are_screened_like_the_cell(contaminated: Callable[..., Cell]) -> None:
    cell = contaminated("drop")
    sft = methods()["sft"]
    recipe = Recipe(stages={"one": Stage(sft(), cell.data, 30), "two": Stage(sft())})
    recipe.stages["one"].data = dataclasses.replace(cell.data, contamination=Contamination("drop"))
    whole = canonical(dataclasses.replace(cell, method=recipe))
    first, second = whole.method.parts(whole)
    assert first.data.contamination.against == second.data.contamination.against != {}
    assert len(load_dataset(first.data)) == 30


def test_data_left_at_its_defaults_is_named_as_before(make_data: Make) -> None:
    """The folders of recipes hash their stages' data."""
    data = make_data()
    assert set(data.settings()) == {"name", "sources", "licence", "order"}
    data.dedupe = Dedupe(exact="drop")
    assert fingerprint(data.settings()) != fingerprint(make_data().settings())
    assert set(data.settings()) == {"name", "sources", "licence", "order", "dedupe"}


def test_exact_copies_are_those_that_the_ids_number(tmp_path: Path) -> None:
    rows = [random.Random(n).choice(pairs(9)) for n in range(60)]
    tables = list(dataset(tmp_path, rows[:40], rows[40:]).tables.values())
    first = {row["prompt"]: n for n, row in reversed(list(enumerate(rows)))}
    assert set(np.flatnonzero(~exact_copies(tables)).tolist()) == set(first.values())
