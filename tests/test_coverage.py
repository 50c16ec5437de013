"""The coverage study in small: 95% intervals hold the truth about as often; `make coverage` prints the whole table."""

import math

import pytest

from tests.coverage_study import LARGE, SHAPES, SHARED, SMALL, study

SWEEPS = 60


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("setting", [LARGE, SMALL], ids=["large", "small"])
def test_intervals_hold_the_truth(setting, name):
    """Within 93 to 97%, give or take three standard errors of so few sweeps; the shortcuts are far below."""
    reach = 3 * math.sqrt(0.05 * 0.95 / SWEEPS)
    found = study(SHAPES[SWEEPS % 3], setting, name, SWEEPS, seed=11, b=400)
    for (_, _, _, quantity), by in found.items():
        assert 0.93 - reach <= by["ours"].share <= 1.0, (quantity, by)
        assert by["ours"].tries >= 0.9 * SWEEPS
        if quantity == "score":  # of all sizes, so surer
            assert 0.92 <= by["ours"].share <= 0.985
            assert max(by["points"].share, by["items"].share) < 0.85, "what the usual shortcuts would say"
