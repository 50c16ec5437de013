"""Which examples: the order is pinned, sizes nest, and nothing about the file's form or place matters."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cell import Data, Source
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
