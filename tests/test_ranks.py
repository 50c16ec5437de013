"""One cell over two real processes, started by `accelerate launch`, against the same cell in one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness import ranks, store
from harness.compose import compose_cell
from harness.data.chat import Tokens
from harness.engines.local import not_done, run_cells
from harness.run import run
from harness.store import ADAPTER
from harness.sweep import sweep_cells
from harness.train import _own_passes
from tests.test_sweep import config_dir  # noqa: F401  (a fixture)
from tests.wandb_files import read_run

# Sums in another order: float32 rounding, which Adam's division by the gradient's own size lets grow a little.
LOSS, WEIGHT = 1e-5, 1e-4
LAUNCH = ["-m", "accelerate.commands.launch", "--num_processes=2", "--main_process_port=0"]
DATA_PARALLEL = [*LAUNCH, "--multi_gpu"]
FSDP = [*LAUNCH, "--use_fsdp", "--fsdp_version=2"]
# 5 examples in batches of 4 and 1: in each second step one of the two processes has nothing to learn from.
CELL = ["base=tiny", "data=pairs", "method=sft", "size=5", "evals=quiz", "method.batch_size=4", "method.epochs=3"]
CELL += ["method.lr=0.01", "run.tokens_per_pass=40", "run.threads=1", "wandb.mode=disabled"]
# A program that runs the harness, but fails on the second process at the second step, as with memory that is out.
FAILING = """
import os, harness.train as train, harness.__main__ as cli
whole, steps = train._own_passes, iter(range(100))
def fail(*given):
    if os.environ["RANK"] == "1" and next(steps) == 1:
        raise MemoryError("no more room")
    return whole(*given)
train._own_passes = fail
cli.main()
"""


# Killed as a machine that is switched off, after its third step.
KILLED = """
import os, signal, harness.train as train, harness.__main__ as cli
whole, steps = train._own_passes, iter(range(100))
def end(*given):
    if os.environ["RANK"] == "1" and next(steps) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*given)
train._own_passes = end
cli.main()
"""
WATCHED = """
import sys, harness.ranks as ranks, harness.__main__ as cli
whole = ranks.shard
def shard(model, device):
    layers = list(model.model.layers.parameters())
    whole(model, device)
    part = sum(p.to_local().numel() for p in model.model.layers.parameters()) / sum(p.numel() for p in layers)
    print(f"holds {part} of it", file=sys.stderr)
ranks.shard = shard
cli.main()
"""


@pytest.fixture
def launch(config_dir: Path, tmp_path: Path) -> Callable[..., Any]:  # noqa: F811
    """``launch(launcher, "-m", "harness", "run", ...)`` runs a program over two processes to its end."""

    def command(launcher: list[str], *program: str) -> Any:
        settings = {"HARNESS_CONFIG_DIR": str(config_dir), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        words = [sys.executable, *launcher, *program]
        return subprocess.run(
            words, env=os.environ | settings, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    return command


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def files(folder: Path) -> set[Path]:
    found = {p.relative_to(folder) for p in folder.rglob("*")}
    return {p for p in found if "wandb" not in p.parts and not p.name.startswith(".lease-")}


def assert_same(alone: Path, together: Path) -> None:
    """Two folders of one cell, by one process and by two."""
    assert files(together) == files(alone)
    one, two = read(alone, store.RECORD), read(together, store.RECORD)
    assert (one["processes"], two["processes"]) == (1, 2)
    for field in ("fingerprint", "identity", "manifest"):
        assert one[field] == two[field]
    for field in {"steps", "epochs", "target_tokens", "tokens", "packed", "trained_parameters"} & one[
        "training"
    ].keys():
        assert one["training"][field] == two["training"][field]
    (scores,) = (p.relative_to(alone) for p in alone.glob("evals/*/*.json"))
    assert read(alone, str(scores))["scores"] == read(together, str(scores))["scores"]
    assert (alone / scores).with_suffix(".jsonl").read_text() == (together / scores).with_suffix(".jsonl").read_text()
    if one["training"]:
        for before, after in zip(losses(alone), losses(together), strict=True):
            assert after == pytest.approx(before, abs=LOSS, rel=LOSS)
        ours, theirs = load_file(alone / ADAPTER), load_file(together / ADAPTER)
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            assert torch.allclose(theirs[name], weight, atol=WEIGHT, rtol=0), name


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(
    launch: Callable[..., Any],
    config_dir: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    alone = run(compose_cell([*CELL, f"run.root={tmp_path / 'alone'}"], config_dir))
    done = launch(DATA_PARALLEL, "-m", "harness", "run", *CELL, "wandb.mode=offline", "run.root=together")
    assert done.returncode == 0, done.stderr
    assert read(alone, store.RECORD)["training"]["steps"] == 6
    together = Path("together", alone.relative_to(tmp_path / "alone"))
    assert done.stdout.splitlines() == [str(together)]  # one of them speaks
    assert_same(alone, tmp_path / together)
    (mirror,) = tmp_path.glob("together/**/*.wandb")
    assert read_run(mirror)["exit"] == 0  # nobody left before the last upload


@pytest.mark.slow
def test_a_sweep_over_a_base_in_parts_leaves_what_one_process_leaves(
    launch: Callable[..., Any],
    config_dir: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Cell by cell: the base, demonstrations, and two trainings one after the other, so it leaves each as it came."""
    cells = ["~arms.again", "base=tiny", "arms.sft.size=8,5", "arms.sft.seed=0", "arms.icl.seed=0"]
    cells += ["arms.sft.method.batch_size=4", "run.tokens_per_pass=40"]
    _, wanted = sweep_cells("mine", [*cells, f"run.root={tmp_path / 'alone'}"], config_dir)
    assert not not_done(run_cells(wanted, workers=1, threads=1))
    program = tmp_path / "watched.py"
    program.write_text(WATCHED)
    done = launch(FSDP, str(program), "sweep", "mine", *cells, "run.root=together")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("holds 0.5 of it") == 2
    assert done.stdout.count("4 cells: 4 missing") == 1
    assert (tmp_path / "together" / "mine" / "report.html").exists()
    for cell in wanted:
        assert_same(cell.folder(), tmp_path / "together" / cell.folder().relative_to(tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [DATA_PARALLEL, FSDP], ids=["copies", "parts"])
def test_a_learning_rate_is_chosen_as_by_one(
    launch: Callable[..., Any],
    config_dir: Path,  # noqa: F811
    tmp_path: Path,
    launcher: list[str],
) -> None:
    """Each candidate by both, losses on held-out examples summed over them, and one choice."""
    searching = [*CELL, "method.lr=search", "method.search.lrs=[1e-4,1e-2]", "method.held_out=5"]
    alone = run(compose_cell([*searching, f"run.root={tmp_path / 'alone'}"], config_dir))
    done = launch(launcher, "-m", "harness", "run", *searching, "run.root=together")
    assert done.returncode == 0, done.stderr
    together = tmp_path / "together" / alone.relative_to(tmp_path / "alone")
    assert_same(alone, together)
    one, two = (read(folder, store.RECORD)["training"] for folder in (alone, together))
    assert one["lr"] == two["lr"] == 0.01
    for before, after in zip(one["search"]["candidates"], two["search"]["candidates"], strict=True):
        assert after["score"] == pytest.approx(before["score"], rel=LOSS)


@pytest.mark.slow
def test_one_that_fails_ends_all(launch: Callable[..., Any], tmp_path: Path) -> None:
    """The other one waits for its gradient, and would for hours."""
    program = tmp_path / "failing.py"
    program.write_text(FAILING)
    done = launch(DATA_PARALLEL, str(program), "run", *CELL)
    assert done.returncode != 0
    assert "MemoryError: no more room" in done.stderr
    assert not list(tmp_path.rglob(store.TRAINED))


@pytest.mark.slow
def test_killed_on_one_it_goes_on_with_both(
    launch: Callable[..., Any],
    config_dir: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    alone = run(compose_cell([*CELL, f"run.root={tmp_path / 'alone'}"], config_dir))
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    cell = [*CELL, "run.checkpoint_seconds=0", "run.root=together"]
    assert launch(DATA_PARALLEL, str(program), "run", *cell).returncode != 0
    done = launch(DATA_PARALLEL, "-m", "harness", "run", *cell)
    assert done.returncode == 0, done.stderr
    together = tmp_path / "together" / alone.relative_to(tmp_path / "alone")
    assert read(together, store.RECORD)["training"]["resumed"] == [3]
    assert_same(alone, together)


@pytest.mark.slow
def test_what_is_wrong_for_all_is_said_once(launch: Callable[..., Any]) -> None:
    done = launch(DATA_PARALLEL, "-m", "harness", "status", "runs")
    assert done.returncode != 0
    assert done.stderr.count("start it without accelerate launch") == 1


@pytest.fixture
def third_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("third_of_four")
def test_every_rank_makes_as_many_passes_and_together_they_cover_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for lengths in ((5,), (5, 9), (30, 5, 5, 9, 12, 40, 7, 3, 8, 21)):
        batch = [Tokens([100 * i + k for k in range(n)], [False] + [True] * (n - 1)) for i, n in enumerate(lengths)]
        passes = []
        for rank in range(4):
            monkeypatch.setenv("RANK", str(rank))
            passes.append(_own_passes(batch, 12, 1000))
        assert len({len(own) for own in passes}) == 1
        learned = [s for own in passes for together in own for s in together if any(s.learned)]
        assert sorted(s.ids for s in learned) == sorted(s.ids for s in batch)


@pytest.mark.usefixtures("third_of_four")
def test_only_the_first_of_several_decides() -> None:
    assert (ranks.count(), ranks.mine(), ranks.first()) == (4, 2, False)


def test_a_scheduler_that_counts_something_else_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # of nodes, or of another program: no launcher has set LOCAL_RANK
    assert (ranks.count(), ranks.first(), ranks.sharded()) == (1, True, False)
    assert ranks.agree(lambda: 3) == 3
