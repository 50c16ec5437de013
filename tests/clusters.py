"""A Ray cluster of two nodes and a Slurm cluster of one, on this machine, for as long as a test needs them."""

import contextlib
import getpass
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.soak import start, write_sweep

WHOLE = "HARNESS_TEST_FULL"  # set by make test-full: what is missing there is an error
DAEMONS = ("munged", "slurmctld", "slurmd")
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
EnforcePartLimits=ALL
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=500 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def need(found: object, what: str) -> None:
    """Skip the test where something is not installed; in make test-full, fail."""
    if not found:
        (pytest.fail if os.environ.get(WHOLE) else pytest.skip)(f"missing: {what}")


def wait_until(true: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    patience = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < patience, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)
    return found


@contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands find it: one node, two CPUs."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    missing = [name for name in (*DAEMONS, "sbatch") if not shutil.which(name, path=path)]
    need(not missing, f"{', '.join(missing)}: apt-get install munge slurmctld slurmd slurm-client")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, as the path of a socket must be
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    given = {"host": platform.node(), "ports": free_ports(2), "user": getpass.getuser(), "folder": folder}
    (folder / "slurm.conf").write_text(SLURM_CONF.format(**given))
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    munge = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("key-file", "socket", "pid-file")]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("log", "seed")]
    commands = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.log").open("wb") as log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if command[0] == "munged":
                wait_until((folder / "munge.socket").exists, "munged")
        idle = ["sinfo", "--noheader", "--format=%t"]
        said = lambda: subprocess.run(idle, env=environment, capture_output=True, text=True).stdout.strip()  # noqa: E731
        wait_until(lambda: said() == "idle", f"an idle node; see the logs in {folder}")
        yield environment
    finally:
        user = f"--user={given['user']}"
        if len(daemons) == len(commands):
            subprocess.run(["scancel", user], env=environment, check=False)
            with contextlib.suppress(AssertionError):
                queue = ["squeue", "--noheader", user]
                wait_until(lambda: not subprocess.run(queue, env=environment, capture_output=True).stdout, "jobs", 60)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)
        shutil.rmtree(folder)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` of two nodes, one CPU each."""
    with contextlib.suppress(ImportError):
        from ray.cluster_utils import Cluster
    need("Cluster" in locals(), "ray: pip install -c constraints.txt -e '.[ray]'")
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[dict[str, str]]:
    """The environment for commands of a Slurm cluster."""
    with slurm() as environment:
        yield environment


@pytest.fixture(scope="session")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., Path]]:
    """A configuration folder with the sweep of tests/soak.py, and what it leaves here with some overrides."""
    folder = tmp_path_factory.mktemp("soaked")
    config = write_sweep(folder, "4,8", 1)
    made: dict[tuple[str, ...], Path] = {}

    def calm(*overrides: str) -> Path:
        if overrides not in made:
            root = folder / f"calm{len(made)}"
            status = start(config, root, *overrides).wait()
            made[overrides] = root
            assert status == 0, (folder / f"{root.name}.log").read_text()
        return made[overrides]

    return config, calm


POCKET = "base=pocket_s size=4,16 seed=0 ~arms.icl_facts ~arms.icl_rule ~arms.m_facts_few ~arms.m_facts_many".split()
POCKET += "~arms.m_rule_few ~arms.m_rule_many ~arms.s_rule_many ~arms.s_facts_many run.eval_batch_size=50".split()


def sweep_pocket(folder: Path, *flags: str, environment: dict[str, str] | None = None) -> str:
    """`harness sweep pocket`, some cells of it, with relative paths; what it said."""
    command = [sys.executable, "-m", "harness", "sweep", "pocket", *POCKET, *flags]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `sweep_pocket` on this machine."""
    folder = tmp_path_factory.mktemp("pocket")
    sweep_pocket(folder)
    return folder / "runs"
