"""Win rates by a judge, always beside the score of the same cells: what people like is not yet what is right.

LIMA's 1,000 examples make Llama-3-8B win 84.4% of comparisons on GSM8K with an accuracy of 14.7%, against 46.5% of a
model that learned the task (arXiv:2410.03717). Reads `harness.verdicts`; the statistics are `analysis.win_rate` and
`analysis.bradley_terry`, and seeds are averaged by `analysis.points`.
"""

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis import curves, win_rate
from analysis.bradley_terry import Ranking, rank
from analysis.points import CURVE, has_sizes, points, ruler, telling
from analysis.section import Evidence, Picture, Section, Table
from analysis.style import INK, PAPER, RULE, SOFT, Style, frame
from analysis.win_rate import Rate
from harness import verdicts
from harness.verdicts import REFERENCE, Judging

TITLE = "Whose answers does a judge prefer?"
ABSENT = (
    "No answers were judged. harness judge RUNS --task NAME judge.url=... judge.model=... has those of finished cells "
    "compared, by any OpenAI-compatible endpoint or a model that is loaded here."
)
PUBLISHED = (
    "A win rate is not accuracy: LIMA's 1,000 examples made Llama-3-8B win 84.4% of comparisons on GSM8K at 14.7% "
    "accuracy, against 46.5% of the model trained on the task (arXiv 2410.03717)."
)
WIN, EVEN, RATING = "win_rate", "win_rate_at_equal_length", "rating"
Row = dict[Hashable, Any]  # of a table
WORDS = "words"  # what `harness.probes.written` scores where a task has no metric
SHOWN = 40  # players of a ranking in its figure


@dataclass(frozen=True)
class Part:
    """What one judging adds to the section."""

    lines: list[str]
    tables: list[Table]
    pictures: list[Picture]
    data: dict[str, pd.DataFrame]


def section(evidence: Evidence) -> Section:
    found = [judging for judging in verdicts.load(evidence.root) if not judging.sorts]  # those are analysis.anatomy's
    if not found:
        return Section(TITLE, absent=ABSENT)
    parts = [_part(evidence, judging, f"judge-{number + 1}") for number, judging in enumerate(found)]
    return Section(
        TITLE,
        lines=(*(line for part in parts for line in part.lines), PUBLISHED),
        tables=tuple(table for part in parts for table in part.tables),
        pictures=tuple(picture for part in parts for picture in part.pictures),
        data={stem: table for part in parts for stem, table in part.data.items()},
    )


def _part(evidence: Evidence, judging: Judging, stem: str) -> Part:
    task, cells = judging.about["task"], evidence.frame[evidence.frame["status"] == "ok"]
    cells = cells[(cells["task"] == task) & cells["headline"].astype(bool) & cells["score"].notna()]
    cells = cells[cells["eval_fingerprint"] == judging.about["mark"]].drop_duplicates("path")
    who = f"{task}, judged by {judging.judge} ({judging.style})"
    if cells.empty:
        return Part([f"{who}: it was scored anew since; have its answers judged again."], [], [], {})
    matches = table_of(judging)
    if matches.empty:
        return Part([f"{who}: no reply of the judge is there yet."], [], [], {})
    part = Part([f"{who}: {_asked(judging)}"], [], [], {f"{stem}-matches": matches})
    part.lines.append(_consistency(matches) if judging.pairwise else _rated(matches))
    met = {*matches["one"], *matches["other"]}
    if later := int((~cells["path"].isin(met) & cells["method"].ne("base")).sum()):
        part.lines.append(
            f"The answers of {later:,} of {len(cells):,} cells were not judged; the same command has them judged."
        )
    rates = pd.DataFrame(_rates(cells, matches, judging))
    if len(rates):
        both = points(pd.concat([rates, cells], ignore_index=True))
        told = both["metric"].isin([WIN, EVEN, RATING])
        least, most = _scale(judging)
        both.loc[told, ["low", "high"]] = both.loc[told, ["low", "high"]].clip(least, most)
        both["shown"] = telling(both)["variant"]
        part.lines.extend(_largest(both, judging))
        part.tables.append(_beside(both, rates, judging, who))
        part.data[stem] = both
        drawn = both[both["metric"] != EVEN]
        if has_sizes(drawn).any():
            reading = "The same cells side by side: what the judge says, and their score on the task."
            part.pictures.append(Picture(stem, f"{who}, and the score", reading, _side_by_side(drawn)))
    usable = matches[matches["won"].notna()]
    if judging.pairwise and (usable["won"] == 0.5).all():
        part.lines.append("No match was decided, so nobody is ranked.")
    elif judging.pairwise and len(set(usable["one"]) | set(usable["other"])) > 2:
        one, other, cluster = (usable[name].to_numpy() for name in ("one", "other", "cluster"))
        ranking = rank(one, other, usable["won"].to_numpy(float), cluster)
        _add_ranking(part, ranking, cells, stem, who)
    return part


def table_of(judging: Judging) -> pd.DataFrame:
    """A row a match, or a rating: ``won`` by `one` (or its rating), ``longer`` in words, ``agree`` in both orders,
    ``first``, how often of two verdicts the answer shown first won; NaN and None where a verdict cannot be read."""
    return pd.DataFrame([_row(line, judging.pairwise) for line in judging.lines])


def _row(line: dict[str, Any], pairwise: bool) -> dict[str, Any]:
    kept = {name: line[name] for name in ("item", "cluster", "one", "other", "same")}
    said = line["verdicts"]
    if not pairwise:
        return {**kept, "won": math.nan if said[0] is None else said[0]}
    won = win_rate.outcome(said)
    told = [v for v in (said[0], None if said[1] is None else 1 - said[1]) if v is not None and not line["same"]]
    return {
        **kept,
        "won": math.nan if won is None else won,
        "longer": line["words"][0] - line["words"][1],
        "agree": won is not None and said[0] == said[1],
        "first": float(np.mean(told)) if told else math.nan,
    }


def _asked(judging: Judging) -> str:
    about = judging.about
    text = f"{about['calls']:,} calls over {about['items']:,} items."
    if about["left"]:
        text = (
            f"{about['calls'] - about['left']:,} of {about['calls']:,} calls over {about['items']:,} items are there, "
        )
        text += "and what they say is shown; the same command makes the others."
    if about["refused"]:
        text += f" The judge refused {about['refused']:,}."
    return text


def _consistency(matches: pd.DataFrame) -> str:
    """How far the judge can be believed: what it says when the answers change places."""
    asked = matches[~matches["same"].astype(bool)]
    if asked.empty:
        return "All answers compared were equal, which is a tie; nothing was asked."
    read = asked[asked["won"].notna()]
    text = (
        f"Of {len(asked):,} matches asked in both orders, {len(asked) - len(read):,} had a reply that says neither and "
    )
    text += "are left out. "
    if len(read):
        apart = ~read["agree"].astype(bool)
        ties = int(((read["won"] == 0.5) & ~apart).sum())
        first = win_rate.mean(
            asked["first"].dropna().to_numpy(float), asked.loc[asked["first"].notna(), "cluster"].to_numpy()
        )
        text += (
            f"Of the other {len(read):,}, {apart.mean():.0%} were told otherwise once the answers changed places and "
        )
        text += (
            f"count as ties, with {ties:,} that the judge called ties. The answer shown first won {first.value:.0%} of "
        )
        text += "verdicts; a judge that does not look at the place gives it 50%."
        if apart.mean() > 0.5:
            text += " This judge follows the place more than the answers, so its win rates say little."
    same = len(matches) - len(asked)
    return text + f" {same:,} more matches were between equal answers, which is a tie." * bool(same)


def _rated(matches: pd.DataFrame) -> str:
    given = matches["won"].dropna()
    text = f"Of {len(matches):,} answers rated {len(matches) - len(given):,} had a reply without a rating, or with "
    text += "several, and are left out."
    if len(given) and given.nunique() == 1:
        text += f" All others were rated {given.iloc[0]:g}, so this judge tells no answer from another."
    return text


def _rates(cells: pd.DataFrame, matches: pd.DataFrame, judging: Judging) -> Iterator[Row]:
    """Rows as `harness.store.load` has them, of what each cell won against its base or the reference, or its rating."""
    read = matches[matches["won"].notna()]
    homes = set(cells.loc[cells["method"] == "base", "path"])
    against = {"reference": {REFERENCE}, "base": homes, "none": set()}[judging.about["against"]]
    for cell in cells.to_dict("records"):
        mine = read[read["one"] == cell["path"]]
        if not judging.pairwise:
            found = {RATING: win_rate.mean(*_columns(mine, "won", "cluster"))} if len(mine) else {}
        else:
            mine = mine[mine["other"].isin(against)]
            if judging.about["against"] == "base":  # of its own base; in the circle it may have met another one
                own = set(cells.loc[(cells["method"] == "base") & (cells["base"] == cell["base"]), "path"])
                mine = mine[mine["other"].isin(own)]
            found = _both(mine) if len(mine) else {}
        for metric, rate in found.items():
            known = metric != RATING or rate.stderr > 0  # equal ratings do not say how others would differ
            yield {
                **dict(cell.items()), "metric": metric, "filter": judging.style, "score": rate.value, "n_items": rate.n,
                "stderr": rate.stderr if known else math.nan, "headline": metric != EVEN, "higher_is_better": True,
                "longer": mine["longer"].median() if judging.pairwise else math.nan,
            }  # fmt: skip


def _both(mine: pd.DataFrame) -> dict[str, Rate]:
    won, longer, cluster = _columns(mine, "won", "longer", "cluster")
    found = {WIN: win_rate.mean(won, cluster), EVEN: win_rate.at_equal_length(won, longer, cluster)}
    return {metric: rate for metric, rate in found.items() if rate}


def _scale(judging: Judging) -> tuple[float, float]:
    """The least and the most that a rate can be, or a rating."""
    means = judging.about["judge"]["prompt"]["means"].values()
    return (0.0, 1.0) if judging.pairwise else (min(means), max(means))


def _side_by_side(drawn: pd.DataFrame) -> Figure:
    """The curves of win rates or ratings and of scores; a rate on its whole scale, with a line at one half."""
    figure = curves.draw(drawn)
    for axes in figure.axes:
        if axes.get_ylabel().startswith(WIN.replace("_", " ")):
            axes.set_ylim(-0.02, 1.02)
            axes.axhline(0.5, color=SOFT, linewidth=0.8)
    return figure


def _columns(table: pd.DataFrame, *names: str) -> list[np.ndarray]:
    return [table[name].to_numpy() if name == "cluster" else table[name].to_numpy(float) for name in names]


def _whom(judging: Judging) -> str:
    return {"base": "its untouched base", "reference": "the reference", "none": ""}[judging.about["against"]]


def _at(both: pd.DataFrame, key: tuple[Any, ...], metric: str) -> Row | None:
    """The row of one point: base, data, method, variant and size, with this metric."""
    rows = both[(both["metric"] == metric) & (both[[*CURVE[:4], "size"]] == list(key)).all(axis=1)]
    return rows.iloc[0].to_dict() if len(rows) else None


def _interval(row: Row | None) -> str:
    if row is None:
        return "not known"
    return f"{row['score']:.2f}" + ("" if math.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]")


def _score_metric(both: pd.DataFrame) -> str | None:
    rows = both[both["headline"] & ~both["metric"].isin([WIN, EVEN, RATING])]
    return str(rows["metric"].iloc[0]) if len(rows) else None


def _largest(both: pd.DataFrame, judging: Judging) -> Iterator[str]:
    """Of each curve a sentence, at its largest size."""
    judged = both[both["metric"].isin([WIN, RATING]) & has_sizes(both)].sort_values("size")
    score = _score_metric(both)
    for row in judged.groupby(CURVE, sort=True).tail(1).to_dict("records"):
        key = tuple(row[name] for name in [*CURVE[:4], "size"])
        name = " ".join(filter(None, [row["base"], row["method"], row["shown"], "on", row["data"]]))
        text = f"{name}, {row['size']:,} examples: "
        if row["metric"] == WIN:
            text += f"it wins {_interval(row)} of comparisons with {_whom(judging)}, "
            text += f"{_interval(_at(both, key, EVEN))} at equal length"
        else:
            text += f"rated {_interval(row)}"
        if score and (beside := _at(both, key, score)):
            what = "the words of its answers are" if score == WORDS else "its score is"
            text += f"; {what} {_interval(beside)}" + f" ({ruler(score, beside['filter'])})" * (score != WORDS)
        yield text + "."


def _beside(both: pd.DataFrame, rates: pd.DataFrame, judging: Judging, who: str) -> Table:
    """Every point: what the judge says beside the score."""
    score, rows = _score_metric(both), []
    judged = both[both["metric"].isin([WIN, RATING])].assign(sized=has_sizes(both))
    judged = judged.sort_values(["base", "sized", *CURVE[1:4], "size"])  # the untouched base before its cells
    longer = rates.groupby([*CURVE[:4], "size"])["longer"].median()
    for row in judged.to_dict("records"):
        key = tuple(row[name] for name in [*CURVE[:4], "size"])
        parts = [row["method"], row["shown"], row["data"]] if row["sized"] else ["untouched"]
        name = " ".join(filter(None, [row["base"], *parts]))
        told = [name, f"{row['size']:,}", _interval(row)]
        if judging.pairwise:
            told += [_interval(_at(both, key, EVEN)), f"{longer[key]:+.0f}"]
        told.append(_interval(_at(both, key, score)) if score else "no score: the task has none")
        rows.append(tuple(told))
    beside = ruler(score, str(both.loc[both["metric"] == score, "filter"].iloc[0])) if score else "score"
    wins = (f"wins against {_whom(judging)}", "at equal length", "longer, words")
    head = ("cells", "examples", *(wins if judging.pairwise else ("rating",)), beside)
    note = (
        "95% intervals, over items and seeds. Ties, and verdicts that change with the order, are half a win. At equal "
        "length: what a logistic regression on the difference in words leaves; how hard an item is, is not in it."
    )
    return Table(f"{who}, beside the score", head, tuple(rows), note if judging.pairwise else "")


def _add_ranking(part: Part, ranking: Ranking, cells: pd.DataFrame, stem: str, who: str) -> None:
    if not ranking.joined:
        part.lines.append(f"{who}: not all cells are joined by matches, so they are not ranked.")
        return
    names = _names(cells) | {REFERENCE: "the reference"}
    known = [(p, e) for p, e in zip(ranking.players, ranking.strengths, strict=True) if p in names]
    best, worst = known[0], known[-1]
    part.lines.append(
        f"Of {len(known)} ranked by all their matches (Bradley-Terry), {names[best[0]]} is the strongest, "
        f"{best[1].words('{:+.2f}'.format)}, and {names[worst[0]]} the weakest, {worst[1].words('{:+.2f}'.format)}."
    )
    scores = dict(zip(cells["path"], cells["score"], strict=True))
    rows = [
        {"path": p, "name": names[p], "strength": e.value, "low": e.low, "high": e.high, "score": scores.get(p)}
        for p, e in known
    ]
    part.data[f"{stem}-ranking"] = pd.DataFrame(rows)
    beside = ruler(*cells[["metric", "filter"]].iloc[0])
    told = [(names[p], e.words("{:+.2f}".format), f"{scores[p]:.2f}" if p in scores else "") for p, e in known]
    columns = ("player", "strength, log-odds", beside)
    part.tables.append(Table(f"{who}: all against all, beside the score", columns, tuple(told)))
    reading = (
        "Log-odds of winning against one of average strength, with 95% intervals over items; the strongest on top."
    )
    if len(rows) > SHOWN:
        reading += f" The first and the last {SHOWN // 2} of {len(rows)}."
        rows = rows[: SHOWN // 2] + rows[-SHOWN // 2 :]
    figure = ranking_figure(pd.DataFrame(rows), cells)
    part.pictures.append(Picture(f"{stem}-ranking", f"{who}: all against all", reading, figure))


def _names(cells: pd.DataFrame) -> dict[str, str]:
    """Of each cell's path, in words, without what all cells have in common."""
    shown = telling(cells)
    seeds = shown.groupby([*CURVE[:4], "size"])["path"].transform("nunique") > 1
    several = shown.loc[has_sizes(shown), "data"].nunique() > 1
    names = {}
    for row, seed in zip(shown.to_dict("records"), seeds, strict=True):
        if row["method"] == "base":
            names[row["path"]] = f"{row['base']}, untouched"
            continue
        text = " ".join(filter(None, [row["base"], row["method"], row["variant"], row["data"] if several else ""]))
        names[row["path"]] = text + f", {row['size']:,}" + f", seed {row['seed']}" * bool(seed)
    return names


@rc_context({"text.parse_math": False})  # a "$" in a name is a dollar sign
def ranking_figure(table: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """`table` has ``path``, ``name``, ``strength``, ``low`` and ``high``, the strongest first; colours tell bases."""
    style, base = Style.of(cells), dict(zip(cells["path"], cells["base"], strict=True))
    figure = Figure(figsize=(7.2, 0.24 * len(table) + 1.1), layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    for y, row in enumerate(table.iloc[::-1].to_dict("records")):
        colour = style.colour("base", base[row["path"]]) if row["path"] in base else SOFT
        axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.4)
        axes.plot(row["strength"], y, "o", color=colour, markersize=5)
    frame(axes, "", "")
    axes.grid(axis="x", color=RULE, linewidth=0.5)
    axes.set_yticks(range(len(table)), table["name"].iloc[::-1])
    axes.set_xlabel("strength, log-odds", fontsize=9, color=INK)
    return figure
