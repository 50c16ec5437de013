"""Records: whole or absent, never overwritten, and one table of them."""

import copy
import json
import os

import pytest

from harness import store
from harness.engines.local import run_cells
from harness.errors import HarnessError
from harness.identity import fingerprint
from harness.run import run


def test_a_write_that_dies_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    store.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        store.write_json(path, {"new": object()})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write_json(path, {"new": 2})
    assert store.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_cell_from_start_to_table(make_cell, generation_task):
    cell = make_cell("sft", evals={"quiz": generation_task()})
    folder = run(cell)
    record = store.read_json(folder / store.RECORD)
    assert record["fingerprint"] == fingerprint(record["identity"])
    assert record["manifest"]["examples"] == 4
    assert record["manifest"]["of"] == 32
    assert record["training"]["target_tokens"] > 0
    assert record["peak_memory_bytes"] > 1e6
    assert record["provenance"]["versions"]["torch"].startswith("2.")
    assert record["wall_seconds"] > 0
    frame = store.load(cell.run.root)
    assert list(frame.columns) == store.COLUMNS
    assert set(frame["filter"]) == {"strict", "flexible"}
    assert frame.headline.sum() == 1
    lead = frame[frame.headline].iloc[0]
    assert (lead.task, lead.metric, lead["filter"], lead["size"]) == ("quiz", "exact_match", "strict", 4)
    assert lead.n_items == 5
    training = record["training"]
    assert (lead.steps, lead.flops) == (training["steps"], training["flops"])
    assert lead.adapter_bits == 32 * training["trained_parameters"]
    assert lead.path == folder.relative_to(cell.run.root).as_posix()
    assert len((folder / "losses.jsonl").read_text().splitlines()) == record["training"]["steps"]


def test_no_secret_of_the_environment_is_recorded(make_cell, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_CANARYCANARY")
    folder = run(make_cell("sft"))
    for file in folder.rglob("*"):
        assert not file.is_file() or b"CANARY" not in file.read_bytes()


def times(folder):
    results = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".lease-"))
    return {p: p.stat().st_mtime_ns for p in results}


def test_done_is_not_done_again_and_a_new_eval_does_not_retrain(make_cell, generation_task, choice_task):
    cell = make_cell("sft", evals={"quiz": generation_task()})
    folder = run(cell)
    before = times(folder)
    run(cell)
    assert times(folder) == before
    cell.evals = {"choice": choice_task()}
    run(cell)
    after = times(folder)
    assert {p: t for p, t in after.items() if p in before} == before
    assert sorted(store.load(cell.run.root).task.unique()) == ["choice", "quiz"]


def test_drift_is_refused_with_the_fields_and_loses_nothing(make_cell, make_data):
    cell = make_cell("sft")
    folder = run(cell)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    changed = copy.deepcopy(cell)
    changed.data = make_data([{"prompt": f"p{i}", "completion": "other"} for i in range(9)])
    with pytest.raises(HarnessError, match=r"data\.subset: \w+"):
        run(changed)
    retyped = copy.deepcopy(cell)
    retyped.data = make_data()
    retyped.base.dtype = "bfloat16"
    with pytest.raises(HarnessError, match=r"base\.dtype: float32 -> bfloat16"):
        run(retyped)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_changed_task_is_scored_anew_beside_the_old_one(make_cell, generation_task):
    cell = make_cell("base", evals={"quiz": generation_task()})
    folder = run(cell)
    cell.evals = {"quiz": generation_task(limit=2)}
    run(cell)
    assert len(list((folder / "evals" / "quiz").glob("*.json"))) == 2
    frame = store.load(cell.run.root)
    assert set(frame.n_items) == {2}  # the newest


def test_one_failing_cell_costs_no_other(make_cell, generation_task):
    good = make_cell("base", evals={"quiz": generation_task()})
    bad = make_cell("sft")
    bad.method.lr = 1e30
    outcomes = run_cells([bad, good], workers=1, threads=1)
    assert [bool(o.error) for o in outcomes] == [True, False]
    frame = store.load(good.run.root)
    assert sorted(frame.status.unique()) == ["diverged", "ok"]
    failure = json.loads((bad.folder() / store.FAILURE).read_text())
    assert "DivergedError" in failure["traceback"]
    assert not (bad.folder() / store.RECORD).exists()


def test_a_killed_evaluation_keeps_the_training(make_cell, generation_task, monkeypatch):
    from harness import evaluate

    cell = make_cell("sft", evals={"quiz": generation_task()})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(cell)
    weights = cell.folder() / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    run(cell)
    assert weights.stat().st_mtime_ns == before
    assert (cell.folder() / store.RECORD).exists()
