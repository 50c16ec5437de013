"""The soak of `make soak`, a minute of it."""

from pathlib import Path

import pytest

from tests.soak import soak


@pytest.mark.full
def test_a_sweep_killed_at_random_leaves_what_an_undisturbed_one_leaves(tmp_path: Path) -> None:
    print(soak(tmp_path, sizes="4,8,16", seeds=1, workers=2, kills=5, seed=1))
