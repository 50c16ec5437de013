"""The rows of the house: a file imports only from rows above its own, and each heavy library has one door."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    {"harness.errors", "harness.clock", "harness.files", "harness.preempt", "harness.pace"},
    {"harness.secrets"},
    {"harness.lease", "harness.choice", "harness.shapes", "harness.attention", "harness.ranks", "harness.rates"},
    {"harness.artifact", "harness.identity", "harness.by_rows"},
    {"harness.cell", "harness.pocket"},
    {"harness.probe", "harness.samples"},
    {"harness.hub", "harness.consent", "harness.schedule"},
    {"harness.checkpoint"},
    {"harness.trunk", "harness.store", "harness.data", "harness.board", "harness.scoring"} | {"harness.compression"},
    {"harness.objective", "harness.rewards", "harness.items", "harness.pieces", "harness.tasks", "harness.verdicts"},
    {"harness.retention", "harness.base", "harness.train", "harness.decoding", "harness.lowrank", "analysis"}
    | {"harness.mirror", "harness.neftune", "harness.drawing", "harness.logits"},
    {"harness.rollouts"},
    {"harness.tuning", "harness.embedding", "harness.telling", "harness.replay", "harness.standing", "harness.rl"}
    | {"harness.sweep_board"},
    {"harness.methods"},
    {"harness.prompts", "harness.weights", "harness.watch"},
    {"harness.lm", "harness.vllm"},
    {"harness.probes"},
    {"harness.evaluate"},
    {"harness.judge"},
    {"harness.asked"},
    {"harness.along", "harness.search"},
    {"harness.run"},
    {"harness.engines"},
    {"harness.compose"},
    {"harness.sweep"},
    {"harness.plan", "harness.findings", "harness.show", "harness.history", "harness.export"},
    {"harness.cost"},
    {"harness.capacity"},
    {"harness.app"},
    {"harness.commands"},
    {"harness.__main__"},
]
ROW = {room: number for number, rooms in enumerate(ROWS) for room in rooms}
DOORS = {
    "lm_eval": {"harness.evaluate", "harness.lm", "harness.prompts", "harness.tasks", "harness.vllm"},
    "wandb": {"harness.board", "harness.replay", "harness.sweep_board"},
    "peft": {"harness.tuning", "harness.lowrank"},
    "matplotlib": {"analysis"},
    "trl": {"harness.rl"},
    "math_verify": {"harness.rewards"},
    "reasoning_gym": {"harness.data", "harness.rewards"},
    "ray": {"harness.engines"},
    "submitit": {"harness.engines"},
    "hydra": {"harness.compose", "harness.sweep", "harness.app", "harness.base", "harness.data", "harness.evaluate"}
    | {
        "harness.engines",
        "harness.tasks",
        "harness.weights",
        "harness.methods",
    },  # below the command line only `hydra.utils.instantiate`, for what a configuration makes
}
FILES = sorted([*(ROOT / "harness").rglob("*.py"), *(ROOT / "analysis").rglob("*.py")])


def _module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _room(module: str) -> str | None:
    """The row entry a module belongs to: itself, or the package it is inside of."""
    parts = module.split(".")
    return next((room for n in range(len(parts), 0, -1) if (room := ".".join(parts[:n])) in ROW), None)


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: write imports in full"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=_module)
def test_imports_go_up_only(file):
    mine = _room(_module(file))
    if _module(file) in ("harness", "harness.cell"):
        assert not {i for i in _imports(file) if i.startswith("analysis")}
    if mine is None:
        assert _module(file) == "harness", f"{file} is in no row; give it one"
        return
    for imported in _imports(file):
        other = _room(imported)
        if other and other != mine:
            assert ROW[other] < ROW[mine], f"{_module(file)} imports {imported}, which is not above it"


def test_no_imports_go_in_a_circle():
    """Within a room too, and where a function does the importing; a package's own file, which gathers, aside."""
    modules = {_module(file) for file in FILES if file.name != "__init__.py"}
    graph = {_module(file): _imports(file) & modules for file in FILES if _module(file) in modules}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("file", FILES, ids=_module)
def test_heavy_libraries_have_one_door(file):
    for imported in _imports(file):
        library = imported.split(".")[0]
        if library in DOORS:
            assert _room(_module(file)) in DOORS[library], f"{_module(file)} imports {library}"


def test_files_stay_short():
    long = {_module(f): n for f in FILES if (n := len(f.read_text().splitlines())) > 400}
    assert not long, f"past 400 lines, is each one idea? {long}"


def test_a_quick_command_pays_for_nothing_heavy():
    code = "import sys; sys.argv = ['harness', '--help']; import harness.__main__ as m\n"
    code += "try: m.main()\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'transformers', 'pandas', 'hydra', 'lm_eval', 'wandb', 'matplotlib', 'ray'}\n"
    code += "heavy &= set(sys.modules)\n"
    code += "assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_composing_a_sweep_needs_no_torch():
    code = "import sys, harness.sweep; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
