"""Bases from a folder, the hub's cache and a package: what they are is known before they are loaded."""

import shutil

import huggingface_hub.constants
import pytest

from harness import base as bases
from harness.cell import Base
from harness.errors import HarnessError


def test_a_folder_is_its_bytes(tiny_folder, tmp_path):
    moved = shutil.copytree(tiny_folder, tmp_path / "moved")
    before = bases.identity(Base(name="a", path=str(tiny_folder)))
    assert before.startswith("sha256:")
    assert bases.identity(Base(name="b", path=str(moved))) == before
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert bases.identity(Base(name="a", path=str(moved))) != before


def test_a_hub_id_is_the_commit_its_revision_means(tiny_folder, tmp_path, monkeypatch):
    """The layout of the hub's own cache, as a download leaves it; here nothing else of the hub can be reached."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--tiny"
    shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    base = Base(name="hub", path="org/tiny", dtype="float32")
    assert bases.identity(base) == f"commit:{commit}"
    assert bases.identity(Base(name="hub", path="org/tiny", revision=commit)) == f"commit:{commit}"
    with pytest.raises(HarnessError, match="cache has no copy"):
        bases.identity(Base(name="hub", path="org/tiny", revision="v2"))


def test_one_base_is_resident(tiny_base, tiny_folder):
    first = bases.load(tiny_base, "cpu")
    assert bases.load(tiny_base, "cpu") is first
    other = bases.load(Base(name="other", path=str(tiny_folder), dtype="float32"), "cpu")
    assert other is not first
    assert len(bases._resident) == 1


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (Base(name="x"), "neither `path` nor `make`"),
        (
            Base(name="x", make={"_target_": "harness.base.PackageFile", "package": "no-such", "file": "f"}),
            "pip install",
        ),
    ],
)
def test_what_is_missing_is_said(base, message):
    with pytest.raises(HarnessError, match=message):
        bases.identity(base)


def test_an_empty_folder_is_no_base(tmp_path):
    with pytest.raises(HarnessError, match="holds no model"):
        bases.identity(Base(name="x", path=str(tmp_path)))


def test_a_base_without_template_is_refused_before_anything_runs(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(HarnessError, match=r"base\.chat_template"):
        bases.check_chat(Base(name="plain", path=str(folder)))
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    bases.check_chat(Base(name="plain", path=str(folder), chat_template=template))


def test_an_unknown_dtype_is_refused(tiny_base):
    tiny_base.dtype = "float99"
    with pytest.raises(HarnessError, match="float99"):
        bases.load(tiny_base, "cpu")
