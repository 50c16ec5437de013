"""Identity: every field that changes a result changes it, no other does; places are readable and unique."""

import copy
import dataclasses

import pytest

from harness.cell import Adapted, Cell, canonical
from harness.errors import HarnessError
from harness.identity import differences, fingerprint
from harness.methods.base import BaseModel
from harness.methods.icl import InContext
from harness.methods.sft import Sft
from harness.tuning import Lora


def _identity(cell, base="sha256:aa", subset="bb"):
    return fingerprint(cell.identity(base, subset))


def test_what_is_not_the_experiment_leaves_the_identity(make_cell):
    cell = make_cell()
    other = copy.deepcopy(cell)
    other.run.root, other.run.device, other.run.workers, other.run.threads = "elsewhere", "cuda", 7, 9
    other.run.eval_batch_size = other.run.tokens_per_pass = 1
    other.wandb.project, other.wandb.mode, other.sweep = "p", "offline", "another"
    other.base.note, other.data.licence, other.base.path = "a note", "MIT", "/moved"
    assert _identity(other) == _identity(cell)


def test_every_method_field_size_and_seed_changes_identity_and_place(make_cell):
    """DVC once left a field out of its key (dvc#3918) and reused stale results; so all of them are tried."""
    cell = make_cell()
    changed = {"str": "other", "int": 77, "float": 0.77, "bool": True, "list": ["q_proj"]}
    variants = []
    for owner, path in [(Sft(), "method"), (Lora(), "lora")]:
        for field in dataclasses.fields(owner):
            if field.name in ("lora", "search"):
                continue
            other = copy.deepcopy(cell)
            target = other.method if path == "method" else other.method.lora
            setattr(target, field.name, changed[type(getattr(target, field.name)).__name__])
            variants.append(other)
    for name, value in [("size", 5), ("seed", 1), ("subset_seed", 1)]:
        other = copy.deepcopy(cell)
        setattr(other, name, value)
        variants.append(other)
    assert len({_identity(c) for c in [cell, *variants]}) == len(variants) + 1
    assert len({c.folder() for c in [cell, *variants]}) == len(variants) + 1


def test_base_and_examples_are_in_the_identity(make_cell):
    cell = make_cell()
    other = copy.deepcopy(cell)
    other.base.chat_template = "{{ messages }}"
    cast = copy.deepcopy(cell)
    cast.base.dtype = "float16"
    named = copy.deepcopy(cell)
    named.data.name = "other"
    all_of_them = [_identity(cell), _identity(cell, base="x"), _identity(cell, subset="x")]
    assert len({*all_of_them, _identity(other), _identity(cast), _identity(named)}) == 6


def test_equal_experiments_are_one_cell(make_cell):
    base = [canonical(make_cell(BaseModel(), size=n, seed=s, subset_seed=s)) for n, s in [(4, 0), (8, 3)]]
    assert base[0] == base[1]
    assert (base[0].size, base[0].data.name) == (0, "none")
    shown = [canonical(make_cell(InContext(), size=4, seed=s, subset_seed=1)) for s in (0, 5)]
    assert shown[0] == shown[1]
    trained = [canonical(make_cell(Sft(), seed=s)) for s in (0, 5)]
    assert trained[0] != trained[1]


def test_size_0_is_the_base(make_cell):
    with pytest.raises(HarnessError, match="method=base"):
        canonical(make_cell(Sft(), size=0))


def test_place_is_readable_and_says_what_varied(make_cell):
    cell = make_cell(Sft(lr=0.01, lora=Lora(rank=2)), size=1000, seed=3, sweep="lima")
    *_, sweep, base, data, method, leaf = cell.folder().parts
    assert (sweep, base, data, method) == ("lima", "tiny", "pairs", "sft")
    assert leaf.startswith("n000001000-s3d0-lora.rank=2,lr=0.01-")
    assert make_cell(Sft(), seed=2, subset_seed=2).folder().name.startswith("n000000004-s2-")


@pytest.mark.parametrize("name", ["../x", "/abs", "a/b", "", "a\0b", ".hidden", "x" * 81])
def test_names_cannot_leave_the_root(make_cell, name):
    cell = make_cell()
    cell.data.name = name
    with pytest.raises(HarnessError, match=r"data\.name"):
        cell.folder()


def test_long_fields_stay_a_file_name(make_cell):
    cell = make_cell(Sft(lora=Lora(target_modules=[f"module_{i}" for i in range(100)])))
    assert len(cell.folder().name) < 120


def test_fingerprint_refuses_what_json_cannot_hold():
    for value in (object(), {1, 2}, float("nan"), Adapted):
        with pytest.raises((TypeError, HarnessError)):
            fingerprint({"x": value})


def test_fingerprint_is_the_same_everywhere():
    assert fingerprint({"b": [1, 2.5, None], "a": "é"}) == fingerprint({"a": "é", "b": [1, 2.5, None]})
    assert fingerprint({"a": "é", "b": [1, 2.5, None]})[:16] == "d764fee2563da33e"


def test_differences_name_the_fields():
    old = {"base": {"dtype": "float32", "identity": "x"}, "size": 3}
    new = {"base": {"dtype": "bfloat16", "identity": "x"}, "size": 3, "seed": 1}
    assert differences(old, new) == ["base.dtype: float32 -> bfloat16", "seed: absent -> 1"]


def test_schema_has_one_default_cell():
    assert Cell().size == 0
