"""Published values: what the file holds is whole, and a comparison tells value, tolerance and what differs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import protocol, published
from analysis.points import points
from harness import store
from harness.cell import Cell
from harness.errors import HarnessError
from harness.run import run
from tests.test_analysis import run_row, table, write

AS_OURS = {"weights": "LoRA of rank 16", "epochs": "3", "lr": "0.0001", "decay": "cosine", "batch_size": "8"}


def gsm8k(score: float = 0.46, base: str = "llama3.1-8b", size: int = 1000, **fields: Any) -> pd.DataFrame:
    """A sweep of GSM8K: the untouched base and one size, three seeds."""
    task = {"task": "gsm8k", "base": base}
    rows = [run_row(0.1, **task, data="none", method="base", size=0)]
    rows += [run_row(score, **task, data="gsm8k", size=size, seed=s, **fields) for s in range(3)]
    return points(table(rows))


def compare(frame: pd.DataFrame, paper: str = "revisiting_sah", **more: str) -> published.Comparison:
    return published.compare(paper, frame.to_dict("records"), lambda _: {**AS_OURS, **more})


def test_the_file_is_whole() -> None:
    assert len(published.values()) > 250
    for row in published.values():
        assert None not in row
        assert None not in row.values()
        assert row["provenance"] in ("text", "table", "figure", "fit")
        assert row["source"] in ("primary", "secondary")
        assert row["paper"]
        assert row["task"]
        assert row["metric"]
        assert math.isfinite(float(row["value"]))
        assert float(row["tolerance"] or 0) >= 0
        assert row["size"] == "" or int(row["size"]) >= 0
    assert len({tuple(row.values()) for row in published.values()}) == len(published.values()), "no row twice"


def test_fits_are_their_formulas() -> None:
    fits = [row for row in published.values() if row["paper"] == "revisiting_sah" and row["provenance"] == "fit"]
    assert len(fits) == 21
    for row in fits:
        a, b = row["note"].split(";")[0].removeprefix("P = ").removesuffix(")").split(" D^(1/")
        assert float(row["value"]) == pytest.approx(float(a) * int(row["size"]) ** (1 / float(b)), abs=0.05)


def test_our_names_are_those_of_the_shipped_configuration() -> None:
    root = Path(__file__).parent.parent / "conf"
    there = {
        "base": {line.split(": ")[1] for p in root.glob("base/*.yaml") for line in _names(p)},
        "data": {line.split(": ")[1] for p in root.glob("data/*.yaml") for line in _names(p)},
        "task": {p.stem for p in root.glob("evals/*.yaml")},
    }
    for kind, theirs, ours in published.stand_ins():
        assert ours in there[kind], (kind, ours)
        assert any(row[kind] == theirs for row in published.values()), theirs


def _names(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("name: ")]


def test_points_are_matched_and_what_differs_is_said() -> None:
    made = compare(gsm8k())
    fit, measured = made.pairs
    assert (fit.theirs["provenance"], fit.value, fit.tolerance) == ("fit", pytest.approx(0.48), pytest.approx(0.015))
    assert measured.value == pytest.approx(0.465)
    assert measured.within
    assert measured.differs[:3] == ["base: Llama-3-8B, ours llama3.1-8b", "weights: all, ours LoRA of rank 16",
                                    "lr: 1e-5, ours 0.0001"]  # fmt: skip
    assert not any(told.startswith(("epochs", "decay", "batch")) for told in measured.differs), "these are alike"
    assert measured.differs[-1] == "template: tokenizer's own, ours not told"
    assert measured.our_gain == pytest.approx(0.36)
    assert math.isnan(measured.their_gain), "the paper's own base is not known"
    assert made.lines()[-1].startswith("Throughout: base: Llama-3-8B")


def test_outside_is_outside() -> None:
    near, far = compare(gsm8k(0.46)), compare(gsm8k(0.2))
    assert [pair.within for pair in near.pairs] == [True, True]
    assert [pair.within for pair in far.pairs] == [False, False]
    assert "0 within its tolerance, 2 outside" in far.summary


def test_a_size_a_little_off_is_compared_and_told() -> None:
    (pair,) = compare(gsm8k(size=7000)).pairs
    assert "size: 7,500, ours 7,000" in pair.differs
    assert not compare(gsm8k(size=2000)).pairs


def test_gains_are_over_the_own_base_of_each() -> None:
    rows = [run_row(0.6, task="math500", base="qwen2.5-7b", data="none", method="base", size=0)]
    rows += [run_row(0.7, task="math500", base="qwen2.5-7b", data="simplerl8k", method="grpo", size=8000)]
    at_zero, after = compare(points(table(rows)), "simplerl_zoo").pairs
    assert math.isnan(at_zero.our_gain)
    assert (after.their_gain, after.our_gain) == (pytest.approx(0.136), pytest.approx(0.1))


def test_where_nothing_matches_it_says_what_would_have_to() -> None:
    frame = points(table([run_row(0.5)]))
    made = compare(frame)
    assert not made.pairs
    for told in ("task is GSM8K", "base is Llama-3-8B", "method sft", "published_names.csv"):
        assert told in made.summary
    with pytest.raises(HarnessError, match="there are lima, revisiting_sah"):
        compare(frame, "nobody")


def test_the_page_has_it_and_draws_it(tmp_path: Path) -> None:
    rows = [
        run_row(0.4, task="gsm8k", base="llama3.1-8b", data="gsm8k", size=n, seed=s)
        for n in (100, 1000)
        for s in (0, 1)
    ]
    frame = table(rows)
    page = write(frame, tmp_path, against=compare(points(frame)))
    for text in ("Beside what was published", "arXiv 2410.03717", "0.48 ± 0.015", "ours LoRA of rank 16"):
        assert text in page, text
    assert {p.name for p in tmp_path.glob("against.*")} == {"against.png", "against.svg"}


def test_the_protocol_is_that_of_the_records(make_cell: Callable[..., Cell], generation_task: Any) -> None:
    cell = make_cell(evals={"quiz": generation_task()})
    run(cell)
    root = Path(cell.run.root)
    found = protocol.protocols(root)
    frame = store.load(root)
    of = protocol.of_point(frame, found)
    (point,) = [p for p in points(frame).to_dict("records") if p["headline"]]
    told = of(point)
    assert (told["weights"], told["epochs"], told["shots"], told["temperature"]) == ("LoRA of rank 16", "3", "0", "0")
    assert told["lr"] == f"{cell.method.lr:.3g}"
    assert told["template"] == "tokenizer's own"
    fixed = protocol.held_fixed([told, {**told, "lr": "1"}])
    assert "lr" not in fixed
    assert fixed["batch size"] == told["batch_size"]
