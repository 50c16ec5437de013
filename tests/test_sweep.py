"""A sweep is the union of its arms; what Hydra would compose one by one is what the planner composes at once."""

import copy
import dataclasses

import pytest

import harness.sweep
from harness import plan
from harness.cell import Task
from harness.compose import compose_cell, from_dict, shipped
from harness.cost import Estimator
from harness.errors import HarnessError
from harness.methods.base import BaseModel
from harness.run import as_dict
from harness.sweep import read_sweep, sweep_cells


@pytest.fixture
def config_dir(tmp_path, tiny_folder, pair_file, generation_task):
    """A user's own configuration outside the clone: a base, data, an evaluation and a sweep."""
    root = tmp_path / "mine"
    for group in ("base", "data", "evals", "sweeps"):
        (root / group).mkdir(parents=True)
    for name in ("tiny", "tiny2"):
        (root / "base" / f"{name}.yaml").write_text(f"name: {name}\npath: {tiny_folder}\ndtype: float32\n")
    (root / "data" / "pairs.yaml").write_text(
        "defaults: [{/form@sources.pairs.form: prompt_completion}]\n"
        f"name: pairs\nsources: {{pairs: {{path: {pair_file()}}}}}\n"
    )
    task = generation_task()
    (root / "evals" / "quiz.yaml").write_text(
        f"quiz:\n  file: {task.file}\n  headline: exact_match/strict\n  task:\n"
        "    output_type: generate_until\n    doc_to_text: '{{question}}'\n    doc_to_target: '{{answer}}'\n"
        '    generation_kwargs: {until: ["\\n"], max_gen_toks: 4}\n'
        "    metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        "    filter_list:\n    - {name: strict, filter: [{function: take_first}]}\n"
    )
    (root / "sweeps" / "mine.yaml").write_text(
        "hypothesis: more is more\n"
        "cell: {data: pairs, evals: quiz, 'subset_seed': '${seed}', wandb.mode: disabled, run.device: cpu}\n"
        "arms:\n"
        "  sft: {base: 'tiny,tiny2', method: sft, size: '4,8', seed: 'range(0,2)', method.lr: 1e-3}\n"
        "  again: {base: tiny, method: sft, size: 4, seed: 0, method.lr: 0.001}\n"
        "  icl: {base: tiny, method: icl, size: 2, seed: '0,1'}\n"
    )
    return root


def test_union_of_products_with_bases_implied(config_dir):
    sweep, cells = sweep_cells("mine", [], config_dir)
    assert sweep.hypothesis == "more is more"
    keys = [(c.base.name, c.method.name, c.size, c.seed, c.subset_seed) for c in cells]
    assert len(keys) == len(set(keys)) == 2 + 8 + 2  # two bases, sft, icl; `again` fell together with one of sft's
    assert ("tiny", "base", 0, 0, 0) in keys
    assert ("tiny2", "sft", 8, 1, 1) in keys  # subset_seed: ${seed}
    assert ("tiny", "icl", 2, 0, 1) in keys  # icl has no training seed


def test_overrides_replace_axes(config_dir):
    def sizes(overrides, method="sft"):
        _, cells = sweep_cells("mine", overrides, config_dir)
        return sorted({c.size for c in cells if c.method.name == method})

    assert sizes(["size=16"]) == [16]
    assert sizes(["arms.sft.size=16,32"]) == [4, 16, 32]  # `again` keeps its own
    assert sizes(["~arms.icl"], method="icl") == []
    assert sizes(["method=icl", "~arms.sft", "~arms.again"], method="icl") == [2]
    _, cells = sweep_cells("mine", ["run.root=elsewhere", "method.lr=0.5", "~arms.icl"], config_dir)
    assert {c.method.lr for c in cells if c.method.name == "sft"} == {0.5}
    assert {c.run.root for c in cells} == {"elsewhere"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sizee=4", "unknown key 'sizee'; did you mean 'size'"),
        ("size=four", "could not be converted to Integer"),
        ("size=4,five", "could not be converted to Integer"),
        ("base=nosuch", "Available options in 'base'"),
        ("arms.nosuch.size=3", "no arm 'nosuch'; it has: sft, again, icl"),
        ("method.lr=0.1", "arm icl: unknown key 'method.lr'"),
        ("base.path=null", "base.path"),
        ("+extra=1", "unknown key 'extra'"),
        ("size=[", "the override 'size=\\[' cannot be read"),
    ],
)
def test_bad_overrides_get_one_line(config_dir, override, message):
    with pytest.raises(HarnessError, match=message) as error:
        sweep_cells("mine", [override], config_dir)
    assert "\n" not in str(error.value)


def test_unknown_sweep_lists_the_known(config_dir):
    with pytest.raises(HarnessError, match=r"known: .*mine, "):
        sweep_cells("nosuch", [], config_dir)


def test_bad_sweep_files(tmp_path):
    path = tmp_path / "bad.yaml"
    for text, message in [("arms: {}", "no arms"), ("armz: {a: {size: 3}}", "armz"), ("arms: [", "bad.yaml")]:
        path.write_text(text)
        with pytest.raises(HarnessError, match=message):
            read_sweep(path)


def test_typed_update_equals_full_compose(config_dir):
    """The planner composes once per combination of groups; Hydra itself must agree, cell by cell."""
    _, cells = sweep_cells("mine", [], config_dir)
    for cell in cells:
        overrides = [
            "sweep=mine", f"base={cell.base.name}", "data=pairs", "evals=quiz", f"method={cell.method.name}",
            f"size={cell.size}", f"seed={cell.seed}", f"subset_seed={cell.subset_seed}", "wandb.mode=disabled",
            "run.device=cpu",
        ]  # fmt: skip
        overrides += ["method.lr=1e-3"] if cell.method.name == "sft" else []
        assert dataclasses.asdict(compose_cell(overrides, config_dir)) == dataclasses.asdict(cell)


def test_hydra_composes_once_per_combination_of_groups(config_dir, monkeypatch):
    """A full composition takes some 50 ms; a thousand cells are planned in under two seconds."""
    composed = []
    real = harness.sweep.composed
    monkeypatch.setattr(harness.sweep, "composed", lambda *given: composed.append(given) or real(*given))
    _, cells = sweep_cells("mine", ["arms.sft.seed=range(0,250)", "~arms.icl"], config_dir)
    assert len(cells) == 1002
    assert len(composed) == 3  # sft on two bases, and the arm "again"


def test_cells_of_one_composition_do_not_share_what_may_change(config_dir):
    _, cells = sweep_cells("mine", [], config_dir)
    kept = [copy.deepcopy(dataclasses.asdict(cell)) for cell in cells]
    cells[-1].evals["more"] = Task(task="x")
    cells[-1].method = BaseModel()
    assert [dataclasses.asdict(cell) for cell in cells[:-1]] == kept[:-1]


def test_a_record_gives_its_cell_back(config_dir):
    _, cells = sweep_cells("mine", [], config_dir)
    for cell in cells:
        again = from_dict(as_dict(cell))
        assert (type(again.method), dataclasses.asdict(again)) == (type(cell.method), dataclasses.asdict(cell))


@pytest.fixture
def with_pocket(config_dir):
    """The user's sweep with a pocket form; it also sets fields inside of its data and evaluations."""
    file = config_dir / "sweeps" / "mine.yaml"
    file.write_text(
        file.read_text().replace("evals: quiz,", "evals: quiz, evals.quiz.limit: 3, data.licence: MIT,")
        + "pocket:\n  base: pocket_s\n  data: pocket_facts\n  evals: pocket_facts\n  size: 2\n  seed: 0\n"
        "  arms.sft.data: pocket_rule\n  ~arms.again: ''\n"
    )
    return config_dir


def test_scale_pocket_is_another_sweep_on_other_cells(with_pocket):
    def what(overrides):
        _, cells = sweep_cells("mine", overrides, with_pocket)
        return {(c.sweep, c.base.name, c.data.name, c.method.name, c.size, *c.evals) for c in cells}

    small = {("mine-pocket", "pocket-s", "pocket-facts", "icl", 2, "pocket_facts")}
    small |= {("mine-pocket", "pocket-s", "none", "base", 0, "pocket_facts")}
    assert what(["scale=pocket"]) == small | {("mine-pocket", "pocket-s", "pocket-rule", "sft", 2, "pocket_facts")}
    assert what(["~arms.sft", "scale=pocket"]) == small  # and the command line comes after it, wherever it stands
    assert {row[4] for row in what(["size=7", "scale=pocket"])} == {0, 7}
    assert {row[0] for row in what([])} == {"mine"}


def test_scale_is_pocket_and_nothing_else(config_dir, with_pocket):
    with pytest.raises(HarnessError, match="scale=tiny: the only scale"):
        sweep_cells("mine", ["scale=tiny"], with_pocket)
    (config_dir / "sweeps" / "other.yaml").write_text("arms: {a: {base: tiny, data: pairs, evals: quiz, size: 2}}\n")
    with pytest.raises(HarnessError, match=r"other\.yaml says nothing of scale=pocket; add pocket:"):
        sweep_cells("other", ["scale=pocket"], config_dir)


@pytest.mark.parametrize("axis", ["base.dtype=float32,bfloat16", "data.sources.pairs.weight=1,2"])
def test_two_bases_or_datasets_of_one_name_are_refused(config_dir, axis):
    """They would share a folder, and the second would be taken for the first."""
    part = axis.partition(".")[0]
    with pytest.raises(HarnessError, match=f"two cells differ in their {part}, both named .*; set {part}.name"):
        sweep_cells("mine", ["~arms.icl", "~arms.again", f"arms.sft.{axis}"], config_dir)


@pytest.mark.parametrize("scale", [[], ["scale=pocket"]])
@pytest.mark.parametrize("name", sorted(p.stem for p in shipped("sweeps").glob("*.yaml")))
def test_every_shipped_sweep_composes(name, scale):
    sweep, cells = sweep_cells(name, scale)
    assert len({c.folder() for c in cells}) == len(cells) > 2
    assert sweep.hypothesis
    assert {c.base.name for c in cells} == {c.base.name for c in cells if c.method.name == "base"}
    if scale:
        assert {c.sweep for c in cells} == {f"{name}-pocket"}
        assert all(c.base.name.startswith(("pocket-", "tables-")) for c in cells)
        assert len(cells) <= 24


@pytest.mark.parametrize("name", sorted(p.stem for p in shipped("sweeps").glob("*.yaml")))
def test_every_shipped_sweep_plans_at_pocket_scale(name, tmp_path):
    """Data, tasks and all: nothing but the runs themselves is left to fail. The full scale needs the hub to plan."""
    _, cells = sweep_cells(name, ["scale=pocket", f"run.root={tmp_path}"])
    planned = plan.plan(cells)
    plan.check(plan.to_run(planned, retry_failed=False))
    costs = [Estimator(planned, 1e12).cost(p) for p in planned[:1]]
    assert {p.state for p in planned} == {plan.MISSING}
    assert all(0 < cost.seconds < 600 for cost in costs)


@pytest.mark.parametrize("group", ["base", "data", "evals"])
def test_every_shipped_configuration_composes(group):
    for path in (shipped("conf") / group).glob("*.yaml"):
        if path.stem != "file":  # needs the user's path
            compose_cell([f"{group}={path.stem}"])
