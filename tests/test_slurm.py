"""A real Slurm, of one node: a sweep leaves there what it leaves on one machine, whatever happens to its jobs."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import store
from tests.clusters import sweep_pocket, wait_until
from tests.soak import same, start

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

Soaked = tuple[Path, Callable[..., Path]]
SLURM = ["engine=slurm", "engine.cpus=1", "engine.jobs=2"]
PATIENCE = 300  # seconds for one sweep
LONG = ["size=8", "method.min_steps=600", "run.checkpoint_seconds=1"]


class Slurm:
    """Sweeps on it, and Slurm's own commands."""

    def __init__(self, config: Path, folder: Path, environment: dict[str, str]) -> None:
        self.config, self.folder, self.environment = config, folder, environment
        self.begun: list[subprocess.Popen[bytes]] = []

    def start(self, *flags: str) -> "subprocess.Popen[bytes]":
        self.begun.append(start(self.config, self.folder / "runs", *SLURM, *flags, environment=self.environment))
        return self.begun[-1]

    def said(self) -> str:
        return (self.folder / "runs.log").read_text()

    def ask(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout

    def jobs(self) -> str:
        return self.ask("squeue", "--noheader", "--array", "--format=%i %T %r")

    def submissions(self) -> list[str]:
        return [folder.name for folder in self.folder.glob("runs/soak/.slurm/*")]

    def training(self) -> Path:
        """The folder of the cell that trains, once it has a checkpoint."""
        here = "runs/soak/tiny/pairs/sft/*/checkpoints/*/step*"
        return Path(wait_until(lambda: list(self.folder.glob(here)), "a checkpoint")[0]).parents[2]


@pytest.fixture
def cluster(soaked: Soaked, tmp_path: Path, slurm_cluster: dict[str, str]) -> Iterator[Slurm]:
    cluster = Slurm(soaked[0], tmp_path, slurm_cluster)
    yield cluster
    for sweep in cluster.begun:
        sweep.kill()
    for name in cluster.submissions():
        cluster.ask("scancel", f"--name={name}")


def resumed(cell: Path) -> list[int]:
    return store.read_json(cell / store.RECORD)["training"]["resumed"]


def test_a_sweep_leaves_what_it_leaves_on_one_machine(cluster: Slurm, soaked: Soaked) -> None:
    cluster.environment = {**cluster.environment, "WANDB_API_KEY": "a-key-that-nobody-may-read"}
    assert cluster.start().wait(PATIENCE) == 0, cluster.said()
    assert same(soaked[1](), cluster.folder / "runs") == 3
    wait_until(lambda: not cluster.jobs(), "the jobs' end", 30)
    for file in cluster.folder.rglob("*"):
        assert file.is_dir() or b"a-key-that-nobody-may-read" not in file.read_bytes(), file


def test_pocket_leaves_what_it_leaves_on_one_machine(
    slurm_cluster: dict[str, str], pocket: Path, tmp_path: Path
) -> None:
    sweep_pocket(tmp_path, *SLURM, environment=slurm_cluster)
    assert same(pocket, tmp_path / "runs") > 4


def test_a_preempted_job_is_queued_again_and_goes_on(cluster: Slurm, soaked: Soaked) -> None:
    sweep = cluster.start(*LONG)
    cell = cluster.training()
    cluster.ask("scancel", "--signal=USR2", *[f"--name={name}" for name in cluster.submissions()])
    wait_until(lambda: "BeginTime" in cluster.jobs(), "the job in the queue again")
    assert store.last_status(cell) == "preempted"
    assert sweep.wait(PATIENCE) == 0, cluster.said()
    assert len(resumed(cell)) == 1
    same(soaked[1](*LONG), cluster.folder / "runs")


def test_jobs_go_on_without_the_command_and_the_same_one_watches_on(cluster: Slurm, soaked: Soaked) -> None:
    sweep = cluster.start(*LONG)
    cell = cluster.training()
    sweep.kill()
    assert "RUNNING" in cluster.jobs()
    assert cluster.start(*LONG).wait(PATIENCE) == 0, cluster.said()
    assert len(cluster.submissions()) == 1
    assert resumed(cell) == []
    same(soaked[1](*LONG), cluster.folder / "runs")


def test_cancelled_jobs_keep_checkpoints_and_the_same_command_goes_on(cluster: Slurm, soaked: Soaked) -> None:
    sweep = cluster.start(*LONG)
    cell = cluster.training()
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait(PATIENCE) == 75
    (name,) = cluster.submissions()
    assert f"the Slurm jobs go on: `squeue --name={name}` lists them, `scancel --name={name}` ends" in cluster.said()
    assert "RUNNING" in cluster.jobs()
    cluster.ask("scancel", f"--name={name}")
    wait_until(lambda: not cluster.jobs(), "the jobs' end", 60)
    assert store.last_status(cell) == "preempted"
    assert cluster.start(*LONG).wait(PATIENCE) == 0, cluster.said()
    assert len(cluster.submissions()) == 2
    assert len(resumed(cell)) == 1
    same(soaked[1](*LONG), cluster.folder / "runs")


def test_a_cell_that_fails_stays_alone(cluster: Slurm, soaked: Soaked) -> None:
    axis = "arms.sft.method.lora.target_modules=[all-linear],[nosuch]"
    assert cluster.start(axis, "size=8").wait(PATIENCE) == 1
    frame = store.load(cluster.folder / "runs")
    assert sorted(frame.status) == ["failed", "ok", "ok"]
    (failed,) = frame[frame.status == "failed"].path
    about = store.read_json(cluster.folder / "runs" / failed / store.FAILURE)
    assert "Traceback" in about["traceback"]
    assert "nosuch" in about["traceback"]
    assert "Target modules {'nosuch'} not found" in cluster.said().splitlines()[-1]


def test_a_job_that_is_killed_fails_its_cell(cluster: Slurm) -> None:
    sweep = cluster.start("engine.jobs=1", *LONG)
    cell = cluster.training()
    (lease,) = cell.glob(".lease-*")
    worker = store.read_json(lease)["pid"]
    job = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(job, signal.SIGSTOP)  # or it would tell of its worker's death
    os.kill(worker, signal.SIGKILL)
    os.kill(job, signal.SIGKILL)
    assert sweep.wait(PATIENCE) == 1
    assert "its Slurm job is gone, killed or with its node" in cluster.said()
    assert store.last_status(cell) == "failed"
    assert cluster.start("--retry-failed", *LONG).wait(PATIENCE) == 0, cluster.said()
    assert len(resumed(cell)) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["engine.cpus=64"], "harness: Slurm refused the jobs: sbatch: error: Batch job submission failed"),
        (["+engine.sbatch.nosuch=1"], "harness: Slurm refused the jobs: sbatch: unrecognized option"),
        (["engine.setup=['echo no such module', 'exit 3']"], "ends with 'no such module'"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(cluster: Slurm, flags: list[str], message: str) -> None:
    assert cluster.start(*flags).wait(PATIENCE) == 2
    assert message in cluster.said().splitlines()[-1]
