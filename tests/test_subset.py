"""Which examples: the order is pinned, sizes nest, and nothing about the file's form or place matters."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from harness.artifact import cache_dir
from harness.cell import Data, Source
from harness.data import order, subset
from harness.data import table as tables
from harness.data.subset import Dataset, load_dataset, subset_identity
from harness.errors import HarnessError
from tests.conftest import pair_form, pairs, write_jsonl

Make = Callable[..., Data]


@pytest.fixture
def dataset(make_data: Make) -> Dataset:
    return load_dataset(make_data())


def mixture(folder: Path, sizes: dict[str, int], weights: dict[str, float]) -> Dataset:
    sources = {}
    for name, size in sizes.items():
        rows = [{"prompt": f"{name} {i}", "completion": f"{i}"} for i in range(size)]
        path = write_jsonl(folder / f"{name}.jsonl", rows)
        sources[name] = Source(path=str(path), form=pair_form(), weight=weights[name])
    return load_dataset(Data(name="mixture", sources=sources))


PINNED = {
    0: ["651b506c576c1958", "8c1b39fbf1b021dc", "6511e5eb755aeeb9", "a5ba3bd233d52d5e"],
    1: ["785db746f708e3bb", "51d475cfcab22ee5", "10bd9e4e04253610", "a5ba3bd233d52d5e"],
}
PINNED_IDENTITY = "9814b1ebef679aa5"


def test_the_rule_is_pinned(dataset: Dataset) -> None:
    """Written out: any change of the rule, on any machine or library version, changes published subsets."""
    chosen = [e.id for e in dataset.subset(4, 0)]
    assert [i[:16] for i in chosen] == PINNED[0]
    assert [e.id[:16] for e in dataset.subset(4, 1)] == PINNED[1]
    assert subset_identity(dataset.subset(4, 0))[:16] == PINNED_IDENTITY
    # the same from scratch: canonical JSON of the turns, then the order of sha256("seed:id")
    texts = (
        f'[{{"content":"{p["prompt"]}","role":"user"}},{{"content":"{p["completion"]}","role":"assistant"}}]'
        for p in pairs(32)
    )
    ids = [hashlib.sha256(t.encode()).hexdigest() for t in texts]
    assert chosen == sorted(ids, key=lambda i: hashlib.sha256(f"0:{i}".encode()).hexdigest())[:4]


@pytest.mark.parametrize("seed", [0, 1, 7, 123456])
def test_sizes_nest(dataset: Dataset, seed: int) -> None:
    whole = dataset.subset(32, seed)
    for size in range(1, 33):
        assert dataset.subset(size, seed) == whole[:size]
    assert len({e.id for e in whole}) == 32


def test_seeds_give_different_orders(dataset: Dataset) -> None:
    orders = {tuple(e.id for e in dataset.subset(32, seed)) for seed in range(20)}
    assert len(orders) == 20
    firsts = Counter(dataset.subset(1, seed)[0].id for seed in range(640))
    assert len(firsts) == 32  # every example comes first now and then
    assert max(firsts.values()) < 60


def test_neither_the_order_of_the_rows_nor_the_place_of_the_file_matters(make_data: Make, tmp_path: Path) -> None:
    shuffled = pairs(32)
    random.Random(0).shuffle(shuffled)
    there = write_jsonl(tmp_path / "elsewhere" / "other.jsonl", [{"extra": 1, **r} for r in shuffled])
    moved = Data(name="moved", sources={"other": Source(path=str(there), form=pair_form())})
    one, two = load_dataset(make_data()).subset(32, 3), load_dataset(moved).subset(32, 3)
    assert [e.messages for e in one] == [e.messages for e in two]
    assert subset_identity(one) == subset_identity(two)


def test_identity_sees_a_changed_turn_and_a_changed_order(dataset: Dataset, make_data: Make) -> None:
    chosen = dataset.subset(8, 0)
    assert subset_identity(chosen) != subset_identity(chosen[::-1])
    rows = pairs(32)
    rows[5]["completion"] += " "
    changed = load_dataset(make_data(rows, "changed"))
    assert subset_identity(changed.subset(32, 0)) != subset_identity(dataset.subset(32, 0))


def test_duplicates_are_kept_apart_the_same_way_each_time(make_data: Make, tmp_path: Path) -> None:
    """Three equal rows are three examples, and where they stand in the file does not matter."""
    twin = {"prompt": "twin", "completion": "twin"}
    one = load_dataset(make_data([twin, *pairs(5), twin, twin], "one"))
    two = load_dataset(make_data([*pairs(5), twin, twin, twin], "two"))
    ids = [e.id for e in one.subset(8, 0)]
    assert len(set(ids)) == 8
    assert ids == [e.id for e in two.subset(8, 0)]
    assert sum(e.messages[0]["content"] == "twin" for e in one.subset(8, 0)) == 3
    single = load_dataset(make_data([*pairs(5), twin], "single"))
    assert {e.id for e in single.subset(6, 0)} < set(ids)  # the first copy keeps the id it has alone


@pytest.mark.parametrize(
    "weights",
    [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}, {"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 5.0, "b": 3.0, "c": 1.0}],
)
def test_each_prefix_of_a_mixture_has_the_ratio_of_the_weights(tmp_path: Path, weights: dict[str, float]) -> None:
    sizes = dict.fromkeys(weights, 60)
    data = mixture(tmp_path, sizes, weights)
    total = sum(weights.values())
    order = data.subset(len(data), 0)
    counts = dict.fromkeys(weights, 0)
    for n, example in enumerate(order, 1):
        counts[example.source] += 1
        for source, weight in weights.items():
            assert abs(counts[source] - n * weight / total) <= 1
        if max(counts.values()) == 60:
            break
    assert Counter(e.source for e in order) == sizes  # what is left after a source ran out is dealt, all of it


def test_a_mixture_keeps_each_source_in_its_own_order(tmp_path: Path) -> None:
    both = mixture(tmp_path, {"a": 20, "b": 20}, {"a": 2.0, "b": 1.0})
    alone = mixture(tmp_path, {"a": 20}, {"a": 1.0})
    assert [e.id for e in both.subset(40, 5) if e.source == "a"] == [e.id for e in alone.subset(20, 5)]


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e-9, float("nan"), float("inf")])
def test_weights_that_make_no_ratio_are_refused(tmp_path: Path, weight: float) -> None:
    with pytest.raises(HarnessError, match=r"data\.sources\.a\.weight|not finite"):
        mixture(tmp_path, {"a": 2}, {"a": weight})


def test_a_size_beyond_the_dataset_is_refused(dataset: Dataset) -> None:
    with pytest.raises(HarnessError, match="size=33 is larger than the dataset 'pairs', which has 32"):
        dataset.subset(33, 0)


def test_an_empty_dataset_is_refused(make_data: Make) -> None:
    with pytest.raises(HarnessError, match="is empty"):
        load_dataset(make_data([], "empty"))
    with pytest.raises(HarnessError, match="has no sources"):
        load_dataset(Data(name="none"))
    with pytest.raises(HarnessError, match="neither `path` nor `make`"):
        load_dataset(Data(name="none", sources={"x": Source()}))


def test_the_manifest_tells_what_was_taken_and_from_what(tmp_path: Path) -> None:
    data = mixture(tmp_path, {"a": 30, "b": 5}, {"a": 1.0, "b": 1.0})
    subset = data.subset(20, 2)
    manifest = data.manifest(subset, 2)
    assert manifest["examples"] == 20
    assert manifest["of"] == 35
    assert manifest["subset_seed"] == 2
    assert manifest["subset"] == subset_identity(subset)
    assert {name: s["taken"] for name, s in manifest["sources"].items()} == {"a": 15, "b": 5}
    assert {name: s["rows"] for name, s in manifest["sources"].items()} == {"a": 30, "b": 5}
    sha256 = hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()
    assert manifest["sources"]["a"]["revision"] == sha256


def slowly(dataset: Dataset, seed: int) -> list[tuple[str, str]]:
    """The rule in plain words, over (source, id): each source by hash, the sources dealt by weight in exact fractions.

    Three equal rows are three examples: the copies' ids hash the first one's and a number.
    """

    def sha256(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    dealt = []
    for source, table in dataset.tables.items():
        seen: Counter[str] = Counter()
        ids = []
        for row in range(len(table)):
            content = sha256(json.dumps(table.messages(row), sort_keys=True, separators=(",", ":"), ensure_ascii=False))
            seen[content] += 1
            ids.append(content if seen[content] == 1 else sha256(f"{content}:{seen[content]}"))
        for rank, (key, id_) in enumerate(sorted((sha256(f"{seed}:{i}"), i) for i in ids)):
            dealt.append(((rank + Fraction(1, 2)) / dataset.weights[source], key, source, id_))
    dealt.sort(key=lambda item: item[:2])
    return [(source, id_) for _, _, source, id_ in dealt]


def random_mixture(folder: Path, rng: random.Random) -> Dataset:
    """One to four sources, with copies inside and between them, and weights that are round, odd, tiny or huge."""
    sources = {}
    for name in "abcd"[: rng.randint(1, 4)]:
        prompts = [rng.choice(["twin", f"{name} {i}", f"é {i}"]) for i in range(rng.randint(1, 40))]
        path = write_jsonl(folder / f"{name}.jsonl", [{"prompt": p, "completion": "x"} for p in prompts])
        weight = rng.choice([1.0, 1.0, 2.0, 0.1, 1 / 3, 2.5, rng.random() + 1e-6, 1e-6, 1e6, 999_999.000_001])
        sources[name] = Source(path=str(path), form=pair_form(), weight=weight)
    return load_dataset(Data(name="mixture", sources=sources))


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "on disk"])
def test_the_order_is_that_of_the_slow_rule(kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "LARGE", 1 if kept else 10**9)
    rng = random.Random(0)
    for trial in range(12):
        dataset, seed = random_mixture(tmp_path / str(trial), rng), rng.choice([0, 1, 123456])
        expected = slowly(dataset, seed)
        whole = dataset.subset(len(dataset), seed)
        assert [(e.source, e.id) for e in whole] == expected
        assert subset_identity(whole) == subset_identity(list(whole))
        size = rng.randint(1, len(dataset))
        some = dataset.subset(size, seed)
        assert [e.id for e in some] == [id_ for _, id_ in expected[:size]]
        assert some.identity == hashlib.sha256("\n".join(e.id for e in some).encode()).hexdigest()


def test_planning_asks_for_the_same_subset_often_and_pays_once(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = subset_identity(dataset.subset(31, 5))
    monkeypatch.setattr(subset, "deal", None)
    monkeypatch.setattr(hashlib, "sha256", None)
    assert subset_identity(dataset.subset(31, 5)) == first


def test_places_closer_than_a_float_are_told_apart() -> None:
    """1e6 and its neighbour with the largest denominators: places that differ in the 24th digit."""
    rows = 200
    weights = [Fraction(10**12 - 1, 10**6), Fraction(10**12 - 10**6 - 1, 999_999), Fraction(1, 10**6)]
    places = [tuple(p) for w in weights for p in order._places(rows, w).tolist()]
    exact = [(r + Fraction(1, 2)) / w for w in weights for r in range(rows)]
    assert sorted(range(len(exact)), key=places.__getitem__) == sorted(range(len(exact)), key=exact.__getitem__)


def test_a_row_keeps_its_turns_as_they_were(make_data: Make) -> None:
    """Also in the order of their keys, which a chat template may see."""
    dataset = load_dataset(make_data([{"prompt": 'a "quoted"\n\u2028é', "completion": " b\\"}], "one"))
    (example,) = dataset.subset(1, 0)
    assert [list(turn.items()) for turn in example.messages] == [
        [("role", "user"), ("content", 'a "quoted"\n\u2028é')],
        [("role", "assistant"), ("content", " b\\")],
    ]


def test_rows_are_read_once_for_all_that_share_them(make_data: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renamed data set, another weight or another place of the file: the same rows. Another form: others."""
    first = load_dataset(make_data())
    monkeypatch.setattr(subset, "_loaded", {})
    monkeypatch.setattr(tables, "_write", None)
    data = make_data(name="renamed")
    data.sources["renamed"].weight = 3.0
    assert load_dataset(data).subset(32, 0).identity == first.subset(32, 0).identity
    data.sources["renamed"].form.turns[0].content = "Tell me: {{ prompt }}"
    with pytest.raises(TypeError, match="not callable"):
        load_dataset(data)


def test_a_damaged_table_is_refused(make_data: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "damaged", "completion": "x"}]
    load_dataset(make_data(rows, "damaged"))
    (file,) = (f for f in (cache_dir() / "rows").glob("*/turns.jsonl") if b"damaged" in f.read_bytes())
    file.write_bytes(file.read_bytes().replace(b"damaged", b"demaged"))
    monkeypatch.setattr(subset, "_loaded", {})
    with pytest.raises(HarnessError, match=r"turns\.jsonl does not match its checksum; delete .* to build it again"):
        load_dataset(make_data(rows, "damaged"))
