"""`run.keep`: which adapters stay, and that nothing else ever goes."""

import dataclasses

import pytest

from harness.errors import HarnessError
from harness.methods.sft import Sft
from harness.plan import check, plan, to_run
from harness.retention import kept, prune
from harness.run import run
from harness.store import ADAPTER, RECORD, load, read_result, score_path, write_result

BRIEF = {"lr": 1e-3, "epochs": 1, "batch_size": 4}
SIZES = (4, 8, 16)


@pytest.fixture
def sweep(make_cell, choice_task):
    """Three sizes of two seeds, done with everything kept."""
    task = {"quiz": choice_task()}
    cells = [make_cell(Sft(**BRIEF), size=size, seed=seed, evals=task) for seed in (0, 1) for size in SIZES]
    for cell in cells:
        run(cell)
    return cells


def having(cells):
    """(size, seed) of the cells that have an adapter."""
    return [(c.size, c.seed) for c in cells if (c.folder() / ADAPTER).exists()]


def keeping(cells, keep):
    return [dataclasses.replace(c, run=dataclasses.replace(c.run, keep=keep)) for c in cells]


@pytest.mark.parametrize(("keep", "left"), [("all", 6), ("last", 2), ("best", 2), ("none", 0)])
def test_what_stays(sweep, keep, left):
    files = {p for c in sweep for p in c.folder().rglob("*") if p.name != ADAPTER}
    frame = load(sweep[0].run.root)
    cells = keeping(sweep, keep)
    gone = sum(map(prune, cells))
    assert len(having(cells)) == 6 - gone == left == len(kept(cells))
    assert {p for c in sweep for p in c.folder().rglob("*") if p.name != ADAPTER} == files
    assert load(sweep[0].run.root).equals(frame)
    assert sum(map(prune, cells)) == 0
    if keep == "last":
        assert having(cells) == [(16, 0), (16, 1)]


def test_best_is_by_the_headline_score_and_the_smaller_of_equals(sweep):
    for cell, score in zip(sweep, (0.1, 0.9, 0.9, 0.2, 0.3, 0.8), strict=True):
        (file,) = (cell.folder() / "evals/quiz").glob("*.json")
        scores = read_result(file)
        lead = next(s for s in scores["scores"] if s["headline"])
        lead["score"] = score
        file.unlink()
        write_result(file, scores)
    for cell in keeping(sweep, "best"):
        prune(cell)
    assert having(sweep) == [(8, 0), (16, 1)]


def test_adapters_go_as_soon_as_a_larger_cell_is_done(make_cell):
    cells = [make_cell(Sft(**BRIEF), size=size) for size in SIZES]
    for number, cell in enumerate(keeping(cells, "last")):
        run(cell)
        assert having(cells) == [(SIZES[number], 0)]


def test_nothing_more_can_be_asked_of_a_cell_without_its_adapter(make_cell, choice_task):
    cell = make_cell(Sft(**BRIEF))
    cell = keeping([cell], "none")[0]
    run(cell)
    assert (cell.folder() / RECORD).exists()
    run(cell)  # done, and stays so
    cell.evals["quiz"] = choice_task()
    with pytest.raises(HarnessError, match=r"were not kept \(run.keep\)"):
        check(to_run(plan([cell]), retry_failed=False))
    with pytest.raises(HarnessError, match="were not kept"):
        run(cell)
    assert not score_path(cell.folder(), "quiz", {}).parent.exists()


def test_an_unknown_value_is_refused_before_anything_runs(make_cell):
    with pytest.raises(HarnessError, match="keep='some' is unknown; use one of all, last, best, none"):
        check(keeping([make_cell(Sft(**BRIEF))], "some"))
