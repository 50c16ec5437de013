"""What comes from others: names that would leave the output root, pickles, and code that wants to be run.

Every piece of code here is a canary: it writes a file when it runs, and the file must not be there afterwards.
"""

import dataclasses
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.tasks
import numpy as np
import pytest
import torch

from harness import base as bases
from harness import evaluate, files, store, tasks
from harness.artifact import CHECKSUMS, cache_dir, sha256_file
from harness.cell import Base, Data, Source, Task
from harness.data.subset import load_dataset
from harness.engines.worker import attempt
from harness.errors import HarnessError
from harness.plan import check, plan
from harness.run import run
from tests.conftest import pair_form

Make = Callable[..., Any]


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


class Malice:
    """Pickled, it writes the canary when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def test_the_canary_sings(canary: Path) -> None:
    """Else nothing below would show anything."""
    pickle.loads(pickle.dumps(Malice(canary)))
    assert canary.exists()


# --- names ----------------------------------------------------------------------------------------------------------

NAMES = ["../../x", "/tmp/x", "a/b", "..", "a\0b", "x" * 300, "a\nb", "~", "$(id)", ""]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["sweep", "base", "data", "evals"])
def test_no_name_leaves_the_root(what: str, name: str, make_cell: Make, generation_task: Make, tmp_path: Path) -> None:
    cell = make_cell("base", evals={name if what == "evals" else "quiz": generation_task()})
    if what == "sweep":
        cell.sweep = name
    elif what != "evals":
        getattr(cell, what).name = name
    before = {p for p in tmp_path.rglob("*") if "cache" not in p.parts}
    for use in (lambda: run(cell), lambda: plan([cell])):
        with pytest.raises(HarnessError, match="names a folder") as refused:
            use()
        assert "\n" not in str(refused.value)
    assert {p for p in tmp_path.rglob("*") if "cache" not in p.parts} == before


def test_evaluations_that_differ_in_case_only_are_refused(make_cell: Make, generation_task: Make) -> None:
    cell = make_cell("base", evals={"quiz": generation_task(), "Quiz": generation_task()})
    with pytest.raises(HarnessError, match="differ only in case"):
        cell.folder()


def test_names_that_differ_in_case_only_have_folders_of_their_own(make_cell: Make) -> None:
    """Also on a file system that does not tell them apart: the last part hashes the names."""
    one, other = make_cell("sft"), make_cell("sft")
    other.base = dataclasses.replace(one.base, name=one.base.name.upper())
    assert one.folder().name.lower() != other.folder().name.lower()


@pytest.mark.parametrize("path", ["x" * 300, "x" * 300 + ".jsonl", "a\0b", "a\0b.jsonl", "~nobody-here/x"])
def test_a_path_that_cannot_be_is_one_line(path: str) -> None:
    with pytest.raises(HarnessError) as refused:
        bases.identity(Base(name="x", path=path))
    assert "\n" not in str(refused.value)
    with pytest.raises(HarnessError):
        load_dataset(Data(name="x", sources={"a": Source(path=path, form=pair_form())}))
    with pytest.raises(HarnessError):
        evaluate.identity("quiz", Task(task={}, file=path))


def test_items_name_no_files(make_cell: Make, generation_task: Make, tmp_path: Path) -> None:
    """An item's id and text are data: they go into the answers and nowhere else."""
    items = [{"id": "../../x", "question": "../../../y", "answer": "/tmp/z"}]
    cell = make_cell("base", evals={"quiz": generation_task(items)})
    before = {p.name for p in tmp_path.iterdir()}
    folder = run(cell)
    assert {p.name for p in tmp_path.iterdir()} == before | {"runs"}
    assert all(p.resolve().is_relative_to(tmp_path / "runs") for p in folder.rglob("*"))
    assert not Path("/tmp/z").exists()


def test_a_link_in_the_way_is_replaced_not_followed(tmp_path: Path) -> None:
    """Somebody who may write to the runs cannot have the harness write elsewhere."""
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (tmp_path / "failure.json").symlink_to(outside)
    store.write_json(tmp_path / "failure.json", {"a": 1})
    assert not (tmp_path / "failure.json").is_symlink()
    (tmp_path / "record.json").symlink_to(outside)
    with pytest.raises(FileExistsError):
        store.write_result(tmp_path / "record.json", {"a": 1})
    (tmp_path / "loose.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        store.write_result(tmp_path / "loose.json", {"a": 1})
    assert outside.read_text() == "untouched"
    assert not (tmp_path / "nowhere").exists()
    assert not list(tmp_path.glob(f"*{files.UNFINISHED}"))


# --- pickles --------------------------------------------------------------------------------------------------------


def test_an_adapter_that_is_a_pickle_is_refused(make_cell: Make, generation_task: Make, canary: Path) -> None:
    """peft itself would fall back to it where the other file is missing."""
    cell = make_cell("sft")
    folder = run(cell)
    (folder / store.ADAPTER).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Malice(canary)))
    cell.evals = {"quiz": generation_task()}
    with pytest.raises(HarnessError, match="were not kept"):
        run(cell)
    shutil.copy(folder / "adapter_model.bin", folder / store.ADAPTER)
    trained = store.read_result(folder / store.TRAINED)
    trained["training"]["adapter_sha256"] = sha256_file(folder / store.ADAPTER)  # whoever can write here can hash, too
    (folder / store.TRAINED).unlink()
    store.write_result(folder / store.TRAINED, trained)
    outcome = attempt(cell)
    assert (outcome.state, "SafetensorError" in outcome.error) == ("failed", True)
    assert not canary.exists()


def test_a_base_that_is_a_pickle_runs_nothing(tiny_folder: Path, canary: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    (folder / "model.safetensors").unlink()
    torch.save(Malice(canary), folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        bases.load(Base(name="x", path=str(folder), dtype="float32"), "cpu")
    assert not canary.exists()


def test_a_cache_that_was_poisoned_runs_nothing(make_data: Make, canary: Path) -> None:
    """An array of objects is a pickle; here even its checksum is right."""
    data = make_data([{"prompt": "poisoned", "completion": "x"}])
    load_dataset(data)
    (file,) = (f for f in (cache_dir() / "rows").glob("*/turns.jsonl") if b"poisoned" in f.read_bytes())
    folder = file.parent
    ids = folder / "ids.npy"
    before = sha256_file(ids)
    np.save(ids, np.array([Malice(canary)], dtype=object), allow_pickle=True)
    (folder / CHECKSUMS).write_text((folder / CHECKSUMS).read_text().replace(before, sha256_file(ids)))
    from harness.data import subset

    subset._loaded.clear()
    with pytest.raises(ValueError, match="Python objects"):
        load_dataset(data)
    assert not canary.exists()


# --- code -----------------------------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({canary!r}).touch()
class StrangeConfig(LlamaConfig):
    model_type = "strange"
class StrangeModel(LlamaForCausalLM):
    config_class = StrangeConfig
"""


@pytest.fixture
def strange(tiny_folder: Path, tmp_path: Path, canary: Path) -> Path:
    """A base that is defined by Python code beside its weights, as on the hub."""
    folder = shutil.copytree(tiny_folder, tmp_path / "strange")
    config = store.read_json(folder / "config.json")
    config |= {"model_type": "strange", "architectures": ["StrangeModel"]}
    config["auto_map"] = {"AutoConfig": "code.StrangeConfig", "AutoModelForCausalLM": "code.StrangeModel"}
    store.write_json(folder / "config.json", config)
    (folder / "code.py").write_text(CODE.format(canary=str(canary)))
    return folder


def test_a_base_with_code_of_its_own_waits_for_consent(
    strange: Path, make_cell: Make, generation_task: Make, canary: Path
) -> None:
    base = Base(name="strange", path=str(strange), dtype="float32")
    cell = make_cell("base", base=base, evals={"quiz": generation_task()})
    with pytest.raises(HarnessError, match=r"code\.StrangeConfig.*base\.trust_remote_code=true") as refused:
        check([cell])
    assert "\n" not in str(refused.value)
    outcome = attempt(cell)  # nor does anything run where nobody has checked
    assert outcome.state == "failed"
    assert not canary.exists()
    refused_identity = bases.identity(base)

    base.trust_remote_code = True
    cell.base = base
    check([cell])
    folder = run(cell)
    assert canary.exists()
    assert type(bases.load(base, "cpu").model).__name__ == "StrangeModel"
    identity = store.read_result(folder / store.RECORD)["identity"]["base"]["identity"]
    assert identity != refused_identity
    (strange / "code.py").write_text(CODE.format(canary=str(canary)) + "# another version")
    assert bases.identity(base) != identity  # the code is part of what the base is


def test_code_that_no_commit_pins_is_refused_even_with_consent(strange: Path, canary: Path) -> None:
    config = store.read_json(strange / "config.json")
    config["auto_map"]["AutoConfig"] = "somebody/else--code.StrangeConfig"
    store.write_json(strange / "config.json", config)
    with pytest.raises(HarnessError, match="code of another repository"):
        bases.check_chat(Base(name="strange", path=str(strange), trust_remote_code=True))
    assert not canary.exists()


def test_a_task_that_runs_what_the_model_writes_waits_for_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before lm-eval imports its code, which for humaneval runs a first program when it is imported."""
    folder = Path(str(lm_eval.tasks.__file__)).parent
    some = lm_eval.tasks.TaskManager(include_defaults=False, include_path=[folder / "humaneval", folder / "mbpp"])
    monkeypatch.setattr(tasks, "_all_tasks", lambda: some)  # to list all of them takes ten seconds
    for task in ("humaneval", "mbpp", "humaneval_instruct"):
        with pytest.raises(HarnessError, match=r"executes what the model writes.*evals\.code\.unsafe_code=true"):
            evaluate.check("code", Task(task=task))
    assert not [name for name in sys.modules if "humaneval" in name]


def test_a_group_is_as_unsafe_as_its_members(generation_task: Make) -> None:
    from harness.consent import refuse_code

    class Entry:
        def __init__(self, cfg: Any = None, tags: tuple[str, ...] = ()) -> None:
            self.cfg, self.tags = cfg, set(tags)

    index = {
        "safe": Entry({"task": "safe"}),
        "run": Entry({"task": "run", "unsafe_code": True}),
        "group": Entry({"group": "group", "task": ["safe", {"group": "inner", "task": ["run"]}]}),
        "tag": Entry(tags=("safe", "run")),
    }
    refuse_code("x", "safe", index)
    for name in ("run", "group", "tag"):
        with pytest.raises(HarnessError, match=r"evals\.x\.unsafe_code=true"):
            refuse_code("x", name, index)


def test_an_inline_task_says_itself_what_it_runs(loaded: Any, generation_task: Make) -> None:
    from harness.cell import Adapted, Run

    task = generation_task()
    task.task = {**task.task, "unsafe_code": True}
    with pytest.raises(HarnessError, match="executes what the model writes"):
        evaluate.check("quiz", task)
    task.unsafe_code = True
    evaluate.check("quiz", task)
    assert evaluate.evaluate(loaded, Adapted(loaded.model), "quiz", task, Run())["scores"]
    task.unsafe_code = False  # built before, with consent; without it, it is still refused
    with pytest.raises(HarnessError, match="executes what the model writes"):
        evaluate.evaluate(loaded, Adapted(loaded.model), "quiz", task, Run())
    for metric in ({"metric": "somebody/metric"}, {"metric": "exact_match", "hf_evaluate": True}):
        task.task = {**generation_task().task, "metric_list": [metric]}
        with pytest.raises(HarnessError, match="from the hub"):
            evaluate.check("quiz", task)
