"""A sweep's sheets: what the page says, as tables that a machine reads."""

import math
from pathlib import Path

import pytest

from analysis.conclusions import conclude
from analysis.points import points
from analysis.sheets import LINE, Sheets, sheets
from tests.sweeps import Sweep
from tests.test_conclusions import FLAT, LAW, SIZES


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Sheets]:
    """One curve by the rectified law, one flat."""
    sweep = Sweep(tmp_path_factory.mktemp("sweep"), n=4000)
    sweep.curve(LAW, noise=0.004)
    sweep.curve(FLAT, noise=0.005, base="c")
    return sweep, sheets(points(sweep.frame), conclude(sweep.frame, sweep.items()))


def test_each_sheet_names_its_lines_alike(told: tuple[Sweep, Sheets]) -> None:
    for name, sheet in vars(told[1]).items():
        if name == "pairs":  # of two lines each
            continue
        assert list(sheet.columns[: len(LINE)]) == LINE, name
        assert len(sheet), name
        assert set(sheet["curve"]) <= {"b/sft", "c/sft", "b/base", "c/base"}, name
        numbers = [v for row in sheet.itertuples(index=False) for v in row if isinstance(v, float)]
        assert all(map(math.isfinite, numbers)), name


def test_points_are_those_of_the_page(told: tuple[Sweep, Sheets]) -> None:
    sweep, sheet = told
    mine = sheet.points.set_index(["base", "method", "filter", "examples"])[["score", "low", "high"]]
    for row in points(sweep.frame).to_dict("records"):
        at = mine.loc[(row["base"], row["method"], row["filter"], row["size"])]
        assert at.tolist() == [row["score"], row["low"], row["high"]]


def test_a_conclusion_has_its_numbers_and_its_evidence(told: tuple[Sweep, Sheets]) -> None:
    gaining, flat = told[1].conclusions.sort_values("curve").to_dict("records")
    assert gaining["gain_low"] < LAW[SIZES[-1]] - LAW[0] < gaining["gain_high"]
    assert gaining["law"] == "rectified"
    assert "gain above" in gaining["evidence"]
    assert flat["law"] == "none"
    assert (flat["share"], flat["share_low"]) == (None, None)
    assert flat["half"].startswith("cannot be told")
    assert (gaining["verdict"], flat["verdict"]) == ("undecided", "undecided")


def test_pairs_are_those_of_the_page(told: tuple[Sweep, Sheets]) -> None:
    (row,) = told[1].pairs.to_dict("records")
    assert (row["between"], row["one"], row["other"], row["examples"]) == ("bases", "b", "c", 10_000)
    assert row["difference"] == pytest.approx(LAW[10_000] - FLAT[10_000], abs=0.04)
    assert row["low"] < row["difference"] < row["high"]


def test_a_supported_law_has_its_parameters_near_the_truth(told: tuple[Sweep, Sheets]) -> None:
    (supported,) = told[1].laws[told[1].laws["supported"].astype(bool)]["law"]
    rows = told[1].parameters.set_index("parameter")
    assert (supported, set(rows["law"])) == ("rectified", {"rectified"})
    for name, truth in {"E": 0.20, "A": 0.70, "beta": 0.6, "knee": 300}.items():
        value, low, high = rows.loc[name, ["value", "low", "high"]]
        assert low <= value <= high, name
        # Within twice the interval, about four standard errors: these are four parameters of one draw of the noise.
        assert value - 2 * (value - low) <= truth <= value + 2 * (high - value), name
    assert set(told[1].fits["held_out"]) == {30000.0}


def test_a_sweep_without_curves_has_its_columns(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, n=20)
    sweep.cell(0, strict=0.5)
    empty = sheets(points(sweep.frame), conclude(sweep.frame, sweep.items()))
    assert len(empty.points) == 2
    assert (len(empty.conclusions), len(empty.laws), len(empty.parameters), len(empty.fits)) == (0, 0, 0, 0)
    assert list(empty.conclusions.columns[: len(LINE)]) == LINE
