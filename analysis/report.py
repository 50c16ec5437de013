"""A sweep on one page: ``report.html``, one file that fetches nothing, with its figures and points beside it.

Whatever comes from data (names, paths, hypothesis, command) is text to the page: Jinja escapes it, matplotlib escapes
it inside the figures, the page forbids scripts and every request by its Content-Security-Policy, and no cell of the
CSV can act as a formula.
"""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis import course, curves
from harness.errors import HarnessError

AXES = {  # column -> what people call it
    "base": "base model", "data": "data", "method": "method", "variant": "variant", "size": "examples",
    "seed": "training seed", "subset_seed": "subset seed",
}  # fmt: skip
FLAGS = {"items": " ¹", "seeds": " ²"}


def write_report(
    frame: pd.DataFrame,
    folder: Path,
    *,
    sweep: str,
    command: str,
    hypothesis: str = "",
    along: pd.DataFrame | None = None,
    fixed: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write report.html, curves.png (200 dpi), curves.svg and points.csv into `folder`; the page's path.

    `frame` is `harness.store.load`'s table of one sweep. `command` is what reproduces it, shown as given. `along` is
    `load_along`'s table, drawn as course.png and .svg and written as course.csv where it has rows. `fixed` adds to what
    the table shows to be held constant (epochs, learning-rate rule, template ...) and `provenance` says where results
    come from (versions, commit, dates); nested mappings are shown as ``outer.inner``. Where tasks have more
    than one (metric, filter), curves-filters.png and .svg are written as well.
    """
    if frame.empty:
        raise HarnessError(f"no cell of {sweep} has finished or failed yet; run the sweep first")
    folder.mkdir(parents=True, exist_ok=True)
    table = curves.points(frame)
    write_csv(table, folder / "points.csv")
    cells = frame.drop_duplicates("path")
    failed = cells[cells["status"] != "ok"]  # failed, diverged, preempted: none of them has a score to show
    varied, constant = _axes(cells)
    page = _environment().get_template("report.html.j2").render(
        sweep=sweep,
        hypothesis=hypothesis.strip(),
        command=command.strip(),
        counts={
            "done": len(cells) - len(failed),
            "without": ", ".join(f"{n} {status}" for status, n in failed["status"].value_counts().items()),
            "words": _size_in_words(table),
        },
        figures=_figures(table, folder) + _course(frame, along, folder),
        tables=_tables(table),
        show={
            "variant": bool((curves.telling(table)["variant"] != "").any()),
            "data": table.loc[curves.has_sizes(table), "data"].nunique() > 1,
            "flags": bool(table.loc[curves.has_sizes(table), "interval"].isin(FLAGS).any()),
        },
        cautions=_cautions(frame),
        rates=_rates(cells),
        failed=failed.sort_values("path").to_dict("records"),
        varied=varied,
        fixed=constant + flat(fixed or {}),
        provenance=flat(provenance or {}),
    )  # fmt: skip
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """The table as CSV at full precision, safe to open in a spreadsheet.

    A text cell that starts like a formula (= + - @, or a tab or line break before one) gets a leading apostrophe, after
    OWASP's "CSV Injection", and every text is quoted: a bare carriage return would begin a row. Column names are ours.
    """
    safe = table.copy()
    for column in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[column]):
            safe[column] = [f"'{v}" if isinstance(v, str) and v[:1] in tuple("=+-@\t\r\n") else v for v in safe[column]]
    safe.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)


def flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, text) of every leaf, nested names joined by dots; empty values left out."""
    pairs: list[tuple[str, str]] = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{prefix}{key}.")
        elif value is not None and value != "":
            pairs.append((f"{prefix}{key}", curves.names(value) if isinstance(value, list | tuple) else str(value)))
    return pairs


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("analysis", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def _axes(cells: pd.DataFrame) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What varied over the cells with examples, and what had one value throughout: (name, values) pairs."""
    lines = cells[curves.has_sizes(cells)]
    varied, constant = [], []
    for column, name in AXES.items():
        values = sorted(lines[column].unique())
        texts = [f"{v:,}" for v in values] if column == "size" else [str(v) or "default" for v in values]
        if len(values) > 1:
            varied.append((name, curves.names(texts)))
        elif texts and texts != ["default"]:
            constant.append((name, texts[0]))
    return varied, constant


def _cautions(frame: pd.DataFrame) -> list[str]:
    """What of the data is to be known before a score is believed."""
    lines = []
    for task, rows in frame[frame["items_in_training"] > 0].groupby("task", sort=True):
        most = rows.sort_values("items_in_training").iloc[-1]
        lines.append(
            f"Up to {most['items_in_training']:.0f} of the {most['n_items']:.0f} items of {task} stand word for word "
            f"among the examples of a cell ({most['data']}, {most['size']:,} examples)."
        )
    edges = frame[frame["lr_at_edge"].eq(True)]
    for key, rows in edges.groupby(["base", "data", "method", "variant"], sort=True):
        sizes = curves.names([f"{size:,}" for size in sorted(rows["size"].unique())])
        lines.append(
            f"{' '.join(filter(None, map(str, key)))}: the best learning rate stands at the edge of the grid with "
            f"{sizes} examples; a wider grid may hold a better one."
        )
    for data, rows in frame[frame["copies"] > 0].groupby("data", sort=True):
        most = rows.sort_values("copies").iloc[-1]
        lines.append(f"{data}: up to {most['copies']:.0f} of {most['size']:,} examples repeat another one.")
    return lines


def _rates(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """The learning rates that were not given: a row for each curve and size, and what the seeds have, mostly one."""
    rows = cells[cells["lr_rule"].isin(["auto", "search"])]
    return [
        {
            **dict(zip(("base", "data", "method", "variant"), map(str, key), strict=False)),
            "size": f"{key[-1]:,}",
            "lr": ", ".join(f"{lr:.3g}" for lr in sorted(set(same["lr"]))),
            "rule": {"auto": "published rule"}.get(same["lr_rule"].iloc[0], "best of the grid")
            + ", at its edge" * bool(same["lr_at_edge"].any()),
        }
        for key, same in rows.groupby(["base", "data", "method", "variant", "size"], sort=True)
    ]


def _size_in_words(table: pd.DataFrame) -> str:
    """``2 bases · 6 sizes, 10 to 10k examples · 3 seeds · tasks facts and sums``."""
    lines = table[curves.has_sizes(table)]
    if lines.empty:
        return "base models only" if len(table) else "no scores"
    sizes = sorted(lines["size"].unique())
    few, many = lines["n_seeds"].min(), lines["n_seeds"].max()
    span = f"{curves.brief(sizes[0])} to {curves.brief(sizes[-1])} examples"
    parts = [
        _count(table["base"].nunique(), "base model"),
        f"{len(sizes)} sizes, {span}" if len(sizes) > 1 else f"{sizes[0]:,} examples",
        _count(many, "seed") if few == many else f"{few} to {many} seeds",
        ("task " if table["task"].nunique() == 1 else "tasks ") + curves.names(sorted(table["task"].unique())),
    ]
    return " · ".join(parts)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _figures(table: pd.DataFrame, folder: Path) -> list[dict[str, Any]]:
    """Draw and save the figures; of each the SVG for the page, title, how to read it, and the numbers in words."""
    if not curves.has_sizes(table).any():
        return []
    figures = []
    bars = "Bars are 95% intervals over seeds and items; dashed lines with a band are the base before any example."
    apart = "Lines stand slightly apart sideways so that bars do not hide one another."
    wanted = [(False, "curves", "Score against number of examples.", f"{bars} {apart}")]
    if curves.has_others(table):
        behind = "Thin lines behind repeat figure 1: a gap between the two is one of answer format."
        wanted.append((True, "curves-filters", "The same answers under the other filters.", behind))
    for others, stem, title, reading in wanted:
        figure = curves.draw(table, others=others)
        lines = in_words(table[table["headline"] != others])
        figures.append(_saved(figure, folder, stem, title, reading, lines))
    return figures


def _saved(figure: Figure, folder: Path, stem: str, title: str, reading: str, lines: list[str]) -> dict[str, Any]:
    """The figure in files, and as the page shows it."""
    text = curves.svg(figure)
    (folder / f"{stem}.svg").write_text(text, encoding="utf-8")
    figure.savefig(folder / f"{stem}.png", dpi=200, facecolor="white")
    return {"svg": _inline(text, title, figure.get_figwidth()), "title": title, "reading": reading, "lines": lines}


def _course(frame: pd.DataFrame, along: pd.DataFrame | None, folder: Path) -> list[dict[str, Any]]:
    """The figure of scores in the course of training, if any were asked for."""
    if along is None or along.empty:
        return []
    table = course.points(frame, along)
    write_csv(table, folder / "course.csv")
    title = "Score in the course of training."
    reading = "Each line is one number of examples, from the untouched base to the end of its training."
    return [_saved(course.draw(table), folder, "course", title, reading, course.in_words(table))]


def _inline(svg: str, title: str, inches: float) -> Markup:
    """The SVG as an element of the page: no prologue or metadata; ink, grid and paper follow the page's theme."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, name in ((curves.INK, "ink"), (curves.RULE, "rule"), (curves.PAPER, "paper")):
        svg = svg.replace(colour, f"var(--{name})")
    # Markup: matplotlib has escaped all names in it; the title is ours.
    label = f'role="img" aria-label="{title} Its numbers are in the caption."'
    return Markup(svg.replace("<svg", f'<svg {label} style="max-width: {8 * inches:.1f}rem"', 1))


def in_words(table: pd.DataFrame) -> list[str]:
    """One sentence a curve: where it starts and ends, with intervals, and where its base stood."""
    lines = []
    for key, line in table[curves.has_sizes(table)].groupby(curves.CURVE, sort=True):
        base, data, method, variant, task, metric, filter_ = map(str, key)
        line = line.sort_values("size")
        same = (table["base"] == base) & (table["task"] == task) & (table["metric"] == metric)
        start = table[same & (table["filter"] == filter_) & (table["method"] == "base")]
        recipe = " ".join(part for part in (f"{base}, {method}", variant, f"on {data}") if part)
        before = "" if start.empty else f"{_score(start.iloc[0])} untouched, then "
        ends = [line.iloc[0], line.iloc[-1]][: len(line)]
        numbers = " and ".join(f"{_score(p)} with {p['size']:,}" for p in ends)
        lines.append(f"{task}, {curves.ruler(metric, filter_)}. {recipe}: {before}{numbers} examples.")
    for p in table[table["method"] == "given"].to_dict("records"):
        name = f"{p['base']}, given {p['variant']}"
        lines.append(f"{p['task']}, {curves.ruler(p['metric'], p['filter'])}. {name}: {_score(pd.Series(p))}.")
    return lines


def _score(point: pd.Series) -> str:
    interval = "" if pd.isna(point["low"]) else f" ({point['low']:.3g} to {point['high']:.3g})"
    return f"{point['score']:.3g}{interval}"


def _tables(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One table for each (task, metric, filter): text cells, and a bar on a common scale, in percent of its width."""
    blocks = []
    style = curves.Style.of(table)
    for key, rows in table.groupby(["task", "metric", "filter"], sort=True):
        task, metric, filter_ = map(str, key)
        low, high = rows[["low", "score"]].min().min(), rows[["high", "score"]].max().max()
        percent = [100 * (rows[c] - low) / ((high - low) or 1.0) for c in ("low", "score", "high")]
        rows = rows.assign(p_low=percent[0], p_score=percent[1], p_high=percent[2], first=curves.has_sizes(rows))
        rows = rows.sort_values(["base", "first", "data", "method", "variant", "size"])
        blocks.append(
            {
                "title": f"{task}: {curves.ruler(metric, filter_)}",
                "headline": bool(rows["headline"].iloc[0]),
                "low": f"{low:.2f}",
                "high": f"{high:.2f}",
                "rows": _rows(rows, style),
            }
        )
    return blocks


def _rows(rows: pd.DataFrame, style: curves.Style) -> list[dict[str, Any]]:
    texts: list[dict[str, Any]] = []
    for p in rows.to_dict("records"):
        known = not pd.isna(p["low"])
        flag = FLAGS.get(p["interval"], "") if p["method"] != "base" else ""  # the base has no seeds to vary
        texts.append(
            {
                **{name: p[name] for name in ("base", "method", "variant", "data")},
                "new": bool(texts) and texts[-1]["base"] != p["base"],
                "size": f"{p['size']:,}",
                "seeds": p["n_seeds"] if p["method"] != "base" else "",
                "score": f"{p['score']:.3f}",
                "interval": (f"{p['low']:.3f} to {p['high']:.3f}" if known else "") + flag,
                "sd": "" if pd.isna(p["seed_sd"]) else f"{p['seed_sd']:.3f}",
                "bar": [f"{p[c]:.2f}" for c in ("p_low", "p_score", "p_high")] if known else None,
                "dot": f"{p['p_score']:.2f}",
                "colour": style.colours[p["base"]],
            }
        )
    return texts
