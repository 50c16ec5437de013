"""The curves and the report: intervals against simulated truth, and a page that data cannot break."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import curves
from analysis.points import alike, own_scores, points, wilson
from analysis.report import write_csv, write_report
from analysis.style import PALETTES, Style
from analysis.words import in_words
from harness.errors import HarnessError
from harness.store import COLUMNS

ITEMS = 200


def run_row(score: float, **fields: Any) -> dict[str, Any]:
    """One row of `harness.store.load` for a proportion over `ITEMS` items, with lm-eval's standard error."""
    cell = {"base": "pocket-m", "data": "facts", "method": "sft", "variant": "", "size": 10, "seed": 0, **fields}
    task = {"task": "facts", "metric": "exact_match", "filter": "strict-match", "headline": True}
    stderr = math.sqrt(score * (1 - score) / (ITEMS - 1))
    named = "/".join(str(value) for key, value in cell.items() if key not in task)
    rest = {
        "sweep": "s", "subset_seed": cell["seed"], "score": score, "stderr": stderr, "n_items": ITEMS,
        "higher_is_better": True, "status": "ok", "tokens": 100, "train_seconds": 1.0, "eval_seconds": 1.0,
        "eval_fingerprint": "p" * 64, "base_note": "", "fingerprint": named, "path": named,
    }  # fmt: skip
    return {**task, **rest, **cell}


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def sweep(base: str = "pocket-m", data: str = "facts") -> pd.DataFrame:
    """A small sweep: a base, three sizes, two seeds, two filters, one failed cell."""
    rows = []
    for name, headline, lift in (("strict-match", True, 0.0), ("flexible-extract", False, 0.1)):
        kind = {"filter": name, "headline": headline}
        rows.append(run_row(0.05 + lift, base=base, data="none", method="base", size=0, **kind))
        for i, size in enumerate((10, 100, 1000)):
            cell = {"base": base, "data": data, "size": size, **kind}
            rows += [run_row(0.2 + 0.2 * i + lift + 0.01 * seed, seed=seed, **cell) for seed in (0, 1)]
    failed = run_row(math.nan, base=base, data=data, size=3000, task="", metric="", filter="", status="failed")
    return table([*rows, failed])


def write(frame: pd.DataFrame, folder: Path, **more: Any) -> str:
    kwargs = {"sweep": "s", "command": "harness sweep s", **more}
    return write_report(frame, folder, **kwargs).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- points


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_intervals_cover_the_expected_score_of_the_recipe(spread: float) -> None:
    """Items are shared by the seeds; each has a difficulty, each seed a skill. 95% nominal, conservative by design."""
    rng = np.random.default_rng(0)
    truth, tries, seeds, hit, naive = 0.4, 300, 3, 0, 0
    rows = []
    for t in range(tries):
        chance = np.clip(rng.beta(1.2, 1.8, ITEMS) + rng.normal(0, spread, (seeds, 1)), 0, 1)  # mean 1.2 / 3 = truth
        scores = (rng.random((seeds, ITEMS)) < chance).mean(axis=1)
        rows += [run_row(float(s), size=t + 1, seed=i) for i, s in enumerate(scores)]
    for p in points(table(rows)).to_dict("records"):
        hit += p["low"] <= truth <= p["high"]
        naive += abs(p["score"] - truth) <= 1.96 * p["item_stderr"] / math.sqrt(seeds)  # as if each seed had new items
    assert 0.94 <= hit / tries <= 1.0
    assert naive / tries < 0.93


def test_interval_of_one_seed_is_wilsons_and_flagged() -> None:
    (p,) = points(table([run_row(0.25)])).to_dict("records")
    assert (p["n_seeds"], p["interval"]) == (1, "items")
    assert math.isnan(p["seed_sd"])
    # Newcombe (1998), Stat. Med. 17:857, table I, method 3: 81/263, 15/148 and 0/20.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert (p["low"], p["high"]) == pytest.approx(wilson(0.25, ITEMS))


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_certain_looking_scores_keep_width_and_stay_in_range(score: float) -> None:
    (p,) = points(table([run_row(score, seed=s) for s in range(3)])).to_dict("records")
    assert p["high"] - p["low"] > 0.015
    assert 0 <= p["low"] <= p["score"] <= p["high"] <= 1


def test_scores_that_are_not_shares_use_their_own_standard_error() -> None:
    rows = [{**run_row(0.5, seed=s), "score": 21.0 + s, "stderr": 0.5} for s in range(2)]
    (p,) = points(table(rows)).to_dict("records")
    seeds_part = 12.7062 * math.sqrt(0.5) / math.sqrt(2)  # t quantile of 1 degree of freedom
    assert p["high"] - p["score"] == pytest.approx(math.hypot(seeds_part, 1.96 * 0.5), rel=1e-3)
    (p,) = points(table([{**row, "stderr": math.nan} for row in rows])).to_dict("records")
    assert (p["interval"], p["high"] - p["score"]) == ("seeds", pytest.approx(seeds_part, rel=1e-3))
    (p,) = points(table([{**rows[0], "stderr": math.nan}])).to_dict("records")
    assert p["interval"] == "none"
    assert math.isnan(p["low"])


def test_one_experiment_in_two_sweeps_counts_once() -> None:
    frame = table([run_row(0.5), {**run_row(0.5), "sweep": "other", "path": "elsewhere"}])
    assert points(frame)["n_seeds"].tolist() == [1]


def test_mixed_protocols_and_mixed_experiments_are_refused() -> None:
    frame = sweep()
    frame.loc[frame["size"] == 100, "eval_fingerprint"] = "q" * 64
    with pytest.raises(HarnessError, match="pocket-m was scored on facts under 2 protocols"):
        points(frame)
    frame = table([run_row(0.5), {**run_row(0.6), "fingerprint": "another"}])
    with pytest.raises(HarnessError, match="different experiments carry the same names"):
        points(frame)


def test_what_was_not_measured_alike_is_left_out_with_its_reason_and_the_rest_is_drawn(tmp_path: Path) -> None:
    frame = pd.concat([sweep(), sweep(base="pocket-s")], ignore_index=True)
    mixed = (frame["base"] == "pocket-m") & (frame["size"] == 100)
    frame.loc[mixed, "eval_fingerprint"] = "q" * 64
    kept, said = alike(frame)
    assert said == [
        "Left out of all below: pocket-m was scored on facts under 2 protocols (pppppppp and qqqqqqqq), so its scores "
        "make no one curve. Score all its cells again under one, or keep the sweeps apart."
    ]
    assert set(points(kept)["base"]) == {"pocket-s"}
    assert len(kept) == len(frame), "its cells are still counted"
    page = write_report(kept, tmp_path, sweep="s", command="c", unalike=said).read_text()
    assert "under 2 protocols" in page
    whole, nothing = alike(sweep())
    assert nothing == []
    assert points(whole).equals(points(sweep()))


def test_what_a_probe_measured_is_no_score_and_a_cell_with_nothing_else_is_still_counted() -> None:
    frame = sweep()
    probed = frame[frame["size"] == 10].assign(task="facts_bits", metric="bits", probe="CodeLength")
    alone = table([run_row(0.7, size=20, probe="CodeLength", task="facts_bits", metric="bits")])
    kept = own_scores(pd.concat([frame, probed, alone], ignore_index=True))
    assert points(kept).equals(points(frame)), "no point of it"
    assert set(kept["path"]) == {*frame["path"], *alone["path"]}
    assert not kept["metric"].eq("bits").any() or kept.loc[kept["metric"] == "bits", "score"].isna().all()


# ------------------------------------------------------------------------------------------------------------ figures


def test_base_is_the_dashed_reference_of_each_of_its_panels() -> None:
    """Its own base in every panel; an instruct model that has no curve is there to compare with in every panel too."""
    instruct = table([run_row(0.6, base="pocket-chat", data="none", method="base", size=0)])
    frame = pd.concat([sweep(), sweep(data="other"), instruct]).drop_duplicates(["path", "filter"])
    figure = curves.draw(points(frame))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["facts  ·  facts", "facts  ·  other"]
    for axes in figure.axes:
        level = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
        assert sorted(line.get_ydata()[0] for line in level) == pytest.approx([0.05, 0.6])
        assert {line.get_color() for line in level} == set(PALETTES["base"][:2])
        assert axes.patches, "the reference has a band"


def test_looks_are_the_same_in_every_figure_and_differ_between_lines() -> None:
    frame = pd.concat([sweep(f"pocket-{b}") for b in "slm"])
    icl = frame[frame["method"] == "sft"].assign(method="icl", fingerprint=lambda f: f["fingerprint"] + "icl")
    style = Style.of(points(pd.concat([frame, icl])))
    assert style.names["base"] == sorted(style.names["base"])
    assert len({style.colour("base", base) for base in style.names["base"]}) == 3
    assert style.marker("sft") != style.marker("icl")
    assert style.dashes(("sft", "")) != style.dashes(("icl", ""))
    assert len(set().union(*PALETTES.values())) == sum(map(len, PALETTES.values())), "a colour means one thing"
    figure = curves.draw(points(frame), others=True)
    assert {axes.get_ylabel() for axes in figure.axes} == {"exact match (flexible-extract)"}


# ------------------------------------------------------------------------------------------------------------- report


def test_report_shows_curves_points_failures_and_command(tmp_path: Path) -> None:
    said = {"hypothesis": "Style is cheap.", "fixed": {"epochs": 3}, "provenance": {"git": {"commit": "abc"}}}
    page = write(sweep(), tmp_path, **said)
    for text in ("Style is cheap.", "harness sweep s", "epochs", "git.commit", "abc", "0.405", "1,000", "1 failed"):
        assert text in page, text
    assert "pocket-m/facts/sft//3000/0" in page, "the failed cell is listed by its folder"
    assert {p.name for p in tmp_path.iterdir()} == {
        "report.html", "points.csv", "curves.png", "curves.svg", "curves-filters.png", "curves-filters.svg",
    }  # fmt: skip
    words = in_words(points(sweep()))
    assert len(words) == 2
    assert "0.05 (0.0274 to 0.0896) untouched, then 0.205" in words[1]
    assert write(sweep(), tmp_path, **said) == page, "the same records give the same bytes"


def test_report_fetches_nothing(tmp_path: Path) -> None:
    page = write(sweep(), tmp_path)
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href|action|data)\s*=\s*["']?\s*(https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*[\"']?(?!#)|<script[^>]* src|<iframe|<link", page)


def test_names_from_data_cannot_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>--><img src=x onerror=alert(2)>"
    page = write(
        sweep(base=evil, data=evil).assign(base_note=evil, variant=evil, path=lambda f: f["path"] + evil), tmp_path,
        sweep=evil, command=evil, hypothesis=evil, fixed={evil: evil}, provenance={evil: {evil: evil}},
    )  # fmt: skip
    rest = re.sub(r'<script(?: type="application/json" id="data")?>', "", page)
    assert len(rest) < len(page)
    for text in (rest, (tmp_path / "curves.svg").read_text(encoding="utf-8")):
        assert "<script" not in text
        assert "<img" not in text
        assert "&lt;script&gt;" in text


LEADS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "x\r=1", "x\n=1", 'x",=1']


@pytest.mark.parametrize("lead", LEADS)
def test_no_cell_begins_like_a_formula(lead: str, tmp_path: Path) -> None:
    """Text comes back as it was, behind an apostrophe where it leads like a formula; a break in it begins no row."""
    table = points(sweep(base=lead, data=lead).assign(variant=lead))
    write_csv(table, tmp_path / "points.csv")
    with (tmp_path / "points.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(table)
    for row in rows:
        assert row["base"] == (lead if lead[0] == "x" else f"'{lead}")
        for value in row.values():
            assert not value.startswith(tuple("=+@\t\r\n"))
            assert not value.startswith("-") or float(value) < 0


def test_an_address_in_a_name_is_no_link(tmp_path: Path) -> None:
    page = write(sweep(base="javascript:alert(1)").assign(base_note="javascript:alert(2)"), tmp_path)
    assert not re.search(r"""(href|src|action)\s*=\s*["']?\s*javascript:""", page)


def test_csv_cells_are_never_formulas(tmp_path: Path) -> None:
    write(sweep(base='=HYPERLINK("http://x")', data="@evil"), tmp_path)
    rows = list(csv.DictReader((tmp_path / "points.csv").open(encoding="utf-8")))
    assert {row["base"] for row in rows} == {'\'=HYPERLINK("http://x")'}
    assert {row["data"] for row in rows} == {"'@evil", "none"}
    assert min(float(row["score"]) for row in rows) == pytest.approx(0.05), "numbers stay numbers"


def test_what_has_no_score_is_said_beside_the_curves(tmp_path: Path) -> None:
    """A cell that diverged is no failure of the program, and all the more to be seen: its setting has no point."""
    ends = [
        run_row(math.nan, size=9000 + n, seed=0, task="", status=s) for n, s in enumerate(("diverged", "preempted"))
    ]
    page = write(pd.concat([sweep(), table(ends)]), tmp_path)
    assert "1 failed, 1 diverged, 1 preempted" in page
    assert "<td>diverged</td>" in page
    assert "9,000" in page
    assert "9000" not in (tmp_path / "points.csv").read_text()


@pytest.mark.parametrize("kind", ["base", "failed"])
def test_report_of_a_sweep_without_curves_says_so(kind: str, tmp_path: Path) -> None:
    frame = sweep()
    page = write(frame[(frame["method"] == "base") | (frame["status"] == kind)], tmp_path / "a")
    assert "No curve yet" in page
    assert "1 failed" in write(frame[frame["status"] == "failed"], tmp_path / "b")
    with pytest.raises(HarnessError, match="run the sweep first"):
        write(frame.head(0), tmp_path / "c")
