"""A real Ray cluster of two nodes: a sweep leaves there what it leaves on one machine, also when a node is lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import store
from tests.clusters import NODE, ray_cluster, sweep_pocket, wait_until
from tests.soak import same, start

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

Soaked = tuple[Path, Callable[..., Path]]
PATIENCE = 300  # seconds for one sweep
LONG = ["arms.sft.size=4,8", "method.min_steps=600", "run.checkpoint_seconds=1"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with ray_cluster() as cluster:
        yield cluster


class Ray:
    def __init__(self, config: Path, folder: Path, nodes: Any) -> None:
        self.config, self.folder, self.nodes = config, folder, nodes
        self.begun: list[subprocess.Popen[bytes]] = []
        self.flags = ["engine=ray", f"engine.address={nodes.address}"]

    def start(self, *flags: str) -> "subprocess.Popen[bytes]":
        self.begun.append(start(self.config, self.folder / "runs", *self.flags, *flags))
        return self.begun[-1]

    def said(self) -> str:
        return (self.folder / "runs.log").read_text()

    def trained(self) -> list[Path]:
        """The cells that have a checkpoint."""
        return sorted({p.parents[2] for p in self.folder.glob("runs/soak/tiny/pairs/sft/*/checkpoints/*/step*")})


@pytest.fixture
def cluster(soaked: Soaked, tmp_path: Path, nodes: Any) -> Iterator[Ray]:
    cluster = Ray(soaked[0], tmp_path, nodes)
    yield cluster
    for sweep in cluster.begun:
        sweep.kill()


def resumed(cell: Path) -> int:
    """How often its training went on from a checkpoint."""
    return len(store.read_json(cell / store.RECORD)["training"]["resumed"])


def test_a_sweep_leaves_what_it_leaves_on_one_machine(cluster: Ray, soaked: Soaked) -> None:
    assert cluster.start().wait(PATIENCE) == 0, cluster.said()
    assert same(soaked[1](), cluster.folder / "runs") == 3
    assert not list(cluster.folder.rglob(".ray-*"))
    quiz = (cluster.config / "evals" / "quiz.yaml").read_text()
    (cluster.config / "evals" / "again.yaml").write_text(quiz.replace("quiz:", "again:", 1))
    command = [sys.executable, "-m", "harness", "eval", "runs/soak", "evals=again", "--config-dir", str(cluster.config)]
    subprocess.run([*command, *cluster.flags, "run.device=cpu", "run.threads=1"], cwd=cluster.folder, check=True)
    scores = store.load(cluster.folder / "runs").pivot_table(index="path", columns="task", values="score")
    assert (scores.quiz == scores.again).all()


def test_pocket_leaves_what_it_leaves_on_one_machine(nodes: Any, pocket: Path, tmp_path: Path) -> None:
    sweep_pocket(tmp_path, "engine=ray", f"engine.address={nodes.address}")
    assert same(pocket, tmp_path / "runs") > 4


def test_the_cell_of_a_lost_node_goes_elsewhere(cluster: Ray, soaked: Soaked) -> None:
    """Both nodes train; what the one had that is killed with all its processes is done by the other."""
    sweep = cluster.start(*LONG)
    wait_until(lambda: len(cluster.trained()) == 2, "checkpoints on both nodes")
    cluster.nodes.remove_node(cluster.nodes.list_all_nodes()[-1], allow_graceful=False)
    try:
        assert sweep.wait(PATIENCE) == 0, cluster.said()
        assert cluster.said().count("its node is gone; it goes elsewhere") == 1
        assert sorted(map(resumed, cluster.folder.glob("runs/soak/tiny/pairs/sft/*"))) == [0, 1]
        same(soaked[1](*LONG), cluster.folder / "runs")
    finally:
        cluster.nodes.add_node(**NODE)


def test_a_sweep_that_is_told_to_stop_keeps_checkpoints_and_goes_on(cluster: Ray, soaked: Soaked) -> None:
    sweep = cluster.start(*LONG)
    cells = wait_until(lambda: len(cluster.trained()) == 2 and cluster.trained(), "checkpoints on both nodes")
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait(PATIENCE) == 75, cluster.said()
    assert [store.last_status(cell) for cell in cells] == ["preempted", "preempted"]
    assert cluster.start(*LONG).wait(PATIENCE) == 0, cluster.said()
    assert list(map(resumed, cells)) == [1, 1]
    same(soaked[1](*LONG), cluster.folder / "runs")


def test_a_cell_that_fails_or_is_killed_stays_alone(cluster: Ray) -> None:
    """The worker's death is its cell's failure, and no node's: it is not tried again."""
    axis = "arms.sft.method.lora.target_modules=[all-linear],[nosuch]"
    sweep = cluster.start(axis, "size=8", *LONG[1:])
    (cell,) = wait_until(cluster.trained, "a checkpoint")
    (lease,) = cell.glob(".lease-*")
    time.sleep(1)
    os.kill(store.read_json(lease)["pid"], signal.SIGKILL)
    assert sweep.wait(PATIENCE) == 1
    frame = store.load(cluster.folder / "runs")
    assert sorted(frame.status) == ["failed", "failed", "ok"]
    assert "Target modules {'nosuch'} not found" in cluster.said()
    assert "its process was ended by SIGKILL" in store.read_json(cell / store.FAILURE)["traceback"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["engine.cpus=64"], "no node of the Ray cluster has 64 CPUs and 0 GPUs"),
        (["engine.gpus=1"], "no node of the Ray cluster has 1 CPUs and 1 GPUs"),
        (["engine.address=127.0.0.1:1"], "no Ray cluster answers at '127.0.0.1:1'"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(cluster: Ray, flags: list[str], message: str) -> None:
    assert cluster.start(*flags).wait(PATIENCE) == 2
    assert message in cluster.said().splitlines()[-1]
