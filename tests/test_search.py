"""A learning rate chosen from a grid: once for all seeds, by development items only, resumed where it was killed."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import preempt, search, store
from harness.base import LoadedBase
from harness.cell import Cell, Data, Form, Source, Task, Turn
from harness.choice import Select
from harness.cost import Estimator, total
from harness.data.subset import load_dataset
from harness.engines.local import run_cells
from harness.errors import DivergedError, HarnessError
from harness.methods.dpo import Dpo
from harness.methods.grpo import Grpo
from harness.methods.midtrain import Midtrain
from harness.methods.sft import Sft
from harness.methods.sft_full import SftFull
from harness.objective import LIKELIHOOD, loss_sum, targets
from harness.plan import check, plan, searches
from harness.run import identity_of, run, subset_of
from harness.schedule import Search
from tests.children import in_child
from tests.conftest import pairs, write_jsonl
from tests.test_cli import harness  # noqa: F401  (a fixture)
from tests.test_dpo import pairs as preferences  # noqa: F401  (a fixture)
from tests.test_sweep import config_dir  # noqa: F401  (a fixture)

Make = Callable[..., Cell]
GRID = [1e-4, 3e-3, 1e-2]
ITEMS = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."} for i in range(40, 44)]


def searching(lrs: list[float] = GRID, **changes: Any) -> Sft:
    settings: dict[str, Any] = {"lr": "search", "epochs": 2, "batch_size": 4, "held_out": 6}
    return Sft(**settings | changes, search=Search(lrs=list(lrs), evals=changes.pop("evals", {})))


def by_evaluation(task: Task, **changes: Any) -> Sft:
    return dataclasses.replace(searching(held_out=0, **changes), search=Search(lrs=GRID, evals={"dev": task}))


def training_of(cell: Cell) -> dict[str, Any]:
    return store.read_result(cell.folder() / store.RECORD)["training"]


def tried_in(cell: Cell) -> list[Path]:
    """Folders of the candidates that are done."""
    return sorted(p.parent for p in Path(cell.run.root, cell.sweep, ".lr").rglob(store.RECORD))


def candidates_of(cell: Cell) -> list[Cell]:
    return search.candidates(cell, identity_of(cell, subset_of(cell)))


def test_the_grid_gives_what_a_comparison_by_hand_gives(make_cell: Make) -> None:
    cell = make_cell(searching(), size=8)
    run(cell)
    by_hand = {}
    for lr in GRID:
        alone = make_cell(Sft(lr=lr, epochs=2, batch_size=4, held_out=6), size=8, sweep="byhand")
        run(alone)
        by_hand[lr] = training_of(alone)["held_out_loss"]
    told = training_of(cell)
    assert told["lr"] == min(by_hand, key=lambda lr: by_hand[lr])
    assert {c["lr"]: c["score"] for c in told["search"]["candidates"]} == by_hand
    assert told["search"]["rule"] == "lowest held-out loss, of equals the smaller rate"
    chosen = make_cell(Sft(lr=told["lr"], epochs=2, batch_size=4, held_out=6), size=8, sweep="byhand")
    assert told["adapter_sha256"] == training_of(chosen)["adapter_sha256"]


def test_the_held_out_loss_is_that_of_the_model_on_examples_of_no_size(
    make_cell: Make, loaded: LoadedBase, make_data: Callable[..., Data]
) -> None:
    data = load_dataset(make_data())
    held = data.held_out(6, 26, 0)
    assert [e.id for e in held] == [e.id for e in data.subset(32, 0)][26:]
    assert data.held_out(6, 4, 0).identity == held.identity
    cell = make_cell(Sft(lr=0.0, epochs=1, held_out=6), size=8)
    sequences = Sft().tokens(loaded.tokenizer, held)
    by_hand = sum(loss_sum(loaded.model, [s]).item() for s in sequences) / sum(map(targets, sequences))
    for budget in (16, 4096):
        cell.run.tokens_per_pass = budget
        cell.run.root += str(budget)
        run(cell)
        assert training_of(cell)["held_out_loss"] == pytest.approx(by_hand, rel=1e-5)
        assert training_of(cell)["held_out_tokens"] == sum(len(s.ids) for s in sequences)
    assert LIKELIHOOD.divisor(list(sequences)) == sum(map(targets, sequences))


def test_a_size_that_needs_what_is_held_out_is_refused(make_cell: Make) -> None:
    with pytest.raises(HarnessError, match=r"size=27 and method\.held_out=6 .* the 32 examples"):
        plan([make_cell(searching(), size=27)])
    plan([make_cell(searching(), size=26)])


def test_nothing_is_held_out_behind_a_rule_that_ranks_it_last(make_cell: Make) -> None:
    cell = make_cell(searching(), size=8)
    ranked = dataclasses.replace(cell.data, select=Select(rule="longest"))
    with pytest.raises(HarnessError, match=r"held_out=6 .* likes least.*search\.evals"):
        plan([dataclasses.replace(cell, data=ranked)])


def test_pairs_are_held_out_by_their_preference_loss(make_cell: Make, preferences: Data) -> None:  # noqa: F811
    method = Dpo(lr="search", epochs=4, batch_size=4, held_out=4, search=Search(lrs=[1e-6, 5e-3]))
    cell = make_cell(method, data=preferences, size=8)
    run(cell)
    told = training_of(cell)["search"]["candidates"]
    assert told[0]["score"] == pytest.approx(0.693, abs=0.01)  # next to nothing learned: as likely as by the reference
    assert training_of(cell)["lr"] == min(told, key=lambda c: c["score"])["lr"]


def test_documents_and_all_weights_are_searched_too(make_cell: Make, tmp_path: Path) -> None:
    documents = [{"text": f"What is {i}? It is {2 * i}. " * 3} for i in range(20)]
    source = Source(path=str(write_jsonl(tmp_path / "documents.jsonl", documents)), form=Form(turns=[TEXT]))
    search_of = {"lr": "search", "held_out": 6, "batch_size": 4, "search": Search(lrs=[1e-6, 1e-2])}
    cells = [
        make_cell(Midtrain(**search_of, max_length=16), data=Data(name="documents", sources={"all": source}), size=8),
        make_cell(SftFull(**search_of), size=8),
    ]
    for cell in cells:
        check([cell])
        run(cell)
        tried = training_of(cell)["search"]["candidates"]
        assert training_of(cell)["lr"] == min(tried, key=lambda c: c["score"])["lr"]
        assert training_of(cell)["held_out_loss"] == min(c["score"] for c in tried)  # seed 0: the very same training


TEXT = Turn("text", "{{ text }}")


def test_rewards_are_searched_by_a_development_evaluation(make_cell: Make, generation_task: Any) -> None:
    pytest.importorskip("trl", reason="TRL comes with the extra `rl`")
    task = dataclasses.replace(generation_task(ITEMS), limit=2)
    settings: dict[str, Any] = {"batch_size": 2, "generations": 2, "max_completion_length": 4, "rewards": {"a": REWARD}}
    method = Grpo(**settings, lr="search", search=Search(lrs=[1e-5, 1e-3], evals={"dev": task}))
    cell = make_cell(method)
    check([cell])
    run(cell)
    told = training_of(cell)
    assert (told["lr"], told["search"]["edge"]) == (1e-5, True)  # nothing is found in so few steps: the smaller one
    assert len(tried_in(cell)) == 2


def test_rewards_have_no_held_out_loss() -> None:
    with pytest.raises(HarnessError, match="development evaluation where its learning rate is searched"):
        Grpo(lr="search", held_out=5, search=Search(lrs=[1e-5, 1e-4]), rewards={"a": REWARD}).check()


REWARD = {"_target_": "harness.rewards.ExactMatch"}


def test_all_seeds_share_one_search_and_one_plan_of_it(make_cell: Make, generation_task: Any) -> None:
    method = by_evaluation(generation_task(ITEMS))
    cells = [make_cell(method, size=8, seed=s, subset_seed=d) for s, d in ((0, 0), (1, 1), (2, 0))]
    other = make_cell(method, size=4)
    assert len({c.folder() for cell in cells for c in candidates_of(cell)}) == len(GRID)
    assert not {c.folder() for c in candidates_of(cells[0])} & {c.folder() for c in candidates_of(other)}
    check(cells)
    planned = plan(cells)
    before = searches(planned)
    estimator = Estimator(planned + before, speed=1e12)
    said = total(map(estimator.cost, before))
    assert len(before) == len(GRID)
    assert [o.error for o in run_cells(cells, workers=2, threads=1)] == [""] * 3
    assert len(tried_in(cells[0])) == len(GRID)
    told = [training_of(cell) for cell in cells]
    assert told[0]["search"] == told[1]["search"] == told[2]["search"]
    after = plan(cells)
    took = total(map(Estimator(after + searches(after), speed=1e12).cost, searches(after)))
    assert (took.tokens, took.train_flops, took.eval_flops) == (said.tokens, said.train_flops, said.eval_flops)
    assert said.tokens == pytest.approx(len(GRID) * told[0]["tokens"])
    assert said.examples == took.examples == len(GRID) * 8
    assert store.records(Path(cells[0].run.root)) == sorted(c.folder() for c in cells)
    assert not list(Path(cells[0].run.root, cells[0].sweep, ".lr").rglob("*.safetensors"))


def test_workers_try_different_rates(make_cell: Make) -> None:
    """Two seeds at once: none waits for the other's search, both help."""
    cells = [make_cell(searching(), size=8, seed=seed) for seed in (0, 1)]
    assert [o.error for o in run_cells(cells, workers=2, threads=1)] == ["", ""]
    assert training_of(cells[0])["search"] == training_of(cells[1])["search"]
    assert {store.read_result(p / store.RECORD)["attempt"] for p in tried_in(cells[0])} == {1}  # each was trained once


def test_no_test_item_is_asked_in_the_search(make_cell: Make, generation_task: Any) -> None:
    dev = generation_task(ITEMS)
    dev.file = str(Path(dev.file).rename(Path(dev.file).with_name("dev.jsonl")))
    test = generation_task()
    cell = make_cell(by_evaluation(dev), size=8, evals={"quiz": test})
    check([cell])
    run(cell)
    for folder in tried_in(cell):
        assert [p.name for p in (folder / "evals").iterdir()] == ["dev"]
        (answers,) = (folder / "evals" / "dev").glob("*.jsonl")
        assert {row["target"] for row in store.read_jsonl(answers)} == {item["answer"] for item in ITEMS}
    assert training_of(cell)["search"]["rule"].startswith("highest dev exact_match/strict")


def test_a_development_evaluation_that_asks_test_items_is_refused(make_cell: Make, generation_task: Any) -> None:
    """Also under another name, with other settings, or if it only shares one item."""
    same = dataclasses.replace(generation_task(), limit=3)
    with pytest.raises(HarnessError, match=r"asks 3 items of the evaluation quiz.* never chosen by test items"):
        check([make_cell(by_evaluation(same), size=8, evals={"quiz": generation_task()})])


def test_killed_in_the_search_finished_candidates_are_kept(make_cell: Make, tmp_path: Path) -> None:
    cell = make_cell(searching(batch_size=2), size=8)
    cell.run.checkpoint_seconds = 0.0
    alone = dataclasses.replace(cell, run=dataclasses.replace(cell.run, root=str(tmp_path / "alone")))
    run(alone)
    assert in_child(die_in_the_second, cell) == -signal.SIGKILL
    (first,) = tried_in(cell)
    before = (first / store.RECORD).stat().st_mtime_ns
    run(cell)
    assert (first / store.RECORD).stat().st_mtime_ns == before
    assert len(tried_in(cell)) == len(GRID)
    again, once = training_of(cell), training_of(alone)
    assert again["adapter_sha256"] == once["adapter_sha256"]
    without_times = [[{**c, "seconds": 0} for c in t["search"]["candidates"]] for t in (again, once)]
    assert without_times[0] == without_times[1]
    resumed = [store.read_result(p / store.RECORD)["training"]["resumed"] for p in tried_in(cell)]
    assert sorted(resumed) == [[], [], [5]]


def die_in_the_second(cell: Cell) -> None:
    preempt.listen()
    seen: list[int] = []

    def watch(step: int, *_: Any) -> None:
        seen.append(step)
        if seen.count(0) == 2 and step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    run(cell, watch)


def test_a_rate_that_diverges_loses_and_if_all_do_the_cell_has(make_cell: Make) -> None:
    cell = make_cell(searching([1e-3, 1e30], epochs=4, warmup=0), size=8)
    run(cell)
    told = training_of(cell)
    assert (told["lr"], told["search"]["edge"]) == (1e-3, True)
    assert [c["status"] for c in told["search"]["candidates"]] == ["ok", "diverged"]
    assert [p.state for p in searches(plan([cell]))] == ["done"]
    bad = make_cell(searching([1e29, 1e30], epochs=4, warmup=0), size=8)
    (outcome,) = run_cells([bad], workers=1, threads=1)
    assert outcome.state == "diverged"
    assert "all learning rates of the grid diverged" in outcome.error


def results(*scores: float, higher: bool = True) -> list[dict[str, Any]]:
    return [
        {"lr": lr, "status": "ok", "score": s, "by": "dev", "higher_is_better": higher}
        for lr, s in zip((1e-4, 3e-4, 1e-3, 3e-3), scores, strict=False)
    ]


@pytest.mark.parametrize(
    ("scores", "higher", "lr", "edge"),
    [
        ((0.1, 0.5, 0.5, 0.2), True, 3e-4, False),
        ((0.1, 0.5, 0.5, 0.2), False, 1e-4, True),
        ((0.1, float("nan"), 0.2), True, 1e-3, True),
        ((0.1, 0.2, 0.3, float("nan")), True, 1e-3, False),
        ((0.0, 0.0, 0.0), True, 1e-4, True),
    ],
)
def test_the_best_of_a_grid(scores: Any, higher: bool, lr: float, edge: bool) -> None:
    chosen = search.choose(results(*scores, higher=higher))
    assert (chosen["lr"], chosen["edge"]) == (lr, edge)


def test_none_left() -> None:
    with pytest.raises(DivergedError):
        search.choose(results(float("nan"), float("inf")))


def test_the_rule_is_in_the_identity_and_no_version_of_lm_eval(make_cell: Make, generation_task: Any) -> None:
    def identity(method: Sft, **fields: Any) -> dict[str, Any]:
        cell = make_cell(method, **fields)
        return identity_of(cell, subset_of(cell))

    task = generation_task(ITEMS)
    mine = identity(by_evaluation(task))
    assert mine["method"]["search"]["lrs"] == GRID
    assert mine["search"]["evals"]["dev"].keys() >= {"items", "task", "limit"}
    assert "lm_eval" not in mine["search"]["evals"]["dev"]
    assert mine["search"] == identity(by_evaluation(task), subset_seed=3)["search"]
    assert "search" not in identity(Sft())
    written = generation_task([*ITEMS, ITEMS[0]])  # the same file, with other items
    assert identity(by_evaluation(written))["search"] != mine["search"]


def test_more_rows_are_another_search(make_cell: Make, make_data: Callable[..., Data]) -> None:
    """What was held out is none of the cell's own examples, and still its choice rests on it."""
    marks = set()
    for rows in (pairs(32), pairs(60)):
        cell = make_cell(searching(), data=make_data(rows))
        marks.add(candidates_of(cell)[0].sweep)
    assert len(marks) == 2


def test_variants_tell_searches_apart_in_a_line(make_cell: Make, generation_task: Any) -> None:
    one = make_cell(by_evaluation(generation_task(ITEMS)))
    other = make_cell(by_evaluation(dataclasses.replace(generation_task(ITEMS), limit=2)))
    assert one.method.variant().startswith("batch_size=4,epochs=2,lr=best of 0.0001 0.003 0.01 by dev~")
    assert one.method.variant() != other.method.variant()
    assert make_cell(searching()).method.variant().endswith("held_out=6,lr=best of 0.0001 0.003 0.01 by held-out loss")


SEARCH = ["~arms.icl", "~arms.again", "base=tiny", "arms.sft.size=4,8", "method.lr=search", "method.held_out=6"]


def test_as_a_person_types_it(harness: Any) -> None:  # noqa: F811
    """Plan, sweep, status and report; then nothing is left, and nothing is tried again."""
    typed = ["mine", *SEARCH, "method.search.lrs=[1e-4,1e-2]"]
    status, out, err = harness("plan", *typed)
    assert (status, out.count("lr to be searched"), out.count("/.lr/")) == (0, 4, 4), err
    assert "5 cells: 5 missing; 4 candidates for learning rates: 4 missing" in out
    _, out, _ = harness("plan", *typed, "--json")
    said = json.loads(out)
    assert (len(said["cells"]), len(said["candidates"]), {c["lr"] for c in said["cells"]}) == (5, 4, {None})
    assert said["to_do"]["examples"] == 2 * (4 + 8) + 2 * (4 + 8)  # two seeds, and two rates once for both
    status, _, err = harness("sweep", *typed)
    assert status == 0, err
    _, out, _ = harness("plan", *typed, "--json")
    done = json.loads(out)
    assert done["done"]["tokens"] == pytest.approx(said["to_do"]["tokens"], rel=0.01)  # by a sample of the examples
    assert done["to_do"]["tokens"] == 0
    frame = store.load("runs/mine").drop_duplicates("path")
    assert len(frame) == 5
    chosen = frame[frame["size"] > 0].groupby("size").lr.unique()
    assert [len(rates) for rates in chosen] == [1, 1]
    assert sorted({c["lr"] for c in done["cells"] if c["lr"]}) == sorted({float(r[0]) for r in chosen})
    page = Path("runs/mine/report.html").read_text()
    assert page.count("best of the grid, at its edge") == 2
    assert "the best learning rate stands at the edge of the grid with 4 and 8 examples" in page
    _, out, _ = harness("status", "runs/mine")
    assert f" {chosen[4][0]:.3g}\n" in out
    assert "5 cells done;" in out


def test_an_evaluation_of_the_search_is_named_like_any_other(harness: Any) -> None:  # noqa: F811
    """And refused where its items are those of the test."""
    status, _, err = harness("plan", "mine", *SEARCH, "method.search.lrs=[1e-4,1e-2]", "evals@method.search.evals=quiz")
    assert (status, "never chosen by test items" in err) == (2, True)
