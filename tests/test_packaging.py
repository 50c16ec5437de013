"""What a user installs: the wheel carries conf/ and sweeps/, and finds them there."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_carries_configuration_and_works_without_the_clone(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    expected = [
        "harness/conf/cell.yaml",
        "harness/sweeps/pocket.yaml",
        "harness/__main__.py",
        *(f"analysis/{name}" for name in ("report.html.j2", "report.css", "report.js", "published.csv")),
        "analysis/published_names.csv",
    ]
    assert names.issuperset(expected)
    assert not [n for n in names if n.startswith(("tests/", "conf/", "sweeps/"))]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import harness.compose as c; "
        "from harness.sweep import sweep_cells; "
        "assert c.__file__.startswith(sys.argv[1]); assert c.shipped('conf').is_relative_to(sys.argv[1]); "
        "print(len(sweep_cells('pocket', [])[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 10
