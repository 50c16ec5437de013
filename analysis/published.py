"""What was published, beside what was measured: within its tolerance or not, and under which protocol each.

`published.csv` holds the values, a row each, with the protocol as far as it was stated and how the value is known:
`provenance` is text, table, figure (read off) or fit (computed from published coefficients), `source` says whether the
paper, card or repository itself was read (primary) or notes by others about it (secondary), and `tolerance`, in the
value's unit, is how well the number itself is known: its rounding, the reading's error, or how far a fit is known to
miss. `published_names.csv` says which of our names stands for which of theirs; where ``same`` is no, it is a stand-in,
and that is told at every point. A base, data or task whose name is theirs but for case and hyphens needs no line there.
"""

import csv
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

HERE = Path(__file__).parent
KINDS = {"sft": "sft", "sft_full": "sft"}  # LoRA or all weights is a matter of protocol; other methods are themselves
PROTOCOL = ("weights", "epochs", "lr", "decay", "batch_size", "template", "shots", "temperature", "judge")
NEAR = 0.1  # sizes that differ by no more are compared, and the difference told


@dataclass(frozen=True)
class Pair:
    """A published value and the point of ours that is its counterpart; scores in our unit."""

    theirs: dict[str, str]
    ours: dict[str, Any]
    value: float
    tolerance: float
    their_gain: float  # over the base's own score in the same paper; NaN where it is not there
    our_gain: float
    differs: list[str]

    @property
    def within(self) -> bool:
        """Whether our interval, or where there is none our score, meets the value within its tolerance."""
        low, high = (self.ours[c] if not math.isnan(self.ours[c]) else self.ours["score"] for c in ("low", "high"))
        return bool(low <= self.value + self.tolerance and high >= self.value - self.tolerance)


@dataclass(frozen=True)
class Comparison:
    """As the page shows it."""

    title: str
    summary: str
    reading: str
    pairs: list[Pair]

    @property
    def points(self) -> list[dict[str, Any]]:
        """Text cells of each pair."""
        return [
            {
                **{column: pair.ours[column] for column in ("task", "base", "data")},
                "size": f"{pair.ours['size']:,}",
                "theirs": f"{pair.value:.3g}" + (f" ± {pair.tolerance:.2g}" if pair.tolerance else ""),
                "ours": f"{pair.ours['score']:.3f}",
                "interval": _interval(pair.ours),
                "within": pair.within,
                "their_gain": "" if math.isnan(pair.their_gain) else f"{pair.their_gain:+.3g}",
                "our_gain": "" if math.isnan(pair.our_gain) else f"{pair.our_gain:+.3f}",
                "known": pair.theirs["provenance"],
                "differs": "; ".join(d for d in pair.differs if d not in self.throughout),
            }
            for pair in self.pairs
        ]

    @property
    def throughout(self) -> list[str]:
        """What differs at every point alike, where there are several."""
        first = self.pairs[0].differs if self.pairs else []
        shared = [told for told in first if all(told in pair.differs for pair in self.pairs)]
        return shared if len(self.pairs) > 1 else []

    @property
    def gains(self) -> bool:
        """Whether theirs are known anywhere."""
        return any(not math.isnan(pair.their_gain) for pair in self.pairs)

    def marks(self) -> list[dict[str, Any]]:
        """Where the published values stand in the figures."""
        return [
            {
                **{column: pair.ours[column] for column in ("task", "base", "data")},
                "size": int(pair.theirs["size"] or 0),
                "score": pair.value,
                "reach": pair.tolerance,
                "text": f"published ({pair.theirs['provenance']}): {pair.value:.3g}, {pair.theirs['base']}, "
                f"{pair.theirs['size']} of {pair.theirs['data']}",
            }
            for pair in self.pairs
            if int(pair.theirs["size"] or 0) > 0
        ]

    def lines(self) -> list[str]:
        """The same for a terminal, a line a point."""
        return [
            f"{'within ' if p['within'] else 'outside'}  {p['task']} {p['base']} on {p['data']}, {p['size']} examples: "
            f"theirs {p['theirs']} ({p['known']}), ours {p['ours']} ({p['interval']})"
            + (f"; gains {p['their_gain']} and {p['our_gain']}" if p["their_gain"] and p["our_gain"] else "")
            + (f". Differs: {p['differs']}" if p["differs"] else "")
            for p in self.points
        ] + ([f"Throughout: {'; '.join(self.throughout)}"] if self.throughout else [])


@functools.cache
def values() -> tuple[dict[str, str], ...]:
    with (HERE / "published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


@functools.cache
def stand_ins() -> dict[tuple[str, str, str], bool]:
    """(kind, theirs, ours) -> whether the two are the same thing."""
    with (HERE / "published_names.csv").open(encoding="utf-8", newline="") as file:
        return {(r["kind"], r["published"], r["ours"]): r["same"] == "yes" for r in csv.DictReader(file)}


def papers() -> list[str]:
    """The short names there are."""
    return list(dict.fromkeys(row["paper"] for row in values()))


def compare(
    paper: str, points: Iterable[Mapping[Any, Any]], protocol: Callable[[Mapping[str, Any]], Mapping[str, str]]
) -> Comparison:
    """The points (rows of `analysis.points`, as dicts) that have a counterpart in `paper`, each beside it.

    `protocol` gives that of one point. Raises HarnessError where the paper is not known.
    """
    rows = [row for row in values() if row["paper"] == paper]
    if not rows:
        raise HarnessError(f"nothing published is known as {paper!r}; there are {', '.join(papers())}")
    mine: list[dict[str, Any]] = [dict(p) for p in points if p["headline"]]
    pairs = [_pair(row, p, mine, rows, protocol(p)) for row in rows for p in mine if _counterpart(row, p)]
    where = f" (arXiv {rows[0]['arxiv']})" if rows[0]["arxiv"] else ""
    inside = sum(pair.within for pair in pairs)
    summary = f"{len(pairs)} points have a counterpart: {inside} within its tolerance, {len(pairs) - inside} outside."
    return Comparison(
        title=f"{paper}{where}",
        summary=summary if pairs else _nothing(rows, mine),
        reading="Within: our 95% interval meets the published value within its tolerance, so a wide interval is easily "
        "within. Protocol moves scores more than most methods do; gains over the own base compare better than scores. "
        + _sources(rows),
        pairs=pairs,
    )


def _counterpart(row: dict[str, str], point: Mapping[str, Any]) -> bool:
    if row["unit"] not in ("percent", "nats", "BLEU") or not row["base"] or not row["task"] or row["size"] == "":
        return False
    size, ours = int(row["size"]), int(point["size"])
    return (
        row["method"] == KINDS.get(point["method"], point["method"])
        and abs(size - ours) <= NEAR * size
        and _same("task", row["task"], point["task"]) is not None
        and _same("base", row["base"], point["base"]) is not None
        and (size == 0 or _same("data", row["data"], point["data"]) is not None)
        and row["metric"] in ("accuracy", "pass@1", "negative log-likelihood", "BLEU")
    )


def _same(kind: str, theirs: str, ours: str) -> bool | None:
    """Whether two names mean the same, or one stands in for the other (False), or neither (None)."""
    if re.sub(r"[^a-z0-9.+]", "", theirs.lower()) == re.sub(r"[^a-z0-9.+]", "", ours.lower()):
        return True
    return stand_ins().get((kind, theirs, ours))


def _pair(
    row: dict[str, str], point: dict[str, Any], mine: list[dict[str, Any]], rows: list[dict[str, str]],
    protocol: Mapping[str, str],
) -> Pair:  # fmt: skip
    unit = 100.0 if row["unit"] == "percent" else 1.0
    base = [r for r in rows if r["method"] == "base" and all(r[c] == row[c] for c in ("base", "task", "metric"))]
    own = [p for p in mine if p["method"] == "base" and all(p[c] == point[c] for c in ("base", "task"))]
    at_zero = row["method"] == "base"
    return Pair(
        theirs=row,
        ours=point,
        value=float(row["value"]) / unit,
        tolerance=float(row["tolerance"] or 0) / unit,
        their_gain=(float(row["value"]) - float(base[0]["value"])) / unit if base and not at_zero else math.nan,
        our_gain=point["score"] - own[0]["score"] if own and not at_zero else math.nan,
        differs=_differences(row, point, protocol),
    )


def _differences(row: dict[str, str], point: Mapping[str, Any], protocol: Mapping[str, str]) -> list[str]:
    """Fields that their side states and ours has otherwise, or does not tell."""
    found = [
        f"{kind}: {row[kind]}, ours {point[kind]}"
        for kind in ("base", "data", "task")
        if row[kind] and _same(kind, row[kind], point[kind]) is False
    ]
    if int(row["size"]) != point["size"]:
        found.append(f"size: {int(row['size']):,}, ours {point['size']:,}")
    for field in PROTOCOL:
        theirs, ours = row[field], protocol.get(field, "")
        if theirs and not _equal(theirs, ours):
            absent = "none" if field == "judge" else "not told"
            found.append(f"{field.replace('_', ' ')}: {theirs}, ours {ours or absent}")
    return found


def _equal(theirs: str, ours: str) -> bool:
    try:
        return math.isclose(float(theirs), float(ours), rel_tol=1e-3)
    except ValueError:
        return theirs == ours


def _nothing(rows: list[dict[str, str]], mine: list[dict[str, Any]]) -> str:
    """Why nothing can be compared: the fields in which no point of ours is like any of theirs."""
    usable = [row for row in rows if row["size"] != "" and row["base"]]
    if not usable:
        return "None of its values is a score at a number of examples."
    lacking = []
    for kind in ("task", "base", "data"):
        theirs = list(dict.fromkeys(row[kind] for row in usable if row[kind]))
        if not any(_same(kind, name, p[kind]) is not None for name in theirs for p in mine):
            lacking.append(f"{kind} is {', '.join(theirs[:6])}{' ...' if len(theirs) > 6 else ''}")
    sizes = ", ".join(f"{n:,}" for n in sorted({int(row["size"]) for row in usable}))
    methods = ", ".join(dict.fromkeys(row["method"] for row in usable))
    there = "; ".join([*lacking, f"method {methods}; sizes {sizes}"])
    return f"No point here has a counterpart. There {there}: name yours so, or add a line to published_names.csv."


def _sources(rows: list[dict[str, str]]) -> str:
    second = sum(row["source"] == "secondary" for row in rows)
    told = {0: "All values were read at the source.", len(rows): "All values are from notes by others about it."}
    return told.get(second, f"{second} of its {len(rows)} values are from notes by others about it.")


def _interval(point: Mapping[str, Any]) -> str:
    return "" if math.isnan(point["low"]) else f"{point['low']:.3f} to {point['high']:.3f}"
