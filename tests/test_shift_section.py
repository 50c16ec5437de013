"""The page's section of token shift: its shares against closed forms, and against the answers of real cells."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import shift
from analysis.instruments import sections
from analysis.section import Evidence
from harness import store
from harness.cell import Cell
from harness.items import Asked, answers, load_items
from harness.methods.icl import InContext
from harness.methods.sft import Sft
from harness.run import run
from harness.tuning import Lora

Make = Callable[..., Cell]


def line(ranks: list[int], kls: list[float] | None = None, **fields: Any) -> dict[str, Any]:
    row = {"ranks": ranks, "kls": kls or [0.0] * len(ranks), "kinds": "w" * len(ranks), "right": []}
    row |= {"tokens": [f"t{i}" for i in range(len(ranks))], "tops": ["" if r == 1 else "other" for r in ranks]}
    return row | {"retraced": len(ranks)} | fields


def of(*runs: list[dict[str, Any]], clusters: np.ndarray | None = None) -> shift.Read:
    n = len(runs[0])
    names = tuple(map(str, range(n)))
    asked = Asked(names, np.arange(n) if clusters is None else clusters, names, 0.0)
    return shift.Read("base, sft on data", "task", 8, asked, tuple(map(tuple, runs)))


def test_shares_are_of_tokens_and_intervals_over_items() -> None:
    """Of items with equally many tokens the share is the mean of the items' shares, and its error theirs."""
    rng = np.random.default_rng(0)
    ranks = rng.choice([1, 2, 3, 9], p=[0.6, 0.1, 0.1, 0.2], size=(200, 10))
    kls = rng.exponential(size=(200, 10))
    got = of([line(r.tolist(), k.tolist()) for r, k in zip(ranks, kls, strict=True)]).shares()
    assert got is not None
    assert got.tokens == 2000
    by_item = {
        "unshifted": (ranks == 1).mean(axis=1),
        "marginal": ((ranks > 1) & (ranks <= 3)).mean(axis=1),
        "shifted": (ranks > 3).mean(axis=1),
        "kl": kls.mean(axis=1),
    }
    for name, items in by_item.items():
        estimate = getattr(got, name)
        half = 1.96 * items.std(ddof=1) / np.sqrt(200)
        assert estimate.value == pytest.approx(items.mean())
        assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.12)
        assert estimate.holds(items.mean())


def test_a_long_answer_counts_by_its_tokens_and_hangs_together() -> None:
    """A ratio of sums: against the linearised standard error of one, clusters of two items summed first."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 40, 120)
    easy = rng.random(120) * 0.9
    rows = [line(np.where(rng.random(n) < p, 1, 7).tolist()) for n, p in zip(lengths, easy, strict=True)]
    clusters = np.arange(120) // 2
    got = of(rows, clusters=clusters).shares()
    assert got is not None
    first = np.array([row["ranks"].count(1) for row in rows], float)
    share = first.sum() / lengths.sum()
    assert got.unshifted.value == pytest.approx(share)
    apart = (first - share * lengths).reshape(60, 2).sum(axis=1)
    error = np.sqrt((apart**2).sum() * 60 / 59) / lengths.sum()
    assert got.unshifted.high - got.unshifted.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_intervals_hold_what_fresh_runs_would_give_and_are_no_wider_where_runs_agree() -> None:
    rng, held, wider = np.random.default_rng(2), 0, []
    for _ in range(100):
        chances = 0.6 + rng.normal(0, 0.1, 60)
        apart = of(*(wrote(chances + moved, rng) for moved in rng.normal(0, 0.08, 4))).shares()
        assert apart is not None
        held += apart.unshifted.holds(0.6)
        runs = [wrote(chances, rng) for _ in range(4)]
        several, one = (
            of(*runs).shares(),
            of([line([x for ranks in r for x in ranks]) for r in zip(*map(ranks_of, runs), strict=True)]).shares(),
        )
        assert several is not None
        assert one is not None
        assert several.unshifted.value == pytest.approx(one.unshifted.value)
        wider.append((several.unshifted.high - several.unshifted.low) / (one.unshifted.high - one.unshifted.low))
    assert held >= 88  # over items alone intervals are 0.28 times as wide, and hold it in 68 of 100
    assert np.median(wider) < 1.25


def wrote(chances: np.ndarray, rng: np.random.Generator) -> list[dict[str, Any]]:
    """A run's answers of ten tokens, unshifted by each item's chance."""
    return [line(np.where(rng.random(10) < p, 1, 9).tolist()) for p in chances]


def ranks_of(run: list[dict[str, Any]]) -> list[list[int]]:
    return [row["ranks"] for row in run]


def test_all_of_few_is_no_certainty_and_fewer_have_no_interval() -> None:
    all_alike = of([line([1, 1]) for _ in range(20)]).shares()
    assert all_alike is not None
    assert all_alike.unshifted.value == all_alike.unshifted.high == 1
    assert 0.75 < all_alike.unshifted.low < 0.95  # Agresti and Coull's for 20 of 20 is 0.81
    few = of([line([1, 5]) for _ in range(4)]).shares()
    assert few is not None
    assert few.unshifted.words() == "0.50"
    assert of([line([1])] * 6).shares(lambda row: row["right"]) is None


def test_places_double() -> None:
    assert [name for name, _ in shift.places(20)] == ["1", "2-3", "4-7", "8-15", "16-31"]
    covered = [i for _, span in shift.places(20) for i in span]
    assert covered == list(range(31))


def test_without_a_probe_it_says_how_to_have_one(tmp_path: Path, make_cell: Make, generation_task: Any) -> None:
    run(make_cell("base", evals={"quiz": generation_task()}))
    frame = store.load(tmp_path / "runs")
    got = shift.section(Evidence(tmp_path / "runs", frame, load_items(tmp_path / "runs", frame)))
    assert "harness.probes.TokenShift" in got.absent
    assert not got.lines


def test_real_cells_make_a_section(tmp_path: Path, make_cell: Make, generation_task: Any) -> None:
    root, probe = tmp_path / "runs", {"_target_": "harness.probes.TokenShift"}
    evals = {"quiz": generation_task(headline=None, probe=probe)}
    run(make_cell("base", evals=evals))
    for size, seed in ((4, 0), (8, 0), (8, 1)):
        run(make_cell(Sft(lr=0.05, epochs=3, lora=Lora(rank=4)), size=size, seed=seed, evals=evals))
    run(make_cell(InContext(), size=2, evals=evals))
    frame = store.load(root)
    evidence = Evidence(root, frame, load_items(root, frame))
    (got,) = (s for s in sections(evidence) if s.title == shift.TITLE)
    assert not got.absent
    assert len(got.lines) == 2
    table = got.data["token_shift"]
    mine = table[(table["of"] == "all") & table["curve"].str.contains("sft") & (table["size"] == 8)].iloc[0]
    cells = frame[(frame["method"] == "sft") & (frame["size"] == 8)]
    kept = cells[["path", "task", "eval_fingerprint"]].drop_duplicates()
    rows = [row for path, task, mark in kept.itertuples(index=False) for row in answers(root, path, task, mark)]
    ranks = [rank for row in rows for rank in row["ranks"]]
    assert len(rows) == 10
    assert mine["tokens"] == len(ranks)
    assert mine["unshifted"] == pytest.approx(ranks.count(1) / len(ranks))
    assert mine["kl"] == pytest.approx(np.mean([kl for row in rows for kl in row["kls"]]), rel=1e-4)
    assert mine["unshifted_low"] <= mine["unshifted"] <= mine["unshifted_high"]
    kinds = table[(table["curve"] == mine["curve"]) & (table["size"] == 8) & table["of"].isin(shift.KINDS.values())]
    assert kinds["tokens"].sum() == len(ranks)
    overall, *_, listed = got.tables
    assert overall.rows[-1][3:7] == ("-", "86.7%", "10.5%", "2.8%")
    shifted = got.data["shifted_tokens"]
    assert shifted.loc[shifted["curve"] == mine["curve"], "shifted"].sum() == sum(rank > 3 for rank in ranks)
    assert len(listed.rows) <= 2 * shift.MOST
    (picture,) = got.pictures
    assert len(picture.figure.axes) == 1
    assert len(picture.figure.axes[0].lines) == 2
