"""Faults beside the training: a cell that dies while it is scored or written down, harmed files, a full disk."""

import dataclasses
import hashlib
import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from harness import base as bases
from harness import files, lm, store
from harness.artifact import sha256_file
from harness.cell import Cell, Data, Source
from harness.errors import HarnessError
from harness.plan import check, plan
from harness.run import run
from harness.store import ADAPTER
from tests.children import in_child
from tests.conftest import ITEMS, pair_form, pairs, save_tiny

Make = Callable[..., Any]


@pytest.fixture
def cell(make_cell: Make, generation_task: Make, choice_task: Make) -> Cell:
    return make_cell("sft", evals={"quiz": generation_task(), "choice": choice_task()})


@pytest.fixture
def undisturbed(cell: Cell, tmp_path: Path) -> dict[str, Any]:
    import copy

    other = copy.deepcopy(cell)
    other.run.root = str(tmp_path / "undisturbed")
    return outcome(run(other))


def outcome(folder: Path) -> dict[str, Any]:
    """What must not depend on how often the cell was begun."""
    frame = store.load(folder).drop(columns=["path", "train_seconds", "eval_seconds"])
    answers = {p.parent.name: p.read_text() for p in sorted(folder.glob("evals/*/*.jsonl"))}
    return {"scores": frame.to_dict("records"), "answers": answers, "adapter": (folder / ADAPTER).read_bytes()}


def die_when_asked(cell: Cell, task: str) -> None:
    """SIGKILL at the first answer that this task wants of the model."""

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(lm.Asker, {"quiz": "generate_until", "choice": "loglikelihood"}[task], die)
    run(cell)


@pytest.mark.parametrize("task", ["quiz", "choice"])
def test_killed_while_it_is_scored(cell: Cell, undisturbed: dict[str, Any], task: str) -> None:
    assert in_child(die_when_asked, cell, task) == -signal.SIGKILL
    trained = (cell.folder() / ADAPTER).stat().st_mtime_ns
    folder = run(cell)
    assert (folder / ADAPTER).stat().st_mtime_ns == trained  # not trained again
    assert outcome(folder) == undisturbed


def die_when_written(cell: Cell, name: str, named: bool) -> None:
    """SIGKILL when this file is on disk but has no name yet, or when it was just named."""
    real = files.sync

    def sync(path: Path) -> None:
        reached = path.is_dir() and (path / name).exists() if named else path.name.startswith(f".{name}-")
        if reached:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path)

    files.sync = sync
    run(cell)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", [ADAPTER, "losses.jsonl", store.TRAINED, store.RECORD])
def test_killed_while_a_file_is_written(cell: Cell, undisturbed: dict[str, Any], name: str, named: bool) -> None:
    assert in_child(die_when_written, cell, name, named) == -signal.SIGKILL
    assert (cell.folder() / name).exists() == named
    folder = run(cell)
    assert outcome(folder) == undisturbed
    assert not list(folder.rglob(f"*{files.UNFINISHED}"))


def test_a_flipped_byte_in_an_adapter_is_refused(cell: Cell, make_cell: Make) -> None:
    folder = run(make_cell("sft", data=cell.data, base=cell.base))
    content = bytearray((folder / ADAPTER).read_bytes())
    content[-5] ^= 1
    (folder / ADAPTER).write_bytes(content)
    with pytest.raises(HarnessError, match="does not match its checksum"):
        run(cell)
    assert not list(folder.glob("evals/*/*"))


@pytest.mark.parametrize("which", [store.RECORD, store.TRAINED, "evals/quiz/*.json"])
def test_a_flipped_byte_in_a_result_is_told_and_never_shown(cell: Cell, which: str) -> None:
    """Any byte of it: a digit that is another digit would be no less valid JSON."""
    folder = run(cell)
    (file,) = folder.glob(which)
    content = file.read_bytes()
    digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    for place in (*range(0, len(content), max(1, len(content) // 40)), *digits[:: max(1, len(digits) // 40)]):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(HarnessError, match=f"{file.name} does not match its checksum; delete"):
            store.read_result(file)
    if which != store.TRAINED:  # which no table is made from
        with pytest.raises(HarnessError, match="does not match its checksum"):
            store.load(cell.run.root)
    with pytest.raises(HarnessError, match="does not match its checksum"):
        run(dataclasses.replace(cell, evals={**cell.evals, "again": cell.evals["quiz"]}))
    file.write_bytes(content)
    run(cell)


def test_the_answers_are_behind_their_scores_checksum(cell: Cell) -> None:
    for scores in run(cell).glob("evals/*/*.json"):
        answers = scores.with_suffix(".jsonl").read_bytes()
        assert store.read_result(scores)["answers_sha256"] == hashlib.sha256(answers).hexdigest()


# --- adapters that are whole and wrong ------------------------------------------------------------------------------


def with_weights(folder: Path, weights: dict[str, Any]) -> None:
    """Put these weights in the place of a cell's adapter, its checksum with them: nothing else can tell."""
    from safetensors.torch import save_file

    (folder / ADAPTER).unlink()
    save_file(weights, folder / ADAPTER)
    trained = store.read_result(folder / store.TRAINED)
    trained["training"]["adapter_sha256"] = sha256_file(folder / ADAPTER)
    (folder / store.TRAINED).unlink()
    store.write_result(folder / store.TRAINED, trained)


@pytest.fixture
def trained(cell: Cell) -> Cell:
    """Done but for its evaluations, so that the next run loads its adapter."""
    cell.method.lr = 0.01
    run(dataclasses.replace(cell, evals={}))
    return cell


def test_an_adapter_on_another_base_of_the_same_shapes_is_refused(
    trained: Cell, tokenizer: Any, tmp_path: Path
) -> None:
    """peft never looks at the base that an adapter was made on."""
    other = save_tiny(tmp_path / "other", tokenizer, seed=1)
    moved = dataclasses.replace(trained, base=dataclasses.replace(trained.base, path=str(other)))
    assert moved.folder() == trained.folder()  # the same names
    with pytest.raises(HarnessError, match=r"another experiment: base\.identity: sha256:"):
        run(moved)
    assert plan([moved])[0].state == "drifted"
    assert not list(trained.folder().glob("evals/*/*"))


def test_an_adapter_of_another_cell_is_refused(trained: Cell) -> None:
    other = run(dataclasses.replace(trained, seed=5, evals={}))
    shutil.copy(other / ADAPTER, trained.folder() / ADAPTER)
    with pytest.raises(HarnessError, match="does not match its checksum"):
        run(trained)
    shutil.copy(other / store.TRAINED, trained.folder() / store.TRAINED)
    with pytest.raises(HarnessError, match="another experiment: seed: 5 -> 0"):
        run(trained)


@pytest.mark.parametrize("harm", ["missing", "unknown"])
def test_an_adapter_that_lacks_weights_is_refused(trained: Cell, harm: str) -> None:
    """peft would warn, and leave the missing ones as they are at the start of a training."""
    weights = load_file(trained.folder() / ADAPTER)
    one = sorted(weights)[0]
    weights["renamed"] = weights.pop(one)
    if harm == "missing":
        del weights["renamed"]
    with_weights(trained.folder(), weights)
    with pytest.raises(HarnessError, match="is no adapter of this method and base"):
        run(trained)


def test_an_adapter_without_effect_is_found_by_its_logits(trained: Cell, caplog: pytest.LogCaptureFixture) -> None:
    record = store.read_result(trained.folder() / store.TRAINED)["training"]
    assert record["logit_change"] > 1e-3
    weights = load_file(trained.folder() / ADAPTER)
    with_weights(trained.folder(), {name: w * 0 if "lora_B" in name else w for name, w in weights.items()})
    with pytest.raises(HarnessError, match=r"changes logits by 0, but by [\d.]+ when it was trained"):
        run(trained)
    still = dataclasses.replace(trained, method=dataclasses.replace(trained.method, lr=0.0))
    folder = run(still)  # a control that learns nothing is an experiment, and says what it is
    assert store.read_result(folder / store.TRAINED)["training"]["logit_change"] == 0
    assert "the adapter changes no logit" in caplog.text


def test_two_adapters_asked_the_same_answer_for_themselves(cell: Cell, make_data: Make, tmp_path: Path) -> None:
    """One after the other in one process, on one resident base, as alone: nothing of an answer is kept for the next."""
    pair = []
    for word in ("red", "blue"):
        rows = [{"prompt": item["question"], "completion": word} for item in ITEMS]
        method = dataclasses.replace(cell.method, lr=5e-3, epochs=60, decay="constant")
        pair.append(dataclasses.replace(cell, method=method, size=5, data=make_data(rows, word)))
    together = [outcome(run(each))["answers"] for each in pair]
    for each, word, answers in zip(pair, ("red", "blue"), together, strict=True):
        asked = [json.loads(line) for line in answers["quiz"].splitlines()]
        assert {row["answers"][0][0].strip() for row in asked} == {word}
        bases._resident.clear()
        alone = dataclasses.replace(each, run=dataclasses.replace(each.run, root=str(tmp_path / f"alone-{word}")))
        assert outcome(run(alone))["answers"] == answers


# --- data that is not what it should be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", "compl', r"rows\.jsonl:2 is not valid JSON"),
        (
            b'{"prompt": "a", "completion": "b"}\n{"prompt": "a\xff", "completion": "b"}\n',
            r"rows\.jsonl:2 is not valid",
        ),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', r"rows\.jsonl:2.* a column that is missing"),
        (b"", "is empty; there is nothing to train on"),
        (b"\n\n  \n", "is empty; there is nothing to train on"),
    ],
    ids=["truncated", "bytes", "column", "empty", "blank"],
)
def test_rows_that_are_none_are_refused_when_planning(
    content: bytes, complaint: str, make_cell: Make, make_data: Make
) -> None:
    """By file and line. None is skipped: which rows a dataset has must not depend on what its reader can bear."""
    cell = make_cell("sft", data=make_data(name="rows"))
    Path(cell.data.sources["rows"].path).write_bytes(content)
    with pytest.raises(HarnessError, match=complaint):
        plan([cell])
    assert not cell.folder().exists()


def test_a_truncated_parquet_file_and_an_evaluation_without_items_are_refused_when_planning(
    make_cell: Make, generation_task: Make, tmp_path: Path
) -> None:
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs(500)), file)
    cell = make_cell("sft", data=Data(name="rows", sources={"a": Source(path=str(file), form=pair_form())}))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(HarnessError, match=r"rows\.parquet cannot be read as Parquet"):
        plan([cell])
    task = generation_task()
    Path(str(task.file)).write_text("\n")
    with pytest.raises(HarnessError, match="is empty; a score needs items"):
        check([make_cell("base", evals={"quiz": task})])


def test_examples_that_are_all_cut_before_their_answer_are_refused(cell: Cell) -> None:
    """What is left after tokenising may be nothing."""
    cell.method.max_length = 3
    with pytest.raises(HarnessError, match="4 examples are cut before their answer begins"):
        run(cell)
    assert not (cell.folder() / ADAPTER).exists()


# --- a full disk ----------------------------------------------------------------------------------------------------


def run_in_little_room(cell: Cell, room: int) -> None:
    """The system refuses to let any file grow beyond `room` bytes, as a disk that is full at that point."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        run(cell)
    except (OSError, HarnessError):
        os._exit(7)


@pytest.mark.parametrize("room", [600, 3_000, 20_000])
def test_no_room_is_no_result(cell: Cell, undisturbed: dict[str, Any], room: int) -> None:
    """For the lease and the adapter, for the record, ...: the cell ends, nothing half is taken for whole."""
    assert in_child(run_in_little_room, cell, room) == 7
    assert not (cell.folder() / store.RECORD).exists()
    assert outcome(run(cell)) == undisturbed


def test_the_list_of_faults_names_tests_that_exist() -> None:
    here = Path(__file__).parent
    rows = [
        line.split("|")[1:-1] for line in (here / "FAULTS.md").read_text().splitlines() if re.match(r"\| \d+ ", line)
    ]
    assert [int(row[0]) for row in rows] == list(range(1, 31))
    for row in rows:
        assert "test_" in row[3]
        for file, named in re.findall(r"(test_\w+\.py)((?:,? `\w+`)*)", row[3]):
            names = re.findall(r"^def (test_\w+)", (here / file).read_text(), re.MULTILINE)
            for part in re.findall(r"`(\w+)`", named):
                assert any(part in name for name in names), f"{file} has no test with {part}"
