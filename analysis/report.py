"""A sweep on one page: ``report.html``, one file that fetches nothing, with its figures and points beside it.

Whatever comes from data (names, paths, hypothesis, command) is text to the page: Jinja escapes it, matplotlib escapes
it inside the figures, `analysis.live` in what the script reads. By its Content-Security-Policy the page makes no
request and runs its own script, known by its hash, and no other. No cell of the CSV can act as a formula.
"""

import base64
import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis import course, curves, figures, live
from analysis.conclusions import Conclusions
from analysis.points import has_sizes, names, points, telling
from analysis.published import Comparison
from analysis.rows import FLAGS, rows
from analysis.section import Section
from analysis.style import INK, PALETTES, PAPER, RULE, SOFT, svg
from analysis.words import cautions, in_words, size_in_words
from harness.errors import HarnessError

HERE = Path(__file__).parent
AXES = {  # column -> what people call it
    "base": "base model", "data": "data", "method": "method", "variant": "variant", "size": "examples",
    "seed": "training seed", "subset_seed": "subset seed",
}  # fmt: skip
LARGE = 600_000  # characters of drawn curves, beyond which the page has the first figure only
FEW = 6  # sentences that stand for findings where nobody has drawn conclusions


def write_report(
    frame: pd.DataFrame,
    folder: Path,
    *,
    sweep: str,
    command: str,
    hypothesis: str = "",
    conclusions: Conclusions | None = None,
    along: pd.DataFrame | None = None,
    against: Comparison | None = None,
    sections: Sequence[Section] = (),
    unalike: Sequence[str] = (),
    fixed: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write report.html, curves.png (200 dpi), curves.svg and points.csv into `folder`; the page's path.

    `frame` is `harness.store.load`'s table of one sweep. `command` is what reproduces it, shown as given. `conclusions`
    stand on top, with figures of their own below the curves. `along` is `load_along`'s table, drawn as course.png and
    .svg and written as course.csv where it has rows. Differences between methods and bases are written as pairs.csv.
    `against` is what was published; `sections` are those of `analysis.instruments`; `unalike` says which
    scores `analysis.points.alike` has left out. `fixed` adds to what the table shows to be held constant (epochs,
    learning-rate rule, template ...) and `provenance` says where results come from (versions, commit, dates); nested
    mappings are shown as ``outer.inner``. Further figures are written where there is something to see in them.
    """
    if frame.empty:
        raise HarnessError(f"no cell of {sweep} has finished or failed yet; run the sweep first")
    folder.mkdir(parents=True, exist_ok=True)
    table, found = points(frame), conclusions or Conclusions()
    write_csv(table, folder / "points.csv")
    if found.compared.pairs:
        write_csv(found.compared.table(), folder / "pairs.csv")
    cells = frame.drop_duplicates("path")
    failed = cells[cells["status"] != "ok"]  # failed, diverged, preempted: none of them has a score to show
    varied, constant = _axes(cells)
    script = (HERE / "report.js").read_text(encoding="utf-8")
    page = _environment().get_template("report.html.j2").render(
        sweep=sweep,
        hypothesis=hypothesis.strip(),
        command=command.strip(),
        counts={
            "done": len(cells) - len(failed),
            "without": ", ".join(f"{n} {status}" for status, n in failed["status"].value_counts().items()),
            "words": size_in_words(table),
        },
        found=found,
        curves=_curves(table, folder),
        figures=_figures(table, folder, found) + _course(frame, along, folder),
        beside=_beside(table, against, folder),
        sections=[_section(one, folder) for one in sections],
        in_words=in_words(table[table["headline"]]) + in_words(table[~table["headline"]]),
        few=FEW,
        against=against,
        rows=rows(table),
        show={
            "ruler": table.groupby("task")[["metric", "filter"]].value_counts().groupby("task").size().max() > 1
            if len(table) else False,
            "variant": bool((telling(table)["variant"] != "").any()),
            "data": table.loc[has_sizes(table), "data"].nunique() > 1,
            "flags": bool(table.loc[has_sizes(table), "interval"].isin(FLAGS).any()),
        },
        cautions=[*unalike, *cautions(frame)],
        rates=_rates(cells),
        failed=failed.sort_values("path").to_dict("records"),
        varied=varied,
        fixed=constant + flat(fixed or {}),
        provenance=flat(provenance or {}),
        colours=PALETTES["base"],
        csv=Markup(base64.b64encode((folder / "points.csv").read_bytes()).decode()),
        data=live.embedded(table, found.fits, against.marks() if against else ()),
        css=Markup((HERE / "report.css").read_text(encoding="utf-8")),  # Markup: both are files of ours
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
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
            pairs.append((f"{prefix}{key}", names(value) if isinstance(value, list | tuple) else str(value)))
    return pairs


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("analysis", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def _axes(cells: pd.DataFrame) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What varied over the cells with examples, and what had one value throughout: (name, values) pairs."""
    lines = cells[has_sizes(cells)]
    varied, constant = [], []
    for column, name in AXES.items():
        values = sorted(lines[column].unique())
        texts = [f"{v:,}" for v in values] if column == "size" else [str(v) or "default" for v in values]
        if len(values) > 1:
            varied.append((name, names(texts)))
        elif texts and texts != ["default"]:
            constant.append((name, texts[0]))
    return varied, constant


def _rates(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """The learning rates that were not given: a row for each curve and size, and what the seeds have, mostly one."""
    chosen = cells[cells["lr_rule"].isin(["auto", "search"])]
    return [
        {
            **dict(zip(("base", "data", "method", "variant"), map(str, key), strict=False)),
            "size": f"{key[-1]:,}",
            "lr": ", ".join(f"{lr:.3g}" for lr in sorted(set(same["lr"]))),
            "rule": {"auto": "published rule"}.get(same["lr_rule"].iloc[0], "best of the grid")
            + ", at its edge" * bool(same["lr_at_edge"].any()),
        }
        for key, same in chosen.groupby(["base", "data", "method", "variant", "size"], sort=True)
    ]


def _curves(table: pd.DataFrame, folder: Path) -> list[dict[str, Any]]:
    """Draw and save the curves, which the page's script has in one figure; of each what the page shows without it."""
    if not has_sizes(table).any():
        return []
    bars = "Bars are 95% intervals over seeds and items; dashed lines with a band are the base before any example."
    apart = "Lines stand slightly apart sideways so that bars do not hide one another."
    first, *more = curves.wanted(table)
    drawn = curves.draw(table, by=first)
    made = [_saved(drawn, folder, "curves", "Score against number of examples.", f"{bars} {apart}")]
    for by in more:  # in files only: with scripts the page has the same, and without them the first's lines
        _saved(curves.draw(table, by=by), folder, f"curves-{by}", "", "")
    if curves.has_others(table):
        behind = "Thin lines behind repeat the headline's: a gap between the two is one of answer format."
        figure = curves.draw(table, others=True)
        made.append(_saved(figure, folder, "curves-filters", "The same answers under the other filters.", behind))
    if sum(len(one["svg"]) for one in made) > LARGE:
        del made[1:]
    return made


def _figures(table: pd.DataFrame, folder: Path, found: Conclusions) -> list[dict[str, Any]]:
    """Those that answer another question than the curves, where there is an answer."""
    made = []
    if figures.has_ranges(table):
        title = "Which base starts better, which gains more?"
        reading = "From the untouched base to its largest size, whose interval stands below; the tick is near 1,000."
        made.append(_saved(figures.ranges(table), folder, "bases", title, reading))
    if found.shares is not None:
        reading = "The gain is that of the largest size over the untouched base; upright at 1,000 examples."
        made.append(
            _saved(figures.shares(table, found.shares), folder, "shares", "How much of the gain came by when?", reading)
        )
    if found.fits is not None:
        reading = "Bands are 95% intervals of the fitted curve; rings and dashes are sizes that it has not seen."
        made.append(
            _saved(figures.fitted(table, found.fits), folder, "fits", "Which law, and did it foresee?", reading)
        )
    if found.measures is not None:
        made.append(_saved(figures.measures(table, found.measures), folder, "format", "Is it format or content?", ""))
    return made


def _beside(table: pd.DataFrame, against: Comparison | None, folder: Path) -> list[dict[str, Any]]:
    marks = against.marks() if against else []
    if not marks:
        return []
    reading = "Hollow diamonds are published, bars on them what is not known of the number; lines are ours."
    return [_saved(figures.beside(table, marks), folder, "against", "Ours over theirs.", reading)]


def _section(section: Section, folder: Path) -> dict[str, Any]:
    """An instrument's section as the page shows it; its numbers and figures in files."""
    for stem, data in section.data.items():
        write_csv(data, folder / f"{stem}.csv")
    drawn = [_saved(one.figure, folder, one.stem, one.title, one.reading) for one in section.pictures]
    files = [f"{stem}.csv" for stem in section.data]
    return {"title": section.title, "lines": section.lines, "tables": section.tables, "figures": drawn, "files": files,
            "absent": section.absent}  # fmt: skip


def _saved(figure: Figure, folder: Path, stem: str, title: str, reading: str) -> dict[str, Any]:
    """The figure in files, and as the page shows it."""
    text = svg(figure)
    (folder / f"{stem}.svg").write_text(text, encoding="utf-8")
    figure.set_layout_engine("none")  # it stands; to lay it out again takes as long as all the rest
    figure.savefig(folder / f"{stem}.png", dpi=200, facecolor="white")
    return {"svg": _inline(text, stem, title, figure.get_figwidth()), "title": title, "reading": reading, "lines": []}


def _course(frame: pd.DataFrame, along: pd.DataFrame | None, folder: Path) -> list[dict[str, Any]]:
    """The figure of scores in the course of training, if any were asked for."""
    if along is None or along.empty:
        return []
    table = course.points(frame, along)
    write_csv(table, folder / "course.csv")
    title = "Score in the course of training."
    reading = "Each line is one number of examples, from the untouched base to the end of its training."
    return [{**_saved(course.draw(table), folder, "course", title, reading), "lines": course.in_words(table)}]


def _inline(svg: str, stem: str, title: str, inches: float) -> Markup:
    """The SVG as an element of the page: no prologue or metadata; ink, grid and paper follow the page's theme.

    Ids get the figure's name before them: several figures are in one page, and each calls its first axes the same. Of
    what is not seen (clipping at the panel's edge, a thousandth of a point) a large sweep would have a megabyte.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"#<]*">', "<g>", svg)
    if stem in ("curves", "curves-filters"):
        svg = re.sub(r' clip-path="url\(#[^"]*\)"', "", svg)
    svg = re.sub(r' (?:d|x|y|transform)="[^"<]*"', lambda found: re.sub(r"(\.\d\d?)\d+", r"\1", found[0]), svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{stem}-", svg)
    for colour, name in ((INK, "ink"), (SOFT, "soft"), (RULE, "rule"), (PAPER, "paper")):
        svg = svg.replace(colour, f"var(--{name})")
    # Markup: matplotlib has escaped all names in it; the title is ours.
    label = f'role="img" aria-label="{title} Its numbers stand in words and in the table below."'
    width = f'style="max-width: {8 * inches:.1f}rem; min-width: {4.7 * inches:.1f}rem"'
    return Markup(svg.replace("<svg", f"<svg {label} {width}", 1))
