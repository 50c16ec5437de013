"""Which engine runs a sweep is a setting and no part of any result; what needs a cluster is in test_ray, test_slurm."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import store
from harness.cell import Cell
from harness.compose import compose_cell, from_dict
from harness.engines.local import LocalEngine
from harness.engines.ray import RayEngine
from harness.engines.slurm import SlurmEngine
from harness.engines.slurm_job import Share, _grew
from harness.engines.worker import Outcome
from harness.errors import HarnessError
from harness.run import as_dict
from tests.children import SERVER
from tests.test_cli import harness  # noqa: F401  (a fixture)
from tests.test_sweep import config_dir  # noqa: F401  (a fixture)


def test_an_engine_is_chosen_and_set_like_a_method(tmp_path: Path) -> None:
    assert compose_cell([]).engine == LocalEngine()
    cell = compose_cell(["engine=slurm", "engine.partition=gpu", "+engine.sbatch.account=mine", "engine.jobs=8"])
    assert cell.engine == SlurmEngine(partition="gpu", sbatch={"account": "mine"}, jobs=8)
    with pytest.raises(HarnessError, match=r"unknown key 'engine\.slot'; did you mean 'slots'"):
        compose_cell(["engine=ray", "engine.slot=3"])
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "ours.yaml").write_text("defaults: [ray, _self_]\naddress: head:6379\n")
    assert compose_cell(["engine=ours"], tmp_path).engine == RayEngine(address="head:6379")


def test_an_engine_is_no_part_of_a_result() -> None:
    here, there = compose_cell([]), compose_cell(["engine=slurm", "+engine.sbatch.account=mine"])
    assert here.folder() == there.folder()
    assert here.identity("b", "s") == there.identity("b", "s")
    assert as_dict(here) == as_dict(there)
    assert dataclasses.asdict(from_dict(as_dict(there))) == dataclasses.asdict(here)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "mine", "engine=slurm"], "engine=slurm needs Slurm, but there is no sbatch here"),
        (
            ["sweep", "mine", "engine=ray"],
            "engine=ray needs Ray: pip install -c constraints.txt -e '.[ray]'",
        ),
        (["sweep", "mine", "arms.icl.engine=ray"], "the arms ask for different engines"),
        (["sweep", "mine", "engine=ray", "engine.gpus=2"], "engine.gpus=2: a cell uses one GPU here"),
        (["sweep", "mine", "engine=slurm", "engine.gpus=2"], "engine.gpus=2: a cell uses one GPU here"),
        (["run", "data=pairs", "engine=ray"], "harness run runs one cell, here; engine=ray is for sweep and eval"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(
    harness: Callable[..., tuple[int, str, str]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    status, _, errors = harness(*arguments)
    assert status == 2
    assert message in errors.splitlines()[-1]
    assert not [p for p in Path().glob("runs/**/*.json") if p.name != "sweep.json"]  # which only tells the plan


def test_accelerate_and_an_engine_are_told_apart(
    harness: Callable[..., tuple[int, str, str]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from harness import ranks
    from harness.commands import common

    monkeypatch.setattr(ranks, "count", lambda: 2)
    with pytest.raises(HarnessError, match="accelerate launch and engine=ray both start processes"):
        common.one_engine([compose_cell(["engine=ray"])])


def test_a_job_knows_whether_it_got_further(make_cell: Callable[..., Cell]) -> None:
    """Else one that never does within its minutes would be queued again for ever."""
    cell = make_cell("sft")
    long_ago = time.time() - 100
    checkpoints = cell.folder() / "checkpoints" / "0123"
    checkpoints.mkdir(parents=True)
    for name in (store.FAILURE, ".lease-000001.json"):
        (cell.folder() / name).write_text("{}")
    assert not _grew(cell, long_ago)
    (checkpoints / "step000000001-0.safetensors").write_text("")
    assert _grew(cell, long_ago)
    assert not _grew(cell, time.time() + 100)
    shutil.rmtree(checkpoints)
    (cell.folder() / store.TRAINED).write_text("{}")
    assert _grew(cell, long_ago)


def claim_all(folder: Path, job: int) -> None:
    share = Share(folder)
    while (number := share.claim(job, "")) is not None:
        with (folder / f"of{job}").open("a") as file:
            file.write(f"{number}\n")
        share.tell(number, Outcome(share.cells[number], "ok"))


def test_jobs_share_cells_and_each_has_one_owner(make_cell: Callable[..., Cell], tmp_path: Path) -> None:
    cells = [make_cell("sft", size=n) for n in range(1, 21)]
    folder = Share.of(tmp_path / "share", cells).folder
    jobs = [SERVER.Process(target=claim_all, args=(folder, job)) for job in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(timeout=60)
        assert job.exitcode == 0
    took = [int(line) for file in folder.glob("of*") for line in file.read_text().split()]
    assert sorted(took) == list(range(20))
    assert {o.state for o in Share(folder).outcomes().values()} == {"ok"}


def test_a_job_queued_again_has_its_cell_back_and_others_keep_to_their_base(
    make_cell: Callable[..., Cell], tmp_path: Path
) -> None:
    from harness.engines.worker import base_of

    one = [make_cell("sft", size=n) for n in (1, 2, 3)]
    two = [dataclasses.replace(cell, base=dataclasses.replace(cell.base, name="two")) for cell in one]
    share = Share.of(tmp_path / "share", [*one, *two])
    assert share.claim(0, "") == 0
    assert share.claim(1, "") == 3  # of the base that nobody has
    assert share.claim(0, "") == 0  # nothing was told of it: the job was begun anew
    share.tell(0, Outcome(one[0], "failed", "as asked"))
    assert share.claim(0, base_of(one[0])) == 1
    assert Share(share.folder).outcomes() == {0: Outcome(one[0], "failed", "as asked")}
