"""What a report says in sentences: the curves, the size of the sweep, and what to know before a score is believed."""

import pandas as pd

from analysis.points import CURVE, brief, has_sizes, names, ruler


def in_words(table: pd.DataFrame) -> list[str]:
    """One sentence a curve: where it starts and ends, with intervals, and where its base stood."""
    lines = []
    for key, line in table[has_sizes(table)].groupby(CURVE, sort=True):
        base, data, method, variant, task, metric, filter_ = map(str, key)
        line = line.sort_values("size")
        same = (table["base"] == base) & (table["task"] == task) & (table["metric"] == metric)
        start = table[same & (table["filter"] == filter_) & (table["method"] == "base")]
        recipe = " ".join(part for part in (f"{base}, {method}", variant, f"on {data}") if part)
        before = "" if start.empty else f"{_score(start.iloc[0])} untouched, then "
        ends = [line.iloc[0], line.iloc[-1]][: len(line)]
        numbers = " and ".join(f"{_score(p)} with {p['size']:,}" for p in ends)
        lines.append(f"{task}, {ruler(metric, filter_)}. {recipe}: {before}{numbers} examples.")
    for p in table[table["method"] == "given"].to_dict("records"):
        name = f"{p['base']}, given {p['variant']}"
        lines.append(f"{p['task']}, {ruler(p['metric'], p['filter'])}. {name}: {_score(pd.Series(p))}.")
    return lines


def _score(point: pd.Series) -> str:
    interval = "" if pd.isna(point["low"]) else f" ({point['low']:.3g} to {point['high']:.3g})"
    return f"{point['score']:.3g}{interval}"


def cautions(frame: pd.DataFrame) -> list[str]:
    """What of the data is to be known before a score of `harness.store.load`'s table is believed."""
    lines = []
    for task, rows in frame[frame["items_in_training"] > 0].groupby("task", sort=True):
        most = rows.sort_values("items_in_training").iloc[-1]
        lines.append(
            f"Up to {most['items_in_training']:.0f} of the {most['n_items']:.0f} items of {task} stand word for word "
            f"among the examples of a cell ({most['data']}, {most['size']:,} examples)."
        )
    edges = frame[frame["lr_at_edge"].eq(True)]
    for key, rows in edges.groupby(["base", "data", "method", "variant"], sort=True):
        sizes = names([f"{size:,}" for size in sorted(rows["size"].unique())])
        lines.append(
            f"{' '.join(filter(None, map(str, key)))}: the best learning rate stands at the edge of the grid with "
            f"{sizes} examples; a wider grid may hold a better one."
        )
    for data, rows in frame[frame["copies"] > 0].groupby("data", sort=True):
        most = rows.sort_values("copies").iloc[-1]
        lines.append(f"{data}: up to {most['copies']:.0f} of {most['size']:,} examples repeat another one.")
    return lines


def size_in_words(table: pd.DataFrame) -> str:
    """``2 bases · 6 sizes, 10 to 10k examples · 3 seeds · tasks facts and sums``."""
    lines = table[has_sizes(table)]
    if lines.empty:
        return "base models only" if len(table) else "no scores"
    sizes = sorted(lines["size"].unique())
    few, many = lines["n_seeds"].min(), lines["n_seeds"].max()
    span = f"{brief(sizes[0])} to {brief(sizes[-1])} examples"
    parts = [
        count(table["base"].nunique(), "base model"),
        f"{len(sizes)} sizes, {span}" if len(sizes) > 1 else f"{sizes[0]:,} examples",
        count(many, "seed") if few == many else f"{few} to {many} seeds",
        ("task " if table["task"].nunique() == 1 else "tasks ") + names(sorted(table["task"].unique())),
    ]
    return " · ".join(parts)


def count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
