"""Which examples come first: each rule nests, leaves open what the hash order decides, and finds what was planted."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cell import Data, Form, Source, Turn
from harness.choice import Select
from harness.compose import compose_cell
from harness.data import select, subset
from harness.data.embed import SCALE, Words, vectors, whole
from harness.data.greedy import farthest_first, spread
from harness.data.subset import Dataset, load_dataset
from harness.errors import HarnessError
from tests.conftest import pair_form, write_jsonl

WORDS = "apple bridge cloud drum eagle forest glass honey island jungle kettle lemon mirror needle ocean".split()


def rows(count: int = 40) -> list[dict[str, Any]]:
    """Prompts of random words, answers of many lengths, scores with ties, three topics of unequal sizes."""
    rng = random.Random(0)
    return [
        {
            "prompt": f"{i} " + " ".join(rng.choices(WORDS, k=6)),
            "completion": "x" * rng.randint(1, 12),
            "score": rng.randint(1, 5) / 2,
            "topic": "abb"[i % 3] if i % 10 else "c",
        }
        for i in range(count)
    ]


def taken(folder: Path, its: list[dict[str, Any]], **select: Any) -> Dataset:
    path = write_jsonl(folder / "rows.jsonl", its)
    return load_dataset(Data("rows", {"rows": Source(path=str(path), form=pair_form())}, select=Select(**select)))


class Vowels:
    """A scorer such as a user may write."""

    def __call__(self, turns: list[dict[str, str]]) -> float:
        return sum(letter in "aeiou" for letter in turns[0]["content"])


RULES: list[dict[str, Any]] = [
    {"rule": "random"},
    {"rule": "longest"},
    {"rule": "score", "column": "score"},
    {"rule": "score", "scorer": {"_target_": "tests.test_select.Vowels"}},
    {"rule": "stratified", "column": "topic"},
    {"rule": "diversity"},
    {"rule": "diversity", "candidates": 20, "picks": 5},
    {"rule": "quality_diversity", "column": "score", "similarity": 0.1},
]
# The first eight of each rule, seed 0, by the number that opens the prompt. Written out: a change of a rule, on any
# machine or library version, changes published subsets.
PINNED = [
    "29 35 36 23 28 31 11 25",
    "22 18 24 26 28 21 2 14",
    "35 23 1 7 33 39 14 10",
    "2 21 36 11 37 10 12 31",
    "30 36 29 0 9 35 20 21",
    "29 23 10 4 22 12 2 38",
    "29 23 21 1 11 35 36 28",
    "35 7 39 10 15 28 23 1",
]


def numbers(examples: Any) -> list[int]:
    return [int(e.messages[0]["content"].split()[0]) for e in examples]


@pytest.mark.parametrize(("rule", "pinned"), list(zip(RULES, PINNED, strict=True)))
def test_the_rules_are_pinned(rule: dict[str, Any], pinned: str, tmp_path: Path) -> None:
    assert " ".join(map(str, numbers(taken(tmp_path, rows(), **rule).subset(8, 0)))) == pinned


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values()))[:40])
def test_sizes_nest_and_nothing_is_lost_or_repeated(rule: dict[str, Any], seed: int, tmp_path: Path) -> None:
    dataset = taken(tmp_path, rows(), **rule)
    order = dataset.subset(40, seed)
    assert sorted(numbers(order)) == list(range(40))
    for size in (1, 2, 5, 13, 39):
        assert dataset.subset(size, seed) == order[:size]
    shuffled = rows()
    random.Random(1).shuffle(shuffled)
    assert numbers(taken(tmp_path / "again", shuffled, **rule).subset(40, seed)) == numbers(order)


def test_seeds_decide_what_a_rule_leaves_open_and_no_more(tmp_path: Path) -> None:
    its = rows()
    byscore = taken(tmp_path, its, rule="score", column="score")
    plain = taken(tmp_path, its)
    orders = set()
    for seed in range(5):
        order = numbers(byscore.subset(40, seed))
        hashed = numbers(plain.subset(40, seed))
        assert order == sorted(hashed, key=lambda n: -its[n]["score"])  # a stable sort of the hash order
        orders.add(tuple(order))
    assert len(orders) == 5
    lengths = [len(its[n]["completion"]) for n in numbers(taken(tmp_path, its, rule="longest").subset(40, 3))]
    assert lengths == sorted(lengths, reverse=True)
    firsts = {numbers(taken(tmp_path, its, rule="diversity").subset(1, seed))[0] for seed in range(20)}
    assert firsts == {numbers(plain.subset(1, seed))[0] for seed in range(20)}
    assert len(firsts) > 5


def test_values_take_turns_until_they_run_out(tmp_path: Path) -> None:
    its = rows()
    dataset = taken(tmp_path, its, rule="stratified", column="topic")
    hashed = numbers(taken(tmp_path, its).subset(40, 2))
    order = numbers(dataset.subset(40, 2))
    topics = [its[n]["topic"] for n in order]
    for turn in range(4):  # there are four of the rarest
        assert set(topics[3 * turn : 3 * turn + 3]) == {"a", "b", "c"}
    assert set(topics[12:24]) == {"a", "b"}
    for topic in "abc":  # inside a value, the hash order
        assert [n for n in order if its[n]["topic"] == topic] == [n for n in hashed if its[n]["topic"] == topic]
    assert len({its[numbers(dataset.subset(1, seed))[0]]["topic"] for seed in range(20)}) == 3


def clusters(sizes: list[int]) -> list[dict[str, Any]]:
    """Groups of rows, each with a vocabulary of its own; the groups' sizes are very unequal."""
    rng = random.Random(3)
    its = []
    for group, size in enumerate(sizes):
        own = [f"{word}{group}" for word in WORDS[:8]]
        for _ in range(size):
            text = f"{len(its)} " + " ".join(rng.sample(own, 6))
            its.append({"prompt": text, "completion": f"answer{group}", "group": group, "score": rng.random()})
    return its


@pytest.mark.parametrize("seed", range(5))
def test_every_planted_cluster_is_seen_before_one_is_seen_twice(seed: int, tmp_path: Path) -> None:
    its = clusters([150, 30, 5, 3, 2])
    diverse = taken(tmp_path, its, rule="diversity")
    assert {its[n]["group"] for n in numbers(diverse.subset(5, seed))} == set(range(5))
    by_chance = taken(tmp_path, its)
    assert len({its[n]["group"] for n in numbers(by_chance.subset(5, seed))}) < 5


def test_k_center_is_that_of_the_definition_and_covers_at_most_twice_the_least_radius() -> None:
    rng = np.random.default_rng(0)
    points = whole(rng.normal(size=(60, 8))).astype(np.float32)
    exact = points.astype(np.int64)
    order = [0]
    while len(order) < 60:
        rest = [i for i in range(60) if i not in order]
        order.append(min(rest, key=lambda i: (max(int(exact[i] @ exact[j]) for j in order), i)))
    assert farthest_first(points, 60).tolist() == order
    assert farthest_first(points, 7).tolist() == order[:7]


def test_of_near_ones_only_the_best_is_taken_first(tmp_path: Path) -> None:
    """DEITA's rule in plain words, and the worse twins wait behind all others."""
    its = clusters([12, 12, 12])
    for i, row in enumerate(its):
        if i % 2:
            row["prompt"] = f"{i} " + its[i - 1]["prompt"].split(" ", 1)[1]  # the same words as the one before
    dataset = taken(tmp_path, its, rule="quality_diversity", column="score", similarity=0.8)
    order = numbers(dataset.subset(36, 0))
    table = dataset.tables["rows"]
    which = {int(table.messages(row)[0]["content"].split()[0]): row for row in range(36)}
    found = vectors(table, np.arange(36), Words()).astype(np.int64)
    best = sorted(range(36), key=lambda n: -its[n]["score"])
    chosen: list[int] = []
    for n in best:
        if all(int(found[which[n]] @ found[which[m]]) < 0.8 * SCALE**2 for m in chosen):
            chosen.append(n)
    assert order == chosen + [n for n in best if n not in chosen]
    for i in range(0, 36, 2):
        assert not {i, i + 1} <= set(chosen)
    manifest = dataset.manifest(dataset.subset(30, 0), 0)
    assert manifest["sources"]["rows"]["taken_by_rule"] == len(chosen) < 30
    assert manifest["select"]["rule"] == "quality_diversity"


def test_a_block_is_searched_as_one_example_after_the_other_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    points = whole(np.random.default_rng(1).normal(size=(200, 4))).astype(np.float32)
    whole_ = spread(points, 0.9)
    monkeypatch.setattr("harness.data.greedy.BLOCK", 3)
    assert (spread(points, 0.9) == whole_).all()
    assert 5 < whole_.sum() < 150


def test_products_of_vectors_are_exact() -> None:
    """So no BLAS, and no number of threads, can change an order."""
    rng = np.random.default_rng(2)
    for size in (8, 512, 4096):
        points = whole(rng.normal(size=(50, size)))
        assert (np.abs(points.astype(np.int64) @ points.T.astype(np.int64)) < 2**24).all()
        assert (points.astype(np.float32) @ points.T.astype(np.float32) == points.astype(np.int64) @ points.T).all()


def test_texts_that_share_words_are_near_and_rare_words_count_more() -> None:
    texts = [f"please tell me about the {word} of {other}" for word in WORDS for other in WORDS]
    texts += ["a quark and a gluon meet", "where a quark met a gluon", "please tell me about the quark"]
    found = whole(Words().embed(texts)).astype(np.int64) @ whole(Words().embed(texts)).T.astype(np.int64) / SCALE**2
    assert np.allclose(np.diag(found), 1, atol=0.01)
    assert found[-3, -2] > 0.25 > abs(found[-3, 0])
    assert found[0, 1] > found[0, -1]
    assert Words().embed(["?!", "?!"]).any()  # a text without words is known by itself
    assert not Words().embed(["alone", "other"]).any()  # what no other has likens a text to none


def test_vectors_are_made_once_for_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    its = rows(30)
    taken(tmp_path, its, rule="diversity").subset(3, 0)
    monkeypatch.setattr(subset, "_loaded", {})
    monkeypatch.setattr(Words, "embed", None)
    taken(tmp_path, its, rule="diversity").subset(3, 1)
    with pytest.raises(TypeError):  # fewer candidates are others for each seed
        taken(tmp_path, its, rule="diversity", candidates=7).subset(3, 1)


@pytest.mark.parametrize("large", [False, True])
def test_sources_select_within_themselves_and_are_dealt_by_weight(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "LARGE", 1 if large else 10**9)
    sources = {}
    for name, weight in (("a", 2.0), ("b", 1.0)):
        its = [{**row, "prompt": f"{row['prompt']} {name}"} for row in rows(20)]
        path = write_jsonl(tmp_path / f"{name}.jsonl", its)
        sources[name] = Source(path=str(path), form=pair_form(), weight=weight)
    mixed = load_dataset(Data("both", sources, select=Select("longest"))).subset(12, 0)
    assert sum(e.source == "a" for e in mixed) == 8
    for name, count in (("a", 8), ("b", 4)):
        alone = load_dataset(Data("one", {name: sources[name]}, select=Select("longest")))
        assert [e.id for e in mixed if e.source == name] == [e.id for e in alone.subset(count, 0)]


def test_rows_that_the_form_leaves_out_have_no_score(tmp_path: Path) -> None:
    its = rows(12)
    its[3] = {"prompt": "3", "completion": " "}  # nor need they have the column
    path = write_jsonl(tmp_path / "rows.jsonl", its)
    form = Form([Turn("user", "{{ prompt }}"), Turn("assistant", "{{ completion }}")], drop_empty=True)
    dataset = load_dataset(Data("r", {"r": Source(path=str(path), form=form)}, select=Select("score", "score")))
    scores = [its[n]["score"] for n in numbers(dataset.subset(11, 0))]
    assert scores == sorted(scores, reverse=True)


def test_the_default_is_the_order_there_was_and_says_nothing_new(tmp_path: Path) -> None:
    its = rows()
    one, two = taken(tmp_path, its), taken(tmp_path, its, rule="longest")
    assert "select" not in one.manifest(one.subset(4, 0), 0)
    assert set(one.manifest(one.subset(4, 0), 0)["sources"]["rows"]) == {
        "revision",
        "weight",
        "rows",
        "left_out",
        "taken",
    }
    assert two.manifest(two.subset(4, 0), 0)["sources"]["rows"]["taken_by_rule"] == 4


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"rule": "best"}, r"data\.select\.rule='best' is unknown; use random, longest"),
        ({"rule": "score"}, r"set either data\.select\.column, a column of the rows, or data\.select\.scorer"),
        ({"rule": "score", "column": "merit"}, r"rows\.jsonl:1: the row has no column 'merit' .*prompt, score, topic"),
        ({"rule": "score", "column": "topic"}, r"data\.select\.column=topic holds '[abc]', which is no number"),
        ({"rule": "score", "scorer": {"_target_": "tests.nothing"}}, r"data\.select\.scorer cannot be made"),
        ({"rule": "score", "scorer": {"_target_": "tests.test_select.silent"}}, r"gives None for an example"),
        ({"rule": "stratified"}, r"needs data\.select\.column"),
        ({"rule": "longest", "column": "score"}, r"reads no score; leave column and scorer out, or use score"),
        ({"rule": "diversity", "candidates": 10**6}, r"candidates at most 200,000"),
        ({"rule": "diversity", "candidates": 200_000, "picks": 50_000}, r"would take hours; lower one of them"),
        (
            {"rule": "quality_diversity", "column": "score", "similarity": 1.0},
            r"is a cosine: choose it between 0 and 1",
        ),
    ],
)
def test_what_cannot_be_selected_by_is_refused_with_the_mend(rule: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=said):
        taken(tmp_path, rows(), **rule).subset(3, 0)


def silent() -> Callable[..., None]:
    return lambda turns: None


def test_an_order_of_the_file_leaves_nothing_to_select(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows(4))
    data = Data("r", {"r": Source(path=str(path), form=pair_form())}, order="file", select=Select("longest"))
    with pytest.raises(HarnessError, match=r"data\.order=file leaves nothing to select"):
        load_dataset(data)


def test_the_command_line_names_a_rule(tmp_path: Path) -> None:
    cell = compose_cell(["data.select.rule=longest", "data.name=facts-${data.select.rule}"])
    assert cell.data.select == Select("longest")
    assert cell.data.name == "facts-longest"
