"""The page as bytes: one script known by its hash, data that cannot leave its place, and a size that holds."""

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import curves, figures
from analysis.conclusions import Conclusions, Row, conclude
from analysis.live import embedded, escaped
from analysis.points import CURVE, has_sizes, points, telling
from analysis.report import _saved
from analysis.style import Look, frame, grid_of, handle, legend, svg
from tests.sweeps import Sweep
from tests.test_analysis import run_row, sweep, table, write

SCRIPT = (Path(__file__).parent.parent / "analysis" / "report.js").read_text(encoding="utf-8")
EVIL = [
    "</script><script>alert(1)</script>", "<!--<script>", "]]>", "a\u2028b\u2029c", "'\"`${1}&amp;", "\\u003c/script>"
]  # fmt: skip


def thousand(seeds: int = 1) -> pd.DataFrame:
    """A thousand cells: bases, data and methods by ten sizes, so many seeds of each, two filters."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(1000 // seeds):
        place = {"base": f"base-{n % 5}", "data": f"data-{n // 5 % 2}", "size": int(10 ** (1 + n // 10 % 10 / 2))}
        place |= {"method": ("sft", "icl")[n // 100 % 2], "variant": f"lr={n // 200}" if seeds == 1 else ""}
        for seed in range(seeds):
            for name, headline in (("strict-match", True), ("flexible-extract", False)):
                score = round(200 * rng.uniform(0.1, 0.9)) / 200
                rows.append(run_row(score, seed=seed, filter=name, headline=headline, **place))
    return table(rows)


def parts(page: str) -> tuple[str, str]:
    """The data and the script of a page, and there are no others."""
    data, script = re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL)
    return data, script


def test_the_only_script_is_ours_and_known_by_its_hash(tmp_path: Path) -> None:
    page = write(sweep(), tmp_path)
    _, script = parts(page)
    assert script == SCRIPT
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    for way_out in ("fetch(", "XMLHttpRequest", "WebSocket", "import(", "innerHTML", "eval(", "http:", "sendBeacon"):
        assert way_out not in script.replace("http://www.w3.org/2000/svg", ""), way_out


@pytest.mark.parametrize("name", EVIL)
def test_data_stay_in_their_place_whatever_they_are_called(name: str, tmp_path: Path) -> None:
    page = write(sweep(base=name, data=name).assign(base_note=name), tmp_path)
    data, script = parts(page)
    assert script == SCRIPT
    assert not re.search(r"[<>&\u2028\u2029]", data)
    assert data.isascii()
    assert [line["base"] for line in json.loads(data)["lines"]] == [name, name]
    assert json.loads(data)["notes"] == {name: name}
    assert json.loads(escaped(EVIL)) == EVIL


def test_what_the_script_draws_is_what_the_table_has() -> None:
    t = points(sweep())
    drawn = json.loads(embedded(t))
    assert [axis["name"] for axis in drawn["axes"]] == ["size", "tokens"], (
        "other columns are axes once records have them"
    )
    shown = {
        (line["ruler"], p["x"][0]): p["y"] for line in drawn["lines"] for p in line["points"]
    }  # fmt: skip
    assert len(shown) == has_sizes(t).sum()
    for p in t[has_sizes(t)].to_dict("records"):
        assert shown[curves.ruler(p["metric"], p["filter"]), p["size"]] == pytest.approx(
            [p["score"], p["low"], p["high"]], rel=1e-5
        )
    more = points(sweep().assign(steps=50, flops=1e15))
    assert [axis["name"] for axis in json.loads(embedded(more))["axes"]] == ["size", "tokens", "steps", "flops"]


def test_all_points_can_be_saved_from_the_page_alone(tmp_path: Path) -> None:
    page = write(sweep(), tmp_path)
    (kept,) = re.findall(r'download="points.csv" href="data:text/csv;charset=utf-8;base64,([^"]*)"', page)
    assert base64.b64decode(kept) == (tmp_path / "points.csv").read_bytes()


def test_findings_stand_on_top_and_are_text(tmp_path: Path) -> None:
    row = Row("facts", "+0.6", "62% of the gain <b>came</b> by 1,000.", "saturated", "both", "elicited", ("Why.",))
    page = write(sweep(), tmp_path, conclusions=Conclusions(rows=(row,)))
    assert page.index("62% of the gain &lt;b&gt;came&lt;/b&gt;") < page.index("Score against number of examples.")
    assert "What may be concluded" not in write(sweep(), tmp_path)


def test_bases_side_by_side_are_a_table_and_a_sentence_of_text(tmp_path: Path) -> None:
    """A better start told from learning more, the average of the tasks, an asymptote where a law is supported."""
    made, other = Sweep(tmp_path / "runs", n=2000), Sweep(tmp_path / "runs", n=2000, seed=1)
    sizes = (10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
    for base, start, top in (("good <b>", 0.3, 0.8), ("poor", 0.1, 0.8)):
        scores = {n: top - (top - start) / (1 + (n / 300) ** 0.6) for n in sizes}
        for one, task in ((made, "t"), (other, "u")):
            one.curve({0: start, **scores}, base=base, task=task, noise=0.004)
    made.cell(10, strict=0.5, base="alone", task="t")
    made.rows += other.rows
    found = conclude(made.frame, made.items())
    page = write(made.frame, tmp_path, conclusions=found)
    assert page.index("What may be concluded") < page.index('id="live"') < page.index("Which base?")
    section = page[page.index("Which base?") : page.index("Every point")]
    assert "<b>" not in section, "names are text"
    assert section.count('<th scope="rowgroup"') == 3, "two tasks and their average"
    assert "average of the tasks, sft on d: good &lt;b&gt; is" in section
    assert re.search(r"t, sft on d: good &lt;b&gt; is .*: a better start \+0\.", section)
    assert "t, sft on d: alone cannot be compared, as no score of it untouched is there." in section
    by = {(row.where.split(",")[0], row.base): row for row in found.compared.bases}
    assert by["average of the tasks", "poor"].asymptote.beside == "an average of tasks has no law of its own"
    assert by["t", "poor"].head_start.value == "none"
    assert float(by["t", "poor"].gain.value) > float(by["t", "good <b>"].gain.value) + 0.1
    ends = [row.asymptote for row in by.values() if row.asymptote.value != "cannot be told"]
    assert ends, "of four curves that a law made, one at least supports it"
    for end in ends:
        low, high = map(float, end.beside.strip("[]").split(", "))
        assert low - 0.03 <= 0.8 <= high + 0.03
    assert "Which base?" not in write(sweep(), tmp_path, conclusions=Conclusions())


def test_the_page_says_which_differences_stand_and_among_how_many(tmp_path: Path) -> None:
    """One method is far better than two that are alike, and a base far better than another: 3 and 3 tests together."""
    made = Sweep(tmp_path / "runs")
    for base, lift in (("b", 0.0), ("c", 0.2)):
        made.cell(0, strict=0.1, base=base)
        for method, score in (("sft", 0.7), ("dpo", 0.3), ("icl", 0.3)):
            made.curve({10: 0.2, 100: score + lift}, base=base, method=method, noise=0.003)
    found = conclude(made.frame[made.frame["base"] == "b"], made.items()).compared
    (pairs,) = found.pairs
    assert pairs.words().startswith("Between methods: of 3 differences tested together 2 stand: sft over ")
    page = write(made.frame, tmp_path, conclusions=conclude(made.frame, made.items()))
    section = page[page.index("Which differences stand") : page.index("Every point")]
    assert "Between bases: of 3 differences tested together 3 stand: c over b by 0." in section
    assert "Between methods: of 6 differences tested together 4 stand" in section
    rows = re.findall(r'<tr><th scope="row">(.*?) less (.*?)</th>.*?<td>(yes|no)</td><td>item by item</td>', section)
    assert len(rows) == 9
    assert {row[2] for row in rows if {"dpo", "icl"} == set(row[:2])} == {"no"}
    kept = pd.read_csv(tmp_path / "pairs.csv")
    assert (kept["tests"] == [3] * 3 + [6] * 6).all()
    assert (kept["p_holm"] >= kept["p"]).all()
    assert "Which differences stand" not in write(sweep(), tmp_path)


def test_every_figure_is_named_for_those_who_hear_it(tmp_path: Path) -> None:
    page = write(sweep(), tmp_path)
    for opening in re.findall(r"<svg [^>]*>", page):
        assert 'role="img" aria-label="' in opening
    assert "0.05 (0.0274 to 0.0896) untouched, then 0.205" in page, "and its numbers stand in words"


@pytest.mark.slow
def test_a_thousand_cells_are_less_than_two_megabytes(tmp_path: Path) -> None:
    assert len(write(thousand(), tmp_path).encode()) < 2e6


# ------------------------------------------------------------------------------------------------------------ figures


def two_data() -> pd.DataFrame:
    both = pd.concat([sweep(b, d) for b in ("pocket-m", "pocket-s") for d in ("few", "many")])
    return points(both.drop_duplicates(["path", "filter"]))


def test_several_data_share_a_panel_where_a_base_has_several() -> None:
    """LIMA against scaling: what colours tell is what the panels do not."""
    assert curves.wanted(points(sweep())) == ["base"]
    t = two_data()
    assert curves.wanted(t) == ["base", "data"]
    drawn = curves.draw(t, by="data")
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["facts  ·  pocket-m", "facts  ·  pocket-s"]
    colours = {line.get_color() for axes in drawn.axes for line in axes.get_lines() if line.get_linestyle() == "-"}
    assert len(colours) == 2


def test_hatched_bars_keep_their_colours_on_the_page(tmp_path: Path) -> None:
    """matplotlib writes a hatch's colours as attributes, which look like references to what is in the file."""
    figure, (axes,) = grid_of(1, 3.0)
    axes.bar([0, 1], [1, 2], facecolor="#44AA99", hatch="//", edgecolor="#fdfdfd")
    on_page = str(_saved(figure, tmp_path, "bars", "Bars.", "")["svg"])
    (drawn,) = set(re.findall(r'fill="([^"]*)"', on_page)) - {"none"}
    assert drawn == "#44aa99"
    references = re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)", on_page)
    assert {a or b for a, b in references} <= set(re.findall(r'id="([^"]*)"', on_page))


def test_methods_have_the_colours_where_there_is_one_base() -> None:
    both = pd.concat([sweep(), sweep().assign(method="dpo", path=lambda f: f["path"] + "-dpo")])
    t = points(both[(both["size"] > 0) | (both["method"] != "dpo")])
    assert curves.wanted(t) == ["method"]
    drawn = curves.draw(t, by="method")
    assert len({line.get_color() for line in drawn.axes[0].get_lines() if line.get_linewidth() == 1.7}) == 2


def test_no_title_runs_into_the_next_panel() -> None:
    figure, grid = grid_of(3, 3.0)
    for axes in grid:
        frame(axes, "a_task_of_some_length  ·  data-with-a-name  ·  base-of-a-family sft lr=0.001,epochs=3", "score")
    figure.draw_without_rendering()
    left, middle, _ = (axes._left_title.get_window_extent() for axes in grid)
    assert left.x1 < middle.x0
    assert grid[0].get_title(loc="left").replace("\n", "  ·  ").count("  ·  ") == 2, "no part is lost"


def test_no_legend_is_wider_than_its_figure() -> None:
    for words in ("short", "a kind of line with many settings = 0.001", "its name fills half of the figure " * 2):
        figure, _ = grid_of(1, 3.0)
        legend(figure, [handle(f"{words} {i}", Look("#000000", False, "o", "-")) for i in range(6)], 6)
        figure.draw_without_rendering()
        (drawn,) = figure.legends
        assert drawn.get_window_extent().width <= figure.bbox.width or drawn._ncols == 1


def test_a_base_has_one_colour_in_every_figure() -> None:
    t = two_data()
    colour = curves.Style.of(t).colour("base", "pocket-s")
    only = t[(t["base"] == "pocket-s") & t["headline"] & has_sizes(t)]
    drawn = figures.shares(t, only.assign(share=only["score"]))
    (line,) = [one for one in drawn.axes[0].get_lines() if one.get_linewidth() == 1.7]
    assert line.get_color() == colour
    assert colour in svg(curves.draw(t)).upper().replace("#", "#")


def test_a_fit_shows_what_it_has_not_seen_apart() -> None:
    t = points(sweep())
    line = t[t["headline"] & has_sizes(t)]
    grid = [10, 30, 100, 300, 1000]
    law = pd.DataFrame([{**line.iloc[0][CURVE], "size": n, "score": 0.3, "low": 0.2, "high": 0.4} for n in grid])
    axes = figures.fitted(t, law.assign(held_out=300)).axes[0]
    bare = [one for one in axes.get_lines() if len(one.get_xdata()) and one.get_marker() in ("None", None)]
    assert [list(one.get_xdata()) for one in bare] == [[10, 30, 100], [100, 300, 1000]]
    rings = [one for one in axes.get_lines() if one.get_marker() == "o" and one.get_markerfacecolor() == figures.PAPER]
    assert [list(one.get_xdata()) for one in rings] == [[1000]]


def test_bases_are_ranked_where_there_are_three() -> None:
    assert not figures.has_ranges(two_data())
    t = points(pd.concat([sweep(f"pocket-{b}").assign(score=lambda f, n=n: f["score"] - n) for n, b in
                          enumerate("abc")]).assign(stderr=np.nan))  # fmt: skip
    assert figures.has_ranges(t)
    labels = [label.get_text() for label in figures.ranges(t).axes[0].get_yticklabels()]
    assert labels == ["pocket-c", "pocket-b", "pocket-a"], "the best on top"


def test_variants_are_told_by_the_settings_in_which_lines_differ() -> None:
    kinds = [("base", ""), ("sft", "epochs=1,lr=0.1,lora=[4,8]"), ("sft", "epochs=1,lora=[4,8]"), ("dpo", "lr=3")]
    kinds.append(("given", "model=x"))
    table = pd.DataFrame(kinds, columns=["method", "variant"]).assign(base="b", data="d")
    assert list(telling(table)["variant"]) == ["", "lr=0.1", "", "", "model=x"]
